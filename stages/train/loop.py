"""train: from cached rows to a LoRA.

    run
      _prepare       read pairs, look up rows, find the checkpoint; refuse what cannot work
      writer_lock    one process at a time trains in an output_dir
      _take_over     write run.json; make the published files those of the checkpoint
      _Steps.train
        _load, _restore   memory plan, base, LoRA, optimizer; then the checkpoint
        Trainer.step      forward, backward, optimizer step; then a line in metrics.jsonl
        _save             every `checkpoint_step_interval` steps: checkpoint, LoRA, card, page
        Evaluations.at    held-out loss and previews, where they are due

Stopping and resuming need no state but a checkpoint: batches and noise are functions of the step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...cache.files.atomic import sweep_tree
from ...cache.files.lock import writer_lock
from ...config.loading import Configuration
from ..models.device import allow_tf32
from ..models.lora.lora_file import Lora
from ..run_output.data_history import as_of, history_of
from ..run_output.metrics_file import cut_metrics
from ..run_output.page import PAGE_FILE, write_page
from ..run_output.run_file import damage_of_run, write_run
from ..stage import Outcome, Progress
from ..stop_signals import Stopped
from ..stores.moves import keep_id
from ..stores.pins import run_id
from .apply_memory_plan import fit_of, memory_lines
from .data.feed import padding_of
from .evaluation.evaluate import Evaluations, is_evaluation_missing
from .evaluation.previews import Previews
from .interrupt import finish_step_on_signal
from .metrics import Metrics, NullMetrics, peak_memory_bytes, tracker_of
from .model import remarks
from .pin_rows import pin_rows
from .plan.changed_data import refuse_changed_data, resumed
from .plan.training_plan import Plan, make_plan
from .ranks import Ranks, among_others, device_of, refuse_idle_processes
from .results.best import BEST_FOLDER, renew_state
from .results.publish import Publisher, result_of
from .state.checkpoint import read_state, save_checkpoint, step_of
from .state.initial_lora import read_initial_lora
from .trainer import Trainer

STAGE = "train"


def run(
    configuration: Configuration,
    progress: Progress,
    *,
    dry_run: bool = False,
    device: str = "auto",
    decodes: bool = True,
) -> Outcome:
    """Train until the run has all its steps, going on from its newest checkpoint.

    Args:
        decodes: whether pictures of the previews are made in the background.

    Raises:
        NotComplete: rows are missing; the message says which stage makes them.
        AnotherRecipe: `output_dir` holds a run that other settings or pairs decided.
        Locked: another process trains there.
        Stopped: after Ctrl-C, SIGTERM or SIGHUP, once a checkpoint is written.
    """
    started, place = time.monotonic(), device_of(device)
    with among_others(place) as ranks:
        # Prepare: whatever can be refused is refused before the folder is touched.
        plan = _prepare(configuration, progress, ranks)
        begin = resumed(plan)[1]
        start = None if begin else read_initial_lora(plan.settings)
        kept = _steps_made(plan, begin)
        outcome = Outcome(
            STAGE, plan.steps, kept, 0, 0, 0.0, str(result_of(plan.settings)), unit="steps"
        )
        if dry_run:
            return outcome
        previews = None
        if ranks.is_first:
            plan = pin_rows(configuration, plan, progress)
            previews = Previews.open(configuration, resumed(plan)[0], progress, decodes=decodes)
        loss = None
        # Lock: the first process writes for all of them.
        lock = writer_lock(plan.settings.output_dir, doing=STAGE)
        with lock if ranks.is_first else nullcontext():
            begin = ranks.path_of_the_first(lambda: _take_over(plan, progress))
            plan = resumed(plan)[0]
            kept = _steps_made(plan, begin)
            missing = is_evaluation_missing(plan, step_of(begin) if begin else 0)
            missing = missing or bool(previews and previews.due(kept))
            # Steps: none where the run is complete and everything of it was looked at.
            page = partial(write_page, configuration, steps=plan.steps)
            if kept < plan.steps or ranks.any_of(missing):
                steps = _Steps(plan, progress, place, ranks, previews, page)
                loss = steps.train(begin=begin, start=start)
            elif ranks.is_first:
                cut_metrics(plan.settings.output_dir, after_step=step_of(begin) if begin else 0)
                page()
    return replace(
        outcome,
        kept=kept,
        computed=plan.steps - kept,
        seconds=time.monotonic() - started,
        facts={"loss": loss} if kept < plan.steps else {},
        lines=tuple(_result_lines(plan, loss)) if kept < plan.steps else (),
    )


# -- prepare and lock ------------------------------------------------------------------


def _prepare(configuration: Configuration, progress: Progress, ranks: Ranks) -> Plan:
    """Plan the run in every process, the first one first: the others find digests remembered."""

    def planned() -> Plan:
        refuse_changed_data(configuration)
        return make_plan(configuration)

    plan = ranks.in_turn(planned)
    for warning in plan.warnings:
        progress.warn(warning)
    if ranks.are_several:
        refuse_idle_processes(plan.settings, ranks.world)
    return plan


def _result_lines(plan: Plan, loss: float | None) -> Iterator[str]:
    """Yield where the results lie, and a warning where the last step was skipped."""
    ending = "" if loss is None else f", its last loss {loss:.4f}"
    yield f"Trained: {result_of(plan.settings)}{ending}."
    yield f"The run as a page: {plan.settings.output_dir / PAGE_FILE}"
    if loss is None:
        yield (
            "The last step was skipped: its loss or gradient was not finite. Look at the "
            "curve before using this; a lower `learning_rate` may help."
        )


def _take_over(plan: Plan, progress: Progress) -> Path | None:
    """Write run.json and make the published files those of the checkpoint, which is returned."""
    plan, begin = resumed(plan)  # another process may have gone on before this one's turn
    where = plan.settings.output_dir
    sweep_tree(where)
    if damage := damage_of_run(where):
        named = f"{begin.name} says the same" if begin else "there is no checkpoint yet"
        progress.warn(f"{damage} It is written anew: {named}.")
    write_run(where, plan.run)
    keep_id(plan.opened.output_dir, run_id(plan.opened))
    if begin:
        Publisher(plan).publish(begin)
    renew_state(result_of(plan.settings, BEST_FOLDER))
    return begin


def _steps_made(plan: Plan, begin: Path | None) -> int:
    return min(plan.steps, step_of(begin)) if begin else 0


# -- steps -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Steps:
    """Makes the steps of a run: holds what does not change from step to step."""

    plan: Plan
    progress: Progress
    device: torch.device
    ranks: Ranks
    previews: Previews | None
    page: Callable[[], bool]

    def train(self, *, begin: Path | None, start: Lora | None) -> float | None:
        """Make every step after `begin`; return the loss of the last one, None if it was skipped.

        Raises:
            Stopped: after a signal, once the checkpoint of the step is written.
        """
        plan, progress = self.plan, self.progress
        # Set up the model, the log and signals.
        trainer = self._load(start)
        done = self._restore(trainer, begin)
        feed = replace(plan.feed, rank=self.ranks.rank, world=self.ranks.world)
        loss = None
        with (
            self._log(after_step=done if begin else None) as log,
            finish_step_on_signal(progress, several=self.ranks.are_several) as stop,
            progress.bar(plan.steps, STAGE, unit="step", initial=done) as advance,
        ):
            evaluations = Evaluations(plan, trainer, log, previews=self.previews)
            evaluations.at(done, stopping=stop)
            clock = time.perf_counter()
            for step, batches in feed.ahead(range(done + 1, plan.steps + 1)):
                # Make the step and log it.
                waited = time.perf_counter() - clock
                values = trainer.step(step, batches, of_samples=feed.samples_in(step))
                loss = values["loss"]
                log.add(
                    step=step,
                    **values,
                    seconds=round(time.perf_counter() - clock, 4),
                    data_wait_seconds=round(waited, 4),
                    padding=round(padding_of(batches), 4),
                    memory_bytes=peak_memory_bytes(self.device),
                )
                advance(1)
                self._show(values)
                # Save, stop, or evaluate.
                stop.step_seconds = time.perf_counter() - clock
                if stopping := max(self.ranks.gathered(stop.number)):
                    stop.answered.set()
                if stopping or self._is_checkpoint(step):
                    saving = time.perf_counter()
                    self._save(trainer, step)
                    stop.save_seconds = time.perf_counter() - saving
                if stopping and step < plan.steps:
                    self.ranks.of_the_first(True)  # a launcher ends all when one has left
                    if self.previews:
                        self.previews.leave()
                    progress.say(f"Stopped after step {step}. Run `qedit train` again to go on.")
                    raise Stopped(stopping)
                evaluations.at(step, stopping=stop)
                clock = time.perf_counter()
        if self.ranks.is_first:
            Publisher(plan).write_card(plan.steps)  # the last previews are made by now
            self.page()
        return loss

    def _load(self, start: Lora | None) -> Trainer:
        """Say how the run fits into memory, and load everything that a step needs."""
        plan, progress, ranks = self.plan, self.progress, self.ranks
        tf32 = allow_tf32(self.device, allowed=not self.plan.settings.disable_tf32)
        progress.say(f"Training on {self.device}{tf32}{ranks.in_words()}.")
        fit = fit_of(plan, self.device)
        for line in (*remarks(plan), *memory_lines(fit, plan)):
            progress.say(line)
        return Trainer.load(plan, device=self.device, start=start, ranks=ranks, fit=fit)

    def _restore(self, trainer: Trainer, begin: Path | None) -> int:
        """Put the checkpoint back, the same in every process; return how many steps it has."""
        done = 0
        if begin:
            trainer.trained.restore(begin)
            done = step_of(begin)
            others = history_of(self.plan.run)[-1]["from_step"] == done + 1
            with_them = ", with the pairs of now" if others else ""
            self.progress.say(f"Going on from {begin.name}{with_them}.")
            _warn_of_a_moved_end(self.plan, self.progress, before=read_state(begin)["of_steps"])
        self.ranks.same_everywhere(trainer.trained.weights.values())
        return done

    def _show(self, values: Mapping[str, Any]) -> None:
        """Show a step on the progress bar, and say why it was skipped if it was."""
        if why := values.get("skipped"):
            self.progress.warn(f"{why} The step was skipped.")
        loss = values["loss"]
        shown = "none" if loss is None else f"{loss:.4f}"
        self.progress.note(loss=shown, lr=f"{values['lr']:.2g}")

    @contextmanager
    def _log(self, *, after_step: int | None) -> Iterator[Metrics | NullMetrics]:
        """Open the log; the first process alone has one."""
        if not self.ranks.is_first:
            yield NullMetrics()
            return
        settings = self.plan.settings
        tracker = tracker_of(settings, self.plan.run, after_step=after_step)
        try:
            yield Metrics(settings.output_dir, after_step=after_step, tracker=tracker)
        finally:
            if tracker:
                tracker.close()

    def _is_checkpoint(self, step: int) -> bool:
        return step == self.plan.steps or step % self.plan.settings.checkpoint_step_interval == 0

    def _save(self, trainer: Trainer, step: int) -> None:
        """Write the checkpoint of `step`, and publish what it holds."""
        if not self.ranks.is_first:
            return
        settings = self.plan.settings
        checkpoint = save_checkpoint(
            settings.output_dir,
            trainer.trained,
            step=step,
            of_steps=self.plan.steps,
            run=as_of(self.plan.run, step),
            limit=settings.checkpoints_total_limit,
        )
        Publisher(self.plan).publish(checkpoint)
        self.page()


def _warn_of_a_moved_end(plan: Plan, progress: Progress, *, before: int) -> None:
    """Warn where the run has another length than before and its schedule depends on that."""
    schedule = plan.settings.lr_scheduler
    if before != plan.steps and not schedule.startswith(("constant", "piecewise")):
        progress.warn(
            f"The run now ends at step {plan.steps} instead of {before}: from here on the "
            f"learning rate follows the {schedule} schedule of the new length."
        )

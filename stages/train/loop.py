"""train: the story of a run, from cached rows to a LoRA."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ...cache.files.atomic import sweep
from ...cache.files.lock import writer_lock
from ...config.loading import Configuration
from ..models.lora.lora_file import Lora
from ..run_output.page import PAGE_FILE, write_page
from ..run_output.run_file import write_run
from ..stage import Outcome, Progress
from .apply_memory_plan import fit_of, fit_words
from .evaluation.between_steps import Looks, is_owed
from .evaluation.previews import Previews
from .interrupt import patient_interrupt
from .metrics import Metrics, NullMetrics, padding_in, peak_memory_bytes
from .model import remarks
from .pin_rows import keep_rows
from .plan.initial_lora import start_of
from .plan.training_plan import Plan, make_plan
from .ranks import Ranks, among_others, device_of, refuse_idle_processes
from .results.best import BEST_FOLDER
from .results.publish import EMA_FOLDER, publisher_of, result_of
from .state.checkpoint import checkpoint_to_resume, read_state, save_checkpoint, step_of
from .state.run_folder import begun_run
from .state.run_record import refuse_another_run
from .trackers import tracker_of
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
        decodes: whether pictures are made of previews in the background.

    Raises:
        NotComplete: rows are missing; the message says which stage makes them.
        AnotherRecipe: `output_dir` holds a run that other settings or pairs decided.
        Locked: another process trains there.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is written.
    """
    started, place = time.monotonic(), device_of(device)
    with among_others(place) as ranks:
        # the first process first: the others find what it looks up remembered
        plan = ranks.in_turn(lambda: make_plan(configuration))
        for warning in plan.warnings:
            progress.warn(warning)
        if ranks.are_several:
            refuse_idle_processes(plan.settings, ranks.world)
        where = plan.settings.output_dir
        begin = _where_to_begin(plan)
        start = None if begin else start_of(plan.settings)
        kept = min(plan.steps, step_of(begin) if begin else 0)
        outcome = Outcome(
            STAGE, plan.steps, kept, 0, 0, 0.0, str(result_of(plan.settings)), unit="steps"
        )
        if dry_run:
            return outcome
        previews = None
        if ranks.is_first:
            plan = keep_rows(configuration, plan, progress)
            previews = Previews.open(configuration, plan, progress, decodes=decodes)
        loss = None
        with writer_lock(where, doing=STAGE) if ranks.is_first else nullcontext():
            begin = ranks.path_of_the_first(lambda: _begin_anew(plan))
            done = step_of(begin) if begin else 0
            kept = min(plan.steps, done)
            owed = is_owed(plan, done) or bool(previews and previews.due(kept))
            if kept < plan.steps or ranks.any_of(owed):
                page = partial(write_page, configuration, steps=plan.steps)
                run_of = _Run(plan, progress, place, ranks, previews, page)
                loss = run_of.train(begin=begin, start=start)
    return replace(
        outcome,
        kept=kept,
        computed=plan.steps - kept,
        seconds=time.monotonic() - started,
        facts={"loss": loss} if kept < plan.steps else {},
        lines=tuple(_what_there_is(plan, loss)) if kept < plan.steps else (),
    )


def _what_there_is(plan: Plan, loss: float | None) -> Iterator[str]:
    """Where the result of a run lies, a line each; a broken end is said."""
    ending = "" if loss is None else f", its last loss {loss:.4f}"
    yield f"Trained: {result_of(plan.settings)}{ending}."
    yield f"The run as a page: {plan.settings.output_dir / PAGE_FILE}"
    if loss is None:
        yield (
            "The last step was skipped: its loss or gradient was no finite number. Look at the "
            "curve before using this; a lower `learning_rate` may help."
        )


def _begin_anew(plan: Plan) -> Path | None:
    """Take hold of the folder: say whose it is, and bring its files up to its checkpoint."""
    begin = _where_to_begin(plan)  # another process may have gone on before this one's turn
    where = plan.settings.output_dir
    for folder in (where / EMA_FOLDER, where / BEST_FOLDER):
        sweep(folder)
    write_run(where, plan.run)
    if begin:
        publisher_of(plan).publish(begin)
    return begin


def _where_to_begin(plan: Plan) -> Path | None:
    """The checkpoint to go on from, if this run has one; refuses a folder of another run."""
    where = plan.settings.output_dir
    if (there := begun_run(where)) is not None:
        refuse_another_run(there, plan.run, where=where)
    begin = checkpoint_to_resume(where, plan.settings.resume_from_checkpoint)
    if begin is not None:
        refuse_another_run(read_state(begin)["run"], plan.run, where=begin)
    return begin


class _Run:
    """A run that goes on: what does not change from step to step, and the story of the steps."""

    def __init__(
        self,
        plan: Plan,
        progress: Progress,
        device: torch.device,
        ranks: Ranks,
        previews: Previews | None,
        page: Callable[[], bool],
    ) -> None:
        self.plan, self.progress, self.device = plan, progress, device
        self.ranks, self.previews, self.page = ranks, previews, page

    def train(self, *, begin: Path | None, start: Lora | None) -> float | None:
        """Make every step after `begin`, with its checkpoints; the last step's loss."""
        plan, progress, ranks = self.plan, self.progress, self.ranks
        progress.say(f"Training on {self.device}{ranks.in_words()}.")
        for remark in remarks(plan):
            progress.say(remark)
        fit = fit_of(plan, self.device)
        for line in fit_words(fit, plan):
            progress.say(line)
        trainer = Trainer.load(plan, device=self.device, start=start, ranks=ranks, fit=fit)
        done = self._go_on(trainer, begin)
        feed = replace(plan.feed, rank=ranks.rank, world=ranks.world)
        loss = None
        with (
            self._log(after_step=done if begin else None) as log,
            patient_interrupt(progress, echoed=ranks.are_several) as stop_wanted,
            progress.bar(plan.steps, STAGE, unit="step", initial=done) as advance,
        ):
            looks = Looks(plan, trainer, log, previews=self.previews)
            looks.at(done, stopping=stop_wanted)
            clock = time.perf_counter()
            for step, batches in feed.ahead(range(done + 1, plan.steps + 1)):
                waited = time.perf_counter() - clock
                facts = trainer.step(step, batches, of_samples=feed.samples_in(step))
                loss = facts["loss"]
                log.add(
                    step=step,
                    **facts,
                    seconds=round(time.perf_counter() - clock, 4),
                    data_wait_seconds=round(waited, 4),
                    padding=padding_in(batches),
                    memory_bytes=peak_memory_bytes(self.device),
                )
                advance(1)
                if why := facts.get("skipped"):
                    progress.warn(f"{why} The step was skipped.")
                shown = "none" if loss is None else f"{loss:.4f}"
                progress.note(loss=shown, lr=f"{facts['lr']:.2g}")
                stopping = ranks.any_of(stop_wanted())
                if stopping or self._is_checkpoint(step):
                    self._save(trainer, step)
                if stopping and step < plan.steps:
                    progress.say(f"Stopped after step {step}. Run `qedit train` again to go on.")
                    raise KeyboardInterrupt
                looks.at(step, stopping=stop_wanted)
                clock = time.perf_counter()
        if ranks.is_first:
            publisher_of(plan).write_card(plan.steps)  # the last previews are made by now
            self.page()
        return loss

    def _go_on(self, trainer: Trainer, begin: Path | None) -> int:
        """Have the trainer be where `begin` was, in every process; the steps made there."""
        done = 0
        if begin:
            trainer.trained.restore(begin)
            done = step_of(begin)
            self.progress.say(f"Going on from {begin.name}.")
            _warn_of_a_moved_end(self.plan, self.progress, before=read_state(begin)["of_steps"])
        self.ranks.same_everywhere(trainer.trained.weights.values())
        return done

    @contextmanager
    def _log(self, *, after_step: int | None) -> Iterator[Metrics | NullMetrics]:
        """Where numbers go: the first process alone has a log."""
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
        if not self.ranks.is_first:
            return
        settings = self.plan.settings
        checkpoint = save_checkpoint(
            settings.output_dir,
            trainer.trained,
            step=step,
            of_steps=self.plan.steps,
            run=self.plan.run,
            limit=settings.checkpoints_total_limit,
        )
        publisher_of(self.plan).publish(checkpoint)
        self.page()


def _warn_of_a_moved_end(plan: Plan, progress: Progress, *, before: int) -> None:
    """A decaying schedule depends on where it ends; a constant one does not."""
    schedule = plan.settings.lr_scheduler
    if before != plan.steps and not schedule.startswith(("constant", "piecewise")):
        progress.warn(
            f"The run now ends at step {plan.steps} instead of {before}: from here on the "
            f"learning rate follows the {schedule} schedule of the new length."
        )

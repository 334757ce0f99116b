"""train: the story of a run, from cached rows to a LoRA."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ...cache.atomic import write_json
from ...cache.lock import writer_lock
from ...config.loading import Configuration
from ..models.device import best_device
from ..models.lora_file import LORA_FILE, Lora
from ..stage import Outcome, Progress
from .checkpoint import (
    checkpoint_to_resume,
    checkpoints,
    read_state,
    save_checkpoint,
    step_of,
    strangers,
)
from .feed import Batch
from .interrupt import patient_interrupt
from .metrics import Metrics
from .plan import Plan, make_plan
from .previews import Previews
from .publish import publisher_of
from .record import RUN_FILE, read_run, refuse_another_run, refuse_strangers
from .start import start_of
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
    started = time.monotonic()
    plan = make_plan(configuration)
    where = plan.settings.output_dir
    begin = _where_to_begin(plan)
    start = None if begin else start_of(plan.settings)
    kept = min(plan.steps, step_of(begin) if begin else 0)
    outcome = Outcome(STAGE, plan.steps, kept, 0, 0, 0.0, str(where / LORA_FILE), unit="steps")
    if dry_run:
        return outcome
    previews = Previews.open(configuration, plan, progress, decodes=decodes)
    with writer_lock(where, doing=STAGE):
        begin = _where_to_begin(plan)  # another process may have gone on before this one's turn
        kept = min(plan.steps, step_of(begin) if begin else 0)
        write_json(where / RUN_FILE, plan.run)
        if begin:
            publisher_of(plan).publish(begin)
        facts = {}
        if kept < plan.steps or (previews and previews.due(kept)):
            loss = _train(
                plan,
                progress,
                begin=begin,
                start=start,
                device=best_device(device),
                previews=previews,
            )
            facts = {"loss": loss} if kept < plan.steps else {}
    return Outcome(
        stage=STAGE,
        wanted=plan.steps,
        kept=kept,
        computed=plan.steps - kept,
        failed=0,
        seconds=time.monotonic() - started,
        where=str(where / LORA_FILE),
        unit="steps",
        facts=facts,
    )


def _where_to_begin(plan: Plan) -> Path | None:
    """The checkpoint to go on from, if this run has one; refuses a folder of another run."""
    where = plan.settings.output_dir
    there = read_run(where)
    foreign = strangers(where)
    if there is None and not checkpoints(where) and (where / LORA_FILE).exists():
        foreign.append(where / LORA_FILE)
    if foreign:
        refuse_strangers(foreign, where=where)
    # a run that came to nothing (out of memory, say) may be begun again with other settings
    if there is not None and (checkpoints(where) or (where / LORA_FILE).exists()):
        refuse_another_run(there, plan.run, where=where)
    begin = checkpoint_to_resume(where, plan.settings.resume_from_checkpoint)
    if begin is not None:
        refuse_another_run(read_state(begin)["run"], plan.run, where=begin)
    return begin


def _train(
    plan: Plan,
    progress: Progress,
    *,
    begin: Path | None,
    start: Lora | None,
    device: torch.device,
    previews: Previews | None,
) -> float:
    """Make every step after `begin`, with its checkpoints; the last step's loss."""
    settings, where = plan.settings, plan.settings.output_dir
    progress.say(f"Training on {device}.")
    trainer = Trainer.load(plan, device=device, start=start)
    done = 0
    if begin:
        trainer.trained.restore(begin)
        done = step_of(begin)
        progress.say(f"Going on from {begin.name}.")
        _warn_of_a_moved_end(plan, progress, before=read_state(begin)["of_steps"])
    metrics = Metrics(where, after_step=done)
    publisher = publisher_of(plan)
    loss = float("nan")
    with (
        patient_interrupt(progress) as stop_wanted,
        progress.bar(plan.steps, STAGE, unit="step", initial=done) as advance,
    ):
        if previews and previews.due(done):
            previews.make(trainer, done, stopping=stop_wanted)
        began = time.perf_counter()
        for step, batches in plan.feed.ahead(range(done + 1, plan.steps + 1)):
            facts = trainer.step(step, batches)
            loss = facts["loss"]
            now = time.perf_counter()
            metrics.add(step=step, **facts, **_about(batches), seconds=round(now - began, 4))
            began = now
            advance(1)
            progress.note(loss=f"{loss:.4f}", lr=f"{facts['lr']:.2g}")
            stopping = stop_wanted()
            if stopping or step == plan.steps or step % settings.checkpoint_step_interval == 0:
                publisher.publish(_save(plan, trainer, step=step))
            if previews and not stopping and previews.due(step):
                previews.make(trainer, step, stopping=stop_wanted)
                began = time.perf_counter()
            if stopping and step < plan.steps:
                progress.say(f"Stopped after step {step}. Run `qedit train` again to go on.")
                raise KeyboardInterrupt
    return loss


def _warn_of_a_moved_end(plan: Plan, progress: Progress, *, before: int) -> None:
    """A decaying schedule depends on where it ends; a constant one does not."""
    schedule = plan.settings.lr_scheduler
    if before != plan.steps and not schedule.startswith(("constant", "piecewise")):
        progress.warn(
            f"The run now ends at step {plan.steps} instead of {before}: from here on the "
            f"learning rate follows the {schedule} schedule of the new length."
        )


def _save(plan: Plan, trainer: Trainer, *, step: int) -> Path:
    settings = plan.settings
    return save_checkpoint(
        settings.output_dir,
        trainer.trained,
        step=step,
        of_steps=plan.steps,
        run=plan.run,
        limit=settings.checkpoints_total_limit,
    )


def _about(batches: Sequence[Batch]) -> dict[str, float]:
    """What the log says of a step's samples."""
    sigma = torch.cat([batch.sigma for batch in batches])
    return {"sigma": float(sigma.mean()), "samples": len(sigma)}

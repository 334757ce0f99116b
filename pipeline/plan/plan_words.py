"""A plan in words for the terminal, and as one JSON object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..terminal.output import duration, size
from .planning import USUAL_FLOPS, Fit, Plan

_PARTS = {
    "weights": "frozen base",
    "lora": "trained weights",
    "optimizer": "optimizer",
    "gradients": "gradients",
    "activations": "saved activations",
    "block": "peak inside one block",
    "ends": "latents, embeds, loss",
    "context": "driver",
}


def plan_lines(plan: Plan) -> Iterator[str]:
    """Yield the lines of `qedit plan`."""
    for name, count in plan.pairs.items():
        yield f"{'pairs':18} {count} of {name}, from {plan.found_by}"
    if plan.rejected:
        yield f"{'':18} {plan.rejected} more would be rejected (`qedit pair` says why)"
    yield from _disk_lines(plan)
    target, *references = (f"{width}x{height}" for width, height in plan.load.pictures)
    yield (
        f"{'largest forward':18} {plan.sample}: target {target}, references "
        f"{', '.join(references)}, about {plan.load.text_tokens} text tokens, "
        f"batch {plan.load.batch_size}"
    )
    yield f"{'device memory':18} {size(plan.memory.total)} as the settings stand"
    for name, count_bytes in plan.memory.as_dict().items():
        if name in _PARTS:
            yield f"  {_PARTS[name]:22} {size(count_bytes):>9}"
    yield f"{'ways to fit':18} (each with what the one above it saves)"
    for fit in plan.fits:
        yield _fit_line(fit, plan)
    if plan.optimizer_saves_bytes:
        saved = size(plan.optimizer_saves_bytes)
        yield f"{'':18} --set optimizer=adamw-8bit would save {saved} more; losses are other ones"
    if plan.limit_bytes is not None and plan.budget_bytes is not None:
        yield _choice(plan, plan.limit_bytes, plan.budget_bytes)
    if plan.training:
        yield f"{'':18} there, {plan.training}"
    yield from _time_lines(plan)


def _disk_lines(plan: Plan) -> Iterator[str]:
    for kind in plan.disk.kinds:
        there = f", {size(kind.there_bytes)} there" if kind.there_bytes else ""
        yield f"{kind.what:18} {kind.count:>7}  {size(kind.count_bytes):>9}{there}"
    yield f"{'on disk':18} {size(plan.disk.total_bytes)} in all"
    for folder, wanted, free in plan.disk.room:
        verdict = "does not fit" if wanted > free else "fits"
        yield f"{'':18} {size(wanted)} to come at {folder}, {size(free)} free: {verdict}"


def _fit_line(fit: Fit, plan: Plan) -> str:
    mark = "*" if fit is plan.chosen else " "
    return f"{mark} {fit.rung.name:22} {size(fit.memory.total):>9}  {fit.rung.costs}"


def _choice(plan: Plan, limit_bytes: int, budget_bytes: int) -> str:
    limit = f"{'for ' + size(limit_bytes):18}"
    by_memory = limit_bytes != plan.vram_bytes
    if plan.chosen is None:
        remedies = ["lower `resolution`", "use fewer references"]
        if plan.load.batch_size > 1:
            remedies.insert(0, "lower `train_batch_size`")
        if by_memory:
            remedies.insert(0, "raise `memory`")
        *most, last = remedies
        return f"{limit} nothing fits: {', '.join(most)} or {last}"
    settings = plan.chosen.rung.settings
    words = " ".join(f"--set {key}={value}" for key, value in settings.items()) or "no setting"
    room = size(budget_bytes - plan.chosen.memory.total)
    of = " of `memory`" if by_memory else ""
    return f"{limit} {plan.chosen.rung.name}: {words} ({room}{of} to spare)"


def _time_lines(plan: Plan) -> Iterator[str]:
    work = f"{plan.flops / 1e15:.2g} PFLOP a step"
    if plan.step_seconds is not None:
        whole = duration(plan.step_seconds * plan.steps)
        step = duration(plan.step_seconds)
        yield f"{'time':18} {plan.steps} steps of {step} (measured here): {whole}"
    else:
        guess = duration(plan.flops / USUAL_FLOPS)
        yield (
            f"{'time':18} unknown, nothing was measured here yet; {plan.steps} steps of {work}, "
            f"at {USUAL_FLOPS / 1e12:.0f} TFLOP/s {guess} each"
        )


def plan_object(plan: Plan) -> dict[str, Any]:
    """Return the object of `qedit plan --json`."""
    return {
        "stage": "plan",
        "pairs": plan.pairs,
        "rejected": plan.rejected,
        "found_by": plan.found_by,
        "disk": {
            "results": [
                {
                    "what": kind.what,
                    "count": kind.count,
                    "bytes": kind.count_bytes,
                    "there_bytes": kind.there_bytes,
                    "where": str(kind.parts[0].folder),
                }
                for kind in plan.disk.kinds
            ],
            "bytes": plan.disk.total_bytes,
            "room": [
                {"where": str(folder), "wanted_bytes": wanted, "free_bytes": free}
                for folder, wanted, free in plan.disk.room
            ],
        },
        "largest": {
            "sample": plan.sample,
            "pictures": [list(size) for size in plan.load.pictures],
            "text_tokens": plan.load.text_tokens,
            "batch_size": plan.load.batch_size,
        },
        "memory": plan.memory.as_dict(),
        "ways": [fit.as_object() for fit in plan.fits],
        "adamw_8bit_saves_bytes": plan.optimizer_saves_bytes,
        "vram_bytes": plan.vram_bytes,
        "limit_bytes": plan.limit_bytes,
        "chosen": plan.chosen.as_object() if plan.chosen else None,
        "training": plan.training,
        "steps": plan.steps,
        "flops_a_step": plan.flops,
        "seconds_a_step": plan.step_seconds,
    }

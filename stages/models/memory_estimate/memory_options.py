"""Memory options: ways to fit a run into less and less memory, each with its cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..layers import trains_modulation
from .dimensions import Dimensions
from .memory import Way


@dataclass(frozen=True)
class Rung:
    """One way to fit a run, the settings that choose it, and what it costs in words."""

    name: str
    way: Way
    settings: Mapping[str, object]
    costs: str


def ladder(sizes: Dimensions, way: Way, *, streamed: int | None = None) -> list[Rung]:
    """Return the rungs, most memory first; each keeps the savings of the one before it.

    A LoRA on the modulation, or a forward in float32, leaves the table out.

    Args:
        streamed: so many blocks are streamed on every rung, and no more.
    """
    always = streamed or 0
    plain = replace(way, precision="no_change", table=False, offload=False, streamed=always)
    name = "bf16" if way.number_bytes == 2 else "fp32"
    rungs = [Rung(name, plain, {"base_model_precision": "no_change"}, "nothing")]
    smaller = plain
    if may_use_table(way):
        smaller = replace(plain, table=True)
        costs = "5.7 GB of disk at full scale, made once; the losses are equal to the bit"
        rungs.append(Rung("modulation table", smaller, {}, costs))
    for name, precision, error in (("int8", "int8-quanto", "0.3"), ("4 bit", "int4-quanto", "0.6")):
        smaller = replace(smaller, precision=precision)
        costs = f"the base's outputs are about {error} % off, and a step is slower"
        rungs.append(Rung(name, smaller, {"base_model_precision": precision}, costs))
    settings = {"base_model_precision": smaller.precision}
    smaller = replace(smaller, checkpointing=True, offload=True)
    costs = "the inputs of all blocks cross the bus twice a step; train does it where it must"
    rungs.append(Rung("offloaded checkpoints", smaller, settings, costs))
    if streamed is not None:
        return rungs
    smaller = replace(smaller, streamed=sizes.blocks)
    costs = "weights cross the bus twice a step, as few as must; train does it where it must"
    rungs.append(Rung("streamed blocks", smaller, settings, costs))
    return rungs


def may_use_table(way: Way) -> bool:
    """Return whether modulation depends on the timestep alone, which has few values in bf16."""
    return way.number_bytes == 2 and not trains_modulation(way.targets)

"""The choice of the least costly way in which a training step fits into the memory.

Every way gives the same losses and gradients; they differ in speed alone, so none of it is
part of what decides a run. Arithmetic alone: `qedit plan` says with it what `train` will do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ....cache.errors import WrongUse
from ..layers import trains_modulation
from .dimensions import Dimensions
from .memory import Load, Way, memory_of, saved_bytes

GIGABYTE = 1_000_000_000
# What the allocator cannot use between the tensors, as a share of the memory.
FRAGMENTS = 0.04
_LOG_SUM_BYTES = 4  # of each head and token, kept with attention's output


@dataclass(frozen=True)
class Recomputation:
    """The activations that a forward saves for its backward.

    Attributes:
        kept: how many blocks keep all their activations: the last ones, whose live shortest.
        attention: how many of the blocks before those keep what attention gave: 52 MB a block at
            full scale and one reference of 1 MP, and two fifths less to compute again.
        inputs_to_host: keep the inputs of the recomputed blocks in host memory.
    """

    kept: int = 0
    attention: int = 0
    inputs_to_host: bool = False


@dataclass(frozen=True)
class Fit:
    """The activations that a forward saves, and the weights that stay in host RAM.

    Attributes:
        recomputation: None where every block keeps its activations, as without checkpointing.
        streamed: how many blocks keep their frozen weights in host memory.
        needs_bytes: what a step is estimated to take of the device; 0 where nobody asked.
        of_bytes: what there was.
        instead_bytes: what the next less costly way would have taken; 0: there is none.
    """

    recomputation: Recomputation | None
    streamed: int = 0
    needs_bytes: int = 0
    of_bytes: int = 0
    instead_bytes: int = 0

    def reason(self) -> str:
        """Return why this fit was chosen: what it takes, and why no less costly one fits."""
        takes = f"about {self.needs_bytes / GIGABYTE:.1f} of {self.of_bytes / GIGABYTE:.1f} GB"
        if not self.instead_bytes:
            return takes
        return f"{takes} (a faster way would take {self.instead_bytes / GIGABYTE:.1f})"

    def words(self, *, blocks: int) -> str:
        """Return a description of the fit for people."""
        how, words = self.recomputation, []
        if how is None:
            words.append("no block is computed again in the backward")
        else:
            again = blocks - how.kept
            aside = f"the attention of {how.attention} of them"
            if how.attention >= again:
                aside = "their attention"
            words.append(
                f"{again} of {blocks} blocks are computed again in the backward"
                + (f", {aside} aside" if how.attention else "")
            )
            if how.inputs_to_host:
                words.append("their inputs are in host RAM")
        if self.streamed:
            streamed = min(self.streamed, blocks)  # more may be asked for than there are
            count = "1 block" if streamed == 1 else f"{streamed} blocks"
            words.append(f"the weights of {count} are in host RAM")
        return "; ".join(words)


def budget_of(device_bytes: int | float) -> int:
    """Return how much of the device memory a step's estimate may fill, context included."""
    return round((1 - FRAGMENTS) * device_bytes)


def fit_into(
    budget_bytes: int,
    sizes: Dimensions,
    load: Load,
    way: Way,
    *,
    streamed: int | None = None,
) -> Fit:
    """Return the least costly fit into `budget_bytes` of device memory, context included.

    In this order: nothing is computed again; the attention's output is kept and as many blocks
    as fit; no block is kept, and attention's output in as many as fit; the blocks' inputs go to
    the host, which makes room for that of others; as few blocks as needed are streamed.

    Args:
        streamed: so many blocks are streamed in any case, and no more.

    Raises:
        WrongUse: even the smallest way does not fit.
    """
    smallest = 0
    for fit in _fits(sizes, streamed=streamed):
        needs = needed_bytes(fit, sizes, load, way)
        if needs <= budget_bytes:
            return replace(fit, needs_bytes=needs, of_bytes=budget_bytes, instead_bytes=smallest)
        smallest = needs
    raise WrongUse(
        f"A step takes about {smallest / GIGABYTE:.1f} GB of device memory in the smallest way, "
        f"and there are {budget_bytes / GIGABYTE:.1f} GB.",
        "Make the base smaller with `base_model_precision`, or lower `train_batch_size` or "
        "`resolution`: `qedit plan --vram N` shows what fits into N GB.",
    )


def needed_bytes(fit: Fit, sizes: Dimensions, load: Load, way: Way) -> int:
    """Return the device bytes that a step takes with this fit."""
    how = fit.recomputation
    way = replace(
        way,
        streamed=fit.streamed,
        checkpointing=how is not None,
        offload=how is not None and how.inputs_to_host,
    )
    needs = memory_of(sizes, load, way).total
    if how is None:
        return needs
    # the backward begins with a kept block, which is the one at work and counted by now; where
    # there is none, the first that is computed again has what its attention gave among the rest
    needs += max(0, how.kept - 1) * saved_bytes(sizes, load, way)
    seen = min(how.attention, sizes.blocks - how.kept) - (how.kept == 0)
    return needs + max(0, seen) * attention_bytes(sizes, load, way)


def attention_bytes(sizes: Dimensions, load: Load, way: Way) -> int:
    """Return the bytes of attention's results in one block: output and log-sum-exp."""
    tokens = load.batch_size * (load.image_tokens + load.text_tokens)
    return tokens * (way.number_bytes * sizes.width + _LOG_SUM_BYTES * sizes.heads)


def _fits(sizes: Dimensions, *, streamed: int | None) -> Iterator[Fit]:
    """Yield every fit, the least costly first."""
    always = streamed or 0
    if not always:
        yield Fit(None)
    # a block that is not computed again holds its weights until its backward
    for kept in range(0 if always else sizes.blocks - 1, -1, -1):
        yield Fit(Recomputation(kept=kept, attention=sizes.blocks - kept), streamed=always)
    for attention in range(sizes.blocks - 1, -1, -1):
        yield Fit(Recomputation(attention=attention), streamed=always)
    for attention in range(sizes.blocks, -1, -1):
        yield Fit(Recomputation(attention=attention, inputs_to_host=True), streamed=always)
    most = sizes.blocks if streamed is None else streamed
    for number in range(always + 1, most + 1):
        yield Fit(Recomputation(inputs_to_host=True), streamed=number)


# -- the ways that `qedit plan` lists ----------------------------------------------------


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
    # modulation depends on the timestep alone, which has few values in bfloat16
    if way.number_bytes == 2 and not trains_modulation(way.targets):
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

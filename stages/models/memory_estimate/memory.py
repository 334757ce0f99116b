"""Device memory that training takes, part by part, by arithmetic alone.

`Dimensions` say how large the model is, a `Load` says what one forward is given, and a `Way`
says how the run is fitted in. All results are bytes. The formulas count what autograd keeps of
diffusers' QwenImageTransformerBlock with a float32 LoRA of PEFT on a frozen base; they are held
against counted memory in tests/stages/models/memory_estimate/test_memory.py. In them `c` is the
width of a number in the forward (2 for bfloat16, 4 for float32) and everything is per token and
per unit of model width.

What a block keeps of an image token, with the LoRA on to_q, to_k, to_v and to_out.0:

    float32 copies of what each LoRA layer is given   4 x its inputs  (none where c is 4: the
                                                      layers then share the block's own tensors)
    to_q and to_k before their norms                  2 (c + 4)       (2 c where c is 4)
    queries, keys, values, attention's output         4 c
    before the second norm                            c
    before the GELU, four times as wide               4 c
    scale and gate of reference tokens (zero_cond_t)  4 c

A text token keeps the same, without the last line and with the copies of its own layers.
While a block is differentiated, gradients of its output, of its MLP's output, and of the GELU's
two sides are there at once: 10 c for each image token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from ....config.latent_geometry import image_tokens
from ..layers import MODULATION
from ..timesteps import row_shape
from .dimensions import Dimensions, in_every_block, lora_parameters

# What the driver and the libraries take of a GPU before the first tensor.
CONTEXT_BYTES = 500_000_000
LORA_BYTES = 4  # float32
# Bytes of a weight in the blocks' matrices: bits and, for groups of them, scale and shift.
WEIGHT_BYTES: Mapping[str, float] = {
    "int8-quanto": 1.0,
    "fp8-quanto": 1.0,
    "int4-quanto": 4 / 8 + 4 / 128,
    "int2-quanto": 2 / 8 + 4 / 128,
    "nf4-bnb": 4 / 8 + 4 / 64,
}
# Bytes of an optimizer's state for one trained number.
OPTIMIZER_BYTES: Mapping[str, float] = {
    "adamw": 8.0,
    "adamw-8bit": 2.0,
    "adafactor": 4.0,  # at most: factored where both edges are large enough
    "prodigy": 16.0,
    "lion": 4.0,
    "came": 8.0,
    "muon": 4.0,
}
Size = tuple[int, int]


@dataclass(frozen=True)
class Load:
    """The input of one forward.

    Attributes:
        pictures: (width, height) in pixels of the target, then of each reference.
        text_tokens: of image prefix and text tail together.
    """

    pictures: tuple[Size, ...]
    text_tokens: int
    batch_size: int = 1

    @property
    def target_tokens(self) -> int:
        """A token is a patch of 2 x 2 latents, which is 16 x 16 pixels."""
        return image_tokens(self.pictures[0])

    @property
    def image_tokens(self) -> int:
        return sum(image_tokens(size) for size in self.pictures)


@dataclass(frozen=True)
class Way:
    """The memory options of a run, and what it trains.

    Attributes:
        precision: of the frozen base, as `base_model_precision` has it.
        table: whether the modulation is read from a table, its weights left on the disk.
        offload: whether what checkpointing keeps lies in host RAM.
        streamed: how many blocks' weights lie there until they are used.
        number_bytes: of a number in the forward: 2 for bfloat16, 4 for float32.
        trained_bytes: what stays for each trained number beside itself: optimizer and EMA.
    """

    precision: str = "no_change"
    table: bool = False
    checkpointing: bool = True
    offload: bool = False
    streamed: int = 0
    number_bytes: int = 2
    targets: str | Sequence[str] = "attention"
    rank: int = 16
    trained_bytes: float = 8.0
    accumulates: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes on the device, by part.

    Attributes:
        activations: what is kept of every block until its turn in the backward.
        block: the peak inside the block that is just recomputed and differentiated.
        ends: latents, noise, embeds and the loss.
    """

    weights: int
    lora: int
    optimizer: int
    gradients: int
    activations: int
    block: int
    ends: int
    context: int = CONTEXT_BYTES
    accumulates: bool = False

    @property
    def total(self) -> int:
        """The peak. Gradients grow while activations go, so only the larger of them counts."""
        standing = self.weights + self.lora + self.optimizer + self.ends + self.context
        if self.accumulates:
            return standing + self.gradients + self.activations + self.block
        return standing + max(self.activations + self.block, self.gradients)

    def as_dict(self) -> dict[str, int]:
        """Return every part, and the total."""
        names = ("weights", "lora", "optimizer", "gradients", "activations", "block", "ends")
        return {name: getattr(self, name) for name in (*names, "context")} | {"total": self.total}


def memory_of(sizes: Dimensions, load: Load, way: Way) -> Memory:
    """Return the peak of a training step, by part."""
    trained = lora_parameters(sizes, way.targets, rank=way.rank)
    kept = kept_bytes(sizes, load, way)
    return Memory(
        weights=weight_bytes(sizes, way, batch_size=load.batch_size),
        lora=LORA_BYTES * trained,
        optimizer=round(way.trained_bytes * trained),
        gradients=LORA_BYTES * trained,
        activations=kept,
        block=block_bytes(sizes, load, way) + _dequantised_bytes(sizes, way),
        ends=_ends_bytes(sizes, load, way),
        accumulates=way.accumulates,
    )


def weight_bytes(sizes: Dimensions, way: Way, *, batch_size: int = 1) -> int:
    """Return the bytes of the frozen base on the device.

    With the table that is two rows of it for a sample at most, instead of the modulation's
    weights. Of streamed blocks two are there at a time: one at work, one on its way.
    """
    matrices, others = base_bytes(sizes, way)
    there = sizes.blocks - max(0, way.streamed - 2)
    rows = 1 + sizes.zero_cond_t
    table = rows * batch_size * table_row_bytes(sizes) if way.table else 0
    return round(matrices * there / sizes.blocks) + others + table


def base_bytes(sizes: Dimensions, way: Way) -> tuple[int, int]:
    """Return the bytes of the matrices in the blocks of a frozen base, and of everything else.

    What the modulation table replaces is not counted.
    """
    per_weight = WEIGHT_BYTES.get(way.precision, float(way.number_bytes))
    matrices = per_weight * sizes.matrices_of_blocks(modulation=not way.table)
    return round(matrices), way.number_bytes * sizes.others(modulation=not way.table)


def table_row_bytes(sizes: Dimensions) -> int:
    """Return the bytes of one timestep's row of the modulation table (4.46 MB at full scale)."""
    return 2 * prod(row_shape(blocks=sizes.blocks, width=sizes.width))


def kept_bytes(sizes: Dimensions, load: Load, way: Way) -> int:
    """Return the bytes of the saved activations of all blocks between forward and backward.

    With checkpointing the inputs of every block; without it everything their backward needs,
    of which the last block's is counted by `block_bytes`.
    """
    tokens = load.batch_size * (load.image_tokens + load.text_tokens)
    inputs = sizes.width * way.number_bytes * tokens
    if way.checkpointing:
        return 2 * inputs if way.offload else sizes.blocks * inputs
    return sizes.blocks * inputs + (sizes.blocks - 1) * saved_bytes(sizes, load, way)


def saved_bytes(sizes: Dimensions, load: Load, way: Way) -> int:
    """Return the bytes that autograd saves in one block, without its inputs (formula above)."""
    image = _saved_per_token(sizes, way, text=False)
    text = _saved_per_token(sizes, way, text=True)
    return load.batch_size * (image * load.image_tokens + text * load.text_tokens)


def block_bytes(sizes: Dimensions, load: Load, way: Way) -> int:
    """Return the peak bytes while one block is differentiated."""
    copies = _copied(sizes, way, text=False)
    widest = LORA_BYTES * max(copies, default=0) if way.number_bytes != LORA_BYTES else 0
    # a LoRA on the MLP hands its gradients back in float32
    in_mlp = widest if widest > LORA_BYTES * sizes.width else 0
    gradients = 10 * way.number_bytes * sizes.width + in_mlp
    return saved_bytes(sizes, load, way) + load.batch_size * load.image_tokens * gradients


def _saved_per_token(sizes: Dimensions, way: Way, *, text: bool) -> int:
    number = way.number_bytes
    before_norms = 2 * number + (0 if number == LORA_BYTES else 2 * 4)
    units = before_norms + (4 + 1 + 4) * number
    if sizes.zero_cond_t and not text:
        units += 4 * number
    copies = _copied(sizes, way, text=text)
    if number == LORA_BYTES:  # the layers share what they are given: one for all three of q, k, v
        shared = LORA_BYTES * sizes.width if copies else 0
        return units * sizes.width + shared
    hidden = LORA_BYTES * way.rank * len(copies)
    return units * sizes.width + LORA_BYTES * sum(copies) + hidden


def _copied(sizes: Dimensions, way: Way, *, text: bool) -> list[int]:
    """Return the widths of the inputs of one stream's LoRA layers."""
    names = [name for name in in_every_block(way.targets) if name not in MODULATION]
    return [sizes.linear(name)[0] for name in names if _is_text(name) == text]


def _is_text(name: str) -> bool:
    return name.startswith(("txt_mlp", "attn.add_", "attn.to_add_"))


def _dequantised_bytes(sizes: Dimensions, way: Way) -> int:
    """Return the bytes of the widest matrix of a quantised base, dequantised for its product."""
    if way.precision not in WEIGHT_BYTES:
        return 0
    return way.number_bytes * prod(sizes.linear("img_mlp.net.2"))


def _ends_bytes(sizes: Dimensions, load: Load, way: Way) -> int:
    """Return the bytes outside the blocks: latents and noise in float32, tokens, embeds, loss."""
    number = way.number_bytes
    image = load.image_tokens * (2 * 4 * sizes.channels_in + number * sizes.width)
    text = load.text_tokens * 2 * number * sizes.text_width
    return load.batch_size * (image + text)


def step_flops(sizes: Dimensions, load: Load, *, checkpointing: bool = True) -> float:
    """Return the floating point operations of one training step.

    A product of matrices costs 2 operations a weight and token in the forward, as many when it
    is recomputed, and as many for the gradient of its input; attention 4 x tokens^2 x width a
    block, and two and a half times that in the backward.
    """
    stream = sizes.matrices_of_blocks(modulation=False) // 2  # an image or a text token sees half
    tokens = load.image_tokens + load.text_tokens
    linear = 2.0 * stream * tokens
    attention = 4.0 * tokens**2 * sizes.width * sizes.blocks
    again = 1 if checkpointing else 0
    return load.batch_size * (linear * (2 + again) + attention * (3.5 + again))

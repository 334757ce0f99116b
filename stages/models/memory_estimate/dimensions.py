"""The sizes of a model from its config.json; no weights are read and torch is not imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..layers import (
    BLOCK_LINEARS,
    IDLE_IN_LAST_BLOCK,
    MODULATION,
    fits_any,
    layers_named,
    sees_only_time,
    that_learn,
)

_TIMESTEP_CHANNELS = 256  # of the sinusoidal embedding, a constant of the class


@dataclass(frozen=True)
class Dimensions:
    """The sizes of a QwenImageTransformer2DModel.

    Attributes:
        width: of a token inside the blocks, heads x head width (3072 at full scale).
        text_width: of the encoder's states (3584).
        channels_in, channels_out: of an image token, in and out (64).
    """

    blocks: int
    heads: int
    head_width: int
    text_width: int
    channels_in: int
    channels_out: int
    zero_cond_t: bool = False

    @classmethod
    def of_config(cls, config: Mapping[str, Any], *, zero_cond_t: bool) -> Dimensions:
        """Return the sizes in transformer/config.json, else the defaults of the class."""
        latents_in = config.get("in_channels", 64)
        patch = config.get("patch_size", 2)
        return cls(
            blocks=config.get("num_layers", 60),
            heads=config.get("num_attention_heads", 24),
            head_width=config.get("attention_head_dim", 128),
            text_width=config.get("joint_attention_dim", 3584),
            channels_in=latents_in,
            channels_out=patch * patch * (config.get("out_channels", 16) or latents_in),
            zero_cond_t=zero_cond_t,
        )

    @property
    def width(self) -> int:
        return self.heads * self.head_width

    def linear(self, name: str) -> tuple[int, int]:
        """Return the widths in and out of the linear layer that a block calls `name`."""
        if name in MODULATION:
            return self.width, 6 * self.width
        if name.endswith("net.0.proj"):
            return self.width, 4 * self.width
        return (4 * self.width if name.endswith("net.2") else self.width), self.width

    def outer_linears(self) -> dict[str, tuple[int, int]]:
        """Return the linear layers outside the blocks, name -> (width in, width out)."""
        width = self.width
        return {
            "img_in": (self.channels_in, width),
            "txt_in": (self.text_width, width),
            "time_text_embed.timestep_embedder.linear_1": (_TIMESTEP_CHANNELS, width),
            "time_text_embed.timestep_embedder.linear_2": (width, width),
            "norm_out.linear": (width, 2 * width),
            "proj_out": (width, self.channels_out),
        }

    def linears(self) -> dict[str, tuple[int, int]]:
        """Return every linear layer of the transformer, full name -> (width in, width out)."""
        blocks = {
            f"transformer_blocks.{block}.{layer}": self.linear(layer)
            for block in range(self.blocks)
            for layer in (*BLOCK_LINEARS, *MODULATION)
        }
        return blocks | self.outer_linears()

    def matrices_of_blocks(self, *, modulation: bool = True) -> int:
        """Return the number of weights in the matrices of all blocks: those that are quantised."""
        names = (*BLOCK_LINEARS, *(MODULATION if modulation else ()))
        sizes = (self.linear(name) for name in names)
        return self.blocks * sum(ins * outs for ins, outs in sizes)

    def others(self, *, modulation: bool = True) -> int:
        """Return the number of other parameters: biases and norms of blocks, all outside of them.

        Without `modulation` nothing that sees the timestep alone is counted.
        """
        names = (*BLOCK_LINEARS, *(MODULATION if modulation else ()))
        biases = sum(self.linear(name)[1] for name in names)
        norms = 4 * self.head_width
        outer = sum(
            ins * outs + outs
            for name, (ins, outs) in self.outer_linears().items()
            if modulation or not sees_only_time(name)
        )
        return self.blocks * (biases + norms) + outer + self.text_width

    def parameters(self) -> int:
        """Return the number of parameters of the model (20 430 401 088 at full scale)."""
        return self.matrices_of_blocks() + self.others()


def lora_parameters(sizes: Dimensions, targets: str | Sequence[str], *, rank: int) -> int:
    """Return the number of parameters of a LoRA of `rank` on `targets` (preset or layer names)."""
    return rank * sum(ins + outs for ins, outs in _targeted(sizes, layers_named(targets)))


def full_parameters(sizes: Dimensions, targets: str | Sequence[str] | None) -> int:
    """Return the number of parameters that `model_type` full trains on `targets`."""
    if targets is not None:
        return sum(ins * outs + outs for ins, outs in _targeted(sizes, layers_named(targets)))
    idle = sum(ins * outs + outs for ins, outs in map(sizes.linear, IDLE_IN_LAST_BLOCK))
    return sizes.parameters() - idle - sizes.head_width  # and the norm of idle queries


def in_every_block(targets: str | Sequence[str]) -> tuple[str, ...]:
    """Return those of a block's linear layers that `targets` puts a LoRA on, in most blocks."""
    return _in_every_block(layers_named(targets))


@cache
def _in_every_block(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(layer for layer in (*BLOCK_LINEARS, *MODULATION) if fits_any(layer, names))


@cache
def _targeted(sizes: Dimensions, names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    linears = sizes.linears()
    return tuple(linears[layer] for layer in that_learn(list(linears)) if fits_any(layer, names))

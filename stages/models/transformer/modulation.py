"""Modulation as a table: the layers' outputs that depend on the timestep alone.

`img_mod` and `txt_mod` of every block and the final norm's linear layer see the embedding of
the timestep and nothing else, and in bfloat16 there are few timesteps. A row of the table holds
all of their outputs for one timestep: `[layer, channel]`, two layers a block (image, text),
then the final norm's. With the rows at hand a third of the weights need not be loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import BFloat16, Float
from torch import Tensor, nn
from torch.nn import functional

from ..checkpoint.config_values import config_in
from ..timesteps import ZERO, Bits, row_shape
from ..weights.streaming import tensors_by_name

ReadRow = Callable[[Bits], BFloat16[Tensor, "layer channel"]]

_EMBEDDER = "time_text_embed."
_PARTS = ("weight", "bias")
_STREAMS = ("img_mod", "txt_mod")


def bits_of(timesteps: BFloat16[Tensor, " timestep"]) -> list[Bits]:
    """Return the bits of each timestep, on the CPU."""
    bits: list[int] = timesteps.detach().cpu().contiguous().view(torch.int16).tolist()
    return [value & 0xFFFF for value in bits]


# -- making ------------------------------------------------------------------------------


class ModulationWeights:
    """Computes table rows from the weights in `folder`, with one layer in memory at a time.

    Args:
        remember: as in `tensors_in`.
    """

    def __init__(
        self, folder: Path, *, remember: Path | None, device: str | torch.device = "cpu"
    ) -> None:
        self.folder, self.remember, self.device = folder, remember, device
        config = config_in(folder)
        self.blocks: int = config["num_layers"]
        self.width: int = config["num_attention_heads"] * config["attention_head_dim"]

    @property
    def layers(self) -> list[str]:
        """The linear layers in the order of a row's first axis."""
        blocks = [
            f"transformer_blocks.{block}.{name}"
            for block in range(self.blocks)
            for name in ("img_mod.1", "txt_mod.1")
        ]
        return [*blocks, "norm_out.linear"]

    @torch.no_grad()
    def rows(
        self, timesteps: Sequence[Bits], advance: Callable[[int], None] = lambda layers: None
    ) -> BFloat16[Tensor, "timestep layer channel"]:
        """Return the rows of `timesteps`, on the CPU; `advance` is called after each layer."""
        shape = row_shape(blocks=self.blocks, width=self.width)
        rows = torch.zeros(len(timesteps), *shape, dtype=torch.bfloat16)
        with tensors_by_name(self.folder, remember=self.remember) as tensor:
            embedded = functional.silu(self._embedded(tensor, timesteps))
            for place, layer in enumerate(self.layers):
                weight, bias = (
                    tensor(f"{layer}.{part}").to(self.device, torch.bfloat16) for part in _PARTS
                )
                output = functional.linear(embedded, weight, bias)
                rows[:, place, : output.shape[1]] = output.cpu()
                advance(1)
        return rows

    def _embedded(
        self, tensor: Callable[[str], Tensor], timesteps: Sequence[Bits]
    ) -> BFloat16[Tensor, "timestep channel"]:
        from diffusers.models.transformers.transformer_qwenimage import QwenTimestepProjEmbeddings

        embedder = QwenTimestepProjEmbeddings(embedding_dim=self.width)
        names = embedder.state_dict()
        embedder = embedder.to(self.device, torch.bfloat16)
        embedder.load_state_dict({name: tensor(_EMBEDDER + name) for name in names})
        values = torch.tensor(timesteps, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
        like = torch.empty(0, dtype=torch.bfloat16)
        embedded: Tensor = embedder(values.to(self.device), like)
        return embedded


# -- using -------------------------------------------------------------------------------


def tabulate(transformer: nn.Module, read_row: ReadRow) -> None:
    """Make `transformer` read modulation from a table; its modulation weights are dropped.

    The embedding of the timestep becomes the rows of the batch, and each layer its place in
    them: nothing is remembered between calls, so recomputed and interleaved forwards see their
    own rows.

    Args:
        read_row: the row of one timestep, on the CPU.
    """
    blocks = list(transformer.get_submodule("transformer_blocks").children())
    for number, block in enumerate(blocks):
        for stream, name in enumerate(_STREAMS):
            setattr(block, name, TabulatedLayer(2 * number + stream))
    final = transformer.get_submodule("norm_out")
    linear = final.get_submodule("linear")
    assert isinstance(linear, nn.Linear)
    final.silu = nn.Identity()
    final.linear = TabulatedLayer(2 * len(blocks), channels=linear.out_features)
    transformer.time_text_embed = TimestepRows(read_row)


class TimestepRows(nn.Module):
    """A module in place of the timestep embedding: it returns the timesteps' rows of the table.

    Attributes:
        timesteps: those of the forward under way, where they are known on the CPU: reading
            them from the device would wait for all of its queued work.
    """

    def __init__(self, read_row: ReadRow) -> None:
        super().__init__()
        self.timesteps: list[Bits] | None = None
        self._read_row = read_row
        self._zero: Tensor | None = None

    def forward(
        self,
        timestep: BFloat16[Tensor, " batch"],
        hidden_states: Float[Tensor, ...],
        addition_t_cond: Tensor | None = None,
    ) -> BFloat16[Tensor, "batch layer channel"]:
        bits = bits_of(timestep) if self.timesteps is None else self.timesteps
        if len(bits) < len(timestep):  # with zero_cond_t those of the references follow
            bits = [*bits, *[ZERO] * (len(timestep) - len(bits))]
        rows = {step: self._row(step, hidden_states.device) for step in set(bits)}
        return torch.stack([rows[step] for step in bits])

    def _row(self, bits: Bits, device: torch.device) -> Tensor:
        if bits != ZERO:
            return _placed(self._read_row(bits), device)
        if self._zero is None or self._zero.device != device:
            self._zero = _placed(self._read_row(ZERO), device)
        return self._zero


def _placed(row: Tensor, device: torch.device) -> Tensor:
    """Return `row` on `device` without waiting for the copy."""
    return (row.pin_memory() if device.type == "cuda" else row).to(device, non_blocking=True)


@contextmanager
def with_timestep(transformer: nn.Module, timestep: Float[Tensor, " batch"]) -> Iterator[None]:
    """Give a table in `transformer` the timesteps of the forward in the block.

    Args:
        timestep: what the forward is given, on the CPU.
    """
    rows = getattr(transformer, "time_text_embed", None)
    if not isinstance(rows, TimestepRows):
        yield
        return
    rows.timesteps = bits_of(timestep)
    try:
        yield
    finally:
        rows.timesteps = None


class TabulatedLayer(nn.Module):
    """A module in place of a modulation layer: it returns one layer of the rows.

    Its place is a tensor, so that a compiled block serves all blocks.
    """

    place: Tensor

    def __init__(self, place: int, *, channels: int | None = None) -> None:
        super().__init__()
        self.register_buffer("place", torch.tensor([place]), persistent=False)
        self._channels = channels

    def forward(
        self, rows: BFloat16[Tensor, "batch layer channel"]
    ) -> BFloat16[Tensor, "batch _channel"]:
        return rows.index_select(1, self.place).squeeze(1)[:, : self._channels]

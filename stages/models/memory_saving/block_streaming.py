"""Blocks whose frozen weights lie in host memory and are copied to the device for each use.

Nothing is ever copied back: frozen weights do not change. One copy a block, on a stream of its
own, begins when the streamed block before it starts to compute, in the backward in the opposite
order. The device holds at most the blocks in use and the one under way: their memory is that of
the stream that computes, so that what a block lets go of is there for the next but one, however
far the host is ahead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import (
    _disable_current_modes,
    is_traceable_wrapper_subclass,
)

# Where each tensor begins in a block's one buffer: what vectorised kernels ask for.
ALIGNMENT_BYTES = 256


def spread(blocks: int, streamed: int) -> list[int]:
    """Return the indices of `streamed` blocks, evenly spread so that each copy has time.

    >>> spread(6, 2)
    [1, 4]
    """
    return [int((place + 0.5) * blocks / streamed) for place in range(streamed)]


@dataclass(frozen=True)
class _Place:
    """One tensor in a block's buffer."""

    start: int
    bytes: int
    dtype: torch.dtype
    shape: torch.Size

    def view(self, buffer: Tensor) -> Tensor:
        flat = buffer[self.start : self.start + self.bytes]
        return flat.view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class _Wrapped:
    """A tensor made of others, as quantised weights are."""

    kind: type[Any]
    context: Any
    inner: dict[str, Any]  # of places and of such tensors again
    shape: torch.Size
    stride: tuple[int, ...]

    def view(self, buffer: Tensor) -> Tensor:
        inner = {name: place.view(buffer) for name, place in self.inner.items()}
        made: Tensor = self.kind.__tensor_unflatten__(inner, self.context, self.shape, self.stride)
        return made


@dataclass
class _HostBlock:
    """The frozen weights of one block: one buffer in host memory, and the layout of it."""

    buffer: Tensor
    weights: list[tuple[nn.Module, str, _Place | _Wrapped]]

    def show(self, on_device: Tensor) -> None:
        for module, name, place in self.weights:
            object.__setattr__(module, name, place.view(on_device))

    def hide(self) -> None:
        for module, name, _ in self.weights:
            module.__dict__.pop(name, None)


@dataclass
class _Coming:
    """A block's weights on the device, or being copied there."""

    buffer: Tensor
    arrived: torch.cuda.Event | None


@dataclass
class BlockStreaming:
    """The streamed blocks of one transformer."""

    device: torch.device
    _blocks: list[_HostBlock] = field(default_factory=list)
    _coming: dict[int, _Coming] = field(default_factory=dict)
    _last: int = -1
    _stream: torch.cuda.Stream | None = None

    @property
    def device_bytes(self) -> int:
        """The bytes of streamed weights that lie on the device now, or are being copied there."""
        return sum(coming.buffer.nbytes for coming in self._coming.values())

    def modules(self) -> Iterator[nn.Module]:
        """Yield every module that has a weight in host memory."""
        for block in self._blocks:
            yield from {id(module): module for module, _, _ in block.weights}.values()

    def take_over(self, block: nn.Module) -> None:
        """Move the frozen weights of `block` to the host; from now on each use copies them back."""
        self._blocks.append(_to_host(block, pinned=self.device.type == "cuda"))
        index = len(self._blocks) - 1

        def before(module: nn.Module, inputs: Any) -> None:
            self._blocks[index].show(self._ready(index))

        def after(module: nn.Module, inputs: Any, outputs: Any) -> None:
            # what the backward needs of the weights, autograd holds by itself
            self._blocks[index].hide()

        block.register_forward_pre_hook(before)
        # also when the backward ends a recomputation early, which it does with an exception
        block.register_forward_hook(after, always_call=True)

    def _ready(self, index: int) -> Tensor:
        """Return the weights of streamed block `index` on the device; begin to copy the next."""
        top = len(self._blocks) - 1
        going_down = index < self._last or index == self._last == top
        following = index - 1 if going_down else index + 1
        self._last = index
        wanted = [number for number in (index, following) if 0 <= number <= top]
        for number in set(self._coming) - set(wanted):
            self._wait_for(self._coming.pop(number))
        # to bring them is no part of what a block computes, and is not always done again
        with _disable_current_modes():
            for number in wanted:
                if number not in self._coming:
                    self._coming[number] = self._bring(number)
        self._wait_for(self._coming[index])
        return self._coming[index].buffer

    def _wait_for(self, coming: _Coming) -> None:
        """Make the computing stream wait until the weights, or their memory, are written."""
        if coming.arrived is not None:
            torch.cuda.current_stream(self.device).wait_event(coming.arrived)

    def _bring(self, index: int) -> _Coming:
        host = self._blocks[index].buffer
        if self.device.type != "cuda":
            return _Coming(host.to(self.device, copy=True), None)
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        # memory of the stream that computes: another stream's would be given to the next block
        # only after the host has seen its last use end, and the host is blocks ahead
        buffer = torch.empty(host.shape, dtype=host.dtype, device=self.device)
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            buffer.copy_(host, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(self._stream)
        return _Coming(buffer, arrived)


def stream_blocks(transformer: nn.Module, streamed: int, *, device: torch.device) -> BlockStreaming:
    """Move the frozen weights of `streamed` of the transformer's blocks to host memory.

    To be called once what is trained has been added: that stays on the device. Losses and
    gradients are those of a transformer that lies on the device as a whole, bit for bit.
    """
    blocks: Sequence[nn.Module] = list(transformer.transformer_blocks)  # type: ignore[arg-type]
    streaming = BlockStreaming(device)
    for index in spread(len(blocks), streamed):
        streaming.take_over(blocks[index])
    return streaming


def _to_host(block: nn.Module, *, pinned: bool) -> _HostBlock:
    frozen = [
        (module, name, weight)
        for module in block.modules()
        for name, weight in _weights_of(module)
        if not weight.requires_grad
    ]
    plain: list[tuple[_Place, Tensor]] = []
    weights = [(module, name, _laid_out(weight.data, plain)) for module, name, weight in frozen]
    size = plain[-1][0].start + plain[-1][0].bytes if plain else 0
    buffer = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=pinned)
    for place, tensor in plain:
        place.view(buffer).copy_(tensor)
    for module, name, _ in frozen:
        del (module._parameters if name in module._parameters else module._buffers)[name]
    return _HostBlock(buffer, weights)


def _weights_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the module's own parameters and quantisation scales, by name."""
    yield from module.named_parameters(recurse=False)
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.is_floating_point():
            yield name, buffer


def _laid_out(weight: Tensor, plain: list[tuple[_Place, Tensor]]) -> _Place | _Wrapped:
    """Add the plain tensors of `weight` to `plain`; return its place behind them."""
    if is_traceable_wrapper_subclass(weight):
        names, context = weight.__tensor_flatten__()
        inner = {name: _laid_out(getattr(weight, name), plain) for name in names}
        return _Wrapped(type(weight), context, inner, weight.shape, weight.stride())
    end = plain[-1][0].start + plain[-1][0].bytes if plain else 0
    start = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    place = _Place(start, weight.nbytes, weight.dtype, weight.shape)
    plain.append((place, weight))
    return place

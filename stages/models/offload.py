"""Activations of a forward kept in host memory until its backward asks for them.

What recomputation keeps of a block is its input: at full scale 51 MB a block, 3 GB in all.
Copies run one way at a time on a stream of their own: out while the next block computes, back
one block before it is needed.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

_Shape = tuple[torch.Size, torch.dtype]


@dataclass(eq=False)
class Held:
    """One tensor in host memory; `back` is its copy on the device, once that is under way."""

    host: Tensor
    device: torch.device
    back: Tensor | None = None
    arrived: torch.cuda.Event | None = None


class HostMemory:
    """Takes tensors in and gives them back, usually last in, first out.

    Buffers are page-locked where the device is a GPU, and are used again: after the first step
    nothing is allocated.
    """

    def __init__(self) -> None:
        self._free: dict[_Shape, list[Tensor]] = defaultdict(list)
        self._stack: list[Held] = []
        self._stream: torch.cuda.Stream | None = None

    def __len__(self) -> int:
        """How many tensors are held."""
        return len(self._stack)

    def put(self, tensor: Tensor) -> Held:
        """Copy `tensor` into host memory; the caller may let go of it at once."""
        host = self._buffer(tensor)
        held = Held(host, tensor.device)
        if tensor.is_cuda:
            stream = self._side_stream(tensor.device)
            stream.wait_stream(torch.cuda.current_stream(tensor.device))
            with torch.cuda.stream(stream):
                host.copy_(tensor, non_blocking=True)
            # its memory is given to nobody else before the copy has read it
            tensor.record_stream(stream)
        else:
            host.copy_(tensor)
        self._stack.append(held)
        return held

    def take(self, held: Held) -> Tensor:
        """The tensor that was put in, on its device; begins to bring back the one below it."""
        self._bring(held)
        place = self._stack.index(held)
        if place:
            self._bring(self._stack[place - 1])
        del self._stack[place]
        back = held.back
        assert back is not None
        if held.arrived is not None:
            torch.cuda.current_stream(held.device).wait_event(held.arrived)
            back.record_stream(torch.cuda.current_stream(held.device))
        self._free[held.host.shape, held.host.dtype].append(held.host)
        return back

    def _bring(self, held: Held) -> None:
        if held.back is not None:
            return
        if held.device.type != "cuda":
            held.back = held.host.to(held.device, copy=True)
            return
        stream = self._side_stream(held.device)
        with torch.cuda.stream(stream):
            # after every copy out, as the stream runs in order: the buffer holds its bytes
            held.back = held.host.to(held.device, non_blocking=True)
            held.arrived = torch.cuda.Event()
            held.arrived.record(stream)

    def _buffer(self, tensor: Tensor) -> Tensor:
        free = self._free[tensor.shape, tensor.dtype]
        if free:
            return free.pop()
        return torch.empty(
            tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda
        )

    def _side_stream(self, device: torch.device) -> torch.cuda.Stream:
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        return self._stream

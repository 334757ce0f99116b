"""Saved activations kept in host memory until the backward asks for them.

What recomputation keeps of a block is its input: at full scale 51 MB a block, 3 GB in all.
Copies run one way at a time on a stream of their own: out while the next block computes, back
one block before they are needed. All device memory is that of the stream that computes: it
waits for a copy before it lets go of what was copied, and so uses it again in its own order,
however far the host is ahead.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

# A block has two inputs, the states of the image and of the text.
INPUTS = 2


@dataclass(eq=False)
class HostCopy:
    """One tensor in host memory; `back` is its copy on the device, once that has begun."""

    host: Tensor
    device: torch.device
    back: Tensor | None = None
    arrived: torch.cuda.Event | None = None


class HostMemory:
    """A stack of tensors in host memory, usually taken back last in, first out.

    Buffers are page-locked where the device is a GPU. torch keeps those for later ones of about
    the same size, so that steps of many shapes take no more than the largest of them.
    """

    def __init__(self) -> None:
        self._stack: list[HostCopy] = []
        self._leaving: deque[tuple[Tensor, torch.cuda.Event]] = deque()
        self._stream: torch.cuda.Stream | None = None

    def __len__(self) -> int:
        """Return the number of tensors held."""
        return len(self._stack)

    def put(self, tensor: Tensor) -> HostCopy:
        """Copy `tensor` into host memory; the caller may release it at once."""
        host = torch.empty(
            tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda
        )
        if tensor.is_cuda:
            left = self._copy(tensor, host, device=tensor.device)
            self._leaving.append((tensor.detach(), left))
            self._let_go(all_but=INPUTS)
        else:
            host.copy_(tensor)
        held = HostCopy(host, tensor.device)
        self._stack.append(held)
        return held

    def take(self, held: HostCopy) -> Tensor:
        """Return the tensor that was put in, on its device; start to copy back the one below it."""
        self._let_go(all_but=0)
        place = self._stack.index(held)
        for copy in self._stack[max(0, place - INPUTS) : place + 1][::-1]:
            self._bring(copy)
        del self._stack[place]
        assert held.back is not None
        if held.arrived is not None:
            torch.cuda.current_stream(held.device).wait_event(held.arrived)
        return held.back

    def _bring(self, held: HostCopy) -> None:
        if held.back is not None:
            return
        if held.device.type != "cuda":
            held.back = held.host.to(held.device, copy=True)
            return
        held.back = torch.empty(held.host.shape, dtype=held.host.dtype, device=held.device)
        held.arrived = self._copy(held.host, held.back, device=held.device)

    def _let_go(self, *, all_but: int) -> None:
        """Release the device tensors that were copied out, except the last few."""
        while len(self._leaving) > all_but:
            tensor, left = self._leaving.popleft()
            torch.cuda.current_stream(tensor.device).wait_event(left)

    def _copy(self, source: Tensor, copy: Tensor, *, device: torch.device) -> torch.cuda.Event:
        """Copy on the side stream after all work queued so far; return the event of its end.

        Copies run in order: what comes back was written before.
        """
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream), torch.no_grad():
            copy.copy_(source, non_blocking=True)
            done = torch.cuda.Event()
            done.record(self._stream)
        return done

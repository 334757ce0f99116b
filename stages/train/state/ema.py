"""The exponential moving average of the trained weights, in float32."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

# What may lie in host memory beside an average there, so that no step waits for it.
MOST_COPIED_BYTES = 4_000_000_000


class Ema:
    """A float32 shadow of the trained weights.

    The decay warms up: at step s it is min(decay, (1 + k) / (10 + k)) with k = s - 1. A shadow
    in bfloat16 would lose most updates at a decay of 0.995.

    A shadow on the CPU moves in a thread of its own while the next step is computed: weights are
    copied without waiting for them, all at once where one by one the device would stand still
    for each. Whoever asks for the shadow waits until it has moved.

    Args:
        weights: name -> parameter; the shadow starts as a copy of them.
        every_steps: the shadow moves at every so many steps.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        decay: float,
        device: str = "cpu",
        every_steps: int = 1,
    ) -> None:
        self.decay, self.every_steps = decay, every_steps
        self._shadow = {
            name: weight.detach().to(device, torch.float32, copy=True)
            for name, weight in weights.items()
        }
        size = sum(average.nbytes for average in self._shadow.values())
        # of a model that is trained as a whole there is no room for a third copy
        self._aside = _Aside() if device == "cpu" and size <= MOST_COPIED_BYTES else None

    @property
    def shadow(self) -> dict[str, Tensor]:
        """Return the average of each weight after the last step."""
        if self._aside:
            self._aside.wait()
        return self._shadow

    @torch.no_grad()
    def follow(self, weights: Mapping[str, Tensor], *, step: int) -> None:
        """Move the shadow towards `weights` as they are after `step` (from 1)."""
        if step % self.every_steps:
            return
        decay = min(self.decay, step / (9 + step))
        shadow = self.shadow
        if self._aside:
            self._aside.move(shadow, weights, by=1 - decay)
            return
        for name, average in shadow.items():
            average.lerp_(weights[name].detach().to(average.device, torch.float32), 1 - decay)


class _Aside:
    """Moves a shadow on the CPU in a thread, towards copies of the weights."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ema")
        self._copies: dict[str, Tensor] = {}
        self._moving: Future[None] | None = None

    def wait(self) -> None:
        """Return once the shadow has moved; raise what went wrong."""
        moving, self._moving = self._moving, None
        if moving:
            moving.result()

    def move(
        self, shadow: Mapping[str, Tensor], weights: Mapping[str, Tensor], *, by: float
    ) -> None:
        """Begin to move `shadow`, which must not be read before `wait`."""
        copied = None
        on_gpu = any(weight.is_cuda for weight in weights.values())
        if not self._copies:
            self._copies = _room_for(shadow, pinned=on_gpu)
        # in the order of the device's work: the next change of the weights comes after the copies
        for name, copy in self._copies.items():
            copy.copy_(weights[name].detach(), non_blocking=on_gpu)
        if on_gpu:
            copied = torch.cuda.Event()
            copied.record()
        self._moving = self._thread.submit(self._move, shadow, by, copied)

    def _move(
        self, shadow: Mapping[str, Tensor], by: float, copied: torch.cuda.Event | None
    ) -> None:
        if copied is not None:
            copied.synchronize()
        for name, average in shadow.items():
            average.lerp_(self._copies[name], by)


def _room_for(shadow: Mapping[str, Tensor], *, pinned: bool) -> dict[str, Tensor]:
    """Return a tensor like each of `shadow`, all in one piece of host memory."""
    sizes = [average.numel() for average in shadow.values()]
    whole = torch.empty(sum(sizes), dtype=torch.float32, device="cpu", pin_memory=pinned)
    pieces = zip(shadow.items(), whole.split(sizes), strict=True)
    return {name: piece.view(average.shape) for (name, average), piece in pieces}

"""Several processes that train one run together, and what they exchange.

`torchrun` and `accelerate launch` tell each process by its environment. A process alone is
the first of one, and every exchange then gives back what it was given.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ...cache.errors import OfOneProcess, QeditError, WrongUse
from ...config.settings import Settings
from ..models.device import best_device

Result = TypeVar("Result")

# The first process may be making previews while the others wait, for hours on a CPU. One that
# ends is known at once, because its connections are closed; only a machine that is cut off from
# the others is silent for so long.
LONGEST_WAIT = timedelta(days=1)
# Gradients are only summed when every process has reported that it is there.
LONGEST_SUM = timedelta(seconds=50)
BUCKET_NUMBERS = 1 << 26


class SameErrorOnAllRanks(QeditError):
    """Raised in every process for the same reason; the first process alone reports it."""


class IdleRanks(SameErrorOnAllRanks, WrongUse):
    """Raised where a step has fewer samples than there are processes."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run.

    Attributes:
        rank: from 0; the first one alone writes and speaks.
        world: how many there are.
        gradients: the group that GPUs sum gradients in; None sums them on the CPU.
    """

    rank: int = 0
    world: int = 1
    gradients: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def are_several(self) -> bool:
        return self.world > 1

    def gathered(self, value: Any) -> list[Any]:
        """Return the values of all processes (JSON), in the order of their ranks."""
        if not self.are_several:
            return [value]
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        with self._while_all_live():
            dist.all_gather(sizes, torch.tensor([len(data)]))
            longest = int(max(sizes))
            padded = torch.nn.functional.pad(data, (0, longest - len(data)))
            every = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world)]
            dist.all_gather(every, padded)
        return [
            json.loads(bytes(data[: int(size)].tolist()))
            for data, size in zip(every, sizes, strict=True)
        ]

    def of_the_first(self, value: Any) -> Any:
        """Return the first process's value (JSON); the others wait for it."""
        return self.gathered(value if self.is_first else None)[0]

    def path_of_the_first(self, find: Callable[[], Path | None]) -> Path | None:
        """Return the path that the first process finds; the others wait and do not call `find`."""
        found = find() if self.is_first else None
        path = self.of_the_first(None if found is None else str(found))
        return None if path is None else Path(path)

    def in_turn(self, work: Callable[[], Result]) -> Result:
        """Return the result of `work`, which the first process does before all others."""
        done = work() if self.is_first else None
        self.of_the_first(True)
        return work() if done is None else done

    def in_words(self) -> str:
        """Return the number of processes in words, for the end of a sentence; "" for one."""
        return f", with {self.world} processes" if self.are_several else ""

    def any_of(self, value: bool) -> bool:
        """Return whether `value` is true in any process, so that all decide alike."""
        return any(self.gathered(value))

    @torch.no_grad()
    def sum_gradients(self, weights: Iterable[torch.nn.Parameter]) -> None:
        """Sum the gradients of all processes, in float32 buckets, and give every process the sum.

        The same sum, to the bit, in every process, so their weights stay the same.
        """
        if not self.are_several:
            return
        every = list(weights)
        self._meet(every[0].device)
        for some in _buckets(every):
            self._sum(some)

    def _meet(self, device: torch.device) -> None:
        """Wait until all processes are ready: a sum on GPUs times out soon.

        Its clock runs from when the first one asks for it, and another may have pictures of a
        preview to make before, or a longer way.
        """
        if self.gradients is None:
            return
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
        self.gathered(True)

    def _sum(self, some: list[torch.nn.Parameter]) -> None:
        device = some[0].device
        parts = [
            torch.zeros_like(weight).flatten() if weight.grad is None else weight.grad.flatten()
            for weight in some
        ]
        # a weight that no process has a gradient for stays without one, as in one process
        there = torch.tensor([float(weight.grad is not None) for weight in some], device=device)
        bucket = torch.cat([*(part.float() for part in parts), there])
        if self.gradients is None:
            bucket = bucket.cpu()
        with self._while_all_live():
            dist.all_reduce(bucket, group=self.gradients)
        start = 0
        for weight, count in zip(some, bucket[-len(some) :].tolist(), strict=True):
            part = bucket[start : start + weight.numel()].view_as(weight)
            weight.grad = part.to(device, weight.dtype) if count else None
            start += weight.numel()

    @torch.no_grad()
    def same_everywhere(self, tensors: Iterable[Tensor]) -> None:
        """Set `tensors` to the first process's values, in every process."""
        if not self.are_several:
            return
        with self._while_all_live():
            for tensor in tensors:
                value = tensor.detach().cpu().contiguous()
                dist.broadcast(value, src=0)
                tensor.copy_(value)

    @contextmanager
    def _while_all_live(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            is_silent = "Timed out" in str(error)
            hours = LONGEST_WAIT // timedelta(hours=1)
            what = f"has not answered for {hours} hours" if is_silent else "has ended"
            raise QeditError(
                f"Another process of this run {what}, so process {self.rank} of {self.world} "
                "ends too.",
                "Its error is printed above. The same command goes on from the last checkpoint.",
            ) from error

    @contextmanager
    def saying_who(self) -> Iterator[None]:
        """Name the process in errors that are raised in another process than the first."""
        try:
            yield
        except Exception as error:
            if self.is_first or isinstance(error, SameErrorOnAllRanks):
                raise
            what, do = f"{type(error).__name__}: {error}", ""
            if isinstance(error, QeditError):
                what, do = error.what, error.do
            raise OfOneProcess(f"Process {self.rank} of {self.world}: {what}", do) from error


def _buckets(weights: Iterable[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Yield groups of weights: one for a LoRA, several for a model, so that none is held twice."""
    some: list[torch.nn.Parameter] = []
    for weight in weights:
        if some and sum(other.numel() for other in some) + weight.numel() > BUCKET_NUMBERS:
            yield some
            some = []
        some.append(weight)
    if some:
        yield some


ALONE = Ranks()


@contextmanager
def among_others(device: torch.device) -> Iterator[Ranks]:
    """Join the other processes of the run, if the environment names any, and leave at the end."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield ALONE
        return
    dist.init_process_group("gloo", timeout=LONGEST_WAIT)
    try:
        gradients = None
        if device.type == "cuda":
            gradients = dist.new_group(backend="nccl", timeout=LONGEST_SUM)
        ranks = Ranks(dist.get_rank(), world, gradients)
        with ranks.saying_who():
            yield ranks
    finally:
        dist.destroy_process_group()


def device_of(name: str) -> torch.device:
    """Return the device called `name` for this process; each of several has its own GPU."""
    device = best_device(name)
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device


def refuse_idle_processes(settings: Settings, world: int) -> None:
    """Raise if a step has fewer samples than there are processes.

    Raises:
        IdleRanks: says what to set.
    """
    samples = settings.train_batch_size * settings.gradient_accumulation_steps
    if samples < world:
        raise IdleRanks(
            f"A step has {samples} samples, too few for {world} processes: they share its "
            "`train_batch_size` times `gradient_accumulation_steps` samples.",
            f"Type `--set gradient_accumulation_steps={-(-world // settings.train_batch_size)}`.",
        )

"""Training steps, one case after the other over one base: seconds and memory, a JSON line each.

    python benchmarks/gpu/step.py --cases '[{"row": "mine", "precision": "int8-quanto"}]'

`what: qedit` runs what `qedit train` runs from the batch on: forward, loss, backward, clipping,
the optimizer's step. `what: stock` is the yardstick: diffusers' transformer with all its
weights, PEFT's adapter and torch's checkpointing, in the loop its own examples show; its
precision int8 is optimum-quanto's. `what: ceiling` is a large bf16 product.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import diffusers.models.transformers.transformer_qwenimage  # noqa: F401  here, not in a row's time
import torch
from cases import Asked
from made_base import DTYPE, made_base
from peft import LoraConfig
from shapes import FULL, SMALL, ZERO_COND_T, Case, random_latents, sizes_of, write_config
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from worker import answer, arguments

from qedit.stages.models.compiled import compile_blocks
from qedit.stages.models.device import let_segments_grow
from qedit.stages.models.dimensions import Dimensions
from qedit.stages.models.fit import (
    GIGABYTE,
    Fit,
    Recomputation,
    budget_of,
    fit_into,
    needed_bytes,
)
from qedit.stages.models.lora import add_lora, target_modules
from qedit.stages.models.memory import CONTEXT_BYTES, Load, Way, memory_of, step_flops
from qedit.stages.models.transformer import predict_velocity
from qedit.stages.train.fitting import apply_fit, load_device
from qedit.stages.train.flow import noised, sample_losses
from qedit.stages.train.optimizers import make_optimizer

RANK = 16
CEILING_EDGE = 8192
PACKAGES = ("torch", "diffusers", "transformers", "peft")
STEPS_AT_LEAST, STEPS_AT_MOST = 2, 5  # that are timed, after one that is not
Step = Callable[[], tuple[float, float]]


@dataclass
class Base:
    """A transformer with its adapter, and what the adapter began as."""

    key: tuple[Any, ...]
    transformer: nn.Module
    trained: dict[str, nn.Parameter]
    began: dict[str, torch.Tensor]

    def begin_again(self) -> None:
        with torch.no_grad():
            for name, weight in self.trained.items():
                weight.copy_(self.began[name])
                weight.grad = None

    def be_of(self, flavour: str) -> None:
        """Both kinds of flavour have the same weights."""
        holders: list[Any] = [self.transformer, *self.transformer.transformer_blocks]  # type: ignore[misc]
        for holder in holders:
            holder.zero_cond_t = ZERO_COND_T[flavour]


class Bench:
    """Measures case after case; the base is made anew only where another one is asked for."""

    def __init__(self, folder: Path, device: torch.device, *, small: bool, edge: int) -> None:
        self.folder, self.device, self.edge = folder, device, edge
        self.small, self.seconds = small, 0.0
        self.config = SMALL if small else FULL
        write_config(folder, self.config)
        self.base: Base | None = None

    def measured(self, asked: Asked, *, seconds: float) -> dict[str, Any]:
        """One case. Whatever it leaves behind is gone before the next."""
        if asked.what == "ceiling":
            return ceiling(self.device)
        self.seconds = seconds
        whole = cap(self.device, 0)
        try:
            with attention_kernels(asked.attention):
                return self._measured(asked)
        except BaseException:
            self.base = None  # nobody knows in what state it is
            raise
        finally:
            if self.base is not None and "streamed" in self.base.key:
                self.base = None
            clear(self.device)
            cap(self.device, whole)

    def _measured(self, asked: Asked) -> dict[str, Any]:
        case = Case(asked.flavour, asked.references, self.edge)
        sizes = sizes_of(self.config, asked.flavour)
        way = Way(precision=asked.precision, table=asked.table, checkpointing=True)
        fit = Fit(Recomputation())
        if asked.what == "qedit":
            fit = fit_named(asked, sizes, case.load, way, budget=self._budget(asked, case, way))
        began = time.perf_counter()
        base = self._base_for(asked, fit)
        made = time.perf_counter() - began
        base.be_of(asked.flavour)
        base.begin_again()
        cap(self.device, asked.cap_gb)
        clear(self.device)
        step = steps_of(base, asked, case, self.device)
        loss, norm, first, times = self._timed(step)
        own = asked.what == "qedit"
        flops = flops_of(sizes, case.load, fit, in_full=asked.compiled or not own)
        best = median(times)
        return {
            "seconds": round(best, 4),
            "peak_gb": round(peak_bytes(self.device) / GIGABYTE, 2),
            "planned_gb": round(needed_bytes(fit, sizes, case.load, way) / GIGABYTE, 2)
            if own
            else 0,
            "tflops": round(flops / best / 1e12, 4),
            "made_seconds": round(made, 1),
            "first_step_seconds": round(first, 1),
            "loss": loss,
            "grad_norm": norm,
            "fit": fit.words(blocks=sizes.blocks),
        }

    def _timed(self, step: Step) -> tuple[float, float, float, list[float]]:
        """Loss and gradient of the first step, its seconds, and those of some after it."""
        times: list[float] = []
        loss = norm = first = 0.0
        while len(times) <= STEPS_AT_LEAST or (
            sum(times[1:]) < self.seconds and len(times) <= STEPS_AT_MOST
        ):
            wait(self.device)
            start = time.perf_counter()
            found = step()
            wait(self.device)
            times.append(time.perf_counter() - start)
            if len(times) == 1:
                (loss, norm), first = found, times[0]
        return loss, norm, first, times[1:]

    def _budget(self, asked: Asked, case: Case, way: Way) -> int:
        """The bytes that `way: auto` may use, as `qedit train` counts them."""
        total = int(asked.cap_gb * GIGABYTE)
        if not total:
            total = (
                torch.cuda.mem_get_info(self.device)[1] if self.device.type == "cuda" else 1 << 40
            )
        elif self.small:  # the same share of what a step takes as at full scale
            full = sizes_of(FULL, asked.flavour)
            load = Case(asked.flavour, asked.references, 1024).load
            needs = [
                memory_of(*one, way).total - CONTEXT_BYTES
                for one in ((full, load), (sizes_of(self.config, asked.flavour), case.load))
            ]
            scaled = CONTEXT_BYTES + (total - CONTEXT_BYTES) * needs[1] // needs[0]
            own, own_load = sizes_of(self.config, asked.flavour), case.load
            smallest = Fit(Recomputation(inputs_to_host=True), streamed=own.blocks)
            return max(scaled, needed_bytes(smallest, own, own_load, way))
        return budget_of(total)

    def _base_for(self, asked: Asked, fit: Fit) -> Base:
        key = (asked.what, asked.precision, asked.table, asked.compiled)
        if fit.streamed:
            key = (*key, "streamed")
        if self.base is None or self.base.key != key:
            self.base = None
            clear(self.device)
            make = stock_base if asked.what == "stock" else own_base
            transformer, trained = make(asked, self.folder, self.device, fit)
            transformer.train()
            began = {name: one.detach().clone() for name, one in trained.items()}
            self.base = Base(key, transformer, trained, began)
        if asked.what == "qedit":
            transformer = self.base.transformer
            if fit.recomputation is None:
                transformer.disable_gradient_checkpointing()  # type: ignore[operator]
            apply_fit(fit, transformer, device=self.device)
            for weight in self.base.trained.values():
                weight.data = weight.data.to(self.device)
            if asked.compiled and not is_compiled(transformer):
                backend = "inductor" if self.device.type == "cuda" else "eager"
                compile_blocks(transformer, backend=backend)
        return self.base


def is_compiled(transformer: nn.Module) -> bool:
    first: Any = next(iter(transformer.transformer_blocks))  # type: ignore[arg-type]
    return "forward" in vars(first)


def ceiling(device: torch.device) -> dict[str, Any]:
    """TFLOP/s of a large bf16 product: what nothing here can beat. And what it ran on."""
    edge = CEILING_EDGE if device.type == "cuda" else 512
    left, right = (torch.randn(edge, edge, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(12):
        wait(device)
        start = time.perf_counter()
        torch.matmul(left, right)
        wait(device)
        best = min(best, time.perf_counter() - start)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    tflops = 2 * edge**3 / best / 1e12
    facts = {"device": name, "versions": versions, "TFLOP/s": round(tflops, 2)}
    return {"tflops": tflops, "facts": facts}


@contextmanager
def attention_kernels(first: str) -> Iterator[None]:
    """Have attention computed by the kernels of `first` where they can; empty: torch chooses."""
    if not first:
        yield
        return
    order = {
        "cudnn": [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION],
        "flash": [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION],
    }
    with sdpa_kernel([*order[first], SDPBackend.MATH], set_priority=True):
        yield


def flops_of(sizes: Dimensions, load: Load, fit: Fit, *, in_full: bool = False) -> float:
    """Operations of a step; what is computed again counts as work done.

    Args:
        in_full: whether whole blocks are computed again, their last products among the rest.
    """
    least, most = (step_flops(sizes, load, checkpointing=again) for again in (False, True))
    if fit.recomputation is None:
        return least
    tokens = load.image_tokens + load.text_tokens
    spared = 0.0 if in_full else 2.0 * tokens * prod(sizes.linear("img_mlp.net.2")) * sizes.blocks
    again = sizes.blocks - fit.recomputation.kept
    seen = min(fit.recomputation.attention, again) * 4.0 * tokens**2 * sizes.width
    again_flops = again / sizes.blocks * (most - least - load.batch_size * spared)
    return least + again_flops - load.batch_size * seen


def fit_named(asked: Asked, sizes: Dimensions, load: Load, way: Way, *, budget: int) -> Fit:
    """The fit that `way` names; `auto` is that of `qedit train`."""
    if asked.way == "auto":
        return fit_into(budget, sizes, load, way)
    name, _, number = asked.way.partition(":")
    ways = {
        "plain": Fit(None),
        "recompute": Fit(Recomputation()),
        "attention": Fit(Recomputation(attention=sizes.blocks)),
        "host": Fit(Recomputation(inputs_to_host=True)),
        "stream": Fit(Recomputation(inputs_to_host=True), streamed=int(number or 0)),
    }
    return ways[name]


def own_base(
    asked: Asked, folder: Path, device: torch.device, fit: Fit
) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """As `qedit train` makes it."""
    transformer = made_base(
        folder,
        zero_cond_t=ZERO_COND_T[asked.flavour],
        precision=asked.precision,
        table=asked.table,
        device=device,
        lies_on=load_device(fit, device),
    )
    targets = target_modules(transformer, "attention")
    return transformer, add_lora(transformer, targets, rank=RANK, alpha=RANK, seed=0)


def stock_base(
    asked: Asked, folder: Path, device: torch.device, fit: Fit
) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """As diffusers' and PEFT's own examples make it."""
    transformer: Any = made_base(
        folder,
        zero_cond_t=ZERO_COND_T[asked.flavour],
        precision="no_change",
        table=False,
        device=device,
    )
    if asked.precision == "int8":
        from optimum.quanto import freeze, qint8, quantize

        for block in transformer.transformer_blocks:
            quantize(block, weights=qint8)
            freeze(block)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
    transformer.requires_grad_(False)
    trained = {name: one for name, one in transformer.named_parameters() if "lora_" in name}
    for one in trained.values():  # their examples train the adapter in float32
        one.data = one.data.float()
        one.requires_grad_(True)
    transformer.enable_gradient_checkpointing()
    return transformer, trained


def steps_of(base: Base, asked: Asked, case: Case, device: torch.device) -> Step:
    """A step over made-up latents and text of the case's sizes; it gives loss and gradient."""
    weights = list(base.trained.values())
    if asked.what == "stock":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(weights, lr=1e-4)
    else:
        optimizer = make_optimizer(base.trained, learning_rate=1e-4, name="adamw", config=None)
    width = base.transformer.get_submodule("txt_in").in_features
    generator = torch.Generator(device).manual_seed(1)
    clean, noise, *references = (
        random_latents(case.edge, device=device, seed=place) for place in range(2 + case.references)
    )
    text = torch.randn(1, case.text_tokens, int(width), device=device, generator=generator)  # type: ignore[call-overload]
    sigma = torch.tensor([0.6], device=device)

    def step() -> tuple[float, float]:
        predicted = predict_velocity(
            base.transformer,
            noised(clean, noise, sigma).to(DTYPE),
            [reference.to(DTYPE) for reference in references],
            text.to(DTYPE),
            mask=None,
            sigma=sigma,
        )
        losses = sample_losses(predicted, noise - clean, loss_type="l2", huber_c=0.1)
        loss = losses.mean()
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach()), float(norm)

    return step


# -- the device --------------------------------------------------------------------------


def clear(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cap(device: torch.device, gigabytes: float) -> float:
    """Allow so much of the device, its context included; 0: all of it."""
    if device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
        allowed = gigabytes * GIGABYTE - context_bytes(device) if gigabytes else total
        torch.cuda.set_per_process_memory_fraction(allowed / total, device)
    return 0.0


def context_bytes(device: torch.device) -> int:
    """What the driver and the libraries have taken by now."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)


def peak_bytes(device: torch.device) -> int:
    """The most that tensors took, with the context; gaps between them are not counted."""
    if device.type != "cuda":
        return 0
    return torch.cuda.max_memory_allocated(device) + context_bytes(device)


def main() -> None:
    given = arguments(__doc__, default=[Asked("bf16"), Asked("yardstick, bf16", what="stock")])
    device = torch.device(given.device)
    let_segments_grow(device)
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), device, small=given.small, edge=given.edge)
        answer(given, lambda asked: bench.measured(asked, seconds=given.seconds))


if __name__ == "__main__":
    main()

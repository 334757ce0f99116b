"""Training steps, one case after the other over one base: seconds and memory, a JSON line each.

    python benchmarks/gpu/step.py --cases '[{"row": "mine", "precision": "int8-quanto"}]'

`what: qedit` runs what `qedit train` runs from the batch on: forward, loss, backward, clipping,
the optimizer's step. `what: stock` is the yardstick: diffusers' transformer with all its
weights, PEFT's adapter and torch's checkpointing, in the loop its own examples show; its
precision int8 is optimum-quanto's. `what: ceiling` is a large bf16 product.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import diffusers.models.transformers.transformer_qwenimage  # noqa: F401  here, not in a row's time
import torch
from bases import Base, own_base, stock_base
from cases import Asked
from made_base import DTYPE
from on_device import attention_kernels, cap, ceiling, clear, peak_bytes, wait
from shapes import FULL, SMALL, Case, random_latents, sizes_of, write_config
from torch._dynamo.utils import counters
from worker import answer, arguments

from qedit.stages.models.device import enable_expandable_segments
from qedit.stages.models.memory_estimate.dimensions import Dimensions
from qedit.stages.models.memory_estimate.memory import (
    CONTEXT_BYTES,
    Load,
    Way,
    memory_of,
    step_flops,
)
from qedit.stages.models.memory_estimate.memory_plan import (
    GIGABYTE,
    Fit,
    Recomputation,
    budget_of,
    fit_into,
    needed_bytes,
)
from qedit.stages.models.transformer.compiled import compile_blocks, is_compiled
from qedit.stages.models.transformer.transformer import predict_velocity
from qedit.stages.train.apply_memory_plan import apply_fit
from qedit.stages.train.objective.loss import noised, sample_losses
from qedit.stages.train.state.optimizers import make_optimizer

Step = Callable[[], tuple[float, float]]


class Bench:
    """Measures case after case; the base is made anew only where another one is asked for."""

    def __init__(self, folder: Path, device: torch.device, *, small: bool, edge: int) -> None:
        self.folder, self.device, self.edge = folder, device, edge
        self.small = small
        self.config = SMALL if small else FULL
        write_config(folder, self.config)
        self.base: Base | None = None

    def measured(self, asked: Asked) -> dict[str, Any]:
        """One case. Whatever it leaves behind is gone before the next."""
        if asked.what == "ceiling":
            return ceiling(self.device)
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
        counters.clear()
        loss, norm, first, times = self._timed(step, steps=asked.steps)
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
            "programs": counters["stats"]["unique_graphs"],
        }

    def _timed(self, step: Step, *, steps: int) -> tuple[float, float, float, list[float]]:
        """Loss and gradient of the first step, its seconds, and those of `steps` after it."""
        times: list[float] = []
        loss = norm = first = 0.0
        while len(times) <= steps:
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
            if asked.compiled and not is_compiled(transformer.transformer_blocks[0]):  # type: ignore[index]
                backend = "inductor" if self.device.type == "cuda" else "eager"
                compile_blocks(transformer, backend=backend)
        return self.base


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


def main() -> None:
    given = arguments(__doc__, default=[Asked("bf16"), Asked("yardstick, bf16", what="stock")])
    device = torch.device(given.device)
    enable_expandable_segments(device)
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), device, small=given.small, edge=given.edge)
        answer(given, bench.measured)


if __name__ == "__main__":
    main()

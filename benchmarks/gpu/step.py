"""Training steps of one kind in a process of their own: seconds and memory, a JSON line a case.

    python benchmarks/gpu/step.py --what qedit --precision int8-quanto --references 1,2,3

`--what qedit` runs what `qedit train` runs from the batch on: forward, loss, backward, clipping,
the optimizer's step. `--what stock` is the yardstick: diffusers' transformer with all its
weights, PEFT's adapter and torch's checkpointing, in the loop its own examples show.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from made_base import DTYPE, made_base
from shapes import FULL, SMALL, ZERO_COND_T, Case, random_latents, sizes_of, write_config
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from qedit.stages.models.dimensions import Dimensions
from qedit.stages.models.fit import GIGABYTE, Fit, Recomputation, fit_into, needed_bytes
from qedit.stages.models.lora import add_lora, target_modules
from qedit.stages.models.memory import Load, Way, step_flops
from qedit.stages.models.transformer import predict_velocity
from qedit.stages.train.fitting import FRAGMENTS, apply_fit, load_device
from qedit.stages.train.flow import noised, sample_losses
from qedit.stages.train.optimizers import make_optimizer

RANK = 16
WARM_UP = 2
Step = Callable[[], None]


def main() -> None:
    given = arguments()
    device = torch.device(given.device)
    cases = [
        Case(flavour, references, given.edge)
        for flavour in given.flavours.split(",")
        for references in map(int, given.references.split(","))
    ]
    if given.cap and device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
        torch.cuda.set_per_process_memory_fraction(given.cap * GIGABYTE / total, device)
    with tempfile.TemporaryDirectory() as folder, attention_kernels(given.attention):
        for case in cases:
            print(json.dumps(measured(case, given, Path(folder), device)), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", choices=["qedit", "stock"], default="qedit")
    parser.add_argument("--precision", default="no_change")
    parser.add_argument("--flavours", default="edit-v2")
    parser.add_argument("--references", default="1")
    parser.add_argument("--edge", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--cap", type=float, default=0, help="GB of the device that may be used")
    parser.add_argument("--way", default="auto", help="auto, recompute, attention, host, stream:N")
    parser.add_argument("--attention", default="", help="cudnn or flash: whose kernels come first")
    parser.add_argument("--compile", action="store_true", help="compile the repeated block")
    parser.add_argument("--no-table", action="store_true", help="keep the modulation's weights")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a small model, to try the harness")
    return parser.parse_args()


@contextmanager
def attention_kernels(first: str) -> Iterator[None]:
    """Have attention computed by the kernels of `first` where they can; empty: torch chooses."""
    order = {
        "cudnn": [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION],
        "flash": [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION],
    }
    if not first:
        yield
        return
    with sdpa_kernel([*order[first], SDPBackend.MATH], set_priority=True):
        yield


def measured(
    case: Case, given: argparse.Namespace, folder: Path, device: torch.device
) -> dict[str, Any]:
    """One case: what it took, or why it could not be had."""
    said: dict[str, Any] = {
        "what": given.what,
        "precision": given.precision,
        "case": case.name,
        "way": given.way,
        "cap_gb": given.cap,
        "compiled": given.compile,
        "attention": given.attention,
        "table": not given.no_table and given.what == "qedit",
    }
    try:
        return said | run(case, given, folder, device)
    except (torch.OutOfMemoryError, RuntimeError, ValueError) as error:
        # a row of the table that says why it is empty
        return said | {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    except Exception as error:
        return said | {"error": f"{type(error).__name__}: {error}"[:300]}


def run(
    case: Case, given: argparse.Namespace, folder: Path, device: torch.device
) -> dict[str, Any]:
    config = SMALL if given.small else FULL
    sizes = sizes_of(config, case.flavour)
    write_config(folder, config)
    clear(device)
    began = time.perf_counter()
    if given.what == "stock":
        fit = Fit(Recomputation())
        step = stock_step(case, folder, device, flavour=case.flavour)
        way = Way()
    else:
        way = Way(precision=given.precision, table=not given.no_table)
        fit = fit_named(given, sizes, case.load, way, device)
        step = own_step(case, folder, device, fit=fit, way=way, compiled=given.compile)
    made = time.perf_counter() - began
    seconds: list[float] = []
    first_step = 0.0
    for _ in range(WARM_UP + given.steps):
        wait(device)
        start = time.perf_counter()
        step()
        wait(device)
        seconds.append(time.perf_counter() - start)
        first_step = first_step or time.perf_counter() - began
    flops = flops_of(sizes, case.load, fit)
    best = median(seconds[WARM_UP:])
    return {
        "seconds": round(best, 4),
        "peak_gb": round(peak_bytes(device) / GIGABYTE, 2),
        "planned_gb": round(needed_bytes(fit, sizes, case.load, way) / GIGABYTE, 2),
        "tflops": round(flops / best / 1e12, 1),
        "made_seconds": round(made, 1),
        "first_step_seconds": round(first_step, 1),
        "fit": fit.words(blocks=sizes.blocks),
    }


def flops_of(sizes: Dimensions, load: Load, fit: Fit) -> float:
    """Operations of a step; what is computed again counts as work done."""
    least, most = (step_flops(sizes, load, checkpointing=again) for again in (False, True))
    if fit.recomputation is None:
        return least
    again = 1 - fit.recomputation.kept / sizes.blocks
    attention = 4.0 * (load.image_tokens + load.text_tokens) ** 2 * sizes.width * sizes.blocks
    return least + again * (most - least - (attention if fit.recomputation.attention else 0))


def fit_named(
    given: argparse.Namespace, sizes: Dimensions, load: Load, way: Way, device: torch.device
) -> Fit:
    """The fit that `--way` names; `auto` is that of `qedit train`."""
    if given.way == "auto":
        total = given.cap * GIGABYTE
        if not total and device.type == "cuda":
            total = torch.cuda.mem_get_info(device)[1]
        return fit_into(int((1 - FRAGMENTS) * (total or 1e12)), sizes, load, way)
    name, _, number = given.way.partition(":")
    ways = {
        "recompute": Fit(Recomputation()),
        "attention": Fit(Recomputation(attention=True)),
        "host": Fit(Recomputation(inputs_to_host=True)),
        "stream": Fit(Recomputation(inputs_to_host=True), streamed=int(number or 0)),
    }
    return ways[name]


def own_step(
    case: Case, folder: Path, device: torch.device, *, fit: Fit, way: Way, compiled: bool
) -> Step:
    """A step as `qedit train` makes it."""
    transformer = made_base(
        folder,
        zero_cond_t=ZERO_COND_T[case.flavour],
        precision=way.precision,
        table=way.table,
        device=device,
        lies_on=load_device(fit, device),
    )
    weights = add_lora(
        transformer, target_modules(transformer, "attention"), rank=RANK, alpha=RANK, seed=0
    )
    transformer.train()
    apply_fit(fit, transformer, device=device)
    if compiled:
        transformer.compile_repeated_blocks(fullgraph=True)  # type: ignore[operator]
    optimizer = make_optimizer(weights, learning_rate=1e-4, name="adamw", config=None)
    return steps_of(transformer, list(weights.values()), optimizer, case, device)


def stock_step(case: Case, folder: Path, device: torch.device, *, flavour: str) -> Step:
    """A step as diffusers' and PEFT's own examples make it."""
    from peft import LoraConfig

    transformer: Any = made_base(
        folder,
        zero_cond_t=ZERO_COND_T[flavour],
        precision="no_change",
        table=False,
        device=device,
    )
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
    trained = [one for one in transformer.parameters() if one.requires_grad]
    for one in trained:  # their examples train the adapter in float32
        one.data = one.data.float()
    transformer.train()
    transformer.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    return steps_of(transformer, trained, optimizer, case, device)


def steps_of(
    transformer: nn.Module,
    trained: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    case: Case,
    device: torch.device,
) -> Step:
    width = transformer.get_submodule("txt_in").in_features
    generator = torch.Generator(device).manual_seed(1)
    clean, noise, *references = (
        random_latents(case.edge, device=device, seed=place) for place in range(2 + case.references)
    )
    text = torch.randn(1, case.text_tokens, int(width), device=device, generator=generator)  # type: ignore[call-overload]
    sigma = torch.tensor([0.6], device=device)

    def step() -> None:
        predicted = predict_velocity(
            transformer,
            noised(clean, noise, sigma).to(DTYPE),
            [reference.to(DTYPE) for reference in references],
            text.to(DTYPE),
            mask=None,
            sigma=sigma,
        )
        losses = sample_losses(predicted, noise - clean, loss_type="l2", huber_c=0.1)
        torch.autograd.backward(losses.mean())
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def clear(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: torch.device) -> int:
    """The most that tensors took, with the context; reserved memory is not counted."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    context = total - free - torch.cuda.memory_reserved(device)
    return torch.cuda.max_memory_allocated(device) + context


if __name__ == "__main__":
    main()

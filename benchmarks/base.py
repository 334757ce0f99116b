"""The base in few bits: memory never holds two copies of it, and its checks cost little.

    python benchmarks/base.py [--precision int8-quanto ...]   # under three minutes

A transformer of eight blocks is read and quantised tensor by tensor, as `qedit train` and
`qedit cache-base` do it. What the process holds of its own at its highest, above what the base in
few bits takes, is told as a share of the base in bfloat16, which would be 1 if the base were
there in both forms: wanted at most 0.30. Files that are mapped are not counted.

Then the base in few bits is read from disk and makes a first step, in turns with and without the
check of every tensor. What is told is the ratio of the shortest times: wanted at most 1.10.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from qedit.stages.models.checkpoint.tensor_checksums import checksums_in
from qedit.stages.models.quantization.quantize import PRECISIONS
from qedit.stages.models.quantization.quantized_linear import quantize_layers, quantized_tensors
from qedit.stages.models.weights.streaming import (
    checked_tensors,
    empty_transformer,
    fill,
    tensors_in,
)

WIDTH, BLOCKS = 768, 8
MOST = 0.30
MOST_OF_CHECKS = 1.10
TURNS = 15
# At full scale every weight in float32 is larger than what the C library ever keeps of freed
# memory (32 MiB); here it would keep holes between the small results.
AS_LARGE = {"MALLOC_MMAP_THRESHOLD_": "262144"}
STATUS = Path("/proc/self/status")


def make_base(folder: Path) -> None:
    from diffusers import QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel(
        num_layers=BLOCKS,
        attention_head_dim=128,
        num_attention_heads=WIDTH // 128,
        joint_attention_dim=256,
        axes_dims_rope=(16, 56, 56),
    )
    transformer.to(torch.bfloat16).save_pretrained(folder)


def own_bytes() -> int:
    """What the process holds that is no mapped file."""
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def measure(folder: Path, name: str) -> dict[str, int]:
    """Quantise the base in `folder`; what it takes, and the most that was held."""
    precision = PRECISIONS[name]
    transformer = empty_transformer(folder, zero_cond_t=False)
    layers = quantize_layers(transformer, precision)
    before, most, done = own_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, own_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    tensors = quantized_tensors(
        tensors_in(folder, remember=None), layers, precision, dtype=torch.bfloat16, via="cpu"
    )
    fill(transformer, tensors, dtype=torch.bfloat16, device="cpu", source=folder)
    done.set()
    watcher.join()
    held = [*transformer.parameters(), *transformer.buffers()]
    return {"base": sum(one.nbytes for one in held), "most": most - before}


def start(path: Path, checksums: str | None, name: str, *, source: Path) -> tuple[float, Any]:
    """Load the base in `path`; return the seconds that it took, and the model."""
    begin = time.perf_counter()
    transformer = empty_transformer(source, zero_cond_t=False)
    quantize_layers(transformer, PRECISIONS[name])
    tensors = checked_tensors(path, checksums, again="")
    fill(transformer, tensors, dtype=torch.bfloat16, device="cpu", source=path)
    return time.perf_counter() - begin, transformer


def step(transformer: Any) -> float:
    """Make a forward and a backward on 256 image tokens; return its seconds."""
    begin = time.perf_counter()
    predicted = transformer(
        hidden_states=torch.zeros(1, 256, 64, dtype=torch.bfloat16, requires_grad=True),
        encoder_hidden_states=torch.zeros(1, 32, 256, dtype=torch.bfloat16),
        encoder_hidden_states_mask=None,
        timestep=torch.tensor([0.5], dtype=torch.bfloat16),
        img_shapes=[[(1, 16, 16)]],
        return_dict=False,
    )[0]
    predicted.float().square().mean().backward()
    return time.perf_counter() - begin


def compare(folder: Path, name: str) -> None:
    """Print what the checks add to a start, and to a start with its first step."""
    transformer = empty_transformer(folder, zero_cond_t=False)
    precision = PRECISIONS[name]
    layers = quantize_layers(transformer, precision)
    read = tensors_in(folder, remember=None)
    tensors = quantized_tensors(read, layers, precision, dtype=torch.bfloat16, via="cpu")
    data = save(dict(tensors))
    path = folder / "base-00000.few-bits"
    path.write_bytes(data)
    checksums = checksums_in(data)
    seconds: dict[str | None, list[float]] = {checksums: [], None: []}
    for _ in range(TURNS):
        for known in seconds:
            taken, transformer = start(path, known, name, source=folder)
            seconds[known].append(taken)
    first = min(step(transformer) for _ in range(2))  # the checks are no part of it
    checked, unchecked = min(seconds[checksums]), min(seconds[None])
    ratio = (checked + first) / (unchecked + first)
    print(f"{name}: {len(data) / 1e6:.0f} MB; the first step takes {first:.2f} s")
    print(f"start, checked / unchecked: {checked:.3f} / {unchecked:.3f} s")
    verdict = "ok" if ratio <= MOST_OF_CHECKS else "ABOVE"
    what = "start and first step, checked / unchecked"
    print(f"{what:56} {ratio:6.3f}  (wanted at most {MOST_OF_CHECKS:.2f}) {verdict}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", nargs="*", default=list(PRECISIONS))
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only-checks", action="store_true", help="Measure the checks alone.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure:
        print(json.dumps(measure(options.measure, options.precision[0])))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_base(folder)
        whole = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        compare(folder, options.precision[0])
        for name in () if options.only_checks else options.precision:
            command = [sys.executable, __file__, "--measure", place, "--precision", name]
            run = subprocess.run(
                command, check=True, capture_output=True, env=os.environ | AS_LARGE
            )
            found = json.loads(run.stdout)
            share = (found["most"] - found["base"]) / whole
            verdict = "ok" if share <= MOST else "ABOVE"
            what = f"{name}: {found['base'] / 1e6:.0f} MB of {whole / 1e6:.0f}, held beside it"
            print(f"{what:56} {share:6.2f}  (wanted at most {MOST:.2f}) {verdict}", flush=True)


if __name__ == "__main__":
    main()

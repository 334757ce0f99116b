"""How much memory it takes to have the base in few bits: never two copies of it.

    python benchmarks/base.py [--precision int8-quanto ...]   # under two minutes

A transformer of eight blocks is read and quantised tensor by tensor, as `qedit train` and
`qedit cache-base` do it. What the process holds of its own at its highest, above what the base in
few bits takes, is told as a share of the base in bfloat16, which would be 1 if the base were
there in both forms: wanted at most 0.30. Files that are mapped are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import torch

from qedit.stages.models.quantization.quantize import PRECISIONS
from qedit.stages.models.quantization.quantized_linear import quantize_layers, quantized_tensors
from qedit.stages.models.weights.streaming import empty_transformer, fill, tensors_in

WIDTH, BLOCKS = 768, 8
MOST = 0.30
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", nargs="*", default=list(PRECISIONS))
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure:
        print(json.dumps(measure(options.measure, options.precision[0])))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_base(folder)
        whole = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        for name in options.precision:
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

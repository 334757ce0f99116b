"""What a start costs: read the base, make it small, tabulate modulation; a JSON line each.

    python benchmarks/gpu/startup.py --small --device cpu

Some blocks of the true width are written to disk and read as `qedit train` and
`qedit cache-base` read them; seconds for all blocks follow by their number. The files have just
been written, so they come from the page cache: a cold disk adds its own time.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cases import Asked
from made_base import DTYPE, random_tensors
from on_device import clear, wait
from safetensors.torch import save_file
from shapes import FULL, SMALL, write_config
from worker import answer, arguments

from qedit.stages.models.device import enable_expandable_segments
from qedit.stages.models.quantization.quantize import precision_for
from qedit.stages.models.quantization.quantized_linear import quantize_layers, quantized_tensors
from qedit.stages.models.timesteps import every_timestep
from qedit.stages.models.transformer.modulation import ModulationWeights
from qedit.stages.models.weights.streaming import empty_transformer, fill, tensors_in

BLOCKS = 3  # 2 GB at full width
TIMESTEPS = 64


class Bench:
    """A checkpoint of few blocks."""

    def __init__(self, folder: Path, device: torch.device, *, small: bool) -> None:
        config = SMALL if small else FULL
        self.blocks = int(config["num_layers"])  # type: ignore[call-overload]
        self.folder = write_config(folder, config | {"num_layers": BLOCKS})
        self.device = device
        shapes = {
            name: one.shape
            for name, one in empty_transformer(folder, zero_cond_t=False).named_parameters()
        }
        tensors = {name: one.cpu() for name, one in random_tensors(shapes, device=device)}
        save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
        self.bytes = sum(one.nbytes for one in tensors.values())

    def measured(self, asked: Asked) -> dict[str, Any]:
        facts: dict[str, Any] = {"GB": round(self.bytes / 1e9, 2), "blocks": BLOCKS}
        if asked.precision == "table":
            facts |= self._table()
        elif asked.precision == "no_change":
            facts |= self._of_all("read", lambda: self._read(self.device))
        else:
            for via in dict.fromkeys((self.device.type, "cpu")):
                facts |= self._of_all(
                    f"quantised on {via}", lambda via=via: self._small(asked, via)
                )
        return {"facts": facts}

    def _of_all(self, what: str, work: Callable[[], object]) -> dict[str, float]:
        clear(self.device)
        wait(self.device)
        began = time.perf_counter()
        work()
        wait(self.device)
        seconds = time.perf_counter() - began
        return {f"{what}, s for all blocks": round(seconds * self.blocks / BLOCKS, 1)}

    def _read(self, device: torch.device) -> None:
        transformer = empty_transformer(self.folder, zero_cond_t=False)
        fill(
            transformer,
            tensors_in(self.folder, remember=None),
            dtype=DTYPE,
            device=device,
            source=self.folder,
        )

    def _small(self, asked: Asked, via: str) -> None:
        number_format = precision_for(asked.precision, device=via)
        transformer = empty_transformer(self.folder, zero_cond_t=False)
        layers = quantize_layers(transformer, number_format)
        made = quantized_tensors(
            tensors_in(self.folder, remember=None), layers, number_format, dtype=DTYPE, via=via
        )
        fill(transformer, made, dtype=DTYPE, device=self.device, source=self.folder)

    def _table(self) -> dict[str, float]:
        timesteps = every_timestep(lowest_sigma=0.001)
        weights = ModulationWeights(self.folder, remember=None, device=self.device)
        found = self._of_all("", lambda: weights.rows(timesteps[:TIMESTEPS]))
        (seconds,) = found.values()
        return {"table of all timesteps, s": round(seconds * len(timesteps) / TIMESTEPS, 1)}


def main() -> None:
    default = [Asked("start-up", what="startup")]
    given = arguments(__doc__, default=default)
    device = torch.device(given.device)
    enable_expandable_segments(device)
    with tempfile.TemporaryDirectory() as name:
        bench: list[Bench] = []

        def measure(asked: Asked) -> dict[str, Any]:
            bench[:] = bench or [Bench(Path(name), device, small=given.small)]
            return bench[0].measured(asked)

        answer(given, measure)


if __name__ == "__main__":
    main()

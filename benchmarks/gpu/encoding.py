"""The two encoders at their true shapes, fed by the stages, against bare loops over them.

    python benchmarks/gpu/encoding.py                  # random weights, made on the GPU
    python benchmarks/gpu/encoding.py --small --device cpu

Items a second of the stage, and of a loop that has everything in memory and drops what it gets.
Photos are decoded and resized, and rows are written.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cases import Asked
from on_device import clear
from worker import answer, arguments

sys.path.insert(0, str(Path(__file__).parent.parent))
from feeding import Loaded, Silent, batches_of, embeds_work, made_run, vae_work
from made_encoders import made_text_encoder, made_vae

from qedit.config.configuration import Configuration
from qedit.stages.cache_embeds import encoding as embeds_encoding
from qedit.stages.cache_vae import encoding as vae_encoding
from qedit.stages.encoding.device_options import DeviceOptions
from qedit.stages.encoding.run_on_device import Work, encode_missing
from qedit.stages.models.checkpoint.checkpoint import open_checkpoint
from qedit.stages.models.device import enable_expandable_segments
from qedit.stages.models.text.prompt import PromptEncoder
from qedit.stages.models.tiny.tiny import make_tiny

PAIRS, SMALL_PAIRS = 24, 3
SMALL_VAE = {"base_dim": 16}
# Qwen2.5-VL of 7 B, as the released checkpoints say
TEXT = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": [7, 15, 23, 31],
}


def text_encoder_on(device: torch.device, checkpoint: Any, *, small: bool) -> PromptEncoder:
    if small:
        return PromptEncoder.load(checkpoint, dtype=torch.bfloat16, device=device)
    return made_text_encoder(
        device, checkpoint, text=TEXT, vision=VISION, mrope=(16, 24, 24), dtype=torch.bfloat16
    )


def compare(make: Callable[[], Work], encoder: Any, options: DeviceOptions) -> dict[str, Any]:
    """The stage first (it finds the batch size), then the bare loop over the same batches."""
    encode_missing(_with(make(), encoder), Silent(), options)  # kernels are chosen, memory is taken
    work = _with(make(), encoder)
    started = time.perf_counter()
    filled = encode_missing(work, Silent(), options)
    stage = time.perf_counter() - started
    batches = list(batches_of(work))
    read = [[work.encoding.read(item) for item in batch] for batch in batches]
    started = time.perf_counter()
    for batch, there in zip(batches, read, strict=True):
        encoder.encode(batch, there)
    bare = time.perf_counter() - started
    return {
        "items": work.count,
        "batch": max(map(len, batches)),
        "per_second": round(work.count / stage, 2),
        "bare_per_second": round(work.count / bare, 2),
        "spent": {name: round(seconds, 2) for name, seconds in filled.seconds.items()},
    }


def _with(work: Work, encoder: Any) -> Work:
    return replace(work, encoding=Loaded(work.encoding, encoder))


@dataclass
class Bench:
    """The photos, and the tiny checkpoint that lends its tokenizer and configuration."""

    configuration: Configuration
    folder: Path
    device: torch.device
    small: bool

    @classmethod
    def made(cls, folder: Path, device: torch.device, *, small: bool) -> Bench:
        pairs, edge = (SMALL_PAIRS, 128) if small else (PAIRS, 1024)
        areas = {"vae_area": edge * edge, "vl_area": 56 * 56 if small else 384 * 384}
        tiny = make_tiny(folder / "tiny", "edit-v2", **areas)
        configuration = made_run(
            folder / "run",
            tiny,
            flavour="edit-v2",
            pairs=pairs,
            size=(edge * 3 // 2, edge),
            resolution=edge,
        )
        return cls(configuration, folder, device, small)

    def measured(self, asked: Asked) -> dict[str, Any]:
        options = DeviceOptions(device=str(self.device))
        if asked.what == "cache-vae":
            vae = made_vae(self.device, **(SMALL_VAE if self.small else {}))
            encoder: Any = vae_encoding.OnDevice(vae)
            make = partial(vae_work, self.configuration, self.folder, options)
        else:
            checkpoint = open_checkpoint(self.configuration.settings)
            encoder = embeds_encoding.OnDevice(
                text_encoder_on(self.device, checkpoint, small=self.small)
            )
            make = partial(embeds_work, self.configuration, self.folder, options)
        facts = compare(make, encoder, options)
        del encoder
        clear(self.device)
        return {"facts": facts}


def main() -> None:
    both = [Asked(name, what=name) for name in ("cache-vae", "cache-embeds")]
    given = arguments(__doc__, default=both)
    device = torch.device(given.device)
    enable_expandable_segments(device)
    with tempfile.TemporaryDirectory() as name:
        bench: list[Bench] = []

        def measure(asked: Asked) -> dict[str, Any]:
            bench[:] = bench or [Bench.made(Path(name), device, small=given.small)]
            return bench[0].measured(asked)

        answer(given, measure)


if __name__ == "__main__":
    main()

"""The two encoders at their true shapes, fed by the stages, against bare loops over them.

    python benchmarks/gpu/encoding.py                  # random weights, made on the GPU
    python benchmarks/gpu/encoding.py --small --device cpu

One JSON object a line: items a second of the stage, and of a loop that has everything in
memory and drops what it gets. Photos are decoded and resized, and rows are written.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from feeding import Loaded, Silent, batches_of, emptied, made_run
from made_encoders import made_text_encoder, made_vae

from qedit.config.configuration import Configuration
from qedit.stages.cache_embeds import encoding as embeds_encoding
from qedit.stages.cache_embeds import stage as embeds_stage
from qedit.stages.cache_vae import encoding as vae_encoding
from qedit.stages.cache_vae import stage as vae_stage
from qedit.stages.cache_vae.wanted_pictures import find_pictures
from qedit.stages.encoding.fill import Work, fill
from qedit.stages.encoding.ways import Ways
from qedit.stages.models.checkpoint import open_checkpoint
from qedit.stages.models.prompt import PromptEncoder
from qedit.stages.models.tiny import make_tiny
from qedit.stages.stores import open_stores

COUNT = itertools.count()
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


def vae_work(configuration: Configuration, folder: Path, ways: Ways) -> Work:
    fresh = emptied(configuration, folder / str(next(COUNT)))
    checkpoint = open_checkpoint(fresh.settings)
    stores = open_stores(fresh, checkpoint)
    wanted = find_pictures(fresh, checkpoint.flavour, stores)
    return vae_stage.pictures_work(fresh, checkpoint, stores, wanted, ways)


def embeds_work(configuration: Configuration, folder: Path, ways: Ways) -> Work:
    fresh = emptied(configuration, folder / str(next(COUNT)))
    work = embeds_stage.sets_work(fresh, ways, share=None)
    assert work is not None
    return work


def compare(what: str, make: Callable[[], Work], encoder: Any, ways: Ways) -> dict[str, Any]:
    """The stage first (it finds the batch size), then the bare loop over the same batches."""
    fill(_with(make(), encoder), Silent(), ways)  # kernels are chosen, memory is taken
    work = _with(make(), encoder)
    started = time.perf_counter()
    filled = fill(work, Silent(), ways)
    stage = time.perf_counter() - started
    batches = list(batches_of(work))
    read = [[work.encoding.read(item) for item in batch] for batch in batches]
    started = time.perf_counter()
    for batch, there in zip(batches, read, strict=True):
        encoder.encode(batch, there)
    bare = time.perf_counter() - started
    return {
        "what": what,
        "items": work.count,
        "batch": max(map(len, batches)),
        "per_second": work.count / stage,
        "bare_per_second": work.count / bare,
        "share_of_bare": bare / stage,
        "spent": filled.seconds,
    }


def _with(work: Work, encoder: Any) -> Work:
    return replace(work, encoding=Loaded(work.encoding, encoder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", "--tiny", action="store_true", help="small models, few pictures")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--pairs", type=int, default=48)
    given = parser.parse_args()
    device = torch.device(given.device)
    pairs, edge = (3, 128) if given.small else (given.pairs, 1024)
    ways = Ways(device=given.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        areas = {"vae_area": edge * edge, "vl_area": 56 * 56 if given.small else 384 * 384}
        tiny = make_tiny(folder / "tiny", "edit-v2", **areas)
        size = (edge * 3 // 2, edge)
        configuration = made_run(
            folder / "run", tiny, flavour="edit-v2", pairs=pairs, size=size, resolution=edge
        )
        checkpoint = open_checkpoint(configuration.settings)
        vae = vae_encoding.OnDevice(made_vae(device, **(SMALL_VAE if given.small else {})))
        row = compare("cache-vae", lambda: vae_work(configuration, folder, ways), vae, ways)
        print(json.dumps(row), flush=True)
        del vae
        text = text_encoder_on(device, checkpoint, small=given.small)
        row = compare(
            "cache-embeds",
            lambda: embeds_work(configuration, folder, ways),
            embeds_encoding.OnDevice(text),
            ways,
        )
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

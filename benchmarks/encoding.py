"""How well the encoders are fed, each figure a ratio against a yardstick of the same run.

    OMP_NUM_THREADS=1 python benchmarks/encoding.py [--pairs 64]

stages   wall time of cache-vae and cache-embeds against the slowest of their parts alone (<= 1.15)
tails    four captions and the null prompt on one prefix against one pass each: work (>= 3 times
         less) and bytes (<= 0.3)
flat     the VAE's encode of single pictures against diffusers' own (>= 2 times faster)
workers  two processes on two cores against one
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKLQwenImage
from feeding import (
    Silent,
    embeds_work,
    emptied,
    made_run,
    measure,
    report,
    seconds_of,
    told,
    vae_work,
)
from made_encoders import made_text_encoder, made_vae
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from qedit.config.configuration import Configuration
from qedit.stages.cache_embeds import encoding as embeds_encoding
from qedit.stages.cache_vae import encoding as vae_encoding
from qedit.stages.cache_vae import stage as vae_stage
from qedit.stages.encoding.device_options import DeviceOptions
from qedit.stages.encoding.devices import on_each_device
from qedit.stages.encoding.encoder import Encoder
from qedit.stages.encoding.run_on_device import Work
from qedit.stages.models.checkpoint.checkpoint import open_checkpoint
from qedit.stages.models.text.prompt import PromptEncoder
from qedit.stages.models.tiny.tiny import make_tiny
from qedit.stages.models.vae import LatentEncoder
from qedit.stages.pictures.images import resized
from qedit.stages.stores.row_kinds import RowKind

# Rows as large as at full scale, or larger, from models that are small: so that to write them,
# packed, is a share of the work.
Z_DIM = 256
WIDE_VAE = {
    "base_dim": 4,
    "num_res_blocks": 1,
    "z_dim": Z_DIM,
    "latents_mean": [0.0] * Z_DIM,
    "latents_std": [1.0] * Z_DIM,
}
WIDE_TEXT = {
    "hidden_size": 1280,
    "intermediate_size": 320,
    "num_hidden_layers": 1,
    "num_attention_heads": 10,
    "num_key_value_heads": 2,
}
VISION = {"out_hidden_size": 1280}


def stages_of(configuration: Configuration) -> list[tuple[str, Callable[..., Work], Encoder]]:
    """Both stages, with encoders whose rows are so large for their work that writing counts."""
    checkpoint, cpu = open_checkpoint(configuration.settings), torch.device("cpu")
    vae = made_vae(cpu, **WIDE_VAE)
    text = made_text_encoder(cpu, checkpoint, text=WIDE_TEXT, vision=VISION, mrope=(16, 24, 24))
    return [
        ("cache-vae", vae_work, vae_encoding.OnDevice(vae)),
        ("cache-embeds", embeds_work, embeds_encoding.OnDevice(text)),
    ]


def tails(configuration: Configuration) -> None:
    """FLOP as torch counts them: what is measured does not depend on who else is busy."""
    checkpoint = open_checkpoint(configuration.settings)
    encoder = PromptEncoder.load(checkpoint, dtype=torch.float32)
    from PIL import Image

    shown = [resized(Image.new("RGB", (512, 384)), (0.0, 0.0, 512.0, 384.0), (448, 320))]
    captions = [f"turn the house red and the sky blue, number {one}" for one in range(4)] + [" "]
    together, each = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with together:
        prefix, ends = encoder.encode(shown, captions)
    with each:
        whole = [encoder.encode(shown, [caption]) for caption in captions]
    one = seconds_of(lambda: encoder.encode(shown, captions))
    five = seconds_of(lambda: [encoder.encode(shown, [caption]) for caption in captions])
    stored = len(prefix) + sum(map(len, ends))
    in_full = sum(len(start) + len(end) for start, (end,) in whole)
    work = each.get_total_flops() / together.get_total_flops()
    told("tails", "times less work than one pass each", work, wanted=">= 3", ok=work >= 3)
    share = stored / in_full
    told("tails", "of the bytes of storing each in full", share, wanted="<= 0.3", ok=share <= 0.3)
    print(f"{'':13} {five / one:.2f} times less time")


def flat() -> None:
    stock = AutoencoderKLQwenImage(base_dim=32).eval().requires_grad_(False)
    pixels = torch.rand(1, 3, 256, 256) * 2 - 1
    best: dict[str, float] = {}
    ours = LatentEncoder(_copy(stock))
    for _ in range(3):
        for name, work in (
            ("stock", lambda: stock.encode(pixels[:, :, None]).latent_dist.mode()),
            ("ours", lambda: ours.encode(pixels)),
        ):
            seconds = seconds_of(work)
            best[name] = min(best.get(name, seconds), seconds)
    ratio = best["stock"] / best["ours"]
    told("flat", "times as fast as diffusers' encode", ratio, wanted=">= 2", ok=ratio >= 2)


def _copy(model: nn.Module) -> nn.Module:
    other = AutoencoderKLQwenImage(base_dim=32).eval().requires_grad_(False)
    other.load_state_dict(model.state_dict())
    return other


def workers(configuration: Configuration, folder: Path) -> None:
    rates = {}
    for devices in (("cpu",), ("cpu", "cpu")):
        fresh = emptied(configuration, folder)
        options = DeviceOptions(devices=devices, workers=1)
        filled = on_each_device(
            options, partial(vae_stage.run.encode_on, shard=None), fresh, Silent()
        )
        busy = sum(filled.seconds.values()) / len(devices)  # without the start of processes
        rates[devices] = filled.rows[RowKind.LATENTS] / busy
    one, two = rates.values()
    print(
        f"{'workers':13} {two / one:.2f} times as fast with 2: {two:.1f} pictures/s, not {one:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=64)
    pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = make_tiny(folder / "tiny", "edit-v2", vae_area=512 * 512, vl_area=512 * 512)
        configuration = made_run(
            folder / "run",
            checkpoint,
            flavour="edit-v2",
            pairs=pairs,
            size=(1200, 900),
            resolution=512,
            captions=4,
            cache_compression="zstd",
        )
        options = DeviceOptions(device="cpu", workers=1)
        for label, make, encoder in stages_of(configuration):
            make_work = partial(make, configuration, folder, options)
            parts, whole = measure(make_work, encoder, options)
            report(label, parts, whole, items=make_work().count)
        tails(configuration)
        flat()
        workers(configuration, folder)


if __name__ == "__main__":
    main()

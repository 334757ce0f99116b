"""How well the encoders are fed, each figure a ratio against a yardstick of the same run.

    OMP_NUM_THREADS=1 python benchmarks/encoding.py [--pairs 40]

stages   wall time of cache-vae and cache-embeds against the slowest of their parts alone (<= 1.15)
tails    four captions and the null prompt on one prefix against one pass each: work (>= 3 times
         less) and bytes (<= 0.3)
flat     the VAE's encode of single pictures against diffusers' own (>= 2 times faster)
workers  two processes on two cores against one
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKLQwenImage
from feeding import Silent, emptied, made_run, measure, report, seconds_of
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from qedit.config.configuration import Configuration
from qedit.stages.cache_embeds import stage as embeds_stage
from qedit.stages.cache_vae import stage as vae_stage
from qedit.stages.cache_vae.wanted_pictures import find_pictures
from qedit.stages.encoding.devices import on_each_device
from qedit.stages.encoding.fill import Work
from qedit.stages.encoding.ways import Ways
from qedit.stages.images import resized
from qedit.stages.models.checkpoint import open_checkpoint
from qedit.stages.models.prompt import PromptEncoder
from qedit.stages.models.tiny import make_tiny
from qedit.stages.models.vae import LatentEncoder
from qedit.stages.stores import open_stores

COUNT = itertools.count()


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


def tails(checkpoint_folder: Path, configuration: Configuration) -> None:
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
    print(f"tails         {work:.2f} times less work (>= 3), {five / one:.2f} times less time")
    print(f"tails         {stored / in_full:.2f} of the bytes of storing each in full (<= 0.3)")


def flat(checkpoint_folder: Path) -> None:
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
    print(f"flat          {best['stock'] / best['ours']:.2f} times diffusers' encode (>= 2)")


def _copy(model: nn.Module) -> nn.Module:
    other = AutoencoderKLQwenImage(base_dim=32).eval().requires_grad_(False)
    other.load_state_dict(model.state_dict())
    return other


def workers(configuration: Configuration, folder: Path) -> None:
    rates = {}
    for devices in (("cpu",), ("cpu", "cpu")):
        fresh = emptied(configuration, folder / str(next(COUNT)))
        ways = Ways(devices=devices, workers=1)
        filled = on_each_device(ways, partial(vae_stage.fill_on, share=None), fresh, Silent())
        busy = sum(filled.seconds.values()) / len(devices)  # without the start of processes
        rates[devices] = filled.rows["latents"] / busy
    one, two = rates.values()
    print(
        f"workers       {two / one:.2f} times as fast with 2: {two:.1f} pictures/s, not {one:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=40)
    pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = make_tiny(folder / "tiny", "edit-v2", vae_area=512 * 512, vl_area=640 * 640)
        configuration = made_run(
            folder / "run",
            checkpoint,
            flavour="edit-v2",
            pairs=pairs,
            size=(1600, 1200),
            resolution=512,
            captions=4,
        )
        ways = Ways(device="cpu", workers=1)
        for label, make in (("cache-vae", vae_work), ("cache-embeds", embeds_work)):
            make_work = partial(make, configuration, folder, ways)
            parts, whole = measure(make_work, ways)
            report(label, parts, whole, items=make_work().count)
        tails(checkpoint, configuration)
        flat(checkpoint)
        workers(configuration, folder)


if __name__ == "__main__":
    main()

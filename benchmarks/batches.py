"""What a batch of mixed shapes costs in exactness and in padding, as a table.

    python benchmarks/batches.py             # under two minutes
    python benchmarks/batches.py --no-demo   # the table alone

Losses and LoRA gradients of one forward over samples of several sizes, numbers of references and
lengths of text, beside those of the same samples one by one through the stock forward: the
largest difference of a loss and that of the whole gradient, relative. Wanted at most 1e-5 in
float32 and 1e-2 in bfloat16. Then the share of padding in an epoch of the demo's pairs, in
batches of several sizes: wanted below 0.03.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/support"))

from mixed_shapes import CLOSE, MIXES, alone, gradient, shown, together, with_lora
from quiet import Quiet
from torch import Tensor

from qedit.cache.files.atomic import write_json
from qedit.config.loading import load
from qedit.pipeline.demo.pictures import draw_demo_pictures
from qedit.pipeline.demo.tour import CHAPTERS, VAE_AREA, VL_AREA, Chapter, datasets_of, settings_of
from qedit.pipeline.runner import run_stages
from qedit.stages.models.tiny.tiny import make_tiny
from qedit.stages.train.data.feed import padding_of
from qedit.stages.train.plan.training_plan import make_plan

DEMO_BATCHES = (2, 4, 8)
MOST_PADDING = 0.03


def show(what: str, value: float, limit: float) -> None:
    verdict = "ok" if value <= limit else "ABOVE"
    print(f"{what:56} {value:8.1e}  (wanted at most {limit:.0e}) {verdict}", flush=True)


def losses(velocities: list[Tensor]) -> Tensor:
    return torch.stack([(one.detach().float() - 0.3).square().mean() for one in velocities])


def compare(mix: str, *, zero_cond_t: bool, dtype: torch.dtype) -> None:
    transformer, weights = with_lora(zero_cond_t=zero_cond_t, dtype=dtype)
    parts = shown(MIXES[mix], dtype)
    found = []
    for velocities in (alone(transformer, parts), together(transformer, parts)):
        found.append((losses(velocities), gradient(weights, velocities)))
    (true_losses, true_gradient), (own_losses, own_gradient) = found
    where = f"{mix}, {'v3' if zero_cond_t else 'v2'}, {str(dtype).removeprefix('torch.')}"
    loss = ((own_losses - true_losses).abs() / true_losses).max()
    show(f"loss: {where}", float(loss), CLOSE[dtype])
    gap = (own_gradient - true_gradient).norm() / true_gradient.norm()
    show(f"gradient: {where}", float(gap), CLOSE[dtype])


def padding_in_demo(chapter: Chapter) -> None:
    """Of all samples of an epoch, as the demo's own configuration shows them."""
    home = Path(chapter.flavour)
    home.mkdir(exist_ok=True)
    make_tiny(
        Path("models") / chapter.flavour,
        chapter.flavour,
        vae_area=VAE_AREA,
        vl_area=VL_AREA,
        sighted=True,
    )
    write_json(home / "multidatabackend.json", datasets_of(chapter))
    for batch_size in DEMO_BATCHES:
        write_json(home / "config.json", {**settings_of(chapter), "train_batch_size": batch_size})
        configuration = load(home / "config.json", home / "multidatabackend.json")
        run_stages(("pair", "cache-vae", "cache-embeds"), configuration, Quiet())
        feed = make_plan(configuration).feed
        steps = range(1, 1 + feed.order.steps_for(1))
        epoch = [batch for step in steps for batch in feed.step(step)]
        what = f"padding: demo {chapter.flavour}, batches of {batch_size}"
        show(what, padding_of(epoch), MOST_PADDING)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-demo", dest="demo", action="store_false")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for mix in MIXES:
        for zero_cond_t in (False, True):
            for dtype in CLOSE:
                compare(mix, zero_cond_t=zero_cond_t, dtype=dtype)
    if not options.demo:
        return
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        draw_demo_pictures(Path("pictures"))
        for chapter in CHAPTERS:
            padding_in_demo(chapter)


if __name__ == "__main__":
    main()

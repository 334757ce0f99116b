"""Draw docs/demo.webp, the picture at the top of README.md, from a run of `qedit demo`.

    python docs/make_picture.py qedit-demo

runs the demo in that folder (it goes on with, or finds, what is there already), lets the model
edit a few of its training samples without and with the LoRA, and draws what came of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file
from torch import Tensor

from qedit.config.configuration import Configuration
from qedit.config.loading import load
from qedit.pipeline.demo.tour import CHAPTERS
from qedit.stages.models.device import best_device
from qedit.stages.models.transformer.denoise import denoise, load_scheduler
from qedit.stages.models.transformer.transformer import load_transformer
from qedit.stages.models.vae import LatentEncoder
from qedit.stages.pictures.images import open_upright, picture_of, resized
from qedit.stages.samples.sample import NULL_CAPTION, Picture, Sample
from qedit.stages.samples.table import picture_folders
from qedit.stages.stores.run import Run
from qedit.stages.stores.sample_rows import read_embeds, read_latents

PICTURE = Path(__file__).resolve().parent / "demo.webp"
# some samples of each flavour, of which the model has learnt something in so few steps
SHOWN = {
    "edit-v1": ("night-snow.png", "cut-out-cat.png"),
    "edit-v2": ("balloon-4.jpg", "cat-1.png"),
}
NOTE = (
    f"Training samples of qedit demo: a tiny random model on a CPU, {CHAPTERS[0].steps} steps. "
    "It has learnt light, colour and place, and not yet shapes."
)
DENOISING_STEPS = 16
SEED = 7

# GitHub shows a README about 900 pixels wide: drawn at twice that for sharp letters
SCALE = 2
PICTURE_WIDTH, REFERENCES_WIDTH, INSTRUCTION_WIDTH = 168, 190, 150
MOST_HEIGHT = 118
GAP, PICTURE_GAP, MARGIN, ROW_GAP = 12, 6, 20, 14
HEAD, FOOT = 36, 26
INSTRUCTION_POINTS, LINE = 14.5, 19
CORNER = 7
PAPER, INK, FAINT, RULE = "#fbfaf7", "#22201c", "#6f6a60", "#dcd7cc"
WEBP_QUALITY = 88


class Editor:
    """The transformer and the VAE on one device, and the caches they read from."""

    def __init__(self, configuration: Configuration, *, device: str = "auto") -> None:
        run = Run(configuration)
        self._checkpoint, self._stores = run.checkpoint, run.stores
        self._folders = picture_folders(configuration)
        self._device = best_device(device)
        self._vae = LatentEncoder.load(self._checkpoint, device=self._device)
        self._transformer = load_transformer(
            self._checkpoint, dtype=torch.float32, device=self._device
        )

    def use_lora(self, path: Path) -> None:
        """Put the LoRA file at `path` over the base, as diffusers' own loader does."""
        cast(Any, self._transformer).load_lora_adapter(load_file(path), prefix="transformer")

    def edit(
        self, sample: Sample, *, steps: int, guidance: float, seed: int, caption: int = 0
    ) -> Image.Image:
        """What the model makes of the sample's references and caption, from fixed noise."""
        shape = self._stores.latents.shape(sample.target.latent_key, dataset=sample.target.dataset)
        noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))
        latents = denoise(
            self._transformer,
            load_scheduler(self._checkpoint.scheduler),
            noise.to(self._device),
            [
                self._on_device(read_latents(self._stores, [reference]))
                for reference in sample.references
            ],
            self._embeds(sample, sample.captions[caption]),
            self._embeds(sample, NULL_CAPTION),
            steps=steps,
            guidance=guidance,
        )
        return picture_of(self._vae.decode(latents)[0].cpu().numpy())

    def pictures(self, sample: Sample) -> tuple[list[Image.Image], Image.Image]:
        """The references and the target at the sizes the VAE sees."""
        return (
            [self._picture(reference) for reference in sample.references],
            self._picture(sample.target),
        )

    def _picture(self, picture: Picture) -> Image.Image:
        opened = open_upright(self._folders[picture.dataset] / picture.path)
        return resized(opened, picture.box, picture.size)

    def _embeds(self, sample: Sample, caption: str) -> Float[Tensor, "1 token channel"]:
        return self._on_device(read_embeds(self._stores, [sample], [caption])[0])

    def _on_device(self, rows: Tensor) -> Tensor:
        return rows.to(self._device, torch.float32)


@dataclass(frozen=True)
class Edit:
    """One row of the picture: a sample and what the model made of it."""

    instruction: str
    references: Sequence[Image.Image]
    target: Image.Image
    before: Image.Image
    after: Image.Image


def main(folder: Path) -> None:
    """Run the demo in `folder` and write docs/demo.webp."""
    demo = [sys.executable, "-m", "qedit.pipeline", "demo", "--dir", str(folder)]
    subprocess.run(demo, check=True)
    os.chdir(folder)  # the demo's configurations name their folders from there
    edits = [edit for flavour, names in SHOWN.items() for edit in edits_of(flavour, names)]
    draw_edits(edits, NOTE).save(PICTURE, quality=WEBP_QUALITY, method=6)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1000:.0f} kB")


def edits_of(flavour: str, names: Sequence[str]) -> list[Edit]:
    """Edit the samples called `names` without and with the LoRA of the demo's `flavour`."""
    home = Path(flavour)
    configuration = load(home / "config.json", home / "multidatabackend.json")
    settings = configuration.settings
    samples = {one.name: one for one in Run(configuration).samples()}
    editor, made = Editor(configuration), []
    for with_lora in (False, True):
        if with_lora:
            editor.use_lora(settings.output_dir / "pytorch_lora_weights.safetensors")
        made.append(
            [
                editor.edit(samples[name], steps=DENOISING_STEPS, guidance=1.0, seed=SEED)
                for name in names
            ]
        )
    rows = []
    for name, before, after in zip(names, *made, strict=True):
        references, target = editor.pictures(samples[name])
        rows.append(Edit(samples[name].captions[0], references, target, before, after))
    return rows


def draw_edits(edits: Sequence[Edit], note: str) -> Image.Image:
    """Draw a row for each edit: reference, instruction, target, before and after training."""
    widths = (REFERENCES_WIDTH, INSTRUCTION_WIDTH, PICTURE_WIDTH, PICTURE_WIDTH, PICTURE_WIDTH)
    titles = ("references", "instruction", "target", "before training", "after training")
    lefts = [MARGIN + sum(widths[:place]) + GAP * place for place in range(len(widths))]
    heights = [_row_height(edit) for edit in edits]
    width = lefts[-1] + widths[-1] + MARGIN
    height = HEAD + sum(heights) + ROW_GAP * len(edits) + FOOT
    page = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
    draw = ImageDraw.Draw(page)
    for title, left, column in zip(titles, lefts, widths, strict=True):
        _write(draw, title, (left + column / 2, HEAD / 2), points=13, colour=FAINT)
    top = HEAD
    for edit, row in zip(edits, heights, strict=True):
        columns = (edit.references, (), (edit.target,), (edit.before,), (edit.after,))
        for pictures, left, column in zip(columns, lefts, widths, strict=True):
            share = (column - PICTURE_GAP * (len(pictures) - 1)) // max(1, len(pictures))
            for place, picture in enumerate(pictures):
                box = (left + place * (share + PICTURE_GAP), top, share, row)
                _paste(page, picture, box)
        _draw_instruction(draw, edit.instruction, left=lefts[1], middle=top + row / 2)
        top += row + ROW_GAP
    _write(draw, note, (width / 2, top + FOOT / 2 - 6), points=12, colour=FAINT)
    return page


def _row_height(edit: Edit) -> int:
    """Return the height of the target at its column's width, up to `MOST_HEIGHT`."""
    return min(MOST_HEIGHT, round(PICTURE_WIDTH * edit.target.height / edit.target.width))


def _paste(page: Image.Image, picture: Image.Image, box: tuple[int, int, int, int]) -> None:
    """Fit a picture into the middle of a box (left, top, width, height), with round corners."""
    left, top, width, height = (SCALE * edge for edge in box)
    scale = min(width / picture.width, height / picture.height)
    size = round(picture.width * scale), round(picture.height * scale)
    place = left + (width - size[0]) // 2, top + (height - size[1]) // 2
    mask = Image.new("L", size)
    inside = (0, 0, size[0] - 1, size[1] - 1)
    ImageDraw.Draw(mask).rounded_rectangle(inside, CORNER * SCALE, fill=255)
    page.paste(picture.resize(size, Image.Resampling.BICUBIC), place, mask)
    outline = (*place, place[0] + size[0] - 1, place[1] + size[1] - 1)
    ImageDraw.Draw(page).rounded_rectangle(outline, CORNER * SCALE, outline=RULE)


def _draw_instruction(draw: ImageDraw.ImageDraw, text: str, *, left: int, middle: float) -> None:
    """Write the instruction over an arrow that leads from the references to the target."""
    centre, lines = left + INSTRUCTION_WIDTH / 2, _lines(text)
    low = middle + len(lines) * LINE / 2  # text and arrow together stand in the middle
    for number, line in enumerate(lines):
        place = centre, low - LINE * (len(lines) - number)
        _write(draw, line, place, points=INSTRUCTION_POINTS, colour=INK)
    tip, height = (left + INSTRUCTION_WIDTH - 12) * SCALE, low * SCALE
    draw.line(((left + 12) * SCALE, height, tip, height), FAINT, SCALE)
    for rise in (-4 * SCALE, 4 * SCALE):
        draw.line((tip - 6 * SCALE, height + rise, tip, height), FAINT, SCALE)


def _lines(text: str) -> list[str]:
    """Break `text` at blanks into as few lines as fit over the arrow, the longest a short one."""
    font = _font(INSTRUCTION_POINTS)
    breaks = [textwrap.wrap(text, characters) for characters in range(8, len(text) + 1)]
    widths = [max(map(font.getlength, lines)) / SCALE for lines in breaks]
    fitting = zip(map(len, breaks), widths, breaks, strict=True)
    return min(each for each in fitting if each[1] <= INSTRUCTION_WIDTH)[2]


def _write(
    draw: ImageDraw.ImageDraw,
    text: str,
    centre: tuple[float, float],
    *,
    points: float,
    colour: str,
) -> None:
    place = centre[0] * SCALE, centre[1] * SCALE
    draw.text(place, text, colour, _font(points), anchor="mm")


def _font(points: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(points * SCALE)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "qedit-demo"))

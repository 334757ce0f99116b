"""The run page: what it holds, and what a browser makes of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from chromium import drawn
from filled_run import made_configuration
from PIL import Image

from qedit.cache.files.atomic import write_json
from qedit.config.configuration import Configuration
from qedit.config.loading import load
from qedit.stages.preview.pictures import save_preview
from qedit.stages.run_output.page import MOST_POINTS, page_data, shortened, write_page
from qedit.stages.run_output.previews import Part, read_stored, step_folder, store
from qedit.stages.run_output.run_file import as_run_files

STEPS = (0, 10, 20)
SAMPLES = {"cat.png": "make it night", "sea/boat.png": "</script><b>a “storm”</b>"}


def flat(colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (64, 48), colour)


def made_preview(output: Path, sample: str, *, step: int, part: Part, place: int) -> None:
    """A preview with its picture, and its drift beside it."""
    facts = {"dataset": "edits", "path": sample, "digest": f"d{place}"}
    about = {
        "sample": sample,
        "caption": SAMPLES[sample],
        "size": [64, 48],
        "references": [{**facts, "digest": f"r{place}"}],
        "target": facts,
    }
    path = step_folder(output, step) / f"{place:02}-sample.{part}.safetensors"
    store(path, torch.zeros(1, 16, 6, 8), recipe=f"{step}{part}{place}", about=about)
    stored = read_stored(path)
    assert stored is not None
    save_preview(flat((10 * step, 100 * place, 200)), stored)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configuration:
    """A run in the middle of its work."""
    monkeypatch.chdir(tmp_path)
    configuration = made_configuration(tmp_path, max_train_steps=40)
    output = configuration.settings.output_dir
    for place, sample in enumerate(SAMPLES):
        made_preview(output, sample, step=0, part="base", place=place)
        for step in STEPS[1:]:
            made_preview(output, sample, step=step, part="now", place=place)
            made_preview(output, sample, step=step, part="ema", place=place)
        for kind in "dr":
            folder = output / "previews" / "sources"
            folder.mkdir(exist_ok=True)
            flat((250, 250, 0)).save(folder / f"{kind}{place}.webp")
    for step in STEPS:
        part = "now" if step else "base"
        found = {
            f"{place}": {
                **{"recipe": "r", "sample": sample, "part": part},
                **{"shift_x": step / 100, "shift_y": 0.0, "scale": 1.0, "outside": 0.02},
            }
            for place, sample in enumerate(SAMPLES)
        }
        write_json(step_folder(output, step) / "alignment.json", found)
    lines: list[dict[str, Any]] = [
        {
            **{"step": step, "loss": 1 / step, "lr": 1e-4, "seconds": 0.5, "memory_bytes": 2**30},
            "loss_by_sigma": {"0.25": 0.5, "0.75": 0.25},
        }
        for step in range(1, 21)
    ]
    lines.insert(0, {"step": 0, "held_out": {"loss": 0.9, "by_sigma": {"0.5": 0.9}}})
    lines.append({"step": 20, "held_out": {"loss": 0.4, "by_sigma": {"0.5": 0.4}}})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (output / "metrics.jsonl").write_text(text + '{"step": 21, "lo')
    datasets = {"edits": {"pairs": 8, "digest": "abc123", "repeats": 0}}
    write_json(output / "run.json", {"datasets": datasets, "recipes": {}, "model": {}})
    return configuration


def test_the_page_holds_the_run(run: Configuration) -> None:
    data = page_data(run)
    assert data["steps"] == {"done": 20, "of": 40}
    assert data["curves"]["held_out"] == [(0, 0.9), (20, 0.4)]
    assert len(data["curves"]["loss"]) == 20
    assert data["sigma"]["training"].keys() == {"0.25", "0.75"}
    assert data["sigma"]["held_out"] == {"0.5": [(0, 0.9), (20, 0.4)]}
    assert [sample["name"] for sample in data["samples"]] == list(SAMPLES)
    assert data["samples"][0]["frames"].keys() == {"base", "now", "ema"}
    assert data["samples"][0]["frames"]["now"].keys() == {10, 20}
    assert [one["step"] for one in data["drift"]["cat.png"]] == list(STEPS)
    assert data["datasets"]["edits"]["pairs"] == 8


def test_the_command_starts_the_same_run(run: Configuration) -> None:
    command = page_data(run)["command"].split()
    config, data = (Path(command[command.index(name) + 1]) for name in ("--config", "--data"))
    assert (config, data) == as_run_files(run.settings.output_dir)
    again = load(config, data)
    kept = run.settings.model_copy(update={"data_backend_config": None})
    assert again.settings == kept
    assert again.datasets == run.datasets


def test_it_is_written_only_when_something_changed(run: Configuration) -> None:
    assert write_page(run)
    assert not write_page(run)
    with (run.settings.output_dir / "metrics.jsonl").open("a") as file:
        file.write('ss": 0.3}\n')
    assert write_page(run)


def test_somebody_else_s_page_stays(run: Configuration) -> None:
    page = run.settings.output_dir / "index.html"
    page.write_text("<p>mine</p>")
    assert not write_page(run)
    assert page.read_text() == "<p>mine</p>"


def test_a_run_that_has_nothing_yet_has_a_page(tmp_path: Path) -> None:
    configuration = made_configuration(tmp_path)
    assert write_page(configuration)
    drawn(configuration.settings.output_dir / "index.html")


def test_long_curves_are_thinned_by_means() -> None:
    curve = [(step, float(step % 2)) for step in range(1, 8001)]
    short = shortened(curve)
    assert len(short) == MOST_POINTS
    assert short[-1][0] == 8000
    assert np.allclose([value for _, value in short], 0.5)
    assert shortened(curve[:5]) == curve[:5]


SCRIPT = """
const said = {wide: document.documentElement.scrollWidth <= innerWidth,
  cards: document.querySelectorAll(".card").length,
  charts: [...document.querySelectorAll("[data-chart]")].map(one => one.dataset.chart),
  drawn: [...document.querySelectorAll(".chart svg")].every(one => one.querySelector("path"))};
const card = document.querySelector(".card"), wipe = card.querySelector(".wipe input");
const look = () => ({step: document.getElementById("step-name").textContent,
  before: card.querySelector("img[alt=before]").src, after: card.querySelector("img.after").src,
  at: getComputedStyle(card.querySelector(".after")).clipPath,
  tag: card.querySelector(".tag.right").textContent});
said.end = look();
const slider = document.getElementById("step");
slider.value = 1; slider.dispatchEvent(new Event("input")); said.middle = look();
wipe.value = 250; wipe.dispatchEvent(new Event("input")); said.wiped = look();
document.querySelector('[data-choice="after-ema"]').click(); said.ema = look();
document.querySelector('[data-choice="before-target"]').click(); said.target = look();
slider.value = 0; slider.dispatchEvent(new Event("input")); said.base = look();
const smoothing = document.getElementById("smoothing");
const line = () => document.querySelectorAll('[data-chart="Loss"] path')[1].getAttribute("d");
const smooth = line(); smoothing.value = 0; smoothing.dispatchEvent(new Event("input"));
said.rough = line() !== smooth;
setTimeout(() => {
  said.pictures = [...document.images].every(one => one.complete && one.naturalWidth);
  document.body.dataset.said = encodeURIComponent(JSON.stringify(said));
}, 500);
"""


@pytest.mark.parametrize("width", [500, 1600])
def test_a_browser_shows_it(width: int, run: Configuration) -> None:
    write_page(run)
    dom = drawn(run.settings.output_dir / "index.html", then=SCRIPT, width=width)
    found = re.search(r'data-said="([^"]+)"', dom)
    assert found is not None
    said = json.loads(unquote(found[1]))
    samples = page_data(run)["samples"]
    frames, target = samples[0]["frames"], samples[0]["target"]
    assert said["wide"], "nothing sticks out to the side"
    assert said["cards"] == len(SAMPLES)
    wanted = {"Loss", "Held-out loss by sigma", "Learning rate", "Shift, pixels"}
    assert wanted <= set(said["charts"])
    assert said["drawn"]
    assert said["end"]["step"] == "step 20"
    assert said["end"]["after"] == frames["now"][20]
    assert said["end"]["before"] == samples[0]["references"][0]
    assert "50%" in said["end"]["at"]
    assert said["middle"]["after"] == frames["now"][10]
    assert "25%" in said["wiped"]["at"]
    assert said["ema"]["after"] == frames["ema"][10]
    assert said["target"]["before"] == target
    assert (said["base"]["after"], said["base"]["tag"]) == (frames["base"][0], "base model")
    assert said["rough"]
    assert said["pictures"]
    assert "<b>a “storm”</b>" not in dom.partition('id="page"')[2].partition("<script")[0]

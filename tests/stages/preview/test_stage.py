"""`qedit preview`: pictures of stored latents, made once each, and what shows them together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pictures import upright
from PIL import Image
from small_run import loaded, make_run, said, with_files

from qedit.cache.files.atomic import write_json
from qedit.pipeline.demo.pictures import draw_demo_pictures
from qedit.pipeline.demo.tour import CHAPTERS as DEMO
from qedit.pipeline.demo.tour import VAE_AREA, VL_AREA, settings_of
from qedit.stages.models.tiny.tiny import make_tiny
from qedit.stages.models.vae import LatentEncoder
from qedit.stages.pictures.contact_sheet import Row, sheet
from qedit.stages.run_output.previews import thinned
from qedit.stages.train.evaluation.preview_process import Decoding

SETTINGS: dict[str, Any] = {
    "validation_disable": False,
    "validation_resolution": 64,
    "validation_num_inference_steps": 2,
    "validation_step_interval": 2,
    "num_eval_images": 2,
}
PICTURES = 2 + 2 * 4  # the base of two samples; at steps 2 and 3 the weights and their average


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(
        tmp_path_factory.mktemp("trained"), flavour="edit-v2", references=2, **SETTINGS
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(Decoding, "start", lambda self, **_: None)
        with_files("run")
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the trained run, its pictures not made; where its previews lie."""
    shutil.copytree(trained, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    return Path("out/previews")


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_picture_for_each_and_sheets_for_all(run: Path) -> None:
    assert said(with_files("preview", "--dry-run", "--json"))["computed"] == 0
    assert not list(run.rglob("*.png"))
    found = said(with_files("preview", "--json"))
    assert (found["wanted"], found["computed"]) == (PICTURES, PICTURES)
    with Image.open(run / "step-000003" / "01-p1.now.png") as picture:
        assert picture.size == (96, 64)
        assert picture.text["caption"] == "make it number 1"
        assert picture.text["seed"] == "42"
    for step in (0, 2, 3):
        facts = json.loads((run / f"step-{step:06}" / "alignment.json").read_text())
        assert len(facts) == (4 if step else 2)
    sizes = []
    for step in (0, 3):
        with Image.open(run / f"step-{step:06}" / "sheet.png") as picture:
            sizes.append(picture.size)
    # reference, base, target; then reference, base, now, average, target
    assert sizes[1][0] > sizes[0][0]
    assert sizes[1][1] == sizes[0][1]
    assert len(list((run / "strips").glob("*.png"))) == 2
    assert "data:image/webp" in Path("out/index.html").read_text()


def test_a_second_time_there_is_nothing_to_do(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_files("preview")
    before = times(Path("out"))
    monkeypatch.setattr(LatentEncoder, "load", lambda *_, **__: pytest.fail("loaded"))
    assert "nothing to do" in with_files("preview").stdout
    assert times(Path("out")) == before


def test_what_is_missing_is_made_alone(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_files("preview")
    before = times(run)
    (run / "step-000002" / "00-p0.ema.png").unlink()
    found = said(with_files("preview", "--json"))
    assert (found["kept"], found["computed"]) == (PICTURES - 1, 1)
    changed = {path.name for path, time in times(run).items() if before.get(path) != time}
    assert changed <= {"00-p0.ema.png", "00-p0.ema.webp"}


def test_what_is_stored_meanwhile_is_made_too(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_files("preview")
    late = run / "step-000003" / "01-p1.now.safetensors"
    late.with_suffix(".png").unlink()
    late.rename(run / "late")
    (run / "step-000002" / "00-p0.ema.png").unlink()
    load_it = LatentEncoder.load

    def load_late(*arguments: Any, **options: Any) -> LatentEncoder:
        if not late.exists():
            (run / "late").rename(late)
        return load_it(*arguments, **options)

    monkeypatch.setattr(LatentEncoder, "load", load_late)
    found = said(with_files("preview", "--json"))
    assert (found["wanted"], found["computed"]) == (PICTURES, 2)
    assert late.with_suffix(".png").exists()


def test_one_step_alone(run: Path) -> None:
    found = said(with_files("preview", "--step", "2", "--json"))
    assert found["computed"] == 4
    assert not list((run / "step-000003").glob("*.png"))


def test_what_there_is_no_preview_of_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = with_files("preview", "--step", "1", expect=2).stderr
    assert "no previews of step 1" in error
    assert "0, 2, 3" in error
    shutil.rmtree(run)
    assert "`qedit train --config" in with_files("preview").stdout


def test_pictures_that_are_gone_are_said_and_left_out(run: Path) -> None:
    Path("reference-b/p0.png").unlink()
    found = with_files("preview")
    assert "p0.png cannot be shown" in found.stderr
    assert (run / "step-000003" / "sheet.png").is_file()


def test_a_sheet_has_room_for_all_it_shows() -> None:
    wide, high = Image.new("RGB", (400, 200), "red"), Image.new("RGB", (100, 300), "blue")
    rows = [Row(((wide, wide, high), (wide,), "words", ()), "caption " * 200), Row(((),) * 4, "")]
    page = sheet(["one", "two", "three", "four"], rows, title="A title", cell=100)
    assert page.width == 2 * 20 + 4 * 100 + 3 * 12
    colours = {colour for _, colour in page.getcolors(1 << 20) or []}
    assert {(255, 0, 0), (0, 0, 255)} <= colours


def test_steps_are_thinned_evenly() -> None:
    assert thinned(list(range(10)), most=4) == [0, 3, 6, 9]
    assert thinned([1, 2], most=4) == [1, 2]


@pytest.mark.full
def test_an_identity_set_does_not_drift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets that are their references: before and after training the picture stays in place."""
    monkeypatch.chdir(tmp_path)
    drawn = draw_demo_pictures(tmp_path / "drawn") / "one-reference" / "reference"
    for name in ("purple-snow", "purple-beach", "night-meadow"):
        (picture,) = drawn.glob(f"{name}.*")
        for folder in ("edited", "reference-a"):
            (tmp_path / folder).mkdir(exist_ok=True)
            upright(picture).resize((192, 192)).save(tmp_path / folder / f"{name}.png")
    model = make_tiny(
        tmp_path / "model", "edit-v1", vae_area=VAE_AREA, vl_area=VL_AREA, sighted=True
    )
    ids = {"instance_data_dir": "edited", "id": "edited", "resolution": 128}
    reference = {"id": "reference-a", "instance_data_dir": "reference-a", "resolution": 128}
    write_json(
        tmp_path / "data.json",
        [
            {**ids, "conditioning_data": ["reference-a"]},
            {**reference, "dataset_type": "conditioning"},
        ],
    )
    settings = settings_of(DEMO[0]) | {
        **{"pretrained_model_name_or_path": str(model), "output_dir": "out"},
        **{"max_train_steps": 6, "learning_rate": 1e-4, "lr_warmup_steps": 0},
        **{"validation_step_interval": 6, "num_eval_images": 2},
    }
    settings.pop("data_backend_config")
    write_json(tmp_path / "config.json", settings)
    monkeypatch.setattr(Decoding, "start", lambda self, **_: None)
    with_files("run")
    with_files("preview")
    assert loaded().settings.max_train_steps == 6
    for step in (0, 6):
        facts = json.loads(Path(f"out/previews/step-{step:06}/alignment.json").read_text())
        assert len(facts) == (4 if step else 2)
        for name, one in facts.items():
            assert (one["shift_x"] ** 2 + one["shift_y"] ** 2) ** 0.5 < 0.5, (step, name, one)
            assert abs(one["scale"] - 1) < 0.02, (step, name, one)

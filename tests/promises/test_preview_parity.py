"""A preview is what a fresh script makes with diffusers' pipeline, the LoRA and the same seed.

The script is the one of docs/inference.md, run as it stands there: only its constants are this
test's. What the pipeline shows is compared with the PNG that `qedit preview` has made.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from paths import ROOT
from PIL import Image
from small_run import AREA, loaded, make_run, with_files
from stock_pipelines import PictureProcessor, areas

from qedit.stages.models.checkpoint.checkpoint import open_checkpoint
from qedit.stages.run_output.previews import Stored, stored_previews
from qedit.stages.train.evaluation.preview_process import Decoding

PAGE = ROOT / "docs" / "inference.md"
LORA = "out/pytorch_lora_weights.safetensors"
STEPS, GUIDANCE, SEED = 4, 3.0, 11
CASES = [
    ("edit-v1", 1),
    pytest.param(("edit-v2", 1), marks=pytest.mark.exhaustive),
    ("edit-v2", 3),
    pytest.param(("edit-v3", 1), marks=pytest.mark.exhaustive),
    pytest.param(("edit-v3", 3), marks=pytest.mark.full),
]


def blocks() -> tuple[str, str, str]:
    """The code of the page: what is shared, the call with embeds, the call with a caption."""
    found = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    shared, embeds, caption = found
    return shared, embeds, caption


def for_v1(code: str) -> str:
    """The code with what its comments say to write for edit-v1."""
    return re.sub(r"= \S+  # edit-v1: (.+)$", r"= \1", code, flags=re.M)


def with_constants(code: str, **values: Any) -> str:
    """The code with other values for its constants, each of which must be there."""
    for name, value in values.items():
        code, count = re.subn(rf"^{name} = .+$", f"{name} = {value!r}", code, flags=re.M)
        assert count == 1, name
    return code


@contextmanager
def as_here(folder: Path, flavour: str):
    """The pipelines at the tiny model's areas, with a processor that needs no torchvision."""
    kinds = (diffusers.QwenImageEditPipeline, diffusers.QwenImageEditPlusPipeline)
    checkpoint = open_checkpoint(configuration().settings)
    with pytest.MonkeyPatch.context() as patch, areas(checkpoint.flavour):
        for kind in kinds:
            load_it = kind.from_pretrained

            def from_pretrained(source: str, load_it: Any = load_it, **options: Any) -> Any:
                found = load_it(source, processor=PictureProcessor(checkpoint.processor), **options)
                found.set_progress_bar_config(disable=True)
                return found

            patch.setattr(kind, "from_pretrained", from_pretrained)
        yield


def configuration() -> Any:
    return loaded()


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trained run with its previews decoded: its folder and flavour."""
    flavour, references = request.param
    folder = make_run(
        tmp_path_factory.mktemp("run"),
        flavour=flavour,
        references=references,
        validation_disable=False,
        validation_resolution=round(AREA**0.5),
        validation_num_inference_steps=STEPS,
        validation_guidance=GUIDANCE,
        validation_seed=SEED,
        num_eval_images=3,
        learning_rate=3e-2,
        lora_alpha=32,
        text_encoder_dtype="fp32",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(Decoding, "start", lambda self, **_: None)
        with_files("run")
        with_files("preview")
    return folder, flavour


def at_end() -> list[Stored]:
    return [one for one in stored_previews(Path("out"), step=3) if one.part == "now"]


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"), int)


def shared_code(stored: Stored, flavour: str, lora: str = LORA) -> str:
    shared = blocks()[0]
    shared = for_v1(shared) if flavour == "edit-v1" else shared
    shared = with_constants(
        shared,
        MODEL="model",
        LORA=lora,
        REFERENCES=[f"{one['dataset']}/{one['path']}" for one in stored.about["references"]],
        SIZE=tuple(stored.about["size"]),
        DEVICE="cpu",
        SEED=SEED,
    )
    shared = shared.replace("DTYPE = torch.bfloat16", "DTYPE = torch.float32")
    for name, value in (("num_inference_steps", STEPS), ("true_cfg_scale", GUIDANCE)):
        shared, count = re.subn(rf'"{name}": [\d.]+', f'"{name}": {value}', shared)
        assert count == 1
    return shared


def made_by(code: str) -> Image.Image:
    """The picture that a script makes."""
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    picture: Image.Image = names["picture"]
    return picture


def largest_difference(stored: Stored, picture: Image.Image) -> int:
    with Image.open(stored.picture) as preview:
        found = int(np.abs(pixels(preview) - pixels(picture)).max())
    print(f"{stored.sample}, {stored.part}: largest difference {found} of 255")
    return found


def test_a_script_makes_the_preview(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, flavour = run
    monkeypatch.chdir(folder)
    for stored in at_end():
        with_files("inspect", stored.sample, "--as-previewed", "--export", "sample.safetensors")
        with as_here(folder, flavour):
            picture = made_by(shared_code(stored, flavour) + blocks()[1])
        assert largest_difference(stored, picture) <= 2, stored.sample
        # and the LoRA is what made it so
        base = Path("out/previews/step-000000") / stored.picture.name.replace("now", "base")
        with Image.open(base) as before:
            assert np.abs(pixels(before) - pixels(picture)).max() > 8


def test_a_script_that_encodes_makes_it_too(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, flavour = run
    monkeypatch.chdir(folder)
    stored = at_end()[1]
    with_files("inspect", stored.sample, "--as-previewed", "--export", "sample.safetensors")
    caption = blocks()[2].replace("Make it night.", stored.about["caption"])
    with as_here(folder, flavour):  # all blocks of the page in one script
        picture = made_by(shared_code(stored, flavour) + blocks()[1] + caption)
    assert largest_difference(stored, picture) <= 2


def test_the_average_is_that_of_the_published_lora(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, flavour = run
    if flavour != "edit-v2":
        pytest.skip("the average is made in the same way for every flavour: seen once is enough")
    monkeypatch.chdir(folder)
    stored = next(one for one in stored_previews(Path("out"), step=3) if one.part == "ema")
    with_files("inspect", stored.sample, "--as-previewed", "--export", "sample.safetensors")
    with as_here(folder, flavour):
        code = shared_code(stored, flavour, lora=f"out/ema/{os.path.basename(LORA)}")
        picture = made_by(code + blocks()[1])
    assert largest_difference(stored, picture) <= 2

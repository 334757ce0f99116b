"""Where training crops references, previews show them whole, from rows of their own."""

from __future__ import annotations

import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_run import AREA, SIZES, cache_rows, loaded, make_run, said, with_files
from stock_pipelines import StockPipeline

from qedit.cache.store.verifying import Damage
from qedit.pipeline.upkeep import verify
from qedit.pipeline.upkeep.caches import Caches
from qedit.stages.models.checkpoint.checkpoint import open_checkpoint
from qedit.stages.samples.sample import Picture, Sample
from qedit.stages.samples.sizes import size_of_area
from qedit.stages.stores.previewed import as_at_inference, only_previewed
from qedit.stages.stores.run import Run
from qedit.stages.train.evaluation import previews
from qedit.stages.train.evaluation.preview_process import Decoding

# p1 and p2 are wide and tall: a square crop takes a part of them; p0 and p3 are square
SHOWN = 2
CROP = ("--set", "data.edited.crop=true", "--set", "data.edited.crop_aspect=square")
SMALL: dict[str, Any] = {
    "validation_disable": False,
    "validation_resolution": round(AREA**0.5),
    "validation_num_inference_steps": 2,
    "num_eval_images": SHOWN,
    "max_train_steps": 1,
    "use_ema": False,
    "text_encoder_dtype": "fp32",
}


@pytest.fixture(scope="module")
def cropped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pairs, their square crops cached, with rows of whole references for one of them."""
    folder = make_run(tmp_path_factory.mktemp("cropped"), flavour="edit-v2", **SMALL)
    with chdir(folder):
        cache_rows(*CROP)
    return folder


@pytest.fixture
def here(cropped: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(cropped)
    return cropped


def counted(command: str, *options: str) -> tuple[int, int]:
    """How many rows a stage wants and how many it would have to make."""
    outcome = said(with_files(command, *options, "--dry-run", "--json"))
    return outcome["wanted"], outcome["wanted"] - outcome["kept"]


def test_rows_of_whole_references_are_made_once(here: Path) -> None:
    # 8 cropped pictures and one whole reference; 4 prefixes with own and null caption, and one
    assert counted("cache-vae", *CROP) == (9, 0)
    assert counted("cache-embeds", *CROP) == (15, 0)
    status = said(with_files("status", *CROP, "--json"))
    rows = {line["what"]: (line["wanted"], line["kept"]) for line in status["results"]}
    assert rows["latents"] == (9, 9)
    assert (rows["image prefixes"], rows["text tails"]) == ((5, 5), (10, 10))


def test_who_previews_nothing_wants_none(here: Path) -> None:
    off = ("--set", "validation_disable=true")
    assert counted("cache-vae", *CROP, *off) == (8, 0)
    assert counted("cache-embeds", *CROP, *off) == (12, 0)


def test_without_a_crop_there_are_none(here: Path) -> None:
    # of the square pairs everything is there already
    with_files("pair")
    assert counted("cache-vae")[0] == 8
    assert counted("cache-embeds")[0] == 12


def test_gc_keeps_them_and_verify_names_their_sample(
    here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(shutil.copytree(here, tmp_path / "copy"))
    with_files("gc", *CROP, "--yes")
    assert counted("cache-vae", *CROP) == (9, 0)
    assert counted("cache-embeds", *CROP) == (15, 0)
    found = configuration()
    run = Run(found)
    (one,) = only_previewed(run)
    shelf = run.stores.latents
    (picture,) = one.sample.references
    damage = Damage(shelf.of(picture.dataset).path, picture.latent_key, "spoilt")
    named = verify._samples(Caches(run), shelf.of(picture.dataset), [damage])
    assert named == ["p1.png"]
    # who no longer previews wants them no longer
    with_files("gc", *CROP, "--set", "validation_disable=true", "--yes")
    assert counted("cache-vae", *CROP) == (9, 1)


def test_a_preview_is_given_what_the_stock_pipeline_sees(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    real = previews.denoise

    def watched(*arguments: Any, **options: Any) -> Any:
        given.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(previews, "denoise", watched)
    monkeypatch.setattr(Decoding, "start", lambda self, **_: None)
    with_files("train", *CROP)
    _, _, noise, references, embeds, null_embeds = given[1]
    assert SIZES[1] == (128, 72)
    pipeline = StockPipeline(open_checkpoint(configuration().settings))
    with Image.open("reference-a/p1.png") as picture:
        seen = pipeline.run(
            [picture],
            Path("edited/p1.txt").read_text().strip(),
            size=(noise.shape[3] * 8, noise.shape[2] * 8),
            steps=2,
            guidance=4.0,
        )
    positive, negative = seen.calls[:2]
    whole = positive["hidden_states"][:, noise.shape[2] * noise.shape[3] // 4 :]
    (reference,) = references
    batch, channels, height, width = reference.shape
    patches = reference.reshape(batch, channels, height // 2, 2, width // 2, 2)
    ours = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    assert positive["img_shapes"][0][1][1:] == tuple(edge // 2 for edge in reference.shape[2:])
    assert ours.shape == whole.shape
    for mine, theirs in (
        (ours, whole),
        (embeds, positive["encoder_hidden_states"]),
        (null_embeds, negative["encoder_hidden_states"]),
    ):
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine.float(), theirs.float(), atol=3e-2, rtol=3e-2)
    # what training has of it is another picture
    assert reference.shape[2] != reference.shape[3]


def test_inspect_shows_what_is_previewed_and_says_that_it_differs(here: Path) -> None:
    trained = said(with_files("inspect", "p1", *CROP, "--json"))
    assert "--as-previewed" in trained["note"]
    assert "--as-previewed" not in with_files("inspect", "p0", *CROP).stdout  # nothing is cut off
    whole = said(with_files("inspect", "p1", *CROP, "--as-previewed", "--json"))
    # 128x72 at an area of 64x64 is 96x64 by the rule of size, its square crop 64x64
    assert trained["tensors"]["reference_latents.0"] == [16, 8, 8]
    assert whole["tensors"]["reference_latents.0"] == [16, 8, 12]
    assert whole["tensors"]["target_latents"] == trained["tensors"]["target_latents"]
    assert whole["note"] == ""
    error = with_files("inspect", "p2", *CROP, "--as-previewed", expect=2).stderr
    assert f"the {SHOWN} that previews show" in error
    negative = ("--set", "validation_negative_prompt=blurry")
    error = with_files("inspect", "p1", *CROP, *negative, "--as-previewed", expect=4).stderr
    assert "`qedit cache-embeds --config" in error
    assert "`qedit inspect p1 --as-previewed --config" in error


def test_training_asks_for_the_rows_that_previews_need(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--set", "num_eval_images=3", "--set", "output_dir=more")
    told = with_files("train", *CROP, *more, expect=4).stderr
    assert "1 of 3 samples has no latents" in told
    assert "p2.png" in told
    monkeypatch.setattr(Decoding, "start", lambda self, **_: None)
    with_files("train", *CROP, *more, "--set", "validation_disable=true")


def test_sizes_are_those_of_a_pair_that_is_not_cropped(here: Path) -> None:
    """With every unit of resolution, and with the target's area for references."""
    flavour = open_checkpoint(configuration().settings).flavour
    for kind, resolution, area in (("pixel_area", 96, 96 * 96), ("pixel", 96, 160 * 96)):
        found = configuration(
            f"data.edited.resolution={resolution}",
            f"data.edited.resolution_type={kind}",
            'model_kwargs={"match_target_res": true}',
        )
        (main,) = found.main_datasets()
        whole = as_at_inference(made(), found, main, flavour=flavour)
        assert whole.references[0].size == size_of_area(area, 1.5), kind
        assert whole.references[0].vl_size == size_of_area(flavour.vl_area, 1.5)
        assert whole.references[0].whole
        assert whole.captions == ("one",)


def made() -> Sample:
    """160 x 96 (5:3), cropped to a square, with a strict reference of 3:2."""
    target = Picture("edited", "a.png", "t", 160, 96, (32.0, 0.0, 128.0, 96.0), (96, 96))
    box = (24.0, 0.0, 96.0, 80.0)
    reference = Picture("reference-a", "a.png", "r", 120, 80, box, (96, 96), (96, 96))
    return Sample("a.png", "edited", target, (reference,), ("one", "two"))


def configuration(*sets: str) -> Any:
    return loaded(*CROP[1::2], *sets)

"""A change computes exactly the rows that depend on it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from small_run import AREA, draw, enter_copy, make_run, said, with_files

from qedit.stages.models.tiny.tiny import make_tiny

Sets = tuple[str, ...]


@dataclass(frozen=True)
class Cost:
    """Rows that were computed."""

    latents: int = 0
    prefixes: int = 0
    tails: int = 0


def cost(*sets: str) -> Cost:
    """Bring the caches of the working directory up to date and count what that took."""
    options = [word for one in sets for word in ("--set", one)]
    with_files("pair", *options)
    latents = said(with_files("cache-vae", "--json", *options))
    embeds = said(with_files("cache-embeds", "--json", *options))
    return Cost(latents["computed"], embeds["prefixes_computed"], embeds["tails_computed"])


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pairs with two references each, cached: 12 latents, 4 prefixes, 8 tails."""
    folder = make_run(tmp_path_factory.mktemp("cached"), flavour="edit-v2", references=2)
    make_tiny(folder / "other", "edit-v2", vae_area=AREA, vl_area=AREA, seed=1)
    make_tiny(folder / "v3", "edit-v3", vae_area=AREA, vl_area=AREA)
    with chdir(folder):
        assert cost() == Cost(latents=12, prefixes=4, tails=8)
    return folder


@pytest.fixture
def here(cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it somewhere else, as the working directory."""
    return enter_copy(cached, tmp_path / "elsewhere", monkeypatch)


def nothing(folder: Path) -> Sets:
    return ()


def setting(*sets: str) -> Callable[[Path], Sets]:
    return lambda folder: sets


def edit_caption(folder: Path) -> Sets:
    (folder / "edited/p1.txt").write_text("turn it blue")
    return ()


def add_caption(folder: Path) -> Sets:
    (folder / "edited/p1.txt").write_text("make it number 1\nturn it blue\n")
    return ()


def remove_sample(folder: Path) -> Sets:
    for path in folder.glob("*/p1.*"):
        path.unlink()
    return ()


def replace_target(folder: Path) -> Sets:
    draw(folder / "edited/p1.png", (128, 72), seed=999)
    return ()


def replace_reference(folder: Path) -> Sets:
    draw(folder / "reference-b/p2.png", (72, 128), seed=999)
    return ()


def swap_references(folder: Path) -> Sets:
    """The order decides the prompt, not the latents."""
    first, second = folder / "reference-a/p0.png", folder / "reference-b/p0.png"
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    return ()


def same_bytes(folder: Path) -> Sets:
    path = folder / "edited/p1.png"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    return ()


def same_pixels_other_bytes(folder: Path) -> Sets:
    """A row is named by the file's bytes: to compare pixels would mean to decode everything."""
    path = folder / "edited/p1.png"
    Image.open(path).save(path, compress_level=1)
    return ()


def touch(folder: Path) -> Sets:
    for path in folder.glob("*/p*"):
        os.utime(path, (1, 1))
    return ()


def rename_file(folder: Path) -> Sets:
    for path in folder.glob("*/p1.*"):
        path.rename(path.with_stem("renamed"))
    return ()


def rename_folder(folder: Path) -> Sets:
    for old, new in (("edited", "after"), ("reference-a", "before")):
        (folder / old).rename(folder / new)
    return ("data.edited.instance_data_dir=after", "data.reference-a.instance_data_dir=before")


def into_subfolders(folder: Path) -> Sets:
    for path in list(folder.glob("*/p1.*")):
        (path.parent / "deep").mkdir(exist_ok=True)
        path.rename(path.parent / "deep" / path.name)
    return ()


def same_reference_everywhere(folder: Path) -> Sets:
    """Two samples that now show what a third one shows already: their captions are theirs."""
    for name in ("reference-a", "reference-b"):
        shutil.copy(folder / name / "p0.png", folder / name / "p3.png")
    return ()


def move_model(folder: Path) -> Sets:
    (folder / "model").rename(folder / "moved")
    return ("pretrained_model_name_or_path=moved",)


def one_more_pair(folder: Path) -> Sets:
    for seed, name in enumerate(("edited", "reference-a", "reference-b"), start=50):
        draw(folder / name / "p9.png", (96, 96), seed=seed)
    (folder / "edited/p9.txt").write_text("make it number 9")
    return ()


VAE = "pretrained_vae_model_name_or_path=other/vae"
ENCODER = "pretrained_text_encoder_model_name_or_path=other/text_encoder"
LOOSE = tuple(f"data.reference-{one}.conditioning_type=reference_loose" for one in "ab")
CROP = ("data.edited.crop=true", "data.edited.crop_aspect=square")
V3 = ("model_flavour=edit-v3", "pretrained_model_name_or_path=v3")

TABLE = {
    "nothing": (nothing, Cost()),
    "edit one caption": (edit_caption, Cost(tails=1)),
    "add a caption": (add_caption, Cost(tails=1)),
    "remove a sample": (remove_sample, Cost()),
    "replace a target": (replace_target, Cost(latents=1)),
    "replace a reference": (replace_reference, Cost(latents=1, prefixes=1, tails=2)),
    "swap two references": (swap_references, Cost(prefixes=1, tails=2)),
    "replace by the same bytes": (same_bytes, Cost()),
    "save the same pixels anew": (same_pixels_other_bytes, Cost(latents=1)),
    "touch": (touch, Cost()),
    "rename a file": (rename_file, Cost()),
    "rename folders": (rename_folder, Cost()),
    "move into subfolders": (into_subfolders, Cost()),
    "the references of another": (same_reference_everywhere, Cost(tails=1)),
    "one more pair": (one_more_pair, Cost(latents=3, prefixes=1, tails=2)),
    "strict to loose, of equal ratios": (setting(*LOOSE), Cost()),
    "resolution of the targets": (setting("data.edited.resolution=96"), Cost(latents=4)),
    "resolution within the rounding": (setting("data.edited.resolution=66"), Cost()),
    "crop": (setting(*CROP), Cost(latents=6, prefixes=2, tails=4)),
    "move the model": (move_model, Cost()),
    "rank": (setting("lora_rank=4", "lora_alpha=2"), Cost()),
    "learning rate": (setting("learning_rate=1e-3"), Cost()),
    "batch size": (setting("train_batch_size=2", "gradient_accumulation_steps=2"), Cost()),
    "seed": (setting("seed=7"), Cost()),
    "repeats": (setting("data.edited.repeats=3"), Cost()),
    "precision of training": (setting("mixed_precision=bf16"), Cost()),
    "caption dropout": (setting("caption_dropout_probability=0.1"), Cost()),
    "another VAE": (setting(VAE), Cost(latents=12)),
    "another text encoder": (setting(ENCODER), Cost(prefixes=4, tails=8)),
    "another VAE dtype": (setting("vae_dtype=bf16"), Cost(latents=12)),
    "compression": (setting("cache_compression=zstd"), Cost(12, 4, 8)),
    "edit-v3 with the same encoders": (setting(*V3), Cost()),
    "a negative prompt": (setting("validation_negative_prompt=ugly"), Cost(tails=4)),
}


@pytest.mark.parametrize("case", TABLE)
def test_a_change_costs_what_depends_on_it(here: Path, case: str) -> None:
    change, expected = TABLE[case]
    assert cost(*change(here)) == expected


def test_switching_back_finds_the_old_store(here: Path) -> None:
    assert cost(VAE, ENCODER) == Cost(latents=12, prefixes=4, tails=8)
    assert cost() == Cost()
    assert cost(VAE) == Cost()
    replace_reference(here)
    assert cost(ENCODER) == Cost(latents=1, prefixes=1, tails=2)


def test_strict_to_loose_costs_the_references_whose_geometry_changes(here: Path) -> None:
    """Of four targets two are cropped to a square; loose references are not cropped with them."""
    shutil.rmtree(here / "caches")
    assert cost(*CROP) == Cost(latents=12, prefixes=4, tails=8)
    assert cost(*CROP, *LOOSE) == Cost(latents=4, prefixes=2, tails=4)


def test_with_captions_from_names_a_renamed_file_is_a_new_caption(here: Path) -> None:
    by_name = "data.edited.caption_strategy=filename"
    assert cost(by_name) == Cost(tails=4)
    rename_file(here)
    assert cost(by_name) == Cost(tails=1)


@pytest.mark.parametrize("linked", [False, True])
def test_captions_of_one_size_and_time_that_change_places_are_seen(
    here: Path, linked: bool
) -> None:
    """An archive gives all its files one time; texts that say much the same are of one size."""
    one, two = here / "edited/p1.txt", here / "edited/p2.txt"
    for path in (one, two):
        os.utime(path, (1, 1))
        if linked:
            path.rename(path.with_suffix(".text"))
            path.symlink_to(path.with_suffix(".text"))
    assert cost() == Cost()
    one.rename(here / "one")
    two.rename(one)
    (here / "one").rename(two)
    assert cost() == Cost(tails=2)


def test_workers_batch_sizes_and_device_cost_nothing(here: Path) -> None:
    for stage, size in (("cache-vae", "--vae-batch-size"), ("cache-embeds", "--text-batch-size")):
        options = ("--workers", "1", size, "1", "--device", "cpu")
        assert said(with_files(stage, "--json", *options))["computed"] == 0


def test_rows_are_shared_by_datasets_that_share_a_folder(here: Path) -> None:
    """The same pictures under another dataset: another folder is filled, a shared one is not."""
    shared = ("data.edited.cache_dir_vae=shared", "data.reference-a.cache_dir_vae=shared")
    shutil.copy(here / "edited/p0.png", here / "reference-a/p0.png")
    assert cost(*shared).latents == 4 + 4 - 1

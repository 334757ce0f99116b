"""Where a checkpoint's parts lie, and whether they fit its flavour."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from bare_checkpoints import WEIGHTS, make_checkpoint, settings_for, write_json
from tiny_checkpoints import model_settings

from qedit.cache.errors import NotComplete, WrongUse
from qedit.stages.models.checkpoint.checkpoint import (
    flavour_of,
    open_checkpoint,
)
from qedit.stages.models.flavours import FLAVOURS

# -- flavour and areas -----------------------------------------------------------------


@pytest.mark.parametrize("name", FLAVOURS)
def test_a_flavour_of_the_hub_needs_no_network(name: str) -> None:
    assert flavour_of(model_settings(name)) == FLAVOURS[name]


@pytest.mark.parametrize("name", [None, "edit-v9"])
def test_an_unknown_flavour_is_refused_with_the_known_ones(name: str | None) -> None:
    with pytest.raises(WrongUse, match=r"edit-v1, edit-v2, edit-v2\+, edit-v3"):
        flavour_of(model_settings(name))


def test_a_checkpoint_may_name_its_own_areas(folder: Path) -> None:
    write_json(folder / "qedit.json", {"vae_area": 16384})
    expected = replace(FLAVOURS["edit-v2"], vae_area=16384)
    assert flavour_of(settings_for(folder)) == expected
    assert open_checkpoint(settings_for(folder)).flavour == expected


@pytest.mark.parametrize("areas", [{"vae_arae": 1}, {"vae_area": "big"}, {"vl_area": 0}])
def test_areas_that_make_no_sense_are_refused(folder: Path, areas: dict[str, object]) -> None:
    write_json(folder / "qedit.json", areas)
    with pytest.raises(WrongUse, match=r"qedit\.json may hold vae_area and vl_area"):
        flavour_of(settings_for(folder))


# -- parts -----------------------------------------------------------------------------


def test_every_part_is_found(folder: Path) -> None:
    checkpoint = open_checkpoint(settings_for(folder))
    assert checkpoint.source == str(folder)
    for part in ("transformer", "vae", "text_encoder", "tokenizer", "processor", "scheduler"):
        assert getattr(checkpoint, part) == folder / part


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("whole", [True, False])
def test_a_part_may_come_from_elsewhere(
    folder: Path, tmp_path: Path, part: str, whole: bool
) -> None:
    other = make_checkpoint(tmp_path / "other")
    shutil.rmtree(folder / part)  # what is replaced need not be there
    named = other if whole else other / part
    settings = settings_for(folder, **{f"pretrained_{part}_model_name_or_path": str(named)})
    checkpoint = open_checkpoint(settings)
    assert getattr(checkpoint, part) == other / part
    assert checkpoint.scheduler == folder / "scheduler"


@pytest.mark.parametrize(
    "gone",
    [
        "model_index.json",
        "transformer/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "processor/preprocessor_config.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_a_missing_file_is_named(folder: Path, gone: str) -> None:
    (folder / gone).unlink()
    with pytest.raises(NotComplete, match=f"{folder / gone} is missing"):
        open_checkpoint(settings_for(folder))


def test_a_tokenizer_may_lie_as_vocabulary_and_merges(folder: Path) -> None:
    (folder / "tokenizer/tokenizer.json").rename(folder / "tokenizer/vocab.json")
    assert open_checkpoint(settings_for(folder)).tokenizer == folder / "tokenizer"


def test_every_shard_that_an_index_names_must_be_there(folder: Path) -> None:
    (folder / "transformer" / WEIGHTS["transformer"]).rename(folder / "transformer/a.safetensors")
    write_json(
        folder / "transformer/diffusion_pytorch_model.safetensors.index.json",
        {"weight_map": {"one": "a.safetensors", "two": "b.safetensors"}},
    )
    with pytest.raises(NotComplete, match=r"b\.safetensors is missing\."):
        open_checkpoint(settings_for(folder))


def test_a_configuration_cut_short_is_named(folder: Path) -> None:
    (folder / "model_index.json").write_text('{"_class')
    with pytest.raises(NotComplete, match=r"model_index\.json cannot be read: it is not JSON"):
        open_checkpoint(settings_for(folder))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "models/of/mine", "nowhere"])
def test_a_path_that_is_not_there_is_a_missing_folder(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for ask in (flavour_of, open_checkpoint):
        with pytest.raises(WrongUse, match="does not exist"):
            ask(model_settings("edit-v2", name))
    model = make_checkpoint(tmp_path / "model")
    with pytest.raises(WrongUse, match="pretrained_vae_model_name_or_path is"):
        open_checkpoint(settings_for(model, pretrained_vae_model_name_or_path=name))


def test_a_file_is_not_a_checkpoint(folder: Path) -> None:
    with pytest.raises(WrongUse, match="is not a folder"):
        open_checkpoint(settings_for(folder / "model_index.json"))


# -- contradictions --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("holds", "asked", "says", "fits"),
    [
        ("edit-v2", "edit-v1", "model_index.json says QwenImageEditPlusPipeline", "edit-v2 or"),
        ("edit-v1", "edit-v2", "model_index.json says QwenImageEditPipeline", "edit-v1,"),
        ("edit-v1", "edit-v3", "model_index.json says QwenImageEditPipeline", "edit-v1,"),
        ("edit-v2", "edit-v3", "zero_cond_t false", r"edit-v2 or edit-v2\+"),
        ("edit-v3", "edit-v2", "zero_cond_t true", "edit-v3,"),
        ("edit-v3", "edit-v2+", "zero_cond_t true", "edit-v3,"),
    ],
)
def test_a_checkpoint_that_contradicts_its_flavour_is_refused_in_one_line(
    tmp_path: Path, holds: str, asked: str, says: str, fits: str
) -> None:
    folder = make_checkpoint(tmp_path / "model", flavour=holds)
    started = time.monotonic()
    with pytest.raises(WrongUse, match=says) as refusal:
        open_checkpoint(settings_for(folder, asked))
    assert time.monotonic() - started < 5
    assert f"model_flavour is {asked}" in refusal.value.what
    assert "\n" not in refusal.value.what
    refusal.match(f"Set model_flavour to {fits}")


def test_a_pipeline_that_is_no_flavour_s_is_refused(folder: Path) -> None:
    write_json(folder / "model_index.json", {"_class_name": "QwenImagePipeline"})
    with pytest.raises(WrongUse, match="Name a checkpoint of edit-v2, such as Qwen/Qwen-Image"):
        open_checkpoint(settings_for(folder))


@pytest.mark.parametrize(
    ("holds", "asked", "effective"),
    [
        ("edit-v1", "edit-v1", False),
        ("edit-v2", "edit-v2", False),
        ("edit-v2", "edit-v2+", True),
        ("edit-v3", "edit-v3", True),
    ],
)
def test_what_fits_is_opened_with_its_zero_cond_t(
    tmp_path: Path, holds: str, asked: str, effective: bool
) -> None:
    folder = make_checkpoint(tmp_path / "model", flavour=holds)
    assert open_checkpoint(settings_for(folder, asked)).zero_cond_t is effective


def test_the_transformer_that_is_used_is_the_one_that_counts(folder: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", flavour="edit-v3")
    settings = settings_for(folder, "edit-v3", pretrained_transformer_model_name_or_path=str(other))
    assert open_checkpoint(settings).transformer == other / "transformer"


def test_opening_a_checkpoint_imports_no_torch() -> None:
    code = "import sys, qedit.stages.models.checkpoint.checkpoint; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

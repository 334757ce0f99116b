"""`qedit plan` foresees what a run then takes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from samples import made_picture, made_sample
from small_run import cache_rows, make_run, qedit, said, with_files

from qedit.cache.files.free_space import SPARE_BYTES
from qedit.stages.estimates.disk import Encoders, mask_rows, picture_tokens

MORE = ("fp8-quanto", "int2-quanto", "nf4-bnb")  # than the two that people use most


def widen(transformer: Path) -> None:
    """Put a random transformer of width 512 and two blocks in the place of the tiny one."""
    from diffusers import QwenImageTransformer2DModel

    config = json.loads((transformer / "config.json").read_text())
    kept = {name: config[name] for name in ("joint_attention_dim", "in_channels", "out_channels")}
    wide = {"num_attention_heads": 4, "attention_head_dim": 128, "axes_dims_rope": (16, 56, 56)}
    shutil.rmtree(transformer)
    made = QwenImageTransformer2DModel(num_layers=2, patch_size=2, **kept, **wide)
    made.save_pretrained(transformer)


def planned(*arguments: str) -> dict[str, Any]:
    return said(with_files("plan", "--json", *arguments))


def results(plan: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["what"]: one for one in plan["disk"]["results"]}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("plan"), flavour="edit-v2", references=2)


@pytest.fixture
def here(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(run_folder)
    return run_folder


def test_nothing_is_written_and_no_torch_is_loaded(here: Path) -> None:
    before = sorted(here.rglob("*"))
    code = (
        "import sys; from qedit.config.loading import load; from pathlib import Path;"
        "from qedit.pipeline.plan.planning import make_plan;"
        "make_plan(load(Path('config.json'), Path('data.json')), vram_gb=24.0);"
        "print('torch' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=here
    )
    assert answer.stdout.strip() == "False"
    assert sorted(here.rglob("*")) == before


def test_headers_foresee_what_the_run_then_makes(here: Path) -> None:
    """The same counts before and after `pair`; bytes close where they are exact."""
    before = planned("--set", "max_train_steps=1")
    assert before["found_by"] == "names and headers"
    assert before["pairs"] == {"edited": 4}
    cache_rows()
    after = planned("--set", "max_train_steps=1")
    assert after["found_by"] == "pairs tables"
    foreseen = results(before)
    assert {name: one["count"] for name, one in foreseen.items()} == {
        name: one["count"] for name, one in results(after).items()
    }
    made = said(with_files("status", "--json"))["results"]
    for one in made:
        if one["what"] in foreseen and one["what"] != "pairs":
            assert foreseen[one["what"]]["count"] == one["wanted"] == one["kept"]
    # what the arrays themselves hold; tables and manifests stand beside them
    latents = sum(path.stat().st_size for path in here.glob("caches/vae/**/c.*"))
    assert foreseen["latents"]["bytes"] == pytest.approx(latents, rel=0.07)
    prefixes = here.glob("caches/conditioning_image_embeds/**/c.*")
    stored = sum(path.stat().st_size for path in prefixes)
    # rows so small that the index of their shard is a fourteenth of them
    assert foreseen["image prefixes"]["bytes"] == pytest.approx(stored, rel=0.1)


def test_the_table_of_the_full_model_and_the_known_sizes_of_rows(tmp_path: Path) -> None:
    """Numbers of the published model, whose config need not be at hand: 1024 x 1024, 2 refs."""
    folder = make_run(tmp_path, flavour="edit-v2", references=2)
    config = json.loads((folder / "config.json").read_text())
    del config["pretrained_model_name_or_path"]
    (folder / "config.json").write_text(json.dumps({**config, "mixed_precision": "bf16"}))
    plan = said(
        qedit(
            "plan",
            *("-C", str(folder), "--config", "config.json", "--data", "data.json", "--json"),
            *("--set", "data.edited.resolution=1024", "--set", "data.edited.crop=true"),
            *("--vram", "80"),
        )
    )
    foreseen = results(plan)
    square = 16 * 128 * 128 * 2
    assert foreseen["latents"]["bytes"] == foreseen["latents"]["count"] * square
    # two references of 203 tokens, 7 KiB a token; the last chunk of a row is padded
    assert 1 <= foreseen["image prefixes"]["bytes"] / (4 * 2 * 203 * 7168) <= 9 / 8
    assert foreseen["modulation table"]["bytes"] == pytest.approx(5.7e9, rel=0.05)
    assert plan["largest"]["pictures"] == [[1024, 1024]] * 3
    assert plan["flops_a_step"] == pytest.approx(1.05e15, rel=0.02)
    assert plan["chosen"]["name"] == "bf16"
    assert plan["memory"]["weights"] == pytest.approx(27.3e9, rel=0.01)


def test_a_smaller_device_gets_a_lower_rung(here: Path) -> None:
    ways = planned()["ways"]
    assert [way["bytes"] for way in ways] == sorted((way["bytes"] for way in ways), reverse=True)
    most = ways[0]["bytes"]
    assert planned("--vram", str(most / 1e9 + 1))["chosen"]["name"] == ways[0]["name"]
    assert planned("--vram", "0.0001")["chosen"] is None


def test_an_epoch_and_measured_steps_give_a_time(here: Path) -> None:
    assert planned()["seconds_a_step"] is None
    out = here / "out"
    out.mkdir(exist_ok=True)
    lines = [{"step": step, "seconds": 2.0 if step < 3 else 3.0} for step in range(1, 6)]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 6, "sec'
    (out / "metrics.jsonl").write_text(text)
    try:
        plan = planned("--set", "num_train_epochs=2", "--set", "max_train_steps=null")
    finally:
        (out / "metrics.jsonl").unlink()
    assert plan["seconds_a_step"] == 3.0
    assert plan["steps"] == 8  # 4 pairs, batches of one, twice


def test_a_full_training_keeps_four_float32_numbers_beside_every_weight(here: Path) -> None:
    sets = ("--set", "mixed_precision=bf16", "--set", "model_type=full")
    plan = planned(*sets, "--set", "use_ema=false", "--vram", "24")
    weights = plan["memory"]["weights"]  # in bfloat16: 2 bytes each
    beside = sum(plan["memory"][part] for part in ("lora", "optimizer", "gradients"))
    assert beside == 8 * weights
    assert [way["name"] for way in plan["ways"]] == ["bf16"]


@pytest.mark.parametrize(
    ("optimizer", "rank", "named"), [("adamw", 64, True), ("adamw", 1, False), ("lion", 64, False)]
)
def test_averages_of_8_bits_are_named_where_they_save_something(
    here: Path, optimizer: str, rank: int, named: bool
) -> None:
    """Rank 64 of a layer of width 3072: 6 bytes of 8 for each number, 1 % of the memory or more."""
    config = here / "model" / "transformer" / "config.json"
    before = config.read_text()
    large = {
        "num_layers": 60,
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "axes_dims_rope": [16, 56, 56],
    }
    config.write_text(json.dumps(json.loads(before) | large))
    few = ("mixed_precision=bf16", "base_model_precision=int8-quanto")
    settings = (*few, f"optimizer={optimizer}", f"lora_rank={rank}")
    sets = [word for one in settings for word in ("--set", one)]
    try:
        plan, text = planned(*sets), with_files("plan", *sets).stdout
    finally:
        config.write_text(before)
    saved = plan["adamw_8bit_saves_bytes"]
    assert saved == (6 * 1_474_560 * 64 if named else 0)
    assert ("optimizer=adamw-8bit would save" in text) == named


def test_the_terminal_names_every_part(here: Path) -> None:
    text = with_files("plan", "--vram", "24").stdout
    for word in (
        "latents",
        "image prefixes",
        "text tails",
        "frozen base",
        "trained weights",
        "optimizer",
    ):
        assert word in text
    assert "unknown, nothing was measured here yet" in text
    assert "for 24.0 GB" in text


def test_no_room_is_said(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 10

    monkeypatch.setattr("qedit.pipeline.plan.disk.shutil.disk_usage", lambda folder: Full)
    result = with_files("plan")
    assert "has no room for what is to come" in result.stderr
    assert "does not fit" in result.stdout


def test_every_disk_is_named_with_what_comes_to_it(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a dataset whose latents go to another disk, the bytes are counted there."""
    other = tmp_path / "other-disk"
    sets = ("--set", f"data.reference-b.cache_dir_vae={other}", "--set", "cache_dir=empty")
    sets = (*sets, "--set", "output_dir=empty/out")
    whole = planned(*sets)["disk"]
    (alone,) = whole["room"]
    assert alone["wanted_bytes"] == whole["bytes"]
    assert alone["where"] == "empty/out", "most comes to the checkpoints"

    def stat(path: Path) -> Any:
        return SimpleNamespace(st_dev=path == tmp_path)

    monkeypatch.setattr("qedit.pipeline.plan.disk.os", SimpleNamespace(stat=stat, walk=os.walk))
    rooms = planned(*sets)["disk"]["room"]
    assert [room["where"] for room in rooms] == ["empty/out", str(other)]
    latents = results({"disk": whole})["latents"]["bytes"]
    assert 0 < rooms[1]["wanted_bytes"] < latents
    assert sum(room["wanted_bytes"] for room in rooms) == whole["bytes"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("data.edited.instance_data_dir=nowhere", "does not exist"),
        ("pretrained_model_name_or_path=nobody/nothing", "cannot be fetched from the hub"),
        ("pretrained_model_name_or_path=./nothing", "does not exist"),
        ("model_flavour=edit-v3", "another model"),
    ],
)
def test_bad_input_is_said_in_a_sentence(here: Path, change: str, says: str) -> None:
    for path in here.glob("caches"):
        path.rename(here / "hidden")
    result = with_files("plan", "--set", change, expect=2)
    for path in here.glob("hidden"):
        path.rename(here / "caches")
    assert says in result.stderr.replace("\n", " ")


def test_a_checkpoint_without_its_config_is_not_complete(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    (folder / "model" / "transformer" / "config.json").unlink()
    result = qedit(
        "plan", "-C", str(folder), "--config", "config.json", "--data", "data.json", expect=4
    )
    assert "transformer/config.json is missing" in result.stderr


def test_broken_pictures_are_counted_apart(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    (folder / "edited" / "p0.png").write_bytes(b"no picture")
    plan = said(
        qedit("plan", "-C", str(folder), "--config", "config.json", "--data", "data.json", "--json")
    )
    assert plan["pairs"] == {"edited": 3}
    assert plan["rejected"] == 1


@pytest.mark.parametrize(
    ("size", "tokens"),
    [((384, 384), 196), ((512, 288), 180), ((1024, 1024), 1369), ((1376, 768), 1323)],
)
def test_pictures_have_the_tokens_that_qwen2_vl_gives_them(
    size: tuple[int, int], tokens: int
) -> None:
    assert picture_tokens(size, 28) == tokens


def test_whole_references_of_previews_are_foreseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where training crops, previews have rows of their own."""
    monkeypatch.chdir(make_run(tmp_path, flavour="edit-v2", references=2))
    cropped = ("--set", "data.edited.crop=true", "--set", "validation_disable=false")
    with_files("pair", *cropped)
    made = {one["what"]: one for one in said(with_files("status", "--json", *cropped))["results"]}
    foreseen = results(planned(*cropped))
    plain = results(planned(*cropped, "--set", "validation_disable=true"))
    for kind in ("latents", "image prefixes", "text tails"):
        assert foreseen[kind]["count"] == made[kind]["wanted"]
        assert plain[kind]["count"] < foreseen[kind]["count"]
    assert foreseen["pairs"] == plain["pairs"]


@pytest.mark.parametrize(
    "precision",
    ["int8-quanto", "int4-quanto", *(pytest.param(f, marks=pytest.mark.full) for f in MORE)],
)
def test_the_quantised_base_takes_what_is_foreseen(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a width at which scales and headers are as small a share as in the real model."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path, flavour="edit-v2", mixed_precision="bf16", base_model_precision=precision)
    widen(tmp_path / "model" / "transformer")
    foreseen = results(planned())
    base, table = foreseen["quantised base"], foreseen["modulation table"]
    assert (base["count"], base["there_bytes"], table["there_bytes"]) == (1, 0, 0)
    qedit("pair", "--config", "config.json", "--data", "data.json")
    qedit("cache-base", "--config", "config.json", "--data", "data.json")
    written = sum(path.stat().st_size for path in tmp_path.glob("caches/base/*/base-*.safetensors"))
    rows = sum(path.stat().st_size for path in tmp_path.glob("caches/base/**/c.*"))
    assert base["bytes"] == pytest.approx(written, rel=0.02)
    assert table["bytes"] == pytest.approx(rows, rel=0.02)
    there = results(planned())
    assert there["quantised base"]["there_bytes"] == pytest.approx(written, rel=0.02)
    assert there["modulation table"]["there_bytes"] == pytest.approx(rows, rel=0.05)
    another = "int2-quanto" if precision != "int2-quanto" else "int4-quanto"
    other = results(planned("--set", f"base_model_precision={another}"))["quantised base"]
    assert other["there_bytes"] == 0, "a base of another format is not this one"


def test_a_run_that_no_disk_holds_ends_before_anything_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path, mixed_precision="bf16", base_model_precision="int8-quanto")
    whole = planned()["disk"]["bytes"]
    free = SimpleNamespace(free=whole // 2 + SPARE_BYTES)
    monkeypatch.setattr("qedit.pipeline.plan.disk.shutil.disk_usage", lambda folder: free)
    result = qedit("run", "--config", "config.json", "--data", "data.json", expect=1)
    assert "no room for all that this run writes" in " ".join(result.stderr.split())
    assert not list(tmp_path.glob("caches/vae/**/c.*"))
    assert list(tmp_path.glob("caches/pairs/**/*.parquet")), "the pairs tell what is to come"


def test_masks_are_counted() -> None:
    """One weight of two bytes for each latent pixel of the target."""
    masked = [
        replace(made_sample(name, size=size), mask=made_picture(name, dataset=dataset, size=size))
        for name, size, dataset in (("a", (64, 96), "masks"), ("b", (32, 32), "others"))
    ]
    rows = mask_rows([*masked, made_sample("c")], Encoders(), {"masks"})
    assert (rows.how_many, rows.count_bytes) == (1, 2 * 8 * 12)

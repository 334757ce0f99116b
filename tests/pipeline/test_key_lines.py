"""qedit keys: what a key means, and with a configuration the value in effect and its origin."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from configurations import image, reference
from small_run import qedit, said

from qedit.config.key_table import every_key


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with both files, as the working directory."""
    monkeypatch.chdir(tmp_path)
    config = {
        "$schema": "./config.schema.json",
        "model_flavour": "edit-v2",
        "lora_rank": 8,
        "model_kwargs": {"match_target_res": True},
        "data_backend_config": "data.json",
        "max_train_steps": 9,
    }
    data = [image(resolution=512, caption_shuffle={"enable": True}), reference()]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "data.json").write_text(json.dumps(data))
    return tmp_path


def origins(*arguments: str) -> dict[str, list[tuple[Any, Any, str]]]:
    """Key -> dataset, value and origin, as `--json` says them."""
    found = said(qedit("keys", *arguments, "--json"))["keys"]
    return {
        key["name"]: [(one["dataset"], one["value"], one["from"]) for one in key["here"]]
        for key in found
    }


def test_one_key_is_described_in_lines() -> None:
    (head, *rows), _ = qedit("keys", "lora_alpha").stdout.splitlines(), None
    assert head.split() == ["lora_alpha", "LoRA,", "config.json"]
    assert len(head) == 100
    text = " ".join(" ".join(rows).split())
    for part in (
        "meaning The adapter's output is scaled by lora_alpha / lora_rank.",
        "values number above 0",
        "default 16, follows lora_rank: a scale of 1",
        "change a new `output_dir`",
    ):
        assert part in text


def test_all_keys_are_listed_within_100_columns() -> None:
    lines = qedit("keys").stdout.splitlines()
    assert max(map(len, lines)) <= 100
    heads = [line.split()[0] for line in lines if line and not line.startswith(" ")]
    assert heads == [key.name for key in every_key()]


def test_a_word_finds_keys_by_name_and_by_meaning() -> None:
    names = [key["name"] for key in said(qedit("keys", "EMA", "--json"))["keys"]]
    assert {"use_ema", "ema_decay"} <= set(names)
    names = [key["name"] for key in said(qedit("keys", "moving average", "--json"))["keys"]]
    assert names == ["use_ema"]
    # a whole name is that key, whatever others are called
    assert [key["name"] for key in said(qedit("keys", "crop", "--json"))["keys"]] == ["crop"]


def test_a_typo_gets_the_nearest_key() -> None:
    result = qedit("keys", "lora_rnk")
    assert (
        "No key has 'lora_rnk' in its name or meaning; the nearest is lora_rank." in result.stdout
    )
    assert "Rank of the matrices" in result.stdout
    result = qedit("keys", "xyzzy", expect=2)
    assert "No key has 'xyzzy'" in result.stderr
    assert "`qedit keys`" in result.stderr


def test_a_key_of_simpletuner_is_said_to_have_no_effect() -> None:
    result = qedit("keys", "adam_weight_decay")
    assert "without effect here (use optimizer_config.weight_decay)" in result.stdout
    found = said(qedit("keys", "lr_end", "--json"))
    assert [key["name"] for key in found["keys"]] == ["lr_scheduler_config"]
    assert "lr_scheduler_config.lr_end" in found["note"]
    # one that is a field of a dataset here has an effect
    found = said(qedit("keys", "resolution", "--json"))
    assert ([key["name"] for key in found["keys"]], found["note"]) == (["resolution"], "")


def test_the_value_in_effect_says_where_it_comes_from(here: Path) -> None:
    files = ("--config", "config.json", "--set", "seed=7", "--set", "data.ref.resolution=256")
    found = origins(*files)
    assert found["lora_rank"] == [(None, 8, "config.json")]
    assert found["lora_alpha"] == [(None, 8.0, "default, follows lora_rank")]
    assert found["seed"] == [(None, 7, "--set seed=7")]
    assert found["learning_rate"] == [(None, 1e-4, "default")]
    assert found["model_kwargs.match_target_res"] == [(None, True, "config.json")]
    assert found["resolution"] == [
        ("main", 512.0, "data.json"),
        ("ref", 256.0, "--set data.ref.resolution=256"),
    ]
    assert found["caption_shuffle.enable"][0] == ("main", True, "data.json")
    assert found["caption_shuffle.count"][0] == ("main", 1, "default")
    assert found["parquet.path"][0] == ("main", None, "default")
    assert "here     main: 512.0 (data.json)" in qedit("keys", "resolution", *files).stdout


def test_set_inside_an_object_is_told_from_what_the_file_says(here: Path) -> None:
    set_count = "data.main.caption_shuffle.count=3"
    found = origins("caption_shuffle", "--config", "config.json", "--set", set_count)
    assert found["caption_shuffle"][0][2] == f"--set {set_count}"
    found = origins("caption_shuffle.", "--config", "config.json", "--set", set_count)
    assert found["caption_shuffle.count"][0] == ("main", 3, f"--set {set_count}")
    assert found["caption_shuffle.enable"][0] == ("main", True, "data.json")


def test_the_last_set_is_the_origin(here: Path) -> None:
    sets = ("--set", "seed=1", "--set", "seed=2")
    assert origins("seed", "--config", "config.json", *sets)["seed"] == [(None, 2, "--set seed=2")]


def test_an_example_is_an_origin(here: Path) -> None:
    found = origins("lora_rank", "example=qwen_image.edit-v2-lora")
    ((_, _, origin),) = found["lora_rank"]
    assert origin in ("qwen_image.edit-v2-lora/config.json", "default")
    ((_, flavour, origin),) = origins("model_flavour", "example=qwen_image.edit-v2-lora")[
        "model_flavour"
    ]
    assert (flavour, origin) == ("edit-v2", "qwen_image.edit-v2-lora/config.json")


def test_a_wrong_configuration_is_refused_as_everywhere(here: Path) -> None:
    assert (
        "lora_rnk"
        in qedit("keys", "--config", "config.json", "--set", "lora_rnk=1", expect=2).stderr
    )


def test_nothing_is_made_for_a_tiny_example(here: Path) -> None:
    qedit("keys", "output_dir", "example=qwen_image.edit-v1-lora", "--tiny")
    assert not (here / "qedit-tiny").exists()


def test_it_is_light() -> None:
    script = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from qedit.pipeline.cli import main\n"
        "result = CliRunner().invoke(main, ['keys', 'lora'])\n"
        "assert result.exit_code == 0, result.output\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'PIL', 'pyarrow', 'zarr'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"

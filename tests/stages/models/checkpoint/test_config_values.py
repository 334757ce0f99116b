"""A model's configuration may say what that of a model says, and nothing that is absurd."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from bare_checkpoints import settings_for, write_json
from small_run import make_run, with_files

from qedit.cache.errors import NotComplete, WrongUse
from qedit.stages.models.checkpoint.checkpoint import open_checkpoint, part_config
from qedit.stages.models.checkpoint.config_values import config_object

FILES = {
    "transformer": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "processor": "preprocessor_config.json",
    "scheduler": "scheduler_config.json",
}


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("transformer", {"num_layers": 1_000_000_000}),
        ("transformer", {"num_layers": "60"}),
        ("transformer", {"num_layers": None}),
        ("transformer", {"num_layers": 2.0}),
        ("transformer", {"num_layers": True}),
        ("transformer", {"num_attention_heads": -1}),
        ("transformer", {"attention_head_dim": {"a": [1]}}),
        ("transformer", {"axes_dims_rope": []}),
        ("transformer", {"axes_dims_rope": [16, 56, 57], "attention_head_dim": 128}),
        ("transformer", {"zero_cond_t": "yes"}),
        ("transformer", {"dropped": float("nan")}),
        ("vae", {"z_dim": 0}),
        ("vae", {"dim_mult": []}),
        ("vae", {"latents_mean": [0.0] * 3, "z_dim": 16}),
        ("vae", {"latents_std": [0.0] * 16}),
        ("vae", {"latents_std": ["1"] * 16}),
        ("text_encoder", {"text_config": {"num_hidden_layers": 1_000_000_000}}),
        ("text_encoder", {"text_config": 28}),
        ("text_encoder", {"vision_config": {"depth": -1}}),
        ("text_encoder", {"rope_scaling": {"mrope_section": [2, 3]}}),
        ("text_encoder", {"vocab_size": 10**12}),
        ("processor", {"patch_size": 0}),
        ("processor", {"image_mean": []}),
        ("processor", {"size": {"longest_edge": "big"}}),
        ("scheduler", {"base_shift": float("inf")}),
        ("scheduler", {"base_shift": "0.5"}),
        ("scheduler", {"max_image_seq_len": -1}),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_value_that_no_model_has_is_refused_with_file_and_key(
    folder: Path, part: str, value: dict[str, Any]
) -> None:
    path = folder / part / FILES[part]
    write_json(path, {**json.loads(path.read_text()), **value})
    with pytest.raises(WrongUse, match=rf"{path}: \w[\w ]* is .*, but must ") as refusal:
        open_checkpoint(settings_for(folder))
    assert len(refusal.value.what) < len(str(path)) + 200
    assert f"Delete {path} and download the file again" in refusal.value.do
    with pytest.raises(WrongUse, match="but must "):
        part_config(settings_for(folder), part, FILES[part])


def test_what_is_allowed_is_said(folder: Path) -> None:
    for part, values, words in (
        ("transformer", {"num_layers": 0}, "be at least 1"),
        ("vae", {"temperal_downsample": 3}, "be a list"),
        ("text_encoder", {"text_config": []}, "be an object in braces"),
        ("scheduler", {"use_dynamic_shifting": 1}, "be true or false"),
    ):
        write_json(folder / part / FILES[part], values)
        with pytest.raises(WrongUse, match=f"but must {words}\\."):
            config_object(folder / part / FILES[part])


def test_json_nested_too_deep_is_no_traceback(folder: Path) -> None:
    (folder / "vae/config.json").write_text("[" * 100_000)
    with pytest.raises(NotComplete, match="cannot be read"):
        open_checkpoint(settings_for(folder))


@pytest.mark.parametrize(
    ("config", "change", "says"),
    [
        ("transformer", {"num_layers": 3}, r"transformer_blocks\.2\..* is missing"),
        ("transformer", {"num_attention_heads": 3}, "img_mod|to_q|img_in"),
        ("transformer", {"joint_attention_dim": 65}, r"txt_in\.weight is"),
        ("text_encoder", {"num_hidden_layers": 5}, "the number of layers differs, not 5"),
        ("text_encoder", {"depth": 1}, r"the number of visual\.blocks differs, not 1"),
    ],
)
def test_a_run_refuses_a_configuration_of_other_weights_before_it_reads_a_picture(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: str,
    change: dict[str, int],
    says: str,
) -> None:
    monkeypatch.chdir(make_run(tmp_path / "run"))
    path = Path("model") / config / "config.json"
    written = json.loads(path.read_text())
    inner = [written[part] for part in ("text_config", "vision_config") if part in written]
    for part in (written, *inner):
        part |= {key: value for key, value in change.items() if key in part}
    path.write_text(json.dumps(written))
    said = with_files("run", expect=2)
    assert "are not those of its config.json" in said.stderr
    assert re.search(says, said.stderr.replace("\n", " "))
    assert not Path("caches/pairs").exists()


@pytest.mark.parametrize("command", ["run", "plan", "cache-vae", "cache-embeds", "train"])
def test_every_command_refuses_an_absurd_configuration_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(make_run(tmp_path / "run"))
    path = Path("model/transformer/config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_layers": 10**9}))
    said = with_files(command, expect=2)
    assert "num_layers is 1000000000, but must be at most 1000" in said.stderr
    assert not list(Path("caches").rglob("*.parquet"))

"""A stage is summed up in one line, and no text steers the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from unicodedata import category

import pytest
from click.testing import CliRunner
from small_run import make_run

from qedit.pipeline.cli import main
from qedit.pipeline.terminal.output import escaped, summary
from qedit.stages.stage import Outcome


@pytest.mark.parametrize(
    ("computed", "failed", "said"),
    [
        (0, 0, "cache-vae     9 wanted, 5 kept, nothing to do"),
        (1, 0, "cache-vae     9 wanted, 5 kept, 1 latent made in 2.0 s"),
        (4, 0, "cache-vae     9 wanted, 5 kept, 4 latents made in 2.0 s"),
        (3, 1, "cache-vae     9 wanted, 5 kept, 1 rejected, 3 latents made in 2.0 s"),
    ],
)
def test_one_line_says_what_a_stage_did(computed: int, failed: int, said: str) -> None:
    outcome = Outcome("cache-vae", 9, 5, computed, failed, 2.0, "cache/vae", unit="latents")
    assert summary(outcome) == said


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("猫 café 🐈.png\n", "猫 café 🐈.png\n"),
        ("\x1b[31m", "\\u001b[31m"),
        ("\x9b31m", "\\u009b31m"),
        ("a\rb\x7f", "a\\rb\\u007f"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\u2028", "\\u2028"),
        ("\udcff", "\\udcff"),
    ],
)
def test_what_could_steer_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert escaped(text) == shown
    inside = json.dumps(text, ensure_ascii=False)
    assert json.loads(escaped(inside)) == text


STEERING = "\x1b[31m\x9b2J\u202e\x7f"
COMMANDS = (
    *("pair", "cache-vae", "cache-embeds", "train", "run", "status", "verify", "gc", "unlock"),
    *("plan", "preview", "inspect", "keys"),
)


@pytest.fixture(scope="module")
def steering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose names, captions and files hold what would steer a terminal."""
    folder = make_run(tmp_path_factory.mktemp("steering"))
    for name in ("p0.png", "p0.txt"):
        (folder / "edited" / name).rename(folder / "edited" / f"{STEERING}{name}")
    (folder / "reference-a" / "p0.png").rename(folder / "reference-a" / f"{STEERING}p0.png")
    (folder / "edited" / "p1.txt").write_text(f"make it {STEERING} red", encoding="utf-8")
    (folder / "edited" / f"{STEERING}alone.png").write_bytes(b"no picture")
    (folder / "reference-a" / f"{STEERING}extra.png").write_bytes(b"")
    text = (folder / "config.json").read_text()
    (folder / "wrong.json").write_text(text.replace("{", f'{{"{STEERING}": "{STEERING}",', 1))
    return folder


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_no_command_sends_control_characters(
    steering: Path, as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(steering)
    for config in ("wrong.json", "config.json"):
        for command in COMMANDS:
            skip = ["--on-reject", "skip"] if command in ("pair", "run") else []
            _is_plain(command, "--config", config, "--data", "data.json", *skip, as_json=as_json)
    _is_plain("inspect", f"{STEERING}p0.png", "--config", "config.json", "--data", "data.json")
    _is_plain("export", f"{STEERING}.safetensors", "--to", "out.safetensors", as_json=as_json)
    _is_plain(
        "keys", "--config", "config.json", "--data", "data.json", "--set", f"revision={STEERING}"
    )
    _is_plain("keys", STEERING, as_json=as_json)
    _is_plain("init", "edited", "reference-a", "-C", str(steering), as_json=as_json)


def _is_plain(*arguments: str, as_json: bool = False) -> None:
    """Run a command, and look for characters that are no text in all that it prints."""
    result = CliRunner().invoke(main, [*arguments, *(["--json"] if as_json else [])])
    assert "defect in qedit" not in result.output, result.output
    steering = {mark for mark in result.output if category(mark)[0] == "C"} - {"\n"}
    assert not steering, (arguments, result.output)

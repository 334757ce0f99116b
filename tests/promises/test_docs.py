"""The documents: pages made from the program are what it says, and every code block runs."""

from __future__ import annotations

import inspect
import json
import re
import runpy
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from documents import (
    DOCUMENTS,
    ROOT,
    Block,
    blocks_of,
    lay_out_pictures,
    run_bash,
    settings_and_data,
)
from drawn_epoch import drawn_epochs
from message_values import VALUES
from messages import Reader
from messages import page as _messages
from PIL import Image

from qedit.config.key_table import FILES, Key, every_key
from qedit.config.loading import load
from qedit.config.remarks import INSTEAD, known_elsewhere
from qedit.pipeline.cli import main

CLI_HEAD = """# The commands

This page is made from `--help`: `pytest tests/promises/test_docs.py --renew`.

Exit codes: 0 done (also nothing to do), 1 failed, 2 wrong use, 3 another recipe, 4 not complete,
5 damaged, 6 locked, 130 interrupted.
"""
KEYS_HEAD = """# Every key

This page is made from the program: `pytest tests/promises/test_docs.py --renew`. `qedit keys WORD`
shows the same in the terminal, and with `--config config.json` your value and where it comes from.

The last column says what a change costs at most: only rows whose content really changes are made
again. "New pairs" are made by `qedit pair`, latents and mask weights by `qedit cache-vae`, prefixes
and tails by `qedit cache-embeds`, the base by `qedit cache-base`; `qedit run` does them all. A
change that needs a new `output_dir` makes another run of it: [resume.md](resume.md).

## In an editor

`qedit init` writes a JSON Schema of each file: an editor then completes keys, shows their meaning
and marks what is wrong. config.json names its own (`"$schema": "./config.schema.json"`, which qedit
ignores). The data file is a list and cannot; Visual Studio Code is told in `.vscode/settings.json`:

```text
{
  "json.schemas": [
    {"fileMatch": ["multidatabackend.json"], "url": "./multidatabackend.schema.json"}
  ],
  "files.associations": {"config.json": "jsonc", "multidatabackend.json": "jsonc"}
}
```
"""
# blocks of these pages are run by another test, which names the page
RUN_ELSEWHERE = {"docs/inference.md": "tests/promises/test_preview_parity.py"}
CONTRACT = "docs/cache-format.md"
EVERY_BLOCK = [block for document in DOCUMENTS for block in blocks_of(document)]


def _cli() -> Iterator[str]:
    yield CLI_HEAD
    runner = CliRunner()
    for name in ("", *main.list_commands(click.Context(main))):
        arguments = [name, "--help"] if name else ["--help"]
        result = runner.invoke(main, arguments, prog_name="qedit", terminal_width=100)
        assert result.exit_code == 0, result.output
        title = f"qedit {name}".strip()
        yield f"\n## `{title}`\n\n```text\n{result.output.rstrip()}\n```\n"


def _instead(key: str) -> str:
    return f" (use `{INSTEAD[key]}`)" if key in INSTEAD else ""


def _keys() -> Iterator[str]:
    """Yield both files' keys in groups, and what becomes of the other trainer's."""
    yield KEYS_HEAD
    for file, model in FILES.items():
        yield f"\n## {file}\n"
        keys = [key for key in every_key() if key.file == file]
        titles = dict.fromkeys(key.group for key in keys)
        for title, group in zip(titles, reversed(model.__bases__), strict=True):
            yield f"\n### {title}\n\n{inspect.getdoc(group)}\n\n"
            yield "| key | values | default | meaning | a change costs |\n|---|---|---|---|---|\n"
            yield from (_key_row(key) for key in keys if key.group == title)
        others = sorted(known_elsewhere(model))
        yield f"\n### Known to SimpleTuner, without effect here ({len(others)})\n\n"
        named = [f"`{one}`" + _instead(one) for one in others]
        yield "\n".join(textwrap.wrap(", ".join(named), 100, break_on_hyphens=False)) + "\n"


def _key_row(key: Key) -> str:
    follows = f", follows {' and '.join(f'`{name}`' for name in key.follows)}"
    default = f"`{key.default}`" + follows * bool(key.follows) if key.default else "required"
    cells = (
        f"`{key.name}`",
        key.values,
        default,
        f"{key.meaning} *Default: {key.why}*",
        key.change,
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _epochs() -> Iterator[str]:
    """Yield docs/epochs.md with the drawing made anew."""
    text = (ROOT / "docs" / "epochs.md").read_text(encoding="utf-8")
    before, mark, rest = text.partition("drawn_epoch.py -->\n```text\n")
    assert mark
    yield before + mark + drawn_epochs() + rest[rest.index("```\n") :]


@pytest.mark.parametrize(
    ("page", "make"),
    [("cli.md", _cli), ("messages.md", _messages), ("keys.md", _keys), ("epochs.md", _epochs)],
)
def test_the_page_is_what_the_program_says(
    page: str, make: Callable[[], Iterator[str]], pytestconfig: pytest.Config
) -> None:
    path, made = ROOT / "docs" / page, "".join(make())
    if pytestconfig.getoption("--renew"):
        path.write_text(made, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == made, "pytest tests/promises/test_docs.py --renew"


def test_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        path = ROOT / document
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for name, link in re.findall(r"\[([^\]]+)\]\(([^)\s]+)\)", text):
            if link.startswith(("https://", "#")):
                continue
            file, _, heading = link.partition("#")
            there = path.parent / file
            assert there.exists(), f"{document}: [{name}]({link})"
            # `Name` as the text of a link to a source file is what that file defines
            if there.suffix == ".py" and (defined := re.fullmatch(r"`(\w+)`", name)):
                assert defined[1] in there.read_text(encoding="utf-8"), f"{document}: {name}"
            if heading:
                assert heading in _anchors(there), f"{document}: [{name}]({link})"


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_path_that_a_page_names_is_there() -> None:
    """Paths of the repository, as `stages/pair` or docs/cli.md, in the pages for developers."""
    folders = "pipeline|stages|config|cache|tests|docs|benchmarks"
    for document in ("CONTRIBUTING.md", "docs/architecture.md", "docs/epochs.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        for path in re.findall(rf"(?<![\w/.-])(?:{folders})/[\w/.*-]*[\w/]", text):
            assert list(ROOT.glob(path)), f"{document}: {path}"


def test_hooks_use_the_versions_of_the_constraints() -> None:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    pinned = re.findall(r"additional_dependencies: \[(.+)\]", hooks)
    assert pinned
    assert set(pinned) <= set(constraints)


def test_the_picture_of_the_readme_is_small() -> None:
    picture = ROOT / "docs" / "demo.webp"
    assert picture.stat().st_size < 200_000
    assert "(docs/demo.webp)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_script_draws_a_row_for_each_edit() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "make_picture.py"))
    wide, tall = Image.new("RGB", (160, 96), "red"), Image.new("RGB", (96, 160), "blue")
    one = script["Edit"]("Make it night.", (wide,), wide, wide, wide)
    two = script["Edit"]("Put the cat of picture 2 into picture 1.", (wide, tall), *[tall] * 3)
    page, taller = (script["draw_edits"](edits, "a note") for edits in ([one], [one, two]))
    assert page.width == taller.width
    assert page.height < taller.height
    drawn = {colour for _, colour in taller.getcolors(maxcolors=1 << 24)}
    assert {(255, 0, 0), (0, 0, 255)} <= drawn


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    for block in EVERY_BLOCK:
        assert block.language in ("bash", "python", "jsonc", "json", "text", ""), block
        for document, test in RUN_ELSEWHERE.items():
            assert Path(document).name in (ROOT / test).read_text(encoding="utf-8")


@pytest.mark.parametrize("block", [one for one in EVERY_BLOCK if one.not_run], ids=str)
def test_what_cannot_run_here_is_at_least_well_formed(block: Block) -> None:
    if block.language == "python":
        compile(block.text, str(block), "exec")
    elif block.language == "bash":
        subprocess.run(["bash", "-n", "-c", block.text], check=True)


@pytest.mark.parametrize(
    "block", [one for one in EVERY_BLOCK if one.language in ("json", "jsonc")], ids=str
)
def test_configurations_load_and_every_key_has_an_effect(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if block.document == CONTRACT:  # other files than the two that a user writes
        assert json.loads(block.text)
        return
    configuration = load(*settings_and_data(block, tmp_path))
    without = [note for note in configuration.notes if "without effect" in note]
    assert not without or block.document == "docs/from-simpletuner.md"


def _run_document(document: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every block of `document` in a folder of pictures, one after the other."""
    lay_out_pictures(folder)
    monkeypatch.chdir(folder)
    models = folder.parent / f"{folder.name}-models"
    # a part of a store, which the page of the cache's format reads
    embeds = min(ROOT.glob("tests/golden/store-1/*/parts/*/embeds"))
    names: dict[str, object] = {"part": embeds.parent}
    for block in blocks_of(document):
        if block.not_run or block.run_by_ci:
            continue
        title = re.match(r"// (\S+\.json)\n", block.text)
        if block.language == "jsonc" and title:
            (folder / title[1]).write_text(block.text, encoding="utf-8")
        elif block.language == "bash":
            run_bash(block, models)
        elif block.language == "python":
            exec(compile(block.text, str(block), "exec"), names)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "document",
    [
        pytest.param(one, marks=[] if one == "docs/memory.md" else [pytest.mark.full])
        for one in DOCUMENTS
        if one not in RUN_ELSEWHERE and one != "docs/cli.md"
    ],
)
def test_the_blocks_run_in_their_order(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run_document(document, tmp_path / "work", monkeypatch)


def test_the_guides_own_errors_are_answered() -> None:
    """What the guide for this model names under troubleshooting has its place in ours."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    for named in (
        "Control tensor list length does not match batch size",
        "validation_resolution",
        "validation_num_inference_steps",
        "base_model_precision",
        "conditioning_image_embeds",
    ):
        assert named in text


def test_every_message_is_filled_in_and_says_what_to_do() -> None:
    reader = Reader()
    found = reader.messages()
    assert len(found) > 100
    assert not reader.lacking, "give these an example in tests/support/message_values.py"
    known = {(place, expression) for place, values in VALUES.items() for expression in values}
    assert not known - reader.used, "no message has these: tests/support/message_values.py"
    for one in found:
        assert one.do or one.exit_code in (1, 4, 5), one

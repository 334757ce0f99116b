"""What decides nothing never stops a command; what decides is covered by `verify`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from finished_run import finished_run
from quiet import Quiet
from small_run import enter_copy, loaded, with_files

from qedit.cache.files.atomic import LEFTOVER
from qedit.cache.files.lock import new_holder
from qedit.cache.files.owner import Owner, is_dead, this_process
from qedit.pipeline.upkeep.verify import verify
from qedit.stages.stores.run import Run
from qedit.stages.train.evaluation.preview_process import Decoding

# what a finished run's folder holds besides what decides, and what becomes of it when damaged
WRITTEN_ANEW = (
    "README.md",
    "index.html",
    "as-run/config.json",
    "as-run/multidatabackend.json",
    "best/state.json",
    "previews/step-000000/*.png",
    "previews/step-000000/*.webp",
    "previews/step-000000/alignment.json",
    "previews/step-000002/*.png",
    "previews/step-000002/*.webp",
    "previews/step-000002/alignment.json",
    "previews/strips/*.png",
)
DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bad byte": lambda path: path.write_bytes(_with_a_bad_byte(path.read_bytes())),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "nested": lambda path: path.write_bytes(b"[" * 100_000),
    "another type": lambda path: path.write_bytes(b'{"a": 1, "b": [{}]}'),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}
FOREIGN = ("nested", "another type")
ALWAYS = ("a bad byte", "a folder")


def _with_a_bad_byte(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + b"\xff" + data[middle + 1 :]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run, as the working directory."""
    monkeypatch.setattr(Decoding, "start", lambda self, **_: None)
    return enter_copy(finished, tmp_path / "run", monkeypatch)


@pytest.mark.parametrize(
    "damage",
    [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.full) for name in DAMAGES],
)
def test_what_decides_nothing_is_written_anew_or_left_out(run: Path, damage: str) -> None:
    with_files("train")
    with_files("preview")
    out = run / "out"
    paths = [path for pattern in WRITTEN_ANEW for path in sorted(out.glob(pattern))]
    before = {path: path.read_bytes() for path in paths}
    assert len(before) >= len(WRITTEN_ANEW)
    for path in paths:
        DAMAGES[damage](path)
    told = "".join(with_files(name).stderr for name in ("status", "plan", "train", "preview"))
    with_files("train")
    changed = {path.name for path in paths if path.read_bytes() != before[path]}
    # of a page that says nothing of qedit nobody knows whose it is
    assert changed == ({"README.md", "index.html"} if damage in FOREIGN else set())
    assert all(f"{name} was not written by qedit" in told for name in changed)


@pytest.mark.parametrize("link", [False, True], ids=["deleted", "a dead link"])
def test_a_best_lora_that_is_gone_is_told_once(run: Path, link: bool) -> None:
    lora = Path("out/best/pytorch_lora_weights.safetensors")
    lora.unlink()
    if link:
        lora.symlink_to("nowhere")
    told, again = (with_files("train", "--set", f"max_train_steps={n}").stderr for n in (3, 4))
    assert f"{lora} is {'damaged' if link else 'missing'}" in told
    assert str(lora) not in again
    assert not Path("out/best/state.json").exists() or lora.exists(), "no state without a LoRA"


def test_a_folder_in_the_place_of_a_table_is_named(run: Path) -> None:
    table, *_ = sorted(Path("caches/pairs").glob("*/*/rejected-*.parquet"))
    table.unlink()
    table.mkdir()
    told = with_files("pair", expect=1).stderr
    assert f"{table} is a folder, where a file is wanted.\nMove it away." in told
    table.rename("away")
    with_files("run")
    assert table.is_file()


def test_a_dead_link_in_a_store_stops_no_status(run: Path) -> None:
    recipe, *_ = sorted(Path("caches/vae").glob("*/*/recipe.json"))
    recipe.unlink()
    recipe.symlink_to("nowhere")
    assert "complete" in with_files("status").stdout


def _decide_nothing() -> list[tuple[str, str]]:
    """The folder and the pattern of each file that docs/resume.md lists."""
    text = (Path(__file__).parents[2] / "docs" / "resume.md").read_text(encoding="utf-8")
    found: list[tuple[str, str]] = []
    folder = ""
    for line in text.partition("## Damaged files")[2].splitlines():
        first = line.split("|")[1] if line.startswith("|") else ""
        if head := re.search(r"in `(output|cache)_dir`", first):
            folder = {"output": "out", "cache": "caches"}[head[1]]
        elif line.startswith("|"):
            found += [(folder, pattern) for pattern in re.findall("`(.+?)`", first)]
    return found


def _flipped(path: Path) -> Iterator[None]:
    """Flip a bit in the middle of the file while the caller looks: one that is no blank."""
    data = path.read_bytes()
    at = next(at for at in range(len(data) // 2, len(data)) if not data[at : at + 1].isspace())
    path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
    yield
    path.write_bytes(data)


def test_verify_covers_every_kind_of_file_that_decides(run: Path) -> None:
    nothing = {path for folder, name in _decide_nothing() for path in Path(folder).glob(name)}
    files = [path for folder in ("out", "caches") for path in sorted(Path(folder).rglob("*"))]
    kinds: dict[str, Path] = {}
    for path in files:
        if path.is_file() and path not in nothing:
            # of one dataset and of one step; a name may end in a digest or a number
            places = {"held", "reference-a", "reference-held"}.isdisjoint(path.parts)
            kind = re.sub(r"[0-9a-f]{16,}|[^/]*~[0-9]+|[0-9]+|(?<=-)[0-9a-f]+", "N", str(path))
            kinds |= {kind: path} if places else {}
    assert len(kinds) > 25
    assert verify(Run(loaded()), Quiet()).lines == []
    passed = set()
    for kind, path in kinds.items():
        for _ in _flipped(path):
            if not any(part in line for line in _damages() for part in _names(path)):
                passed.add(kind)
    assert passed == set()


def _damages() -> list[str]:
    return verify(Run(loaded()), Quiet()).lines


def _names(path: Path) -> list[str]:
    """The file, or the part or the store that it belongs to, as `verify` names them."""
    folders = [parent for parent in path.parents if parent.parent.name == "parts"]
    return [str(one) for one in (path, *folders, *[path.parent][: path.name == "recipe.json"])]


def _plant(folder: Path, owner: Owner) -> list[Path]:
    """Leave an unfinished file and an unfinished folder of a process."""
    file = folder / f".file.json~{owner}~0{LEFTOVER}"
    file.write_bytes(b"half")
    tree = folder / f".folder~{owner}~1{LEFTOVER}"
    tree.mkdir()
    (tree / "file").write_bytes(b"half")
    return [file, tree]


def test_the_next_start_and_gc_leave_nothing_of_a_killed_process(run: Path) -> None:
    dead = replace(this_process(), started="1")
    assert is_dead(dead)
    parts = [path for path in Path("caches").rglob("parts/*")]
    inside = {path for part in parts for path in (part, *part.rglob("*"))}
    inside |= {path for path in Path("caches/base").rglob("*") if any(path.glob("quantized.json"))}
    inside |= set(Path("out").glob("checkpoint-*"))
    folders = [
        folder
        for root in ("out", "caches")
        for folder in (Path(root), *Path(root).rglob("*"))
        if folder.is_dir() and folder not in inside
    ]
    left = [path for folder in folders for path in _plant(folder, dead)]
    living = [path for folder in folders for path in _plant(folder, this_process())]
    stores = {path.parent for path in Path("caches").rglob("parts")}
    for store in stores:
        (store / "claims").mkdir(exist_ok=True)
        claim = store / "claims" / f"{dead}~0.json"
        holder = replace(new_holder("cache-vae"), owner=dead)
        claim.write_text(json.dumps({**asdict(holder), "keys": []}))
        left.append(claim)
        part = store / "parts" / f"{dead}~9"
        part.mkdir()
        left.append(part)
    assert len(left) > 60
    with_files("run")
    with_files("preview")
    assert [path for path in left if path.exists() and path.parts[0] == "out"] == []
    assert not Path("caches").joinpath(left[0].name).exists(), "no lock guards the folder"
    with_files("gc", "--yes")
    assert [path for path in left if path.exists()] == []
    assert [path for path in living if not path.exists()] == []

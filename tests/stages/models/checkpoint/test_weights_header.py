"""Files of weights are looked at by their headers alone, and what is not whole is named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bare_checkpoints import WEIGHTS, settings_for, write_json
from safetensors.numpy import save_file

from qedit.cache.errors import Damaged, NotComplete, QeditError
from qedit.stages.models.checkpoint.checkpoint import open_checkpoint
from qedit.stages.models.checkpoint.weights_header import tensor_entries

HUGE_BYTES = 1 << 32


def write_header(path: Path, header: object, *, numbers: int = 8) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(numbers))


def entry(**changes: object) -> dict[str, object]:
    return {"weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b"[" * 100_000,
        {"weight": 3},
        entry(dtype="F31"),
        entry(dtype=[]),
        entry(shape="two"),
        entry(shape=[2.0]),
        entry(shape=[-2]),
        entry(shape=[3]),
        entry(shape=[10**30]),
        entry(data_offsets=[0, 4]),
        entry(data_offsets=[8, 16]),
        entry(data_offsets=[4, 12]),
        entry(data_offsets=[0]),
        entry(data_offsets=None),
        entry(shape=[1], data_offsets=[4, 8]),
        entry() | {"other": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
    ],
    ids=lambda header: str(header)[:40],
)
@pytest.mark.parametrize("part", WEIGHTS)
def test_a_wrong_header_is_named_when_the_checkpoint_is_opened(
    folder: Path, part: str, header: object
) -> None:
    path = folder / part / WEIGHTS[part]
    write_header(path, header)
    with pytest.raises(Damaged, match=f"{path} is not a whole safetensors file") as refusal:
        open_checkpoint(settings_for(folder))
    assert f"Delete {path} and download the file again" in refusal.value.do


@pytest.mark.parametrize("left", [0, 4, 8, 40, -4, -1])
@pytest.mark.parametrize("part", WEIGHTS)
def test_a_file_cut_short_is_named_when_the_checkpoint_is_opened(
    folder: Path, part: str, left: int
) -> None:
    path = folder / part / WEIGHTS[part]
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(Damaged, match=str(path)):
        open_checkpoint(settings_for(folder))


def test_in_the_hub_s_cache_it_is_the_file_behind_the_link_that_is_to_be_deleted(
    folder: Path,
) -> None:
    path = folder / "vae" / WEIGHTS["vae"]
    blob = folder / "blob"
    blob.write_bytes(path.read_bytes()[:-1])
    path.unlink()
    path.symlink_to(blob)
    with pytest.raises(Damaged) as refusal:
        open_checkpoint(settings_for(folder))
    assert refusal.value.do.startswith(f"Delete {blob} and run the same command again")


def test_headers_are_read_and_no_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, name in WEIGHTS.items():
        numbers = {"dtype": "U8", "shape": [HUGE_BYTES], "data_offsets": [0, HUGE_BYTES]}
        write_header(folder / part / name, {"weight": numbers}, numbers=0)
        with (folder / part / name).open("r+b") as file:
            file.truncate(file.seek(0, os.SEEK_END) + HUGE_BYTES)
    read = 0
    opened = Path.open

    class Counted:
        def __init__(self, path: Path) -> None:
            self._file = opened(path, "rb")

        def __enter__(self) -> Counted:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def read(self, size: int) -> bytes:
            nonlocal read
            read += size
            return self._file.read(size)

    def counting(path: Path, *arguments: object, **options: object) -> object:
        return (
            Counted(path) if path.suffix == ".safetensors" else opened(path, *arguments, **options)
        )

    monkeypatch.setattr(Path, "open", counting)
    assert open_checkpoint(settings_for(folder))
    assert 3 * 8 < read < 1000
    before = read
    assert open_checkpoint(settings_for(folder))
    assert read == before


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for length in (2, 3):
        save_file({"weight": np.zeros(length, np.float32)}, path)
        (found,) = tensor_entries(path)
        assert (found.name, found.dtype, found.shape) == ("weight", "F32", (length,))


# -- the index -----------------------------------------------------------------------------


def of(count: int, *numbers: int) -> dict[str, str]:
    return {f"t{n}": f"diffusion_pytorch_model-{n:05}-of-{count:05}.safetensors" for n in numbers}


@pytest.fixture
def sharded(folder: Path) -> Callable[[object], Path]:
    """A transformer in two shards, with this index."""

    def make(index: object) -> Path:
        part = folder / "transformer"
        (part / WEIGHTS["transformer"]).unlink()
        for name, file in of(2, 1, 2).items():
            save_file({name: np.zeros(2, np.float32)}, part / file)
        write_json(part / "diffusion_pytorch_model.safetensors.index.json", index)
        return part

    return make


def test_a_whole_index_is_let_through(folder: Path, sharded: Callable[[object], Path]) -> None:
    sharded({"weight_map": of(2, 1, 2)})
    assert open_checkpoint(settings_for(folder))


@pytest.mark.parametrize(
    ("index", "kind", "says"),
    [
        ({"weight_map": of(2, 1)}, NotComplete, "names 1 of 2 files"),
        ({"weight_map": of(2, 1, 2) | {"t3": of(2, 2)["t2"]}}, Damaged, "lacks t3, which its"),
        ({"weight_map": of(3, 1, 2, 3)}, NotComplete, "of-00003.safetensors is missing"),
        ({}, NotComplete, "does not say which file holds what"),
        ({"weight_map": []}, NotComplete, "does not say which file holds what"),
        ({"weight_map": {}}, NotComplete, "does not say which file holds what"),
        ({"weight_map": {"t1": 1}}, NotComplete, "does not say which file holds what"),
        ({"weight_map": {"t1": "../a.safetensors"}}, NotComplete, "does not say which file"),
        (["weight_map"], NotComplete, "cannot be read"),
    ],
)
def test_an_index_that_is_not_that_of_the_files_is_refused(
    folder: Path,
    sharded: Callable[[object], Path],
    index: object,
    kind: type[QeditError],
    says: str,
) -> None:
    sharded(index)
    with pytest.raises(kind, match=says):
        open_checkpoint(settings_for(folder))

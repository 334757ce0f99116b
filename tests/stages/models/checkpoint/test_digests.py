"""A model's digest: what changes it, and that weights are read once."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from bare_checkpoints import WEIGHTS, write_json
from damage import flip
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from qedit.cache.errors import Damaged, NotComplete
from qedit.cache.files.sealed import read_sealed, sealed
from qedit.stages.models.checkpoint import digests
from qedit.stages.models.checkpoint.digests import files_digest, model_digest
from qedit.stages.models.checkpoint.tensor_checksums import checksums_in
from qedit.stages.models.checkpoint.weights_header import TensorEntry, tensor_entries
from qedit.stages.models.weights.streaming import tensors_by_name, tensors_in


@pytest.fixture
def remember(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "digests.json"


def settle(folder: Path) -> None:
    """As if all files had been there for an hour."""
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - 3600,) * 2)


def test_a_moved_or_touched_model_is_the_same_model(
    folder: Path, tmp_path: Path, remember: Path
) -> None:
    before = model_digest(folder / "vae", remember=remember)
    copy = shutil.copytree(folder / "vae", tmp_path / "elsewhere")
    (copy / WEIGHTS["vae"]).touch()
    assert model_digest(copy, remember=remember) == before
    assert len(before) == 32


def test_how_tensors_are_spread_over_files_does_not_count(tmp_path: Path, remember: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        write_json(folder / "config.json", {"z_dim": 16})
    tensors = {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 2), np.float16)}
    save_file(tensors, one / "model.safetensors")
    save_file({"b": tensors["b"]}, two / "part-1.safetensors", metadata={"format": "pt"})
    save_file({"a": tensors["a"]}, two / "part-2.safetensors")
    assert model_digest(one, remember=remember) == model_digest(two, remember=remember)


def test_files_beside_the_models_own_are_not_the_model(folder: Path, remember: Path) -> None:
    """Else a model and its backup could change places without a change of the digest."""
    vae = folder / "vae"
    own, backup = vae / WEIGHTS["vae"], vae / "backup.safetensors"
    first = model_digest(vae, remember=remember)
    rewrite(backup, weight=np.arange(5, 7, dtype=np.float32))
    assert model_digest(vae, remember=remember) == first
    own.rename(vae / "mine.safetensors")
    backup.rename(own)
    assert model_digest(vae, remember=remember) != first


def test_an_index_says_which_shards_are_the_model(tmp_path: Path, remember: Path) -> None:
    write_json(tmp_path / "config.json", {})
    for version in (1, 2):
        rewrite(tmp_path / f"v{version}.safetensors", weight=np.full(2, version, np.float32))
    found = {}
    for version in (1, 2):
        index = tmp_path / "model.safetensors.index.json"
        write_json(index, {"weight_map": {"weight": f"v{version}.safetensors"}})
        ((name, read),) = tensors_in(tmp_path, remember=remember)
        assert (name, read.tolist()) == ("weight", [version, version])
        found[version] = model_digest(tmp_path, remember=remember)
    assert found[1] != found[2]
    (tmp_path / "v2.safetensors").unlink()
    with pytest.raises(NotComplete, match=r"v2\.safetensors is missing"):
        model_digest(tmp_path, remember=remember)


def rewrite(path: Path, **tensors: np.ndarray) -> None:
    save_file(tensors, path)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: flip(folder / WEIGHTS["vae"], -1),
        lambda folder: write_json(folder / "config.json", {"z_dim": 17}),
        lambda folder: write_json(folder / "config.json", {"z_dim": 16, "new": None}),
        lambda folder: rewrite(folder / WEIGHTS["vae"], wait=np.arange(2, dtype=np.float32)),
        lambda folder: rewrite(
            folder / WEIGHTS["vae"], weight=np.arange(2, dtype=np.float32).reshape(1, 2)
        ),
        lambda folder: rewrite(
            folder / WEIGHTS["vae"], weight=np.arange(2, dtype=np.float32).view(np.int32)
        ),
    ],
    ids=["byte", "value", "key", "name", "shape", "dtype"],
)
def test_whatever_decides_a_result_changes_the_digest(
    folder: Path, remember: Path, change: object
) -> None:
    before = model_digest(folder / "vae", remember=remember)
    change(folder / "vae")
    assert model_digest(folder / "vae", remember=remember) != before


def test_bookkeeping_does_not_count(folder: Path, remember: Path) -> None:
    before = model_digest(folder / "vae", remember=remember)
    kept = {"_class_name": "X", "transformers_version": "9", "dtype": "bfloat16", "z_dim": 16}
    write_json(folder / "vae/config.json", kept)
    assert model_digest(folder / "vae", remember=remember) == before


def test_weights_are_read_once(
    folder: Path, remember: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(folder)
    before = model_digest(folder / "vae", remember=remember)

    def never(*_: object) -> int:
        raise AssertionError("read again")

    monkeypatch.setattr(digests, "_digest", never)
    assert model_digest(folder / "vae", remember=remember) == before
    os.utime(folder / "vae" / WEIGHTS["vae"], (1, 1))
    with pytest.raises(AssertionError, match="read again"):
        model_digest(folder / "vae", remember=remember)


def test_a_file_that_has_just_changed_is_not_remembered(folder: Path, remember: Path) -> None:
    """Its time stamp may not move when it changes once more at once."""
    weights = folder / "vae" / WEIGHTS["vae"]
    before = model_digest(folder / "vae", remember=remember)
    stamp = weights.stat().st_mtime_ns
    flip(weights, -1)
    os.utime(weights, ns=(stamp, stamp))
    assert model_digest(folder / "vae", remember=remember) != before


def test_weights_of_the_same_size_and_time_are_read_again(folder: Path, remember: Path) -> None:
    """As an archive leaves them, or a copy that keeps the time."""
    settle(folder)
    weights = folder / "vae" / WEIGHTS["vae"]
    before, facts = model_digest(folder / "vae", remember=remember), weights.stat()
    flip(weights, -1)
    os.utime(weights, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert model_digest(folder / "vae", remember=remember) != before


def test_what_others_remember_meanwhile_is_kept(
    folder: Path, remember: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(folder)
    read = digests._digest

    def beside_another(path: Path, entry: TensorEntry) -> int:
        digests._write(remember, {"another": {"model": "0" * 32}})
        return read(path, entry)

    monkeypatch.setattr(digests, "_digest", beside_another)
    model_digest(folder / "vae", remember=remember)
    known = digests._recall(remember)
    assert known["another"] == {"model": "0" * 32}
    assert str((folder / "vae" / WEIGHTS["vae"]).resolve()) in known


def test_a_spoilt_memory_costs_only_time(folder: Path, remember: Path) -> None:
    settle(folder)
    before = model_digest(folder / "vae", remember=remember)
    remember.write_text("{")
    assert model_digest(folder / "vae", remember=remember) == before
    assert json.loads(remember.read_text())


@pytest.mark.parametrize("cut_bytes", [1, 100])
def test_weights_cut_short_are_damaged(folder: Path, remember: Path, cut_bytes: int) -> None:
    weights = folder / "vae" / WEIGHTS["vae"]
    data = weights.read_bytes()
    weights.write_bytes(data[: max(4, len(data) - cut_bytes)])
    with pytest.raises(Damaged, match=WEIGHTS["vae"]):
        model_digest(folder / "vae", remember=remember)


@pytest.mark.parametrize("gone", ["config.json", WEIGHTS["vae"]])
def test_half_a_model_has_no_digest(folder: Path, remember: Path, gone: str) -> None:
    (folder / "vae" / gone).unlink()
    with pytest.raises(NotComplete, match="is missing"):
        model_digest(folder / "vae", remember=remember)


def test_small_files_are_named_by_what_they_hold(folder: Path, tmp_path: Path) -> None:
    names = ["tokenizer.json", "tokenizer_config.json", "merges.txt"]
    before = files_digest(folder / "tokenizer", names)
    copy = shutil.copytree(folder / "tokenizer", tmp_path / "elsewhere")
    (copy / "README.md").write_text("not one of them")
    assert files_digest(copy, reversed(names)) == before
    (copy / "merges.txt").write_text("")
    assert files_digest(copy, names) != before


def test_files_read_through_safetensors_are_what_was_digested(folder: Path) -> None:
    """The header is read by hand: the offsets must be those of the library."""
    path = folder / "vae" / WEIGHTS["vae"]
    (tensor,) = tensor_entries(path)
    data = path.read_bytes()[tensor.start : tensor.start + tensor.nbytes]
    assert data == load_file(path)["weight"].tobytes()


# -- checksums -----------------------------------------------------------------------------


def damage_unseen(weights: Path, remember: Path) -> None:
    """Flip a bit as a disk does: size and times of change stay what was remembered."""
    flip(weights, -1)
    known = read_sealed(remember)
    known[str(weights.resolve())] |= digests._look(weights)
    write_json(remember, sealed(known))


@pytest.mark.parametrize("by_name", [False, True])
def test_a_tensor_is_held_against_the_checksum_of_when_it_was_digested(
    folder: Path, remember: Path, by_name: bool
) -> None:
    settle(folder)
    weights = folder / "vae" / WEIGHTS["vae"]
    model_digest(folder / "vae", remember=remember)

    def read() -> list[float]:
        if by_name:
            with tensors_by_name(folder / "vae", remember=remember) as tensor:
                return list(tensor("weight").tolist())
        ((_, found),) = tensors_in(folder / "vae", remember=remember)
        return list(found.tolist())

    assert read() == [0.0, 1.0]
    damage_unseen(weights, remember)
    with pytest.raises(Damaged, match=f"{weights} is damaged: weight is not") as refusal:
        read()
    assert f"Delete {weights}" in refusal.value.do


def test_every_kind_of_tensor_has_a_checksum(tmp_path: Path, remember: Path) -> None:
    write_json(tmp_path / "config.json", {})
    tensors = {
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "bits": torch.ones(3, dtype=torch.float8_e4m3fn),
        "half": torch.ones(2, 3, dtype=torch.bfloat16),
        "truth": torch.ones(5, dtype=torch.bool),
    }
    save_torch(tensors, tmp_path / "model.safetensors")
    settle(tmp_path)
    model_digest(tmp_path, remember=remember)
    read = dict(tensors_in(tmp_path, remember=remember))
    assert {name: found.tolist() for name, found in read.items()} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }
    path = tmp_path / "model.safetensors"
    recorded = digests.recorded_checksums(path, remember)
    assert recorded == checksums_in(path.read_bytes())
    assert len(recorded or "") == 8 * len(tensors)


def test_a_file_whose_digest_alone_is_known_is_read_once_more(folder: Path, remember: Path) -> None:
    """As versions before there were checksums remembered it."""
    settle(folder)
    weights = folder / "vae" / WEIGHTS["vae"]
    digest = model_digest(folder / "vae", remember=remember)

    def forget() -> None:
        known = read_sealed(remember)
        del known[str(weights.resolve())][digests.CHECKSUMS]
        write_json(remember, sealed(known))

    before = digests.recorded_checksums(weights, remember)
    forget()
    assert digests.recorded_checksums(weights, remember) is None
    assert model_digest(folder / "vae", remember=remember) == digest
    assert digests.recorded_checksums(weights, remember) == before
    forget()
    damage_unseen(weights, remember)
    with pytest.raises(Damaged, match="is not as it was when it was first read"):
        model_digest(folder / "vae", remember=remember)

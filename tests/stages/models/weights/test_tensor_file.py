"""Files written tensor by tensor: safetensors reads them, and one copy is held at a time."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from qedit.cache.files.fingerprint import digest_file
from qedit.stages.models.weights.tensor_file import metadata_in, write_tensors

KINDS = {
    "table": torch.arange(256, dtype=torch.uint8).reshape(16, 16),
    "weight": torch.randn(3, 5),
    "half": torch.randn(7).bfloat16(),
    "turned": torch.randn(4, 3).t(),
    "count": torch.tensor(7, dtype=torch.int64),
    "estimate": torch.tensor(0.5, dtype=torch.float64),
    "none": torch.zeros(0, 3),
    "yes": torch.tensor([True, False]),
}


def test_the_library_reads_what_was_written_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    digest = write_tensors(path, KINDS, metadata={"who": "me"})
    assert digest == digest_file(path)
    read = load_file(path)
    assert read.keys() == KINDS.keys()
    for name, tensor in KINDS.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"who": "me"}
    turned = dict(reversed(KINDS.items()))
    assert write_tensors(tmp_path / "again.safetensors", turned, metadata={"who": "me"}) == digest


def test_each_tensor_begins_at_a_multiple_of_its_own_size(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors(path, KINDS)
    for name, tensor in load_file(path).items():
        assert tensor.numel() == 0 or tensor.data_ptr() % tensor.dtype.itemsize == 0, name


def test_a_dtype_to_store_in_rounds_as_torch_does(tmp_path: Path) -> None:
    exact = {"weight": torch.randn(9, 9)}
    write_tensors(tmp_path / "file.safetensors", exact, dtype=torch.bfloat16)
    (stored,) = load_file(tmp_path / "file.safetensors").values()
    assert torch.equal(stored, exact["weight"].bfloat16())


class Fetched(Mapping[str, Tensor]):
    """Tensors that are somewhere else: each is made when it is asked for."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
        self.most = 0

    def __getitem__(self, name: str) -> Tensor:
        tensor = torch.full((64,), float(name))
        self.alive.add(tensor)
        self.most = max(self.most, len(self.alive))
        return tensor

    def __iter__(self) -> Iterator[str]:
        return map(str, range(self.count))

    def __len__(self) -> int:
        return self.count


def test_no_more_than_two_tensors_are_there_at_a_time(tmp_path: Path) -> None:
    fetched = Fetched(20)
    write_tensors(tmp_path / "file.safetensors", fetched)
    assert fetched.most <= 2
    assert load_file(tmp_path / "file.safetensors")["13"].tolist() == [13.0] * 64


def test_a_file_that_could_not_be_finished_is_not_there(tmp_path: Path) -> None:
    class Broken(Fetched):
        def __getitem__(self, name: str) -> Tensor:
            if self.most == 2:
                raise KeyboardInterrupt
            return super().__getitem__(name)

    path = tmp_path / "file.safetensors"
    path.write_bytes(b"as it was")
    with pytest.raises(KeyboardInterrupt):
        write_tensors(path, Broken(20))
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"as it was"


def test_a_pipe_has_no_metadata(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "weights.safetensors")
    assert metadata_in(tmp_path / "weights.safetensors") == {}

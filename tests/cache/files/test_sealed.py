"""JSON files carry a checksum, so that corruption is detected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qedit.cache.files.atomic import readable_json
from qedit.cache.files.sealed import CHECKSUM, sealed, unsealed
from qedit.stages.models.checkpoint.digests import remembered

SAID = {"step": 3, "run": {"b": (1, 2.5), "a": "Mädchen"}, "none": None, "yes": True}


def test_what_was_sealed_comes_back() -> None:
    read = json.loads(readable_json(sealed(SAID)))
    assert unsealed(read) == {**SAID, "run": {"b": [1, 2.5], "a": "Mädchen"}}
    assert read.keys() == {*SAID, CHECKSUM}


def test_what_was_never_sealed_is_as_it_is() -> None:
    assert unsealed(SAID) == SAID


def test_a_flipped_bit_changes_nothing_that_is_believed() -> None:
    data = readable_json(sealed(SAID)).encode()
    whole = json.loads(readable_json(SAID))
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            read = unsealed(json.loads(bytes(flipped)))
        except ValueError:
            continue
        assert read == whole


def test_a_digest_that_is_remembered_wrongly_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "model-digests.json"
    assert remembered("vae", lambda: "12ab", remember=path) == "12ab"
    path.write_text(path.read_text().replace("12ab", "12aa"))
    assert remembered("vae", lambda: "12ab", remember=path) == "12ab"
    with pytest.raises(ZeroDivisionError):
        remembered("transformer", lambda: str(1 / 0), remember=path)

"""The two caching stages as a user meets them: one decode, devices, batch sizes."""

from __future__ import annotations

import gc
import json
import re
import shutil
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cached_rows import PLAIN, assert_equal, rows_here
from PIL import Image
from small_run import enter_copy, loaded, said, with_files

from qedit.stages.cache_embeds import encoding as embeds_encoding
from qedit.stages.encoding import open_pictures
from qedit.stages.encoding.reference_sets import ReferenceSet, find_sets
from qedit.stages.models.checkpoint.checkpoint import open_checkpoint
from qedit.stages.models.text.prompt import PromptEncoder
from qedit.stages.models.vae import LatentEncoder
from qedit.stages.stores.run import Run
from qedit.stages.stores.run_stores import open_stores


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was decoded for an encoder."""
    counted: Counter[str] = Counter()
    really = open_pictures.open_upright

    def counting(source: Any, *, name: str = "") -> Image.Image:
        counted[name] += 1
        return really(source, name=name)

    monkeypatch.setattr(open_pictures, "open_upright", counting)
    return counted


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each encoder was loaded; the text encoder never while there is a VAE."""
    counted: Counter[str] = Counter()
    vaes: list[weakref.ref[Any]] = []
    really_vae, really_text = LatentEncoder.load, PromptEncoder.load

    def load_vae(*given: Any, **options: Any) -> LatentEncoder:
        encoder = really_vae(*given, **options)
        vaes.append(weakref.ref(encoder.vae))
        counted["vae"] += 1
        return encoder

    def load_text(*given: Any, **options: Any) -> PromptEncoder:
        gc.collect()
        assert [vae() for vae in vaes] == [None]
        counted["text"] += 1
        return really_text(*given, **options)

    monkeypatch.setattr(LatentEncoder, "load", load_vae)
    monkeypatch.setattr(PromptEncoder, "load", load_text)
    return counted


def test_a_run_decodes_every_picture_once_has_one_encoder_at_a_time_and_makes_the_same_rows(
    here: Path, decodes: Counter[str], loads: Counter[str], one_by_one: dict[str, np.ndarray]
) -> None:
    with_files("run", *PLAIN[0], *PLAIN[1])
    assert loads == {"vae": 1, "text": 1}
    assert len(decodes) == 12
    assert set(decodes.values()) == {1}
    assert_equal(rows_here(), one_by_one)
    assert list(Path("caches/spool").iterdir()) == []


def test_what_a_spool_does_not_hold_is_decoded_again(
    here: Path,
    decodes: Counter[str],
    one_by_one: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from qedit.stages.encoding import spool

    monkeypatch.setattr(spool, "MOST_BYTES", 3 * 64 * 64 * 3)
    with_files("run", *PLAIN[0], *PLAIN[1])
    references = [count for name, count in decodes.items() if "reference" in name]
    assert sorted(references) == [1, 1, 1, 2, 2, 2, 2, 2]
    assert_equal(rows_here(), one_by_one)


def test_stages_of_their_own_decode_what_they_need(here: Path, decodes: Counter[str]) -> None:
    done = said(with_files("cache-vae", "--json"))
    with_files("cache-embeds")
    assert Counter(decodes.values()) == {1: 4, 2: 8}
    # where the time went is told, where any did
    assert done["bottleneck"] in done["bottleneck_seconds"]
    assert set(done["bottleneck_seconds"]) == {"decode", "encode", "write"}
    assert "bottleneck" not in said(with_files("cache-vae", "--json"))


def test_a_reference_that_sets_share_is_decoded_once(here: Path, decodes: Counter[str]) -> None:
    found = loaded()
    encoding = embeds_encoding.ReferenceEncoding(Run(found), device="cpu")
    one, *_ = find_sets(Run(found)).sets.values()
    swapped = replace(one.sample, references=one.sample.references[::-1])
    encoding.read(one)
    encoding.read(ReferenceSet(swapped, one.tails))
    assert list(decodes.values()) == [1, 1]


def test_ctrl_c_counts_no_pictures_that_were_left_for_the_next_stage(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really: Callable[..., Any] = LatentEncoder.encode
    batches = iter(range(12))

    def interrupted(self: Any, pixels: Any) -> Any:
        if next(batches) == 11:
            raise KeyboardInterrupt
        return really(self, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(LatentEncoder, "encode", interrupted)
        told = with_files("run", *PLAIN[0], expect=130).stderr
    (count,) = re.findall(r"(\d+) latents were made and are kept", told)
    assert int(count) == said(with_files("cache-vae", "--json"))["kept"]


@pytest.mark.full
def test_several_devices_share_the_work(here: Path, one_by_one: dict[str, np.ndarray]) -> None:
    done = said(with_files("cache-vae", "--devices", "cpu,cpu", *PLAIN[0], "--json"))
    assert (done["computed"], done["failed"]) == (12, 0)
    done = said(with_files("cache-embeds", "--devices", "cpu,cpu", *PLAIN[1], "--json"))
    assert done["computed"] == 4 + 9
    rows = rows_here()
    assert_equal(rows, one_by_one)
    assert list(Path("caches").rglob("claims/*.json")) == []


@pytest.mark.exhaustive
def test_a_workers_error_is_the_commands(here: Path) -> None:
    Path("edited/p1.png").write_bytes(b"another file")
    error = with_files("cache-vae", "--devices", "cpu,cpu", expect=4).stderr
    assert "Error: On cpu: edited/p1.png has changed since the pairs were made." in error


def test_an_unknown_device_among_several_is_wrong_use(here: Path) -> None:
    assert "lacks a name" in with_files("cache-vae", "--devices", "cpu,", expect=2).stderr
    assert "no device 'cuda:9'" in with_files("cache-vae", "--device", "cuda:9", expect=2).stderr


@pytest.mark.parametrize("size", ["0", "many", "1.5"])
def test_a_batch_size_is_a_number_or_auto(size: str, here: Path) -> None:
    error = with_files("cache-vae", "--vae-batch-size", size, expect=2).stderr
    assert "auto" in error


# -- one file in several geometries ------------------------------------------------------


def test_a_file_wanted_at_two_sizes_is_decoded_once(
    paired: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decodes: Counter[str]
) -> None:
    """Two datasets of one folder, a target that is a reference as well."""
    enter_copy(paired, tmp_path / "two", monkeypatch)
    shutil.copy("edited/p0.png", "reference-a/p0.png")
    datasets = json.loads(Path("data.json").read_text())
    datasets.append(datasets[0] | {"id": "larger", "resolution": 96})
    Path("data.json").write_text(json.dumps(datasets))
    with_files("pair")
    done = said(with_files("cache-vae", "--vae-batch-size", "1", "--json"))
    assert done["computed"] == 4 + 4 + 8 - 1  # both sizes, references, p0 being one of them
    assert set(decodes.values()) == {1}
    assert len(decodes) == 4 + 8 - 1
    found = loaded()
    stores = open_stores(found, open_checkpoint(found.settings))
    for name in ("edited", "larger"):  # each in the store of its own dataset
        assert len(stores.latents.of(name)) == 4
    # what one of the two sizes lacks is made alone, and as before
    rows = rows_here()
    for part in stores.latents.of("larger").part_paths():
        shutil.rmtree(part)
    assert said(with_files("cache-vae", "--json", "--vae-batch-size", "1"))["computed"] == 4
    assert_equal(rows_here(), rows)

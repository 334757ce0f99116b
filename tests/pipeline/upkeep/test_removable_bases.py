"""verify, gc and unlock look after what is kept ready of the frozen base, too."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from damage import flip
from filled_run import made_configuration
from quiet import Quiet
from training import SAMPLES, made_runs

from qedit.cache.files.lock import LOCK_FILE, new_holder
from qedit.config.configuration import Configuration
from qedit.pipeline.upkeep.caches import Caches
from qedit.pipeline.upkeep.collect import Removables, alone, clear, collect
from qedit.pipeline.upkeep.removable import Removable
from qedit.pipeline.upkeep.unlock import find_locks
from qedit.pipeline.upkeep.verify import Verified, verify
from qedit.stages.cache_base import stage as cache_base
from qedit.stages.frozen_base.modulation_table import base_folder, modulation_table
from qedit.stages.frozen_base.quantized import quantized_base
from qedit.stages.models.checkpoint.checkpoint import open_checkpoint
from qedit.stages.models.checkpoint.digests import digests_file, model_digest
from qedit.stages.stores.pins import RUNS, record_file
from qedit.stages.stores.run import Run

INT8 = {"mixed_precision": "bf16", "base_model_precision": "int8-quanto"}


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose table and quantised base are there."""
    folder = tmp_path_factory.mktemp("cached")
    configuration = made_runs(folder, tmp_path_factory)(SAMPLES, **INT8)
    cache_base.run(Run(configuration), Quiet(), device="cpu")
    return folder


@pytest.fixture
def made(cached: Path, tmp_path: Path) -> Callable[..., Configuration]:
    """A function that gives the run, in a copy of its folder, with other settings."""
    folder = Path(shutil.copytree(cached, tmp_path / "copy"))

    def make(*, output: str = "output", **settings: Any) -> Configuration:
        return made_configuration(folder, output_dir=str(folder / output), **INT8 | settings)

    return make


def _verified(configuration: Configuration, **options: Any) -> Verified:
    return verify(Run(configuration), Quiet(), **options)


def _collected(configuration: Configuration) -> Removables:
    return collect(Caches(Run(configuration)))


def _of_kind(removables: Removables, *kinds: str) -> list[Removable]:
    return [one for one in removables.found if one.kind in kinds]


def _gone(configuration: Configuration) -> Removables:
    with alone(Run(configuration)) as caches:
        found = collect(caches)
        clear(found)
    return found


def _base_file(configuration: Configuration) -> Path:
    base = quantized_base(open_checkpoint(configuration.settings), configuration.settings)
    return base.folder / "base-00000.safetensors"


def _chunk(configuration: Configuration) -> Path:
    table = modulation_table(open_checkpoint(configuration.settings), configuration.settings)
    return max(table.path.rglob("modulation/c.*"), key=lambda path: path.stat().st_size)


def _made_anew(configuration: Configuration) -> int:
    return cache_base.run(Run(configuration), Quiet(), device="cpu").computed


def test_a_whole_base_is_found_whole(made: Callable[..., Configuration]) -> None:
    found = _verified(made())
    assert found.lines == []
    # that of the table and the quantised base, beside those of the encoders' rows
    assert (
        found.parts
        >= _verified(made(mixed_precision="no", base_model_precision="no_change")).parts + 2
    )


def test_a_damaged_quantised_base_is_named_given_up_and_made_anew(
    made: Callable[..., Configuration],
) -> None:
    run = made()
    whole = _base_file(run).read_bytes()
    flip(_base_file(run), -1)
    (line,) = _verified(run).lines
    assert line == f"{_base_file(run)} is not as it was written"
    assert _verified(run, drops=True).dropped
    assert not _base_file(run).parent.exists()
    assert _made_anew(run) == 1
    assert _base_file(run).read_bytes() == whole
    assert _verified(run).lines == []


def test_a_part_of_the_table_whose_rows_cannot_be_read_is_named_given_up_and_made_anew(
    made: Callable[..., Configuration],
) -> None:
    run = made()
    rows = _chunk(run).parent.parent / "rows.parquet"
    flip(rows, -1)
    (line,) = _verified(run).lines
    assert str(rows.parent) in line
    assert _verified(run, drops=True).dropped
    assert _made_anew(run) > 0
    assert _verified(run).lines == []


def test_every_injury_of_a_quantised_base_is_found(made: Callable[..., Configuration]) -> None:
    run, chance = made(), random.Random(5)
    weights, said = _base_file(run), _base_file(run).with_name("quantized.json")
    for path in (weights, said):
        whole = path.read_bytes()
        for _ in range(40):
            data = bytearray(whole)
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            for spoilt in (data, whole[: chance.randrange(len(whole))]):
                path.write_bytes(spoilt)
                assert _damages(run), "an injury that is not found"
        path.write_bytes(whole)
    assert not _damages(run)
    weights.unlink()
    assert _damages(run) == [f"{weights} is missing"]


def _damages(run: Configuration) -> list[str]:
    return list(quantized_base(open_checkpoint(run.settings), run.settings).damages())


def test_a_damaged_row_of_the_table_is_named_given_up_and_made_anew(
    made: Callable[..., Configuration],
) -> None:
    run = made()
    flip(_chunk(run), 9)
    found = _verified(run)
    (line,) = found.lines
    assert line.startswith("row ")
    assert found.samples == []  # it is no sample's
    _verified(run, drops=True)
    assert _made_anew(run) == 1
    assert _verified(run).lines == []


def test_gc_keeps_what_these_settings_use_and_removes_what_nobody_does(
    made: Callable[..., Configuration],
) -> None:
    assert _of_kind(_gone(made()), "base") == []
    other = made(base_model_precision="int4-quanto")
    _made_anew(other)
    found = _collected(other)
    assert [base.path for base in _of_kind(found, "base")] == [_base_file(made()).parent]
    assert "int8-quanto" in "\n".join(found.lines())
    assert found.count_bytes >= _base_file(made()).stat().st_size
    assert _base_file(made()).exists()  # shown, not removed
    _gone(other)
    assert not _base_file(made()).parent.exists()
    assert _base_file(other).exists()
    assert _made_anew(other) == 0  # and the table is shared
    plain = made(mixed_precision="no", base_model_precision="no_change")
    _gone(plain)
    assert [path.name for path in base_folder(plain.settings).iterdir() if path.is_dir()] == [RUNS]
    assert not record_file(Run(plain), base_folder(plain.settings)).exists()


def test_gc_keeps_what_another_run_uses(made: Callable[..., Configuration]) -> None:
    """It has noted so, if only to find that everything was there."""
    assert _made_anew(made(output="elsewhere")) == 0
    plain = made(mixed_precision="no", base_model_precision="no_change")
    found = _gone(plain)
    assert _of_kind(found, "base", "rows", "store", "part") == []
    assert _made_anew(made()) == 0


def test_gc_keeps_what_the_run_in_output_dir_was_trained_with(
    made: Callable[..., Configuration],
) -> None:
    plain = made(mixed_precision="no", base_model_precision="no_change")
    _trained(made())
    assert _of_kind(_collected(plain), "base", "rows", "store", "part") == []
    _trained(made(base_model_precision="int4-quanto"))
    (base,) = _of_kind(_collected(plain), "base")
    assert base.path == _base_file(made()).parent
    assert _of_kind(_collected(plain), "rows", "store", "part") == []  # the table is that of both


def _trained(run: Configuration) -> None:
    """Leave what a run says of itself."""
    output = Path(run.settings.output_dir)
    output.mkdir(exist_ok=True)
    folder = open_checkpoint(run.settings).transformer
    model = model_digest(folder, remember=digests_file(run.settings))
    said = {"settings": run.settings.model_dump(mode="json"), "model": {"transformer": model}}
    (output / "run.json").write_text(json.dumps(said))


def test_unlock_knows_the_lock_of_the_base(made: Callable[..., Configuration]) -> None:
    run = made()
    holder = new_holder("quantising the base")
    lock = base_folder(run.settings) / LOCK_FILE
    lock.write_text(json.dumps(asdict(holder)))
    assert lock in [path for path, _ in find_locks(Caches(Run(run)))]

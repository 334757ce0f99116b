"""Manifests and tables of rows that do not fit, under right checksums: a bug's or a forger's."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from store_rows import PACKED, RECIPE, filled, parts_of, random_rows

from qedit.cache.errors import Damaged
from qedit.cache.files.atomic import readable_json
from qedit.cache.files.checksum import crc32c
from qedit.cache.files.sealed import CHECKSUM, checksum_of
from qedit.cache.format.index import indices_in, read_index
from qedit.cache.format.listing import Listing
from qedit.cache.format.manifest import MANIFEST_FILE
from qedit.cache.format.tables import table_bytes
from qedit.cache.store.store import EMBEDS, Store

ODD = (0, -1, 1, 2**31, 2**62, 10**30, 1.5, None, True, "x", "../x", [], {}, [2**62] * 4, ["a"])


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(inner, (*place, key))


def _forge(part: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = part / MANIFEST_FILE
    fields = json.loads(path.read_bytes())
    del fields[CHECKSUM]
    change(fields)
    path.write_text(readable_json({**fields, CHECKSUM: checksum_of(fields)}))


def _use(folder: Path, recipe: dict[str, Any]) -> list[str]:
    """Everything that is done with a store; what it says."""
    store = Store(folder, recipe, EMBEDS)
    said = [damage.what for damage in store.verify()]
    try:
        store.torn()
        keys = store.keys()
        assert all(store.read(key).nbytes < 1 << 20 for key in keys)
    except Damaged as error:
        said.append(error.what)
    return said


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_no_value_of_a_manifest_is_more_than_a_damage(tmp_path: Path, packed: bool) -> None:
    recipe = PACKED if packed else RECIPE
    store, rows = Store(tmp_path, recipe, EMBEDS), random_rows(EMBEDS, 3)
    with store.writing():
        store.add(list(rows), list(rows.values()))
    (part,) = parts_of(store)
    whole = (part / MANIFEST_FILE).read_bytes()
    for place, value in itertools.product(_places(json.loads(whole)), ODD):
        if place in ((), (CHECKSUM,)):
            continue

        def change(fields: Any, place: tuple[Any, ...] = place, value: Any = value) -> None:
            for key in place[:-1]:
                fields = fields[key]
            fields[place[-1]] = value

        _forge(part, change)
        assert all(_use(tmp_path, recipe)), (place, value)
        (part / MANIFEST_FILE).write_bytes(whole)
    assert _use(tmp_path, recipe) == []


def _column(name: str, values: list[Any], kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    def changed(table: pa.Table) -> pa.Table:
        at = table.column_names.index(name)
        return table.set_column(at, name, pa.array(values, kind))

    return changed


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.drop_columns(["start"]),
        lambda table: table.slice(1),
        lambda table: pa.concat_tables([table, table]),
        _column("start", [0, 2**62, 8], pa.int64()),
        _column("start", [-1, 8, 16], pa.int64()),
        _column("length", [2**31 - 1, 1, 1], pa.int32()),
        _column("length", [-5, 1, 1], pa.int32()),
        _column("length", ["5", "1", "1"], pa.string()),
        _column("crc32c", [None, 1, 2], pa.uint32()),
        _column("key", [1, 2, 3], pa.int64()),
    ],
)
def test_a_table_of_rows_that_does_not_fit_is_a_damage(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table]
) -> None:
    store = filled(tmp_path, EMBEDS, random_rows(EMBEDS, 3))
    (part,) = parts_of(store)
    data = table_bytes(change(pq.read_table(part / "rows.parquet")))
    (part / "rows.parquet").write_bytes(data)

    def fit(fields: dict[str, Any]) -> None:
        fields["files"]["rows.parquet"] = len(data)
        fields["checksums"]["rows.parquet"] = f"{crc32c(data):08x}"

    _forge(part, fit)
    assert any(
        "its table of rows does not fit its arrays" in line for line in _use(tmp_path, RECIPE)
    )


def test_an_index_that_does_not_fit_is_none(tmp_path: Path) -> None:
    store = filled(tmp_path, EMBEDS, random_rows(EMBEDS, 3), random_rows(EMBEDS, 3, seed=1))
    store._contents.keep_index(0)
    (path,) = indices_in(store.path)
    table = pq.read_table(path)
    assert isinstance(read_index(path, store=store.fingerprint), Listing)
    about = dict(table.schema.metadata)
    parts = json.loads(about[b"parts"])
    for odd in ([], [[]], 5, [[*part[:1], 2**62, part[2]] for part in parts], parts[:1], [parts]):
        forged = table.replace_schema_metadata({**about, b"parts": json.dumps(odd).encode()})
        data = table_bytes(forged)
        other = path.with_name(f"index-{crc32c(data):08x}.parquet")
        other.write_bytes(data)
        assert read_index(other, store=store.fingerprint) is None
        other.unlink()
    assert _use(tmp_path, RECIPE) == []

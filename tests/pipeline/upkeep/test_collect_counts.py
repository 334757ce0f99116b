"""What lies in the caches is read once by a command, however many ask what it says."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from small_run import cache_rows, enter_copy, with_files

from qedit.cache.store.store import Store
from qedit.pipeline.upkeep.caches import stores_in

OTHER_RUN = ("--set", "output_dir=out2")
# recipes, indices and tables of stores, and the records beside them
FILES = re.compile(
    r"caches/(?!pairs/)[^/]+/[^/]+/(runs/\w+\.json|\w{16}/(recipe\.json|index-\w+\.parquet"
    r"|parts/[^/]+/(rows\.parquet|manifest\.json)))$|caches/pairs/runs/\w+\.json$"
)
_opened: Counter[str] | None = None


def _count(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], str):
        _opened[arguments[0]] += 1


@contextmanager
def _opens() -> Iterator[Counter[str]]:
    """Count how often each file of a kind in `FILES` is opened while the block runs."""
    global _opened
    found, _opened = Counter[str](), Counter[str]()
    try:
        yield found
    finally:
        found.update({path: count for path, count in _opened.items() if FILES.search(path)})
        _opened = None


@pytest.fixture(scope="module", autouse=True)
def hook() -> None:
    """A hook cannot be taken away again: it counts while `_opens` has it count."""
    sys.addaudithook(_count)


@pytest.fixture
def stores(cached_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Store]:
    """A finished run whose stores have indices, and which shares them with another run."""
    folder = enter_copy(cached_run, tmp_path / "copy", monkeypatch)
    cache_rows()
    for stage in ("cache-vae", "cache-embeds"):
        with_files(stage, *OTHER_RUN)
    stores = [store for kind in folder.glob("caches/*/*/") for store in stores_in(kind)]
    for store in stores:
        store._contents.keep_index(0)
    return stores


@pytest.mark.parametrize(
    ("command", "kinds"),
    [
        (("gc", "--yes"), ("vae", "text_embeds", "conditioning_image_embeds")),
        (("gc",), ("vae", "text_embeds", "conditioning_image_embeds")),
        (("cache-vae",), ("vae",)),
        (("cache-embeds",), ("text_embeds", "conditioning_image_embeds")),
    ],
    ids=["gc --yes", "gc", "cache-vae", "cache-embeds"],
)
def test_each_store_index_and_record_is_read_once(
    stores: list[Store], command: tuple[str, ...], kinds: tuple[str, ...]
) -> None:
    with _opens() as opens:
        with_files(*command)
    indices = [path for path in opens if "index-" in path]
    assert len(indices) == sum(store.path.parts[-3] in kinds for store in stores)
    assert any("/runs/" in path for path in opens)
    assert {path: count for path, count in opens.items() if count > 1} == {}

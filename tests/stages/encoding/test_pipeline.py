"""The engine that feeds an encoder: batches, back-off, rejections, order and bounds."""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quiet import Quiet

from qedit.cache.errors import NotComplete, QeditError
from qedit.cache.files.claims import Task, claimed_work, claims_in
from qedit.cache.store.rejected_rows import RejectedRow
from qedit.cache.store.store import EMBEDS, Store
from qedit.stages.encoding.device_options import BatchSize
from qedit.stages.encoding.encoder import EncodedItem, Unfit
from qedit.stages.encoding.pipeline import EncodingPipeline
from qedit.stages.encoding.progress_messages import SpeedLog
from qedit.stages.encoding.read_ahead import Job
from qedit.stages.models import device as device_module
from qedit.stages.stores.row_kinds import RowKind

CLEAR_REFS = Path("/proc/self/clear_refs")
KEYS = [f"{number:032x}" for number in range(40)]


def row_of(key: str) -> np.ndarray:
    return np.full((2, 4), int(key, 16), np.uint16)


@pytest.fixture(autouse=True)
def released(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often memory was given back; it is not really, which takes long in a large process."""
    times: list[int] = []
    monkeypatch.setattr(device_module, "release_memory", lambda: times.append(1))
    return times


@dataclass
class MadeUp:
    """An encoding whose items are keys. It notes its batches, and fails as it is told to.

    Attributes:
        fits: how many go through together.
        spoilt: keys whose row is NaN; `contagious` ones only among others.
        unreadable: keys that cannot be read.
        large: keys that never fit.
    """

    fits: int = 1000
    spoilt: frozenset[str] = frozenset()
    contagious: frozenset[str] = frozenset()
    unreadable: frozenset[str] = frozenset()
    large: frozenset[str] = frozenset()
    reading: Callable[[], None] = lambda: None
    opened: int = 0
    batches: list[list[str]] = field(default_factory=list)
    has_read: int = 0
    in_memory: int = 0
    most_in_memory: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    lock: Any = field(default_factory=threading.Lock)

    def read(self, item: str) -> str:
        self.reading()
        if item in self.unreadable:
            raise Unfit("unreadable", "it is torn")
        with self.lock:
            self.has_read += 1
            self.in_memory += 1
            self.most_in_memory = max(self.most_in_memory, self.in_memory)
        return item

    def cost(self, item: str) -> int:
        return 10

    def together(self, one: str, other: str) -> bool:
        return True

    def rejected(self, item: str, unfit: Unfit) -> EncodedItem:
        return EncodedItem(
            rejected={RowKind.TAILS: [RejectedRow(item, "s", "d", item, unfit.reason, "")]}
        )

    def name(self, item: str) -> str:
        return f"item {item}"

    def open(self) -> MadeUp:
        self.opened += 1
        return self

    def encode(self, items: Sequence[str], read: Sequence[str]) -> list[EncodedItem]:
        self.batches.append(list(items))
        if len(items) > self.fits or self.large.intersection(items):
            raise torch.OutOfMemoryError("made up")
        with self.lock:
            self.in_memory -= len(items)
        return [self._made(item, alone=len(items) == 1) for item in items]

    def _made(self, item: str, *, alone: bool) -> EncodedItem:
        if item in self.spoilt or (item in self.contagious and not alone):
            return self.rejected(item, Unfit("nan", ""))
        return EncodedItem(rows={RowKind.TAILS: {item: row_of(item)}})


class Kept:
    """What the engine handed over to be written."""

    def __init__(self) -> None:
        self.rows: dict[str, np.ndarray] = {}
        self.rejected: list[str] = []
        self.writing: Callable[[], None] = lambda: None

    def __call__(self, dataset: str, made: Sequence[EncodedItem]) -> Counter[RowKind]:
        self.writing()
        for one in made:
            self.rows |= one.rows.get(RowKind.TAILS, {})
            self.rejected += [row.key for row in one.rejected.get(RowKind.TAILS, [])]
        return Counter({RowKind.TAILS: sum(len(one.rows.get(RowKind.TAILS, {})) for one in made)})


def jobs_in(folder: Path, keys: Sequence[str] = KEYS, *, size: int = 8) -> Iterator[Job | None]:
    store = Store(folder, {"rows": "made up"}, EMBEDS)
    done: set[str] = set()
    for task in claimed_work(
        store.path,
        [keys[start : start + size] for start in range(0, len(keys), size)],
        doing="a test",
        still=lambda these: [key for key in these if key not in done],
        waiting=lambda holder: None,
    ):
        if task is not None:
            done.update(task.keys)
            yield Job(task, "d", task.keys)


def fill(
    folder: Path, made_up: MadeUp, kept: Kept, *, asked: int | None = 4, workers: int = 2
) -> EncodingPipeline:
    filling = EncodingPipeline(
        made_up,
        kept,
        workers=workers,
        batch_size=BatchSize(asked, most=4, budget=40),
        speed=SpeedLog(Quiet()),
        advance=lambda count: None,
    )
    filling.run(jobs_in(folder))
    return filling


def assert_all_there(kept: Kept, *, without: frozenset[str] = frozenset()) -> None:
    assert kept.rows.keys() == set(KEYS) - without
    assert sorted(kept.rejected) == sorted(without)
    for key, row in kept.rows.items():
        assert np.array_equal(row, row_of(key))


def test_batches_follow_from_the_keys_alone(tmp_path: Path) -> None:
    first, again, kept = MadeUp(), MadeUp(), Kept()
    filling = fill(tmp_path / "one", first, kept)
    slow = Kept()
    slow.writing = lambda: time.sleep(0.01)
    again.reading = lambda: time.sleep(0.003)
    fill(tmp_path / "two", again, slow, workers=1)
    assert first.batches == again.batches
    assert first.batches == [KEYS[start : start + 4] for start in range(0, 40, 4)]
    assert_all_there(kept)
    assert filling.added[RowKind.TAILS] == 40
    assert claims_in(Store(tmp_path / "one", {"rows": "made up"}, EMBEDS).path) == []


def test_what_does_not_fit_is_halved_and_the_run_goes_on(
    tmp_path: Path, released: list[int]
) -> None:
    made_up, kept = MadeUp(fits=1), Kept()
    fill(tmp_path, made_up, kept)
    assert_all_there(kept)
    # what did not fit is remembered: after 4 and 2, one by one
    assert [len(batch) for batch in made_up.batches[:3]] == [4, 2, 1]
    assert max(len(batch) for batch in made_up.batches[6:]) == 1
    tries = sum(len(batch) > 1 for batch in made_up.batches)
    assert len(released) == tries + 1  # before every smaller try, and at the end


def test_an_item_that_does_not_fit_alone_is_named(tmp_path: Path) -> None:
    made_up = MadeUp(fits=0)
    with pytest.raises(NotComplete, match=f"even alone: item {KEYS[0]}") as refused:
        fill(tmp_path, made_up, Kept())
    assert "--device cpu" in refused.value.do
    assert len(made_up.batches) == 3  # of 4, 2 and 1: nothing larger is tried after that
    assert claims_in(Store(tmp_path, {"rows": "made up"}, EMBEDS).path) == []


def test_an_item_too_large_for_the_device_takes_no_other_with_it(tmp_path: Path) -> None:
    kept, large = Kept(), frozenset({KEYS[9], KEYS[30]})
    with pytest.raises(NotComplete, match=f"These 2 do not fit .*{KEYS[9]}, item {KEYS[30]}"):
        fill(tmp_path, MadeUp(large=large), kept)
    assert kept.rows.keys() == set(KEYS) - large
    assert kept.rejected == []  # a larger device may do
    assert claims_in(Store(tmp_path, {"rows": "made up"}, EMBEDS).path) == []


def test_an_encoder_that_does_not_fit_is_told(tmp_path: Path) -> None:
    class TooLarge(MadeUp):
        def open(self) -> MadeUp:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(QeditError, match="encoder itself does not fit into memory: CUDA out"):
        fill(tmp_path, TooLarge(), Kept())


def test_the_next_batch_is_read_while_one_is_encoded(tmp_path: Path) -> None:
    class WaitingNotice(MadeUp):
        def encode(self, items: Sequence[str], read: Sequence[str]) -> list[EncodedItem]:
            wanted = min(len(KEYS), 4 * (len(self.batches) + 2))
            until = time.monotonic() + 10
            while self.has_read < wanted and time.monotonic() < until:
                time.sleep(0.001)
            assert self.has_read >= wanted
            return super().encode(items, read)

    kept = Kept()
    fill(tmp_path, WaitingNotice(), kept, workers=1)
    assert_all_there(kept)


def test_a_failing_item_takes_no_neighbour_with_it(tmp_path: Path) -> None:
    bad = frozenset({KEYS[5], KEYS[17]})
    made_up = MadeUp(spoilt=bad, contagious=frozenset(KEYS[4:8]))
    kept = Kept()
    fill(tmp_path, made_up, kept)
    assert_all_there(kept, without=bad)


def test_what_cannot_be_read_is_rejected_and_the_rest_goes_on(tmp_path: Path) -> None:
    bad = frozenset({KEYS[0], KEYS[39]})
    kept = Kept()
    fill(tmp_path, MadeUp(unreadable=bad), kept)
    assert_all_there(kept, without=bad)


def test_memory_does_not_grow_with_the_data_set(tmp_path: Path) -> None:
    made_up, kept = MadeUp(), Kept()
    kept.writing = lambda: time.sleep(0.01)
    fill(tmp_path, made_up, kept, workers=2)
    assert made_up.most_in_memory <= 4 + 4 + 2  # a batch, the next one, and one for each reader


@pytest.mark.full
@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="only Linux tells peaks")
def test_peak_memory_is_that_of_a_quarter_of_the_data(tmp_path: Path) -> None:
    """Rows of half a megabyte into a real store: 48 MB of them, then 192 MB."""
    keys = [f"{number:032x}" for number in range(4 * 96)]
    peaks = []
    for name, count in (("warm", 96), ("one", 96), ("four", 4 * 96)):
        gc.collect()
        CLEAR_REFS.write_text("5")  # the peak starts anew
        before = resident_bytes("VmRSS")
        store = Store(tmp_path / name, {"rows": "made up"}, EMBEDS)
        with store.adding():
            filling = EncodingPipeline(
                Large(),
                Adding(store),
                workers=2,
                batch_size=BatchSize(4, most=4, budget=1),
                speed=SpeedLog(Quiet()),
                advance=lambda done: None,
            )
            filling.run(jobs_in(tmp_path / name, keys[:count], size=16))
        assert len(store) == count
        peaks.append(resident_bytes("VmHWM") - before)
    assert peaks[2] < peaks[1] + (24 << 20)


class Large(MadeUp):
    """Rows of half a megabyte, made of a megabyte each."""

    def read(self, item: str) -> np.ndarray:
        return np.full(1 << 20, int(item, 16) % 251, np.uint8)

    def encode(self, items: Sequence[str], read: Sequence[Any]) -> list[EncodedItem]:
        halves = (one[: len(one) // 2].view(np.uint16).reshape(-1, 1024).copy() for one in read)
        return [
            EncodedItem(rows={RowKind.TAILS: {item: row}})
            for item, row in zip(items, halves, strict=True)
        ]


class Adding:
    """Into a real store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __call__(self, dataset: str, made: Sequence[EncodedItem]) -> Counter[RowKind]:
        rows = {key: row for one in made for key, row in one.rows[RowKind.TAILS].items()}
        self._store.add(list(rows), list(rows.values()))
        return Counter({RowKind.TAILS: len(rows)})


def resident_bytes(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{kind}:"))
    return int(line.split()[1]) * 1024


def test_an_error_in_writing_ends_the_run_and_releases_the_claims(tmp_path: Path) -> None:
    kept = Kept()

    def full() -> None:
        raise QeditError("the disk is full")

    kept.writing = full
    with pytest.raises(QeditError, match="the disk is full"):
        fill(tmp_path, MadeUp(), kept)
    assert claims_in(Store(tmp_path, {"rows": "made up"}, EMBEDS).path) == []


def test_no_encoder_is_opened_where_nothing_is_left(tmp_path: Path) -> None:
    made_up = MadeUp()
    filling = EncodingPipeline(
        made_up,
        Kept(),
        workers=1,
        batch_size=BatchSize(1, most=1, budget=1),
        speed=SpeedLog(Quiet()),
        advance=lambda count: None,
    )
    filling.run(iter([None, None]))
    assert made_up.opened == 0


def test_own_work_is_released_before_others_is_waited_for(tmp_path: Path) -> None:
    """A part that is partly another's must not wait for the part that it itself is."""
    store = Store(tmp_path, {"rows": "made up"}, EMBEDS)
    other = next(claims for claims in [_claim(store, KEYS[:4])])
    kept = Kept()
    done = kept.rows

    def still(keys: Sequence[str]) -> list[str]:
        return [key for key in keys if key not in done]

    def others_end(holder: object) -> None:
        done.update({key: row_of(key) for key in KEYS[:4]})
        other.release()

    jobs = (
        task and Job(task, "d", task.keys)
        for task in claimed_work(
            store.path, [KEYS[:8]], doing="a test", still=still, waiting=others_end
        )
    )
    filling = EncodingPipeline(
        MadeUp(),
        kept,
        workers=1,
        batch_size=BatchSize(2, most=2, budget=1),
        speed=SpeedLog(Quiet()),
        advance=lambda count: None,
    )
    filling.run(jobs)
    assert kept.rows.keys() == set(KEYS[:8])
    assert filling.added[RowKind.TAILS] == 4


def _claim(store: Store, keys: Sequence[str]) -> Task:
    work = claimed_work(
        store.path, [keys], doing="another", still=list, waiting=lambda holder: None
    )
    task = next(work)
    assert task is not None
    return task


def test_another_error_is_not_taken_for_missing_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, items: Any, read: Any) -> Any:
        raise RuntimeError("a kernel is missing")

    monkeypatch.setattr(MadeUp, "encode", broken)
    with pytest.raises(RuntimeError, match="a kernel is missing"):
        fill(tmp_path, MadeUp(), Kept())


def test_the_bottleneck_is_where_the_time_went(tmp_path: Path) -> None:
    found = {}
    for slow in ("decode", "encode", "write"):
        made_up, kept = MadeUp(), Kept()
        if slow == "decode":
            made_up.reading = lambda: time.sleep(0.01)
        if slow == "write":
            kept.writing = lambda: time.sleep(0.05)
        pace = SpeedLog(Quiet())
        filling = EncodingPipeline(
            Slow(made_up) if slow == "encode" else made_up,
            kept,
            workers=1,
            batch_size=BatchSize(4, most=4, budget=1),
            speed=pace,
            advance=lambda count: None,
        )
        filling.run(jobs_in(tmp_path / slow))
        found[slow] = pace.bottleneck()
    assert found == {slow: slow for slow in found}


class Slow:
    """An encoding whose encoder takes its time."""

    def __init__(self, made_up: MadeUp) -> None:
        self._made_up = made_up

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made_up, name)

    def open(self) -> Slow:
        return self

    def encode(self, items: Sequence[str], read: Sequence[str]) -> list[EncodedItem]:
        time.sleep(0.02)
        return self._made_up.encode(items, read)


def test_a_job_is_written_at_once(tmp_path: Path) -> None:
    sizes: list[int] = []

    class Counting(Kept):
        def __call__(self, dataset: str, made: Sequence[EncodedItem]) -> Counter[RowKind]:
            sizes.append(len(made))
            return super().__call__(dataset, made)

    kept = Counting()
    fill(tmp_path, MadeUp(), kept)  # in batches of four, jobs of eight
    assert sizes == [8] * 5
    assert_all_there(kept)

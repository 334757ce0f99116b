"""Work is cut into the same parts whatever of it is done already."""

from __future__ import annotations

from itertools import chain

import pytest

from qedit.stages.encoding import work_split


def test_what_is_left_is_cut_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_split, "PART_BYTES", 100)
    monkeypatch.setattr(work_split, "ITEMS_IN_PART", 4)
    bytes_of = dict(enumerate([60, 50, 1, 2, 3, 4, 99, 40, 200, 5, 5]))
    runs = list(work_split.cut(bytes_of, bytes_of.__getitem__))
    assert runs == [[0, 1], [2, 3, 4, 5], [6, 7], [8], [9, 10]]
    for done in range(1 << len(runs)):
        left = [run for at, run in enumerate(runs) if not done >> at & 1]
        assert list(work_split.cut(chain(*left), bytes_of.__getitem__)) == left

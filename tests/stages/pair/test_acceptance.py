"""Rejected samples stop `pair` until they are accepted."""

from __future__ import annotations

import pytest
from picture_pairs import (
    configured,
    damage,
    draw,
    folder,
    go,
    pairs,
    table,
)

from qedit.cache.errors import NotComplete
from qedit.stages.samples.table import read_rejections


def test_rejections_stop_the_run_until_they_are_accepted():
    pairs(3)
    damage("targets/1.png")
    configuration = configured()
    with pytest.raises(NotComplete) as stopped:
        go(configuration)
    text = str(stopped.value)
    assert stopped.value.exit_code == 4
    for part in ("1 of 3 samples", "1 unreadable", "1.png", "--on-reject skip", "--max-rejected 1"):
        assert part in text
    with pytest.raises(NotComplete, match="rejected 1 of 3 samples"):
        table(configuration)
    outcome = go(configuration, max_rejected=1)
    assert "rejected: 1 unreadable (a broken or truncated picture)" in outcome.lines
    assert any(line.startswith("    targets: 1.png: ") for line in outcome.lines)
    assert (outcome.wanted, outcome.kept, outcome.failed) == (3, 2, 1)
    assert outcome.facts["rejected"] == {"unreadable": 1}
    assert len(table(configuration).samples) == 2
    assert table(configuration).manifest["rejected"] == {"unreadable": 1}
    assert go(configuration).failed == 1  # still accepted
    damage("before/2.jpg", b"")
    with pytest.raises(NotComplete):  # but not a further one
        go(configuration)
    go(configuration, on_reject="skip")
    draw("targets/1.png", seed=1)
    assert go(configuration).failed == 1  # fewer are accepted as well


def test_nothing_left_is_never_accepted():
    pairs(1)
    damage("targets/0.png")
    with pytest.raises(NotComplete, match="Nothing is left"):
        go(configured(), on_reject="skip")


def test_a_sample_with_two_faults_counts_once_and_names_both():
    pairs(2)
    damage("targets/1.png")
    damage("before/1.jpg", b"")
    configuration = configured()
    assert go(configuration, on_reject="skip").failed == 1
    assert len(read_rejections(folder(configuration))) == 2


def test_without_a_table_the_next_command_is_named():
    pairs(1)
    with pytest.raises(NotComplete) as missing:
        table(configured())
    assert missing.value.do == "Run `qedit pair`."

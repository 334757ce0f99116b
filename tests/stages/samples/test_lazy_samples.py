"""Samples left in their table are those of a list: each of them, and the order they give."""

from __future__ import annotations

import random
from dataclasses import replace

import pyarrow as pa
import pytest
from samples import made_sample

from qedit.stages.samples import lazy_samples
from qedit.stages.samples.lazy_samples import SampleRows, groups_in, shape_of, shapes_in
from qedit.stages.samples.sample import Sample
from qedit.stages.samples.schema import PAIRS_SCHEMA, blocks_of
from qedit.stages.train.data.batches import Order, Source
from qedit.stages.train.data.phases import Mixture

SIZES = [(64, 64), (64, 96), (96, 64), (128, 32)]


def mixed(count: int, *, seed: int, grouped: bool = True) -> list[Sample]:
    """Samples of all sorts."""
    drawn = random.Random(seed)
    samples = []
    for place in range(count):
        sample = made_sample(
            f"{seed}-{place}",
            size=drawn.choice(SIZES),
            references=drawn.randint(1, 3),
            captions=("a", "b", "")[: drawn.randint(1, 3)],
        )
        group = f"group {drawn.randrange(9)}" if grouped and drawn.random() < 0.6 else ""
        samples.append(replace(sample, group=group, mask=drawn.choice([None, None, sample.target])))
    return samples


def in_table(samples: list[Sample]) -> SampleRows:
    blocks = blocks_of((sample, ()) for sample in samples)
    return SampleRows(pa.Table.from_batches(list(blocks), schema=PAIRS_SCHEMA))


@pytest.mark.parametrize("count", [0, 1, 50])
def test_rows_are_the_samples_they_were_made_of(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lazy_samples, "BLOCK_ROWS", 7)  # a walk over several blocks
    samples = mixed(count, seed=3)
    rows = in_table(samples)
    assert list(rows) == samples == rows
    assert [rows[place] for place in range(count)] == samples
    assert [rows[-1 - place] for place in range(count)] == samples[::-1]
    assert rows[1:9:3] == samples[1:9:3]
    with pytest.raises(IndexError):
        rows[count]
    assert rows != [*samples, made_sample("another")]


def test_shapes_and_groups_are_those_of_each_sample() -> None:
    samples = mixed(80, seed=5)
    for kind in (samples, in_table(samples), Mixture([in_table(samples[:30]), samples[30:]])):
        shapes = kind.shapes if isinstance(kind, Mixture) else shapes_in(kind)
        assert [shapes.distinct[number] for number in shapes.numbers] == [
            shape_of(sample) for sample in samples
        ]
        assert list(shapes.distinct) == list(dict.fromkeys(map(shape_of, samples)))
    assert groups_in(in_table(samples)).to_pylist() == [sample.group for sample in samples]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_order_does_not_depend_on_how_the_samples_are_kept(
    batch_size: int, grouped: bool
) -> None:
    one, other = mixed(40, seed=1, grouped=grouped), mixed(23, seed=2, grouped=grouped)

    def order(parts: tuple[list[Sample] | SampleRows, ...]) -> Order:
        sources = [
            Source("one", parts[0], repeats=1),
            Source("other", parts[1], probability=0.5, start_step=4, end_step=40),
        ]
        return Order(sources, 42, batch_size=batch_size, accumulation=2)

    kept, lazy = order((one, other)), order((in_table(one), in_table(other)))
    for step in (1, 2, 3, 4, 5, 25, 40, 41, 90):
        assert lazy.step(step) == kept.step(step)
        assert lazy.samples_in(step) == sum(map(len, kept.step(step)))
    assert lazy.steps_for(3) == kept.steps_for(3)
    assert list(lazy.samples) == [*one, *other]

"""The order of samples: a pure function of seed and step that drops and repeats nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain, pairwise

import pytest
from samples import made_sample, made_samples

from qedit.cache.errors import WrongUse
from qedit.stages.samples.sample import Sample
from qedit.stages.train.data.batches import MOST_PADDING, Order, Source, shape_of, tokens_of


def order(*sources: Source, batch_size: int = 4, accumulation: int = 1, seed: int = 42) -> Order:
    return Order(sources, seed, batch_size=batch_size, accumulation=accumulation)


def names(batches: list[list[Sample]]) -> list[list[str]]:
    return [[sample.name for sample in batch] for batch in batches]


def shown(order: Order, steps: range) -> list[str]:
    return [name for step in steps for batch in names(order.step(step)) for name in batch]


def test_the_same_step_gives_the_same_batches_whenever_it_is_asked_for() -> None:
    source = Source("a", made_samples(23))
    forwards = order(source, accumulation=2)
    in_order = {step: names(forwards.step(step)) for step in range(1, 40)}
    backwards = order(source, accumulation=2)
    assert {step: names(backwards.step(step)) for step in range(39, 0, -1)} == in_order
    assert names(order(source, accumulation=2).step(31)) == in_order[31]


def test_another_seed_gives_another_order() -> None:
    source = Source("a", made_samples(23))
    assert shown(order(source), range(1, 7)) != shown(order(source, seed=43), range(1, 7))


def test_every_epoch_shows_every_sample_once_in_another_order() -> None:
    sizes = [(64, 64), (64, 96), (96, 64)]
    samples = [made_sample(f"{place}", size=sizes[place % 3]) for place in range(20)]
    batches = order(Source("a", samples))
    per_epoch = batches.steps_for(1)
    assert per_epoch == 6  # shapes of 7, 7 and 6 samples in batches of 4
    epochs = [
        shown(batches, range(1 + epoch * per_epoch, 1 + (epoch + 1) * per_epoch))
        for epoch in range(3)
    ]
    for epoch in epochs:
        assert sorted(epoch) == sorted(sample.name for sample in samples)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_batch_holds_one_shape_and_short_ones_are_kept() -> None:
    samples = [
        *made_samples(5),
        *(made_sample(f"tall-{place}", size=(32, 96)) for place in range(2)),
        *(made_sample(f"two-{place}", references=2) for place in range(2)),
    ]
    batches = order(Source("a", samples))  # their tokens differ by more than a few percent
    step = list(chain.from_iterable(batches.step(step) for step in range(1, 5)))
    assert sorted(len(batch) for batch in step) == [1, 2, 2, 4]
    assert all(len({shape_of(sample) for sample in batch}) == 1 for batch in step)


def test_a_lonely_shape_does_not_stop_a_run() -> None:
    lonely = made_sample("lonely", size=(32, 224))
    batches = order(Source("a", [*made_samples(4), lonely]), batch_size=8)
    assert sorted(shown(batches, range(1, 3))) == ["0", "1", "2", "3", "lonely"]


def test_a_step_takes_as_many_batches_as_it_accumulates_also_across_epochs() -> None:
    batches = order(Source("a", made_samples(3)), batch_size=1, accumulation=2)
    assert [len(batches.step(step)) for step in (1, 2, 3)] == [2, 2, 2]
    assert Counter(shown(batches, range(1, 4))) == {"0": 2, "1": 2, "2": 2}
    assert batches.steps_for(1) == 2
    assert batches.steps_for(2) == 3


def test_repeats_are_extra_passes() -> None:
    often = Source("often", [made_sample("often")], repeats=2)
    once = Source("once", [made_sample("once")])
    batches = order(often, once, batch_size=1)
    assert Counter(shown(batches, range(1, 5))) == {"often": 3, "once": 1}


def test_probability_thins_out_a_dataset_and_stays_a_function_of_the_step() -> None:
    rare = Source("rare", made_samples(20, prefix="rare-"), probability=0.25)
    full = Source("full", made_samples(20, prefix="full-"))
    batches = order(rare, full, batch_size=1)
    counts = Counter(name.split("-")[0] for name in shown(batches, range(1, 1001)))
    assert counts["rare"] / counts["full"] == pytest.approx(0.25, abs=0.06)
    assert names(order(rare, full, batch_size=1).step(777)) == names(batches.step(777))


def test_a_dataset_takes_part_from_its_first_to_its_last_step() -> None:
    always = Source("always", made_samples(3, prefix="always-"))
    later = Source("later", made_samples(3, prefix="later-"), start_step=5, end_step=10)
    batches = order(always, later, batch_size=1)
    for step in range(1, 20):
        (name,) = shown(batches, range(step, step + 1))
        if not 5 <= step <= 10:
            assert name.startswith("always")
    assert any(name.startswith("later") for name in shown(batches, range(5, 11)))
    assert sorted(shown(batches, range(5, 11))) == sorted(
        sample.name for sample in (*always.samples, *later.samples)
    )


def test_steps_without_any_dataset_are_refused_before_the_first_one() -> None:
    early = Source("early", made_samples(3), end_step=4)
    batches = order(early, Source("never", made_samples(1), probability=0.0))
    batches.refuse_gaps(4)
    for ask in (batches.step, batches.refuse_gaps):
        with pytest.raises(WrongUse, match="step 5: early has 3 pairs from step 1 to 4") as refused:
            ask(5)
        assert "`max_train_steps` 4" in refused.value.do
    late = order(early, Source("late", made_samples(1), start_step=7))
    with pytest.raises(WrongUse, match=r"step 5: .*late has 1 pair from step 7 on"):
        late.refuse_gaps(100)
    with pytest.raises(WrongUse, match="step 1"):
        order(Source("late", made_samples(1), start_step=7)).refuse_gaps(1)


# -- epochs of datasets that start and end ----------------------------------------------------


def test_epochs_show_every_dataset_as_often_as_they_say() -> None:
    always = Source("always", made_samples(10, prefix="always-"))
    later = Source("later", made_samples(100, prefix="later-"), start_step=5)
    batches = order(always, later, batch_size=1, accumulation=2)
    steps = batches.steps_for(3)
    assert steps == 4 + 3 * 110 // 2
    assert batches.short_of(3) == {}
    counts = Counter(shown(batches, range(1, steps + 1)))
    assert len(counts) == 110
    assert min(counts.values()) == 3


def test_whole_passes_before_another_dataset_starts_count() -> None:
    first = Source("first", made_samples(4, prefix="first-"), end_step=10)
    second = Source("second", made_samples(3, prefix="second-"), start_step=11)
    third = Source("third", made_samples(2, prefix="third-"), start_step=11)
    batches = order(first, second, third, batch_size=1)
    assert batches.steps_for(2) == 10 + 2 * 5
    counts = Counter(shown(batches, range(1, 21)))
    assert min(counts.values()) == 2
    # the first one is shown twice and a half, not four times
    assert batches.steps_for(4) == 10 + 4 * 5
    assert batches.short_of(4) == {"first": 2}


def test_epochs_end_with_the_last_dataset_that_lacks_some() -> None:
    always = Source("always", made_samples(2, prefix="always-"))
    between = Source("between", made_samples(2, prefix="between-"), start_step=9, end_step=12)
    assert order(always, batch_size=1).steps_for(3) == 6
    both = order(always, between, batch_size=1)
    assert both.steps_for(1) == 12
    assert both.short_of(1) == {}
    # always has had its three passes when the other one ends, after one of its own
    assert both.steps_for(3) == 12
    assert both.short_of(3) == {"between": 1}


def test_chances_are_counted_as_they_fall() -> None:
    rare = Source("rare", made_samples(20, prefix="rare-"), probability=0.25)
    later = Source("later", made_samples(2, prefix="later-"), start_step=15)
    batches = order(rare, later, batch_size=1)
    steps = batches.steps_for(4)
    counts = Counter(shown(batches, range(15, steps + 1)))
    assert all(counts[sample.name] == 4 for sample in later.samples)
    assert sum(counts[sample.name] for sample in later.samples) == 8


def test_epochs_that_no_dataset_lasts_for_are_refused() -> None:
    batches = order(Source("early", made_samples(3), end_step=4), batch_size=1)
    assert batches.steps_for(1) == 3
    with pytest.raises(WrongUse, match="at step 5: early has 3 pairs from step 1 to 4"):
        batches.steps_for(2)


# -- what is left over of the shapes ---------------------------------------------------------

# of 1024x1024 pixels by the rule of size: between 3960 and 4144 tokens
RATIOS = [
    (1024, 1024),
    (1376, 768),
    (768, 1376),
    (1248, 832),
    (832, 1248),
    (1184, 896),
    (1760, 576),
]


def test_what_is_left_over_of_many_shapes_fills_batches() -> None:
    samples = [
        made_sample(f"{place}-{width}x{height}", size=(width, height))
        for width, height in RATIOS
        for place in range(5)
    ]
    batches = order(Source("a", samples), batch_size=4)
    assert batches.steps_for(1) == 9  # as few as 35 samples can have; 14 if none were joined
    shown_ones = [batch for step in range(1, 10) for batch in batches.step(step)]
    assert sorted(len(batch) for batch in shown_ones) == [3, 4, 4, 4, 4, 4, 4, 4, 4]
    assert Counter(sample.name for batch in shown_ones for sample in batch) == Counter(
        sample.name for sample in samples
    )


def test_little_padding_comes_of_joining() -> None:
    sizes = [(32 * (4 + place), 32 * (12 - place)) for place in range(8)]
    samples = [
        made_sample(f"{place}", size=sizes[place % 8], references=1 + place % 3)
        for place in range(101)
    ]
    batches = order(Source("a", samples), batch_size=6)
    joined = 0
    for step in range(1, 1 + batches.steps_for(1)):
        (batch,) = batches.step(step)
        tokens = [tokens_of(shape_of(sample)) for sample in batch]
        assert 1 - sum(tokens) / (len(tokens) * max(tokens)) <= MOST_PADDING
        shapes = [shape_of(sample) for sample in batch]
        # those of one shape are neighbours
        assert len({*shapes}) == 1 + sum(one != other for one, other in pairwise(shapes))
        joined += len({*shapes}) > 1
    assert joined


# -- samples that take turns -----------------------------------------------------------------


def turns(count: int) -> list[Sample]:
    """Targets of three references each, one reference a sample."""
    return [
        replace(made_sample(f"{target}/{reference}"), group=f"{target}")
        for target in range(count)
        for reference in range(3)
    ]


def test_an_epoch_shows_one_sample_of_a_group() -> None:
    samples = [*turns(8), made_sample("alone")]
    batches = order(Source("a", samples), batch_size=2)
    assert batches.steps_for(1) == 5
    for epoch in range(6):
        names_of_epoch = shown(batches, range(1 + 5 * epoch, 6 + 5 * epoch))
        assert sorted(name.split("/")[0] for name in names_of_epoch) == [*"01234567", "alone"]


def test_every_sample_of_a_group_gets_its_turns() -> None:
    batches = order(Source("a", turns(8)), batch_size=1)
    counts = Counter(shown(batches, range(1, 1 + 8 * 60)))
    assert len(counts) == 24
    assert min(counts.values()) >= 8  # 20 each, on average
    assert max(counts.values()) <= 36


def test_the_passes_of_an_epoch_show_one_sample_of_a_group_after_the_other() -> None:
    for repeats, expected in ((1, [1] * 16), (2, [1] * 24), (3, [1] * 16 + [2] * 8)):
        batches = order(Source("a", turns(8), repeats=repeats))
        per_epoch = batches.steps_for(1)
        assert per_epoch == 2 * (repeats + 1)
        for epoch in range(3):
            steps = range(1 + per_epoch * epoch, 1 + per_epoch * (epoch + 1))
            assert sorted(Counter(shown(batches, steps)).values()) == expected


def test_turns_of_several_shapes_are_the_same_whenever_a_step_is_asked_for() -> None:
    """Their epochs differ in how many batches they have."""
    sizes = [(64, 64), (64, 256), (256, 256)]
    samples = [
        replace(made_sample(f"{target}/{place}", size=size), group=f"{target}")
        for target in range(7)
        for place, size in enumerate(sizes)
    ]
    in_order = order(Source("a", samples))
    for step in range(1, 60):
        alone = order(Source("a", samples))
        assert names(alone.step(step)) == names(in_order.step(step))


def test_turns_depend_on_group_epoch_and_seed_alone() -> None:
    def of_epoch(seed: int, samples: list[Sample], epoch: int) -> set[str]:
        batches = order(Source("a", samples), batch_size=3, seed=seed)
        per_epoch = batches.steps_for(1)
        return set(shown(batches, range(1 + per_epoch * epoch, 1 + per_epoch * (epoch + 1))))

    eight = of_epoch(42, turns(8), 3)
    assert of_epoch(42, turns(8), 3) == eight
    assert of_epoch(43, turns(8), 3) != eight
    assert of_epoch(42, turns(8), 4) != eight
    more = of_epoch(42, [made_sample("new"), *turns(9)], 3)
    assert {name for name in more if name[0] not in "8n"} == eight

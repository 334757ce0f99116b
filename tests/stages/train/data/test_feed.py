"""Batches are drawn from seed, step and position, and read from the stores."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filled_run import made_samples_with_edits, prefix_of, tail_of
from samples import made_picture, made_sample
from training import SAMPLES

from qedit.cache.store.store_set import StoreSet
from qedit.config.loading import Configuration
from qedit.stages.samples.sample import NULL_CAPTION, Sample
from qedit.stages.stores.bfloat16 import bits_of, tensor_of
from qedit.stages.stores.row_kinds import WEIGHTS
from qedit.stages.train.data.batches import Order, Source
from qedit.stages.train.data.feed import Feed, forwards, padding_of
from qedit.stages.train.plan.training_plan import make_plan


def feed_of(configuration: Configuration) -> Feed:
    return make_plan(configuration).feed


def test_everything_drawn_belongs_to_seed_step_and_position(made: Any) -> None:
    one, same = feed_of(made(train_batch_size=1)), feed_of(made(train_batch_size=1))
    (first,), (again,) = one.step(5), same.step(5)
    assert first.names == again.names
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.sigma, again.sigma)
    (other,) = one.step(6)
    assert not torch.equal(first.noise.flatten()[:64], other.noise.flatten()[:64])
    batch = feed_of(made(train_batch_size=4)).step(1)[0]
    assert len({float(sigma) for sigma in batch.sigma}) == 4
    (reseeded,) = feed_of(made(train_batch_size=1, seed=43)).step(5)
    assert not torch.equal(first.noise.flatten()[:64], reseeded.noise.flatten()[:64])


def test_noise_is_standard_normal(made: Any) -> None:
    feed = feed_of(made(train_batch_size=1))
    noise = torch.cat([feed.step(step)[0].noise.flatten() for step in range(1, 41)])
    assert abs(float(noise.mean())) < 0.02
    assert float(noise.std()) == pytest.approx(1, abs=0.02)


def test_caption_dropout_shows_the_null_tail_of_the_same_references(made: Any) -> None:
    feed = feed_of(made(caption_dropout_probability=1.0))
    by_name = {sample.name: sample for sample in SAMPLES}
    (batch,) = feed.step(1)
    assert set(batch.captions) == {NULL_CAPTION}
    for name, embeds in zip(batch.names, batch.embeds, strict=True):
        sample = by_name[name]
        prefix = feed.stores.prefixes.read(sample.prefix_key, dataset="edits")
        null = feed.stores.tails.read(sample.tail_key(NULL_CAPTION), dataset="edits")
        assert torch.equal(embeds, tensor_of(np.concatenate([prefix, null])))


def test_captions_are_dropped_and_drawn_as_often_as_asked(made: Any) -> None:
    samples = [made_sample("a.png", captions=("keep it", "turn it over"))]
    feed = feed_of(made(samples, train_batch_size=1, caption_dropout_probability=0.25))
    shown = [feed.step(step)[0].captions[0] for step in range(1, 201)]
    assert shown.count(NULL_CAPTION) / 200 == pytest.approx(0.25, abs=0.1)
    assert shown.count("keep it") / 200 == pytest.approx(0.375, abs=0.11)
    assert shown.count("turn it over") / 200 == pytest.approx(0.375, abs=0.11)


def test_texts_are_padded_with_zeros_to_the_right(made: Any) -> None:
    texts = {"a.png": "brighter", "b.png": "turn it over and make it brighter"}
    samples = [made_sample(name, captions=(text,)) for name, text in texts.items()]
    (batch,) = feed_of(made(samples, train_batch_size=2)).step(1)
    assert batch.embeds.shape[:2] == (2, 4 + 7 + 2)  # of the prefix, and words and two more
    for name, row, length in zip(batch.names, batch.embeds, batch.text_lengths, strict=True):
        assert length == 4 + len(texts[name].split()) + 2
        expected = torch.cat([prefix_of(by_name(samples, name)), tail_of(texts[name])])
        assert torch.equal(row[:length], expected.bfloat16())
        assert row[length:].eq(0).all()


def by_name(samples: list[Sample], name: str) -> Sample:
    return next(sample for sample in samples if sample.name == name)


def test_the_sigma_settings_reach_the_feed(made: Any) -> None:
    def sigma(**settings: Any) -> float:
        return float(feed_of(made(train_batch_size=1, **settings)).step(1)[0].sigma)

    plain = sigma(flow_schedule_auto_shift=False)
    static = sigma(flow_schedule_shift=1.73)
    assert static == pytest.approx(1.73 * plain / (1 + 0.73 * plain), rel=1e-5)
    wide = sigma(flow_schedule_auto_shift=False, flow_sigmoid_scale=2.0)
    assert math.log(wide / (1 - wide)) == pytest.approx(2 * math.log(plain / (1 - plain)), rel=1e-4)
    feed = feed_of(made(train_batch_size=1))
    (batch,) = feed.step(1)
    tokens = batch.target.shape[-1] * batch.target.shape[-2] // 4
    shift = math.exp(0.5 + (tokens - 256) * 0.4 / (8192 - 256))
    assert float(batch.sigma) == pytest.approx(shift * plain / (1 + (shift - 1) * plain), rel=1e-5)
    assert sigma(flow_use_uniform_schedule=True) != sigma(flow_use_beta_schedule=True) != plain


def test_processes_share_a_step_and_draw_what_one_process_draws(made: Any) -> None:
    whole = feed_of(made(train_batch_size=2, gradient_accumulation_steps=2))
    alone = {
        name: (float(sigma), noise)
        for batch in whole.step(3)
        for name, sigma, noise in zip(batch.names, batch.sigma, batch.noise, strict=True)
    }
    shared = {}
    for rank in range(3):
        for batch in replace(whole, rank=rank, world=3).step(3):
            for name, sigma, noise in zip(batch.names, batch.sigma, batch.noise, strict=True):
                assert name not in shared
                shared[name] = float(sigma)
                assert torch.equal(noise, alone[name][1])
    assert shared == {name: sigma for name, (sigma, _) in alone.items()}
    assert whole.samples_in(3) == len(alone)


def test_masks_come_with_their_samples_as_loss_weights(made: Any, tmp_path: Path) -> None:
    masked = [
        replace(sample, mask=made_picture(sample.name, dataset="masks", size=sample.target.size))
        for sample in SAMPLES[:2]
    ]
    feed = feed_of(made(train_batch_size=8))
    store_set = StoreSet({"masks": tmp_path / "masks"}, {"rows": "weights"}, WEIGHTS)
    rows = {}
    for place, sample in enumerate(masked):
        width, height = (edge // 8 for edge in sample.target.size)
        rows[sample.mask.weight_key] = torch.full((1, height, width), 0.25 * (1 + place))
    for key, row in rows.items():
        with store_set.of("masks").writing():
            store_set.of("masks").add([key], [bits_of(row)])
    feed = replace(
        feed,
        stores=replace(feed.stores, weights=store_set),
        order=Order([Source("edits", [*masked, *SAMPLES[2:]])], 1, batch_size=8, accumulation=2),
    )
    found = {
        name: None if batch.weights is None else batch.weights[place]
        for batch in feed.step(1)
        for place, name in enumerate(batch.names)
    }
    for sample in masked:
        assert torch.equal(found[sample.name], rows[sample.mask.weight_key])
    alike = [name for name in found if name not in {sample.name for sample in masked}]
    assert all(found[name].eq(1).all() for name in alike)
    plain = replace(feed, order=Order([Source("edits", SAMPLES)], 1, batch_size=8, accumulation=1))
    assert all(batch.weights is None for batch in plain.step(1))


def test_samples_of_several_shapes_join_in_one_forward(made: Any) -> None:
    """64x64 and 32x128 pixels: as many tokens, of other ratios."""
    sizes = [(64, 64), (32, 128), (128, 32)]
    samples = made_samples_with_edits(6, sizes=sizes)
    (group,) = [forwards(feed_of(made(samples, train_batch_size=6)).step(1))]
    assert [len(parts) for parts in group] == [3]
    (parts,) = group
    assert [batch.joins for batch in parts] == [False, True, True]
    assert [batch.first_position for batch in parts] == [0, 2, 4]
    assert sorted(name for batch in parts for name in batch.names) == [
        sample.name for sample in samples
    ]


def test_padding_is_counted_in_tokens(made: Any) -> None:
    feed = feed_of(made(train_batch_size=1))
    (batch,) = feed.step(1)
    assert padding_of([batch]) == 0
    ten = replace(batch, text_lengths=(10,), embeds=torch.zeros(1, 10, 3))
    four = replace(ten, text_lengths=(4,), joins=True)
    image = 2 * (batch.target[0, 0].numel() // 4)
    assert padding_of([ten, four]) == pytest.approx(6 / (2 * (image + 10)))
    assert padding_of([ten, replace(four, joins=False, embeds=torch.zeros(1, 4, 3))]) == 0
    wider = replace(four, references=(*four.references, four.target))
    assert padding_of([ten, wider]) == pytest.approx((6 + image // 2) / (2 * (1.5 * image + 10)))

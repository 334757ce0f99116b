"""Runs that `train` refuses to begin or to go on with."""

from __future__ import annotations

from typing import Any

import pytest
from damage import flip
from filled_run import made_samples_with_edits
from samples import made_sample
from training import SAMPLES, train

from qedit.cache.errors import AnotherRecipe, Damaged, Locked, NotComplete, WrongUse
from qedit.cache.files.lock import writer_lock
from qedit.stages.models.checkpoint.checkpoint import open_checkpoint
from qedit.stages.samples.sample import NULL_CAPTION
from qedit.stages.stores.run_stores import open_stores
from qedit.stages.train.data import row_check
from qedit.stages.train.data.row_check import all_rows_are_there, samples_digest
from qedit.stages.train.plan.training_plan import make_plan
from qedit.stages.train.state.run_record import digest_of_samples


def test_missing_rows_are_counted_with_the_command_to_type(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(SAMPLES)
    monkeypatch.setattr("filled_run.fill_stores", lambda configuration, samples: None)
    configuration = made(made_samples_with_edits(10, sizes=[(64, 64), (64, 96)]))
    told = "2 of 10 samples have no latents for edit-v2 yet"
    with pytest.raises(NotComplete, match=told) as refused:
        train(configuration)
    assert refused.value.do == "Run `qedit cache-vae`, then `qedit train` again."
    assert not configuration.settings.output_dir.exists()


def test_dropout_needs_the_null_tails_only_when_it_is_on(made: Any) -> None:
    configuration = made()
    stores = make_plan(configuration).feed.stores
    assert not stores.missing(SAMPLES, (NULL_CAPTION,)).embeds
    assert stores.missing(SAMPLES, ("another",)).embeds


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learning_rate": 2e-2}, "learning_rate: 0.01 there, 0.02 now"),
        ({"lora_rank": 8}, "lora_rank: 4 there, 8 now"),
        ({"seed": 1}, "seed: 42 there, 1 now"),
        ({"flavour": "edit-v2+"}, "model_flavour: edit-v2 there, edit-v2"),
    ],
)
def test_another_run_in_the_folder_is_refused_with_the_difference(
    made: Any, change: dict[str, Any], said: str
) -> None:
    train(made(max_train_steps=2))
    with pytest.raises(AnotherRecipe) as refused:
        train(made(max_train_steps=2, **change))
    assert said in refused.value.what
    assert "output_dir" in refused.value.do


def test_other_pairs_are_another_run(made: Any) -> None:
    train(made(SAMPLES, max_train_steps=2))
    grown = made_samples_with_edits(10, sizes=[(64, 64), (64, 96)])
    with pytest.raises(AnotherRecipe, match="dataset edits: 2 pairs added"):
        train(made(grown, max_train_steps=2))
    changed = [*SAMPLES[:-1], made_sample(SAMPLES[-1].name, captions=("keep it",))]
    with pytest.raises(AnotherRecipe, match="dataset edits: 1 pair changed"):
        train(made(changed, max_train_steps=2))


def test_what_decides_nothing_may_change(made: Any) -> None:
    train(made(max_train_steps=2))
    outcome = train(made(max_train_steps=4, checkpoint_step_interval=3, checkpoints_total_limit=1))
    assert (outcome.kept, outcome.computed) == (2, 2)


def test_the_table_names_the_pairs_as_looking_at_each_does(made: Any) -> None:
    """A million pairs are named from the table's columns: the name must be the same."""
    configuration = made(SAMPLES)
    settings = configuration.settings
    checkpoint = open_checkpoint(settings)
    stores = open_stores(configuration, checkpoint)
    assert all_rows_are_there(configuration, checkpoint, stores, beside=(NULL_CAPTION,))
    assert not all_rows_are_there(configuration, checkpoint, stores, beside=("another",))
    digest = samples_digest(configuration, checkpoint, "edits")
    assert digest == digest_of_samples(SAMPLES)
    assert make_plan(configuration).run["datasets"]["edits"]["digest"] == digest
    # it is remembered by the table's name, which another content does not have
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_check, "_digest_in", lambda path: "looked again")
        assert samples_digest(configuration, checkpoint, "edits") == digest
        changed = [*SAMPLES[:-1], made_sample(SAMPLES[-1].name, captions=("keep it",))]
        assert samples_digest(made(changed), checkpoint, "edits") == "looked again"


def test_a_run_that_came_to_nothing_may_begin_again_with_other_settings(made: Any) -> None:
    with pytest.raises(WrongUse, match="betas"):
        train(made(optimizer_config={"betas": [2.0, 2.0]}))
    train(made(optimizer_config={"betas": [0.8, 0.9]}, max_train_steps=1))


def test_a_second_process_is_locked_out(made: Any) -> None:
    configuration = made()
    with (
        writer_lock(configuration.settings.output_dir, doing="train"),
        pytest.raises(Locked),
    ):
        train(configuration)


def test_resuming_from_nothing_never_overwrites(made: Any) -> None:
    train(made(max_train_steps=2))
    with pytest.raises(WrongUse, match="checkpoint-2"):
        train(made(max_train_steps=4, resume_from_checkpoint="none"))
    with pytest.raises(WrongUse, match="checkpoint-7"):
        train(made(max_train_steps=4, resume_from_checkpoint="checkpoint-7"))


def test_a_flipped_bit_in_a_checkpoint_is_found(made: Any) -> None:
    configuration = made(max_train_steps=2)
    train(configuration)
    file = configuration.settings.output_dir / "checkpoint-2" / "weights.safetensors"
    flip(file, -3)
    with pytest.raises(Damaged, match=r"weights\.safetensors"):
        train(made(max_train_steps=4))

"""A run whose pairs have changed: it is refused, or goes on and says which steps had which."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from filled_run import made_samples_with_edits
from held_out_run import HELD, fill_held_out, made_held_out
from samples import made_sample
from training import LORA, SAMPLES, ending, lora, train

from qedit.cache.errors import AnotherRecipe, NotComplete
from qedit.cache.files.sealed import sealed, unsealed
from qedit.config.loading import Configuration, load
from qedit.stages.models.checkpoint.checkpoint import flavour_of
from qedit.stages.run_output.data_history import history_of
from qedit.stages.run_output.page import page_data
from qedit.stages.run_output.run_file import read_run
from qedit.stages.samples.sample import Sample
from qedit.stages.samples.table import table_folder
from qedit.stages.train.evaluation.evaluate import HeldOut
from qedit.stages.train.plan.changed_data import refuse_changed_data, resumed
from qedit.stages.train.plan.training_plan import make_plan
from qedit.stages.train.trainer import Trainer

SIZES = [(64, 64), (64, 96)]
GROWN = made_samples_with_edits(10, sizes=SIZES)
# one is gone, one has another caption, two are new
OTHERS = [*GROWN[1:9], made_sample(GROWN[9].name, captions=("keep it",), size=(64, 96))]
GOES_ON: dict[str, Any] = {"on_changed_data": "continue"}


class Killed(Exception):
    """Stands for a kill: nothing of the step remains."""


def stop_before(step: int, patch: pytest.MonkeyPatch) -> None:
    """Have the process end before it makes this step."""
    make = Trainer.step

    def stopping(self: Trainer, number: int, *given: Any, **named: Any) -> dict[str, Any]:
        if number == step:
            raise Killed
        return make(self, number, *given, **named)

    patch.setattr(Trainer, "step", stopping)


def go_through(made: Any, *, output: str = "output") -> Configuration:
    """Four steps on eight pairs, then four on others."""
    train(made(SAMPLES, output=output, max_train_steps=4))
    configuration: Configuration = made(OTHERS, output=output, max_train_steps=8, **GOES_ON)
    train(configuration)
    return configuration


def end_of(configuration: Configuration) -> dict[str, Any]:
    state = json.loads((configuration.settings.output_dir / "checkpoint-8/state.json").read_text())
    files = (LORA, f"ema/{LORA}", "README.md", "run.json")
    return ending(configuration, *files) | {"state": state}


def data_by_step(configuration: Configuration) -> list[tuple[int, int]]:
    run = read_run(configuration.settings.output_dir) or {}
    return [(entry["from_step"], entry["datasets"]["edits"]["pairs"]) for entry in history_of(run)]


def test_a_run_goes_on_with_the_new_pairs_and_is_what_it_would_be_after_any_stop(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = go_through(made)
    where = configuration.settings.output_dir
    assert data_by_step(configuration) == [(1, 8), (5, 9)]
    clean = end_of(configuration)
    # a kill after the change, before the first checkpoint; the key is not needed again
    shutil.rmtree(where)
    train(made(SAMPLES, max_train_steps=4))
    with monkeypatch.context() as patch:
        stop_before(6, patch)
        with pytest.raises(Killed):
            train(made(OTHERS, max_train_steps=8, **GOES_ON))
    assert data_by_step(configuration) == [(1, 8), (5, 9)]
    assert train(made(max_train_steps=8, samples=OTHERS)).kept == 4
    assert end_of(configuration) == clean
    # from a checkpoint after the change, and from one before it: steps 3 and 4 have former pairs
    for newest, gone in ((6, (8,)), (2, (4, 6, 8))):
        for step in gone:
            shutil.rmtree(where / f"checkpoint-{step}")
        assert train(made(OTHERS, max_train_steps=8)).kept == newest
        assert end_of(configuration) == clean
    # one by its name, while later ones are there
    train(made(OTHERS, max_train_steps=8, resume_from_checkpoint="checkpoint-2"))
    assert end_of(configuration) == clean
    # the record of the folder is lost: the newest checkpoint has the same
    (where / "run.json").unlink()
    assert train(made(OTHERS, max_train_steps=8)).kept == 8
    assert end_of(configuration) == clean


def test_the_recorded_sequence_repeated_elsewhere_gives_the_same_weights(made: Any) -> None:
    first, second = go_through(made), go_through(made, output="again")
    assert ending(first)["log"] == ending(second)["log"]
    for name in ("", "ema"):
        one, other = lora(first, name), lora(second, name)
        assert all(tensor.equal(other[key]) for key, tensor in one.items())


def test_a_step_shows_what_a_run_with_these_pairs_from_the_start_would_show(made: Any) -> None:
    train(made(SAMPLES, max_train_steps=4, checkpoint_step_interval=2))
    before = make_plan(made(SAMPLES, output="none")).feed
    configuration = made(OTHERS, max_train_steps=8, **GOES_ON)
    now = make_plan(configuration).feed

    def names(feed: Any, step: int) -> list[str]:
        return [name for batch in feed.step(step) for name in batch.names]

    train(configuration)
    plan, begin = resumed(make_plan(made(OTHERS, resume_from_checkpoint="checkpoint-2")))
    assert begin is not None
    assert begin.name == "checkpoint-2"
    for step, feed in ((3, before), (4, before), (5, now), (8, now)):
        assert names(plan.feed, step) == names(feed, step)
    assert len(plan.feed.order.samples) == 17
    assert plan.feed.samples_in(3) == before.samples_in(3)


def test_new_pairs_after_a_checkpoint_before_the_change_take_the_place_of_the_former(
    made: Any,
) -> None:
    configuration = go_through(made)
    for step in (4, 6, 8):
        shutil.rmtree(configuration.settings.output_dir / f"checkpoint-{step}")
    train(made(GROWN, max_train_steps=8, **GOES_ON))
    assert data_by_step(configuration) == [(1, 8), (3, 10)]
    # and the first ones again, after the newest checkpoint
    train(made(SAMPLES, max_train_steps=10, **GOES_ON))
    assert data_by_step(configuration) == [(1, 8), (3, 10), (9, 8)]


def test_what_changed_is_counted_and_every_way_on_can_be_typed(made: Any) -> None:
    where = made(max_train_steps=2).settings.output_dir
    train(made(SAMPLES, max_train_steps=2))
    (where.parent / "output-2").mkdir()
    kept = (where / "run.json").read_bytes()
    configuration = made(OTHERS, max_train_steps=4)
    for refuse in (refuse_changed_data, train):
        with pytest.raises(AnotherRecipe) as refused:
            refuse(configuration)
        assert refused.value.what == (
            f"{where} was trained on other pairs, up to step 2:\n"
            "  dataset edits: 2 pairs added, 1 pair removed"
        )
    assert (where / "run.json").read_bytes() == kept
    ways = [shlex.split(way) for way in re.findall("`([^`]*)`", refused.value.do)]
    begun = f"output_dir={where}-3"
    start = f"init_lora={(where / LORA).resolve()}"
    assert [[word for word in way if word != "--set"] for way in ways] == [
        ["on_changed_data=continue"],
        [begun],
        [begun, start],
    ]
    assert train(made(OTHERS, output="output-3", max_train_steps=1)).computed == 1
    configuration = made(OTHERS, output="output-4", max_train_steps=1, init_lora=start[10:])
    assert train(configuration).computed == 1
    assert train(made(OTHERS, max_train_steps=4, **GOES_ON)).computed == 2


def test_an_added_dataset_or_other_passes_over_one_are_changed_data(made: Any) -> None:
    configuration = made(SAMPLES, max_train_steps=2)
    train(configuration)
    path = configuration.settings.cache_dir.parent / "data.json"
    two = [*json.loads(path.read_text()), {}]
    two[0]["repeats"], two[2] = 1, {**two[0], "id": "more"}
    path.write_text(json.dumps(two))
    changed = load(path.with_name("config.json"), path, sets=("max_train_steps=4",))
    more = changed.main_datasets()[1]
    shutil.copytree(changed.pairs_folder(changed.main_datasets()[0]), changed.pairs_folder(more))
    (folder,) = changed.pairs_folder(more).iterdir()
    folder.rename(table_folder(changed, more, flavour_of(changed.settings)))
    with pytest.raises(AnotherRecipe) as refused:
        refuse_changed_data(changed)
    assert refused.value.what.splitlines()[1:] == [
        "  dataset edits, repeats: 0 there, 1 now",
        "  dataset more: 8 pairs added",
    ]


def test_a_finished_run_needs_more_steps_for_new_pairs(made: Any) -> None:
    train(made(SAMPLES, max_train_steps=4))
    with pytest.raises(AnotherRecipe) as refused:
        train(made(OTHERS, max_train_steps=4))
    assert "`--set on_changed_data=continue --set max_train_steps=6` goes on" in refused.value.do
    with pytest.raises(AnotherRecipe) as refused:
        refuse_changed_data(made(OTHERS, max_train_steps=4, **GOES_ON))
    assert "`--set max_train_steps=6` goes on from step 5" in refused.value.do
    assert train(made(OTHERS, max_train_steps=6, **GOES_ON)).computed == 2
    # nothing has changed since: nothing is to do
    assert train(made(OTHERS, max_train_steps=6)).computed == 0


def test_epochs_are_counted_with_the_pairs_of_now(made: Any) -> None:
    """Of 8 samples in batches of 2 an epoch has 4 steps, of 16 it has 8."""
    train(made(SAMPLES, num_train_epochs=2))
    many = made_samples_with_edits(16, sizes=SIZES)
    with pytest.raises(AnotherRecipe, match="on_changed_data=continue` goes on from step 9"):
        train(made(many, num_train_epochs=2))
    outcome = train(made(many, num_train_epochs=2, **GOES_ON))
    assert (outcome.kept, outcome.computed) == (8, 8)
    with pytest.raises(AnotherRecipe) as refused:
        train(made(SAMPLES, num_train_epochs=2, **GOES_ON))
    assert "`--set num_train_epochs=6` goes on from step 17" in refused.value.do
    assert train(made(SAMPLES, num_train_epochs=6, **GOES_ON)).computed == 8


def test_former_pairs_that_are_gone_are_missed_before_the_first_step(made: Any) -> None:
    configuration = go_through(made)
    where = configuration.settings.output_dir
    run = read_run(where) or {}
    table = run["tables"][run["history"][0]["datasets"]["edits"]["digest"]]
    (configuration.settings.cache_dir / "pairs/edits" / table).unlink()
    before = sorted(path.name for path in where.iterdir())
    with pytest.raises(NotComplete, match=r"The steps up to 4 of .* were made with former pairs"):
        train(made(OTHERS, max_train_steps=8, resume_from_checkpoint="checkpoint-2"))
    assert sorted(path.name for path in where.iterdir()) == before
    shutil.rmtree(where / "checkpoint-8")
    shutil.rmtree(where / "checkpoint-6")
    assert train(made(OTHERS, max_train_steps=8)).kept == 4, "which needs none of them"


def without_tables(where: Path) -> None:
    """Make the folder one of a version that recorded neither tables nor a history."""
    for path in (where / "run.json", *where.glob("checkpoint-*/state.json")):
        fields = unsealed(json.loads(path.read_text()))
        del fields.get("run", fields)["tables"]
        path.write_text(json.dumps(fields if path.name == "run.json" else sealed(fields)))


def test_a_run_of_an_earlier_version_had_its_recorded_pairs_in_all_steps(made: Any) -> None:
    clean = end_of(go_through(made))
    where = made().settings.output_dir
    shutil.rmtree(where)
    train(made(SAMPLES, max_train_steps=4))
    without_tables(where)
    refuse_changed_data(made(SAMPLES, max_train_steps=8))
    with pytest.raises(AnotherRecipe, match="2 pairs added, 1 pair removed"):
        refuse_changed_data(made(OTHERS, max_train_steps=8))
    configuration = made(OTHERS, max_train_steps=8, **GOES_ON)
    train(configuration)
    for step in (4, 6, 8):
        shutil.rmtree(where / f"checkpoint-{step}")
    train(configuration)
    assert end_of(configuration)["log"] == clean["log"]
    assert end_of(configuration)[LORA] == clean[LORA]


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_a_start_out_of_the_base_stays_that_of_the_run(made: Any, kind: str) -> None:
    """A published file subtracts it, whatever the pairs are by now."""
    train(made(SAMPLES, max_train_steps=2, lora_init_type=kind))
    with pytest.raises(AnotherRecipe) as refused:
        train(made(OTHERS, max_train_steps=4, lora_init_type=kind))
    assert "init_lora" not in refused.value.do
    configuration = made(OTHERS, max_train_steps=4, lora_init_type=kind, **GOES_ON)
    train(configuration)
    ranks = {len(tensor) for name, tensor in lora(configuration).items() if "lora_A" in name}
    assert ranks == {8}, "twice the rank: what was learned, and what it began with"


def test_page_card_and_record_show_which_pairs_had_which_steps(made: Any) -> None:
    configuration = go_through(made)
    card = (configuration.settings.output_dir / "README.md").read_text(encoding="utf-8")
    assert "9 pairs (8 from step 1, 9 from step 5)\nfor 8 steps." in card
    shown = page_data(configuration)["history"]
    assert [(entry["from_step"], entry["datasets"]["edits"]["pairs"]) for entry in shown] == [
        (1, 8),
        (5, 9),
    ]
    state = configuration.settings.output_dir / "checkpoint-4" / "state.json"
    assert "history" not in json.loads(state.read_text())["run"]


@pytest.mark.parametrize(("held", "kept"), [(HELD, 2), (HELD[1:], 4)])
def test_best_is_compared_only_where_the_held_out_pairs_are_the_same(
    tmp_path: Path, held: list[Sample], kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every loss is higher than the one before it."""
    losses = count(1)
    monkeypatch.setattr(
        HeldOut, "measure", lambda *_: {"loss": float(next(losses)), "by_sigma": {}}
    )

    def made(**settings: Any) -> Configuration:
        return made_held_out(tmp_path, eval_steps_interval=2, **settings)

    fill_held_out(made(), SAMPLES)
    train(made(max_train_steps=2))
    fill_held_out(made(), OTHERS, held=held)
    configuration = made(max_train_steps=4, **GOES_ON)
    train(configuration)
    best = configuration.settings.output_dir / "best" / "state.json"
    assert json.loads(best.read_text())["step"] == kept

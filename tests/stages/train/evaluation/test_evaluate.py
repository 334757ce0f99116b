"""The held-out loss: how it is measured, that it changes nothing, and the best LoRA by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filled_run import made_samples_with_edits
from held_out_run import HELD, fill_held_out, made_held_out, write_held_pairs
from quiet import Quiet
from safetensors.torch import load_file
from samples import made_sample
from training import LORA, checkpoint_names, ending, lora, metrics, train

from qedit.cache.errors import NotComplete
from qedit.cache.files.atomic import remove
from qedit.config.loading import Configuration
from qedit.pipeline.plan.planning import make_plan as foresee
from qedit.stages.models.transformer.transformer import load_transformer, predict_velocity
from qedit.stages.train import loop
from qedit.stages.train.evaluation.evaluate import held_out_of
from qedit.stages.train.metrics import Metrics
from qedit.stages.train.plan.training_plan import make_plan
from qedit.stages.train.results import transformer_result

SAMPLES = made_samples_with_edits(6, sizes=[(64, 64), (64, 96)])
EVERY: dict[str, Any] = {
    "max_train_steps": 6,
    "eval_steps_interval": 2,
    "checkpoint_step_interval": 3,
    "lora_dropout": 0.3,
    # after four steps so fast that the loss, which has fallen, rises
    "lr_scheduler": "piecewise_constant",
    "lr_scheduler_config": {"step_rules": "1:4,1000"},
}


FILES = (LORA, f"ema/{LORA}", f"best/{LORA}", "best/state.json")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held-out")
    fill_held_out(made_held_out(folder), SAMPLES)
    return folder


@pytest.fixture
def made(tmp_path: Path, shared: Path) -> Callable[..., Configuration]:
    def make(*, output: str = "output", **settings: Any) -> Configuration:
        return made_held_out(shared, output_dir=str(tmp_path / output), **{**EVERY, **settings})

    return make


@pytest.fixture(scope="module")
def trained(shared: Path) -> Configuration:
    """One whole run."""
    configuration = made_held_out(shared, output_dir=str(shared / "trained" / "output"), **EVERY)
    train(configuration)
    return configuration


def measured(configuration: Configuration) -> dict[int, Any]:
    return {line["step"]: line["held_out"] for line in metrics(configuration) if "held_out" in line}


def test_it_is_measured_before_the_first_step_at_every_interval_and_at_the_end(
    made: Any, trained: Configuration
) -> None:
    found = measured(trained)
    assert list(found) == [0, 2, 4, 6]
    assert "ema" not in found[0]  # the average begins as the weights
    assert set(found[2]) == set(found[6]) == {"loss", "by_sigma", "ema"}
    for one in (*found.values(), found[6]["ema"]):
        assert list(one["by_sigma"]) == ["0.1", "0.3", "0.5", "0.7", "0.9"]
        assert one["loss"] == pytest.approx(sum(one["by_sigma"].values()) / 5)
    # an end that is at no interval
    shorter = made(max_train_steps=3)
    train(shorter)
    assert list(measured(shorter)) == [0, 2, 3]
    assert measured(shorter)[2] == found[2]


def test_the_baseline_is_the_error_of_the_base_model_itself(trained: Configuration) -> None:
    plan = make_plan(trained)
    assert plan.held_out is not None
    transformer = load_transformer(plan.checkpoint, dtype=torch.float32, device="cpu")
    losses: dict[float, list[float]] = {}
    for place in range(len(HELD)):
        (batch,) = plan.held_out.step(place + 1)
        clean = batch.target.float()
        for sigma in (0.1, 0.3, 0.5, 0.7, 0.9):
            with torch.no_grad():
                predicted = predict_velocity(
                    transformer,
                    (1 - sigma) * clean + sigma * batch.noise,
                    [one.float() for one in batch.references],
                    batch.embeds.float(),
                    mask=None,
                    sigma=torch.tensor([sigma]),
                )
            error = (predicted - (batch.noise - clean)).square().mean()
            losses.setdefault(sigma, []).append(float(error))
    baseline = measured(trained)[0]
    for sigma, values in losses.items():
        assert baseline["by_sigma"][f"{sigma:g}"] == pytest.approx(
            sum(values) / len(HELD), rel=1e-5
        )


def test_to_measure_changes_nothing_of_the_training(made: Any, trained: Configuration) -> None:
    rarely = made(eval_steps_interval=100)
    train(rarely)
    assert list(measured(rarely)) == [0, 6]
    assert measured(rarely)[6] == measured(trained)[6]
    losses = [
        [line["loss"] for line in metrics(one) if "loss" in line] for one in (rarely, trained)
    ]
    assert losses[0] == losses[1]
    for name, weight in lora(trained).items():
        assert torch.equal(weight, lora(rarely)[name])


@pytest.mark.parametrize("kind", ["eval", "image"])
def test_what_is_held_out_is_never_trained_on(made: Any, kind: str) -> None:
    configuration = made(kind=kind, eval_dataset_id="held", max_train_steps=30)
    plan = make_plan(configuration)
    shown = {
        name
        for step in range(1, plan.steps + 1)
        for batch in plan.feed.order.step(step)
        for name in (sample.name for sample in batch)
    }
    assert shown == {sample.name for sample in SAMPLES}
    assert plan.held_out is not None
    held = {plan.held_out.order.step(place + 1)[0][0].name for place in range(3)}
    assert held == {sample.name for sample in HELD}


def test_so_many_samples_are_measured_and_no_more(tmp_path: Path) -> None:
    many = [
        made_sample(f"h{place}.png", captions=("keep it",), dataset="held") for place in range(20)
    ]
    fill_held_out(made_held_out(tmp_path), SAMPLES, held=many)
    assert make_plan(made_held_out(tmp_path)).held_out_count == 16
    assert make_plan(made_held_out(tmp_path, num_eval_images=18)).held_out_count == 18
    assert make_plan(made_held_out(tmp_path, num_eval_images=50)).held_out_count == 20


def test_held_out_pairs_without_rows_are_refused(tmp_path: Path) -> None:
    configuration = made_held_out(tmp_path)
    fill_held_out(configuration, SAMPLES, held=[])
    assert make_plan(configuration).held_out is None
    write_held_pairs(configuration, HELD)
    with pytest.raises(NotComplete, match="3 of 3 samples have no latents"):
        train(configuration)


def test_held_out_pairs_that_are_trained_on_are_told(tmp_path: Path) -> None:
    """By the content of the target, whatever its name and its references."""
    one, other = SAMPLES[0], HELD[0]
    same = replace(other, target=replace(other.target, digest=one.target.digest))
    configuration = made_held_out(tmp_path, **EVERY)
    fill_held_out(configuration, SAMPLES, held=[*HELD[1:], same])
    told = Quiet()
    loop.run(configuration, told, device="cpu", dry_run=True)
    (line,) = told.warned
    assert line.startswith(
        f"1 of 3 held-out samples is trained on as well, the first is {same.name}"
    )


def test_nothing_is_told_of_pairs_that_are_really_held_out(made: Any) -> None:
    told = Quiet()
    loop.run(made(), told, device="cpu", dry_run=True)
    assert told.warned == []


# -- the best ------------------------------------------------------------------------------


def best_state(configuration: Configuration) -> dict[str, Any]:
    text = (configuration.settings.output_dir / "best" / "state.json").read_text(encoding="utf-8")
    state: dict[str, Any] = json.loads(text)
    return state


def test_the_best_is_the_lowest_of_all_that_was_measured(made: Any, trained: Configuration) -> None:
    configuration = made(checkpoint_step_interval=1, checkpoints_total_limit=6)
    train(configuration)
    losses = {
        (step, which): found["loss"] if which == "weights" else found["ema"]["loss"]
        for step, found in measured(configuration).items()
        for which in ("weights", "ema")
        if step
    }
    step, which = min(losses, key=lambda place: losses[place])
    assert (step, which) != (6, "weights")  # else it would be the newest anyhow
    state = best_state(configuration)
    assert (state["step"], state["weights"], state["loss"]) == (step, which, losses[step, which])
    where = configuration.settings.output_dir
    kept = where / f"checkpoint-{step}" / f"{which}.safetensors"
    of_checkpoint = {
        name.removeprefix("transformer."): tensor for name, tensor in load_file(kept).items()
    }
    best = load_file(where / "best" / LORA)
    assert len(best) == len(of_checkpoint)
    for name, tensor in best.items():
        assert any(torch.equal(tensor, one) for one in of_checkpoint.values()), name


def test_the_best_outlives_its_checkpoint(made: Any, trained: Configuration) -> None:
    configuration = made(checkpoint_step_interval=2, checkpoints_total_limit=1)
    train(configuration)
    assert checkpoint_names(configuration) == ["checkpoint-6"]
    assert best_state(configuration) == best_state(trained)


def test_without_keep_best_or_held_out_pairs_there_is_none(made: Any) -> None:
    configuration = made(keep_best=False, max_train_steps=2)
    train(configuration)
    assert not (configuration.settings.output_dir / "best").exists()


class Enough(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("last", [pytest.param(step, marks=pytest.mark.full) for step in (1, 4)])
def test_a_run_stopped_anywhere_ends_with_the_same_best(
    made: Any, trained: Configuration, last: int
) -> None:
    configuration = made()

    class Stopping(Quiet):
        def note(self, **values: str) -> None:
            if self.moved == last:
                raise Enough

    with pytest.raises(Enough):
        loop.run(configuration, Stopping(), device="cpu")
    train(configuration)
    assert ending(configuration, *FILES) == ending(trained, *FILES)


@pytest.mark.parametrize("step", [pytest.param(2, marks=pytest.mark.exhaustive), 6])
def test_a_run_killed_between_the_best_and_its_line_ends_the_same(
    made: Any, trained: Configuration, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    configuration = made()
    add = Metrics.add

    def killed(log: Metrics, **values: Any) -> None:
        if "held_out" in values and values["step"] == step:
            raise Enough
        add(log, **values)

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "add", killed)
        with pytest.raises(Enough):
            train(configuration)
    (configuration.settings.output_dir / "best" / "state.json").unlink()
    train(configuration)
    assert ending(configuration, *FILES) == ending(trained, *FILES)


FULL: dict[str, Any] = {
    "model_type": "full",
    "mixed_precision": "bf16",
    "learning_rate": 1e-3,
    "lora_dropout": 0.0,
    "use_ema": True,
}


def best_transformer(configuration: Configuration) -> dict[str, bytes]:
    best = configuration.settings.output_dir / "best"
    assert sorted(path.name for path in best.iterdir()) == ["state.json", "transformer"]
    return {str(path.relative_to(best)): path.read_bytes() for path in best.rglob("*.*")}


def test_the_best_of_a_full_run_is_a_transformer_that_diffusers_loads(made: Any) -> None:
    from diffusers import QwenImageTransformer2DModel

    configuration = made(**FULL)
    train(configuration)
    where = configuration.settings.output_dir
    state = best_state(configuration)
    assert state["step"] != 6, "else it would be the newest anyhow"
    kind: Any = QwenImageTransformer2DModel
    loaded = kind.from_pretrained(str(where / "best" / "transformer"), torch_dtype=torch.bfloat16)
    plan = make_plan(configuration)
    objective = loop.Trainer.load(plan, device=torch.device("cpu")).objective
    held_out = held_out_of(plan, objective)
    assert held_out is not None
    assert held_out.measure(loaded)["loss"] == state["loss"]
    assert "| `best/transformer/` |" in (where / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_ema": False, "keep_best": False},
        {"lora_target_modules": ["attn.to_k", "img_mlp.net.2"]},
    ],
    ids=["all", "less", "layers"],
)
def test_plan_foresees_what_a_full_run_leaves(made: Any, settings: dict[str, Any]) -> None:
    configuration = made(checkpoints_total_limit=2, **{**FULL, **settings})
    kinds = {kind.what: kind for kind in foresee(configuration).disk.kinds}
    train(configuration)
    where = configuration.settings.output_dir
    lying = {
        name: sum(one.stat().st_size for one in where.glob(f"{name}/**/*.safetensors"))
        for name in ("checkpoint-*", "transformer", "ema/transformer", "best/transformer")
    }
    checkpoints = lying.pop("checkpoint-*")
    most = sum(lying.values()) + lying["best/transformer"]  # the next one beside it
    assert kinds["checkpoints"].count_bytes == pytest.approx(checkpoints, rel=0.1)
    assert kinds["transformers"].count_bytes == pytest.approx(most, rel=0.1)
    after = {kind.what: kind.there_bytes for kind in foresee(configuration).disk.kinds}
    assert after["checkpoints"] == pytest.approx(checkpoints, rel=0.01)
    assert after["transformers"] == pytest.approx(sum(lying.values()), rel=0.1)


@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_a_full_run_killed_as_it_replaces_its_best_ends_the_same(
    made: Any, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    whole, killed = (made(output=name, max_train_steps=4, **FULL) for name in ("a/run", "b/run"))
    train(whole)
    assert best_state(whole)["step"] == 4, "a second best replaces the first"
    rename, seen = transformer_result.rename, []

    def dying(path: Path, name: str) -> None:
        seen.append(path)
        if len(seen) == 2 and moment == "between":  # the one before is gone
            raise Enough
        rename(path, name)
        if len(seen) == 2 and moment == "after":
            raise Enough

    def dying_before(path: Path) -> None:
        at = (path.parent.name, path.name, len(seen))
        if moment == "before" and at == ("best", "transformer", 1):
            raise Enough
        remove(path)

    with monkeypatch.context() as patch:
        patch.setattr(transformer_result, "rename", dying)
        patch.setattr(transformer_result, "remove", dying_before)
        with pytest.raises(Enough):
            train(killed)
    train(killed)
    assert best_transformer(killed) == best_transformer(whole)


def test_losses_of_another_measure_are_not_compared(made: Any) -> None:
    train(made(max_train_steps=2))
    other = made(max_train_steps=4, validation_seed=7)
    train(other)
    assert best_state(other)["step"] == 4
    assert best_state(other)["loss"] in (
        measured(other)[4]["loss"],
        measured(other)[4]["ema"]["loss"],
    )

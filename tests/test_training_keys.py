"""Every key of the loop changes what it says: a run with it is another run than one without.

What the change is in numbers is tested where it is computed (flow, step, batches, optimizers);
here a key fails that never gets there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training import lora, made_runs, metrics, train

from qedit.config.loading import Configuration
from qedit.stages.models.learning_rate import learning_rate_schedule
from qedit.stages.train.plan import make_plan

TWO: dict[str, Any] = {"max_train_steps": 2, "checkpoint_step_interval": 100}
# key -> a value, and what else makes its effect visible in two steps
DECISIVE: dict[str, tuple[Any, dict[str, Any]]] = {
    "seed": (7, {}),
    "train_batch_size": (1, {}),
    "gradient_accumulation_steps": (2, {}),
    "mixed_precision": ("bf16", {}),
    "learning_rate": (2e-2, {}),
    "optimizer": ("adafactor", {}),
    "optimizer_config": ({"weight_decay": 0.5}, {}),
    "lr_scheduler": ("linear", {}),
    "lr_scheduler_config": ({"power": 3.0}, {"lr_scheduler": "polynomial"}),
    "lr_warmup_steps": (2, {}),
    "max_grad_norm": (1e-6, {"optimizer_config": {"eps": 1e-3}}),
    "lora_alpha": (1.0, {}),
    "lora_dropout": (0.5, {}),
    "lora_init_type": ("gaussian", {}),
    "flow_schedule_shift": (9.0, {}),
    "flow_sigmoid_scale": (3.0, {}),
    "flow_use_uniform_schedule": (True, {}),
    "flow_use_beta_schedule": (True, {}),
    "flow_beta_schedule_alpha": (9.0, {"flow_use_beta_schedule": True}),
    "flow_beta_schedule_beta": (9.0, {"flow_use_beta_schedule": True}),
    "loss_type": ("huber", {}),
    "huber_c": (2.0, {"loss_type": "smooth_l1"}),
    "caption_dropout_probability": (1.0, {}),
}


@pytest.fixture
def made(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Configuration]:
    return made_runs(tmp_path, tmp_path_factory)


# what runs without a key have learned, by what else they were given
_without: dict[str, dict[str, torch.Tensor]] = {}


def learned(made: Any, **settings: Any) -> dict[str, torch.Tensor]:
    configuration = made(**{**TWO, **settings})
    train(configuration)
    return lora(configuration)


@pytest.mark.parametrize("key", DECISIVE)
def test_a_key_decides_what_is_learned(made: Any, key: str) -> None:
    value, beside = DECISIVE[key]
    if repr(beside) not in _without:
        _without[repr(beside)] = learned(made, output="without", **beside)
    one, other = _without[repr(beside)], learned(made, output="with", **beside, **{key: value})
    assert one.keys() == other.keys()
    assert any(not torch.equal(one[name], other[name]) for name in one), key


@pytest.mark.parametrize(
    "change",
    [{"ema_decay": 0.05}, {"ema_update_interval": 2}],
    ids=lambda change: next(iter(change)),
)
def test_a_key_decides_the_average_and_nothing_else(made: Any, change: dict[str, Any]) -> None:
    # an average that is in front in so few steps: its decay begins at 0.1
    three = {**TWO, "max_train_steps": 3}
    one, other = made(**three, output="one"), made(**three, **change, output="other")
    train(one)
    train(other)
    assert all(torch.equal(tensor, lora(other)[name]) for name, tensor in lora(one).items())
    averages = lora(one, "ema"), lora(other, "ema")
    assert any(not torch.equal(averages[0][name], averages[1][name]) for name in averages[0])


def test_without_an_average_there_is_no_file_of_it(made: Any) -> None:
    configuration = made(**TWO, use_ema=False)
    train(configuration)
    assert not (configuration.settings.output_dir / "ema").exists()


def shown(configuration: Configuration, steps: int) -> list[str]:
    """The samples of the first steps, in their order."""
    order = make_plan(configuration).feed.order
    every = range(1, steps + 1)
    return [one.name for step in every for batch in order.step(step) for one in batch]


def test_repeats_probability_start_and_end_of_a_dataset_reach_the_order(made: Any) -> None:
    names = shown(made(train_batch_size=1), 8)
    assert len(set(names)) == 8
    often = made(train_batch_size=1, data={"repeats": 2})
    assert sorted(shown(often, 24)) == sorted(3 * names)
    rare = made(train_batch_size=1, data={"probability": 0.3}, num_train_epochs=8)
    assert make_plan(rare).steps < 0.6 * 8 * len(names)
    late = made(train_batch_size=1, data={"start_step": 3})
    with pytest.raises(Exception, match="No dataset has samples to train on at step 1"):
        shown(late, 1)
    ends = made(train_batch_size=1, data={"end_step": 2})
    with pytest.raises(Exception, match="No dataset has samples to train on at step 3"):
        shown(ends, 3)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("constant", {}),
        ("constant_with_warmup", {}),
        ("linear", {}),
        ("cosine", {}),
        ("cosine_with_restarts", {"num_cycles": 2}),
        ("polynomial", {"power": 2.0}),
        ("piecewise_constant", {"step_rules": "1:4,0.5"}),
    ],
)
def test_every_schedule_is_the_one_diffusers_drives_an_optimizer_with(
    made: Any, name: str, config: dict[str, Any]
) -> None:
    from diffusers.optimization import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    schedule = get_scheduler(name, optimizer, num_warmup_steps=2, num_training_steps=6, **config)
    expected = []
    for _ in range(6):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    if name == "constant":  # which ignores a warm-up there, and has one here
        expected = [0.0, 0.005, 0.01, 0.01, 0.01, 0.01]
    rate = learning_rate_schedule(name, 0.01, steps=6, warmup_steps=2, config=config)
    assert [rate(step) for step in range(1, 7)] == pytest.approx(expected)
    configuration = made(max_train_steps=3, lr_scheduler=name, lr_scheduler_config=config or None)
    if name == "cosine_with_restarts":  # one of them goes all the way through a run
        train(configuration)
        rate = learning_rate_schedule(name, 0.01, steps=3, config=config)
        rates = [line["lr"] for line in metrics(configuration)]
        assert rates == pytest.approx([rate(1), rate(2), rate(3)])

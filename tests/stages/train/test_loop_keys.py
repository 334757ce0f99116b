"""Every key of the loop changes what it says: a run with it is another run than one without.

What the change is in numbers is tested where it is computed (flow, step, batches, optimizers);
here a key fails that never gets there.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from paths import TESTS
from torch import Tensor
from training import train

from qedit.cache.errors import WrongUse
from qedit.config.loading import Configuration
from qedit.config.settings import Settings
from qedit.stages.models.learning_rate import learning_rate_schedule
from qedit.stages.train import trainer as trainer_module
from qedit.stages.train.plan.training_plan import make_plan
from qedit.stages.train.trainer import Trainer

CPU = torch.device("cpu")
# far enough that a solver has several steps, of more than one order
ROLLED_FAR = {"scheduled_sampling_max_step_offset": 9, "scheduled_sampling_probability": 1.0}
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
    "flow_schedule_shift": (9.0, {"flow_schedule_auto_shift": False}),
    "flow_sigmoid_scale": (3.0, {}),
    "flow_use_uniform_schedule": (True, {}),
    "flow_use_beta_schedule": (True, {}),
    "flow_beta_schedule_alpha": (9.0, {"flow_use_beta_schedule": True}),
    "flow_beta_schedule_beta": (9.0, {"flow_use_beta_schedule": True}),
    "loss_type": ("huber", {}),
    "huber_c": (2.0, {"loss_type": "smooth_l1"}),
    "caption_dropout_probability": (1.0, {}),
    "model_flavour": ("edit-v2+", {}),
    "max_train_steps": (3, {}),
    "lora_rank": (2, {"lora_alpha": 4.0}),
    "lora_target_modules": ("joint-attention", {}),
    "lora_type": ("dora", {}),
    "base_model_precision": ("int8-quanto", {}),
    "quantize_activations": (True, {"base_model_precision": "int8-quanto"}),
    "scheduled_sampling_probability": (1.0, {"scheduled_sampling_max_step_offset": 2}),
    "scheduled_sampling_max_step_offset": (2, {"scheduled_sampling_probability": 1.0}),
    "scheduled_sampling_sampler": ("euler", ROLLED_FAR),
    "scheduled_sampling_order": (1, ROLLED_FAR),
    "scheduled_sampling_reflexflow": (
        True,
        {"scheduled_sampling_max_step_offset": 2, "scheduled_sampling_probability": 1.0},
    ),
}
# key -> where it is tested that it does what it says
ELSEWHERE = {
    "disable_tf32": ("train/test_loop_keys.py", "test_tf32_is_allowed_where_the_key_says_so"),
    "num_train_epochs": ("train/test_loop.py", "test_epochs_give_the_number_of_steps"),
    "model_type": (
        "models/transformer/test_full_training.py",
        "test_a_full_run_resumes_and_is_saved_as_diffusers_loads_it",
    ),
    "on_changed_data": (
        "train/plan/test_changed_data.py",
        "test_a_run_goes_on_with_the_new_pairs_and_is_what_it_would_be_after_any_stop",
    ),
    "init_lora": ("train/state/test_optimizers.py", "test_a_run_begins_as_the_lora_it_is_given"),
    "gradient_checkpointing": (
        "train/objective/test_step.py",
        "test_gradient_checkpointing_changes_no_bit",
    ),
    "quantize_via": (
        "models/quantization/test_quantize.py",
        "test_weights_are_quantised_where_quantize_via_says",
    ),
    "flow_schedule_auto_shift": (
        "train/data/test_feed.py",
        "test_the_sigma_settings_reach_the_feed",
    ),
    "use_ema": ("train/test_loop_keys.py", "test_what_is_averaged_how_and_where"),
    "ema_decay": ("train/test_loop_keys.py", "test_what_is_averaged_how_and_where"),
    "ema_update_interval": ("train/test_loop_keys.py", "test_what_is_averaged_how_and_where"),
    "ema_device": ("train/test_loop_keys.py", "test_what_is_averaged_how_and_where"),
    "conditioning_multidataset_sampling": (
        "train/data/test_feed_random_references.py",
        "test_a_sample_is_shown_with_one_reference_and_the_embeds_of_that_one",
    ),
    "lora_format": ("train/test_loop.py", "test_the_lora_is_published_in_the_style_asked_for"),
    **dict.fromkeys(
        (
            f"scheduled_sampling_{key}"
            for key in (
                *("strategy", "prob_start", "prob_end", "ramp_steps", "start_step"),
                *("ramp_shape",),
                *("reflexflow_alpha", "reflexflow_beta1", "reflexflow_beta2"),
            )
        ),
        ("train/data/test_scheduled_sampling.py", "test_every_setting_reaches_the_rollouts"),
    ),
}
# What is not of the loop: which model and files, how it fits, what is measured, kept and told.
OTHERS = {
    *("model_family", "model_kwargs", "revision", "output_dir", "cache_dir", "data_backend_config"),
    *(f"pretrained_{part}model_name_or_path" for part in ("", "transformer_", "vae_")),
    "pretrained_text_encoder_model_name_or_path",
    *("vae_dtype", "text_encoder_dtype", "text_encoder_precision", "cache_compression"),
    *("keep_best", "num_eval_images"),
    *("report_to", "tracker_project_name"),
}
OF_OTHERS = ("memory", "blocks_", "compile", "validation_", "eval_", "checkpoint", "resume_")


# what runs without a key have learned, by what else they were given
_without: dict[str, dict[str, Tensor]] = {}


def trained(configuration: Configuration) -> Trainer:
    """All steps of a run, without its files."""
    plan = make_plan(configuration)
    trainer = Trainer.load(plan, device=CPU)
    for step, batches in plan.feed.ahead(range(1, plan.steps + 1)):
        trainer.step(step, batches, of_samples=plan.feed.samples_in(step))
    return trainer


def learned(made: Any, **settings: Any) -> dict[str, Tensor]:
    if flavour := settings.pop("model_flavour", None):
        settings["flavour"] = flavour
    given = {"max_train_steps": 2, "use_ema": False, "gradient_checkpointing": False, **settings}
    weights = trained(made(**given)).trained.weights
    return {name: weight.detach() for name, weight in weights.items()}


def test_every_key_is_tested_somewhere() -> None:
    known = {*DECISIVE, *ELSEWHERE, *OTHERS}
    assert {key for key in Settings.model_fields if not key.startswith(OF_OTHERS)} == known
    for file, name in ELSEWHERE.values():
        assert f"def {name}(" in (TESTS / "stages" / file).read_text(encoding="utf-8"), name


@pytest.mark.parametrize("key", DECISIVE)
def test_a_key_decides_what_is_learned(made: Any, key: str) -> None:
    value, beside = DECISIVE[key]
    if repr(beside) not in _without:
        _without[repr(beside)] = learned(made, **beside)
    one, other = _without[repr(beside)], learned(made, **beside, **{key: value})
    assert one.keys() != other.keys() or any(
        not torch.equal(one[name], other[name]) for name in one
    )


def test_tf32_is_allowed_where_the_key_says_so(made: Any) -> None:
    """Of GPUs alone: on a CPU it changes nothing, so PyTorch's switch is looked at."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for disabled, precision in ((False, "tf32"), (True, "ieee")):
            train(made(disable_tf32=disabled, max_train_steps=1, output=precision))
            assert matmul.fp32_precision == precision
    finally:
        matmul.fp32_precision = before


def test_what_is_averaged_how_and_where(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[dict[str, Any]] = [{}, {"ema_decay": 0.05}, {"ema_update_interval": 2}]
    # an average that is in front in so few steps: its decay begins at 0.1
    runs = [trained(made(max_train_steps=3, **change)).trained for change in changes]
    for run in runs:
        assert all(torch.equal(run.weights[name], one) for name, one in runs[0].weights.items())
    averages = [torch.cat([one.flatten() for one in run.ema.shadow.values()]) for run in runs]
    assert not torch.equal(averages[0], averages[1])
    assert not torch.equal(averages[0], averages[2])
    assert trained(made(max_train_steps=1, use_ema=False)).trained.ema is None
    weights = {"a": torch.nn.Parameter(torch.ones(2))}
    for place, where in (("cpu", "cpu"), ("accelerator", "meta")):
        plan = make_plan(made(ema_device=place))
        ema = trainer_module._average(plan, weights, device=torch.device("meta"))
        assert ema.shadow["a"].device.type == where


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
    late = made(data={"start_step": 3})
    with pytest.raises(WrongUse, match="No dataset has samples to train on at step 1"):
        make_plan(late)
    make_plan(made(max_train_steps=2, data={"end_step": 2}))
    with pytest.raises(WrongUse, match="No dataset has samples to train on at step 3") as refused:
        make_plan(made(max_train_steps=3, data={"end_step": 2}))
    assert refused.value.do.endswith("or end the run before with `max_train_steps` 2.")
    with pytest.raises(WrongUse, match="No dataset has samples to train on at step 5") as refused:
        make_plan(made(num_train_epochs=2, data={"end_step": 4}))
    # the two keys together are a mistake
    assert refused.value.do.endswith("`max_train_steps` 4 in place of `num_train_epochs`.")


SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {},
    "constant_with_warmup": {},
    "linear": {},
    "cosine": {},
    "cosine_with_restarts": {"num_cycles": 2},
    "polynomial": {"power": 2.0},
    "piecewise_constant": {"step_rules": "1:4,0.5"},
}


def test_every_schedule_of_diffusers_may_be_chosen() -> None:
    from diffusers.optimization import SchedulerType

    assert {kind.value for kind in SchedulerType} == SCHEDULES.keys()
    for name in SCHEDULES:
        Settings.model_validate({"model_flavour": "edit-v2", "lr_scheduler": name})


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_the_one_diffusers_drives_an_optimizer_with(made: Any, name: str) -> None:
    from diffusers.optimization import get_scheduler

    config = SCHEDULES[name]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    schedule = get_scheduler(name, optimizer, num_warmup_steps=2, num_training_steps=6, **config)
    expected = []
    for _ in range(6):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    if name in ("constant", "piecewise_constant"):  # no warm-up there, and one here
        assert expected[0] == 0.01
        expected = [0.0, 0.5 * expected[1], *expected[2:]]
    rate = learning_rate_schedule(name, 0.01, steps=6, warmup_steps=2, config=config)
    assert [rate(step) for step in range(1, 7)] == pytest.approx(expected)
    settings = {"lr_scheduler": name, "lr_scheduler_config": config or None, "lr_warmup_steps": 2}
    of_run = Trainer.load(make_plan(made(**settings)), device=CPU).learning_rate
    assert [of_run(step) for step in range(1, 7)] == pytest.approx(expected)

"""Notes on what is accepted without effect, a line each."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic import BaseModel

from .datasets import Dataset
from .settings import Settings
from .training_settings import DEFAULT_STEPS, LoRA

# Keys of SimpleTuner, and those that have here the effect that is expected of them.
INSTEAD = {
    "adam_beta1": "optimizer_config.betas",
    "adam_beta2": "optimizer_config.betas",
    "adam_epsilon": "optimizer_config.eps",
    "adam_weight_decay": "optimizer_config.weight_decay",
    "ema_cpu_only": "ema_device",
    "lr_end": "lr_scheduler_config.lr_end",
    "lr_num_cycles": "lr_scheduler_config.num_cycles",
    "lr_power": "lr_scheduler_config.power",
    "peft_lora_target_modules": "lora_target_modules",
    "qwen_text_encoder_model_name_or_path": "pretrained_text_encoder_model_name_or_path",
    "use_dora": "lora_type",
    "validation_using_datasets": "eval_dataset_id",
}
SCHEMA_KEY = "$schema"  # tells an editor by what it may check the file
CAPTION_TABLES = ("parquet", "csv", "jsonl")
CAPTION_TABLE_FIELDS = frozenset({"width_column", "height_column"})


@cache
def known_elsewhere(model: type[BaseModel]) -> frozenset[str]:
    """Return the keys of SimpleTuner that have no effect here."""
    name = "guide-option-names.txt" if model is Settings else "guide-dataset-fields.txt"
    text = (files("qedit.config") / "known-names" / name).read_text(encoding="utf-8")
    names = (line.strip() for line in text.splitlines() if not line.startswith("#"))
    return frozenset(names) - set(model.model_fields) - {""}


def without_meaning(
    raw: Mapping[str, Any], model: type[BaseModel]
) -> tuple[dict[str, Any], set[str]]:
    """Return `raw` without the keys that have no effect here, and those keys."""
    names = {key for key in raw if key in known_elsewhere(model)}
    ignored = names | ({SCHEMA_KEY} if model is Settings else set())
    rest = {key: value for key, value in raw.items() if key not in ignored}
    for table in CAPTION_TABLES if model is Dataset else ():
        if isinstance(inner := rest.get(table), dict):
            extra = CAPTION_TABLE_FIELDS & inner.keys()
            rest[table] = {key: inner[key] for key in inner if key not in extra}
            names |= {f"{table}.{key}" for key in extra}
    return rest, names


def meaningless_note(where: str, names: Collection[str]) -> Iterator[str]:
    """Yield one line on all keys of a file that have no effect here."""
    if names:
        listed = ", ".join(name + what_instead(name) for name in sorted(names))
        yield f"{where}: known to another trainer, without effect here: {listed}"


def what_instead(name: str) -> str:
    """Return, in brackets, what to use in place of a key that has no effect; or nothing."""
    if name in INSTEAD:
        return f" (use {INSTEAD[name]})"
    if name in Dataset.model_fields:
        return " (set it in the dataset)"
    return " (set it in config.json)" if name in Settings.model_fields else ""


def settings_notes(given: Collection[str], settings: Settings) -> Iterator[str]:
    """Yield lines on defaults that decide something large, and on keys that cancel each other."""
    if not {"max_train_steps", "num_train_epochs"} & set(given):
        yield (
            "neither max_train_steps nor num_train_epochs is given: "
            f"training for {DEFAULT_STEPS} steps"
        )
    if settings.flow_schedule_auto_shift and settings.flow_schedule_shift is not None:
        yield "flow_schedule_auto_shift is on, so flow_schedule_shift has no effect"
    steps, warmup = settings.max_train_steps, settings.lr_warmup_steps
    if steps is not None and warmup >= steps:
        yield (
            f"lr_warmup_steps is {warmup} and the run has {steps} steps: "
            "it ends before learning_rate is reached"
        )
    idle = [key for key in LoRA.model_fields if key in given and key != "lora_target_modules"]
    if idle and settings.model_type == "full":
        yield f"model_type is full, so there is no LoRA and no effect of {', '.join(idle)}"
    yield from _rollout_notes(given, settings)


def _rollout_notes(given: Collection[str], settings: Settings) -> Iterator[str]:
    """Yield lines on scheduled sampling that stays off, or goes by another key than it seems."""
    key = "scheduled_sampling_{}".format
    ramp = settings.scheduled_sampling_ramp_steps
    chance = settings.scheduled_sampling_probability
    ends = settings.scheduled_sampling_prob_start, settings.scheduled_sampling_prob_end
    if not settings.scheduled_sampling_max_step_offset:
        if chance or ramp or settings.scheduled_sampling_reflexflow:
            yield f"scheduled sampling is off: {key('max_step_offset')} is 0"
    elif ramp:
        if not any(ends):
            yield f"scheduled sampling is off: {key('prob_start')} and {key('prob_end')} are 0"
        if chance:
            yield f"{key('ramp_steps')} is set, so {key('probability')} has no effect"
    elif not chance:
        yield f"scheduled sampling is off: {key('probability')} and {key('ramp_steps')} are 0"
    elif {key("prob_start"), key("prob_end")} & set(given):
        yield f"{key('ramp_steps')} is 0, so {key('prob_start')} and {key('prob_end')} do nothing"


def links_notes(
    datasets: Collection[Dataset], given: Mapping[str | None, Collection[str]]
) -> Iterator[str]:
    """Yield lines on datasets that nothing names, and on fields without effect in them."""
    named = {name for main in datasets if main.is_main for name in main.conditioning_data}
    named |= {main.conditioning_image_embeds or "" for main in datasets}
    for dataset in datasets:
        name, kind = dataset.id, dataset.dataset_type
        if kind.startswith("conditioning") and name not in named:
            yield f"dataset {name}: no other dataset names it, so it is not used"
        captioned = dataset.caption_strategy and "caption_strategy" in given.get(name, ())
        if kind == "conditioning" and captioned:
            yield f"dataset {name}: references have no captions; caption_strategy has no effect"
        if dataset.holds_pictures and dataset.cache_dir:
            yield f"dataset {name}: cache_dir has no effect on pictures; use cache_dir_vae"

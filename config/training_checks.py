"""Checks what the keys of training must agree on, as far as no model is needed for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from .schedules import schedule_mistakes
from .settings import Settings

Finding = tuple[str, str]
"""A key, and what is wrong with it."""

# These take their start out of the base.
_PARTS_OF_BASE = ("pissa", "olora")


def check_training(settings: Settings, *, wrong: Collection[str]) -> Iterator[Finding]:
    """Yield what is wrong between the keys that decide what is trained, and how.

    Args:
        wrong: keys whose values are no such values; `settings` has defaults in their places,
            and nothing is said that follows from these.
    """
    for check, keys in _CHECKS.items():
        if not keys & set(wrong):
            yield from check(settings)


def _check_schedule(settings: Settings) -> Iterator[Finding]:
    config = settings.lr_scheduler_config or {}
    peak = settings.learning_rate
    for option, text in schedule_mistakes(settings.lr_scheduler, config, peak=peak):
        yield f"lr_scheduler_config.{option}", text


def _check_optimizer(settings: Settings) -> Iterator[Finding]:
    if "lr" in (settings.optimizer_config or {}):
        yield "optimizer_config.lr", "has a key of its own; use `learning_rate`"
    kind = "full" if settings.model_type == "full" else settings.lora_type
    vectors = {"full": "biases and norms", "dora": "a norm for each output"}
    if settings.optimizer == "muon" and kind in vectors:
        key = "model_type" if kind == "full" else "lora_type"
        yield (
            "optimizer",
            f'is "muon", which changes matrices alone, and `{key}` "{kind}" trains '
            f"{vectors[kind]} too; choose another of the two",
        )


def _check_full(settings: Settings) -> Iterator[Finding]:
    if settings.model_type != "full":
        return
    for key, value in (
        ("base_model_precision", settings.base_model_precision),
        ("init_lora", settings.init_lora),
    ):
        if value not in (None, "no_change"):
            yield (
                key,
                f'is "{value}", and `model_type` "full" trains the model\'s own weights; '
                "take it out, or set `model_type` to lora",
            )


def _check_lokr(settings: Settings) -> Iterator[Finding]:
    if settings.model_type == "full" or settings.lora_type != "lokr":
        return
    if settings.lora_init_type != "default":
        yield (
            "lora_init_type",
            f'is "{settings.lora_init_type}", a start of a LoRA, and `lora_type` "lokr" has one '
            "of its own; take it out, or set `lora_type` to lora",
        )
    if settings.lora_dropout:
        yield (
            "lora_dropout",
            'drops inputs of a LoRA, which `lora_type` "lokr" does not have; set it to 0, '
            "or `lora_type` to lora",
        )


def _check_quantized(settings: Settings) -> Iterator[Finding]:
    if settings.model_type == "full" or settings.base_model_precision == "no_change":
        return
    for key, value, harmless in (
        ("lora_type", settings.lora_type, ("lora",)),
        ("lora_init_type", settings.lora_init_type, ("default", "gaussian")),
    ):
        refused = key == "lora_init_type" and settings.lora_type == "lokr"  # by `_check_lokr`
        if value not in harmless and not refused:
            yield (
                key,
                f'is "{value}", which needs the base\'s weights themselves, and '
                f"`base_model_precision` quantises them; set that to no_change, or this to "
                f"{harmless[0]}",
            )


def _check_start(settings: Settings) -> Iterator[Finding]:
    if settings.model_type == "full" or settings.init_lora is None:
        return
    for key, value, harmless in (
        ("lora_type", settings.lora_type, settings.lora_type == "lora"),
        ("lora_init_type", settings.lora_init_type, settings.lora_init_type not in _PARTS_OF_BASE),
    ):
        if not harmless:
            yield (
                "init_lora",
                f'begins with the LoRA of a file, and `{key}` is "{value}"; take one of them out',
            )


# Each with the keys that it looks at.
_CHECKS: dict[Callable[[Settings], Iterator[Finding]], set[str]] = {
    _check_schedule: {"lr_scheduler", "lr_scheduler_config", "learning_rate"},
    _check_optimizer: {"optimizer", "optimizer_config", "model_type", "lora_type"},
    _check_full: {"model_type", "base_model_precision", "init_lora"},
    _check_lokr: {"model_type", "lora_type", "lora_init_type", "lora_dropout"},
    _check_quantized: {"model_type", "base_model_precision", "lora_type", "lora_init_type"},
    _check_start: {"model_type", "init_lora", "lora_type", "lora_init_type"},
}

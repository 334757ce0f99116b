"""run.json: what decides a run, so that a folder never holds two runs as if they were one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NoReturn

from ....cache.errors import AnotherRecipe
from ....cache.files.fingerprint import fingerprint
from ....config.schedules import SCHEDULE_OPTIONS
from ....config.settings import Settings
from ...models.lora.lora_file import LORA_FILE
from ...run_output.run_file import read_run
from ...samples.sample import Sample
from ..data.batches import Source
from .checkpoint import checkpoints, strangers

# These may differ between two starts of one run: they decide nothing of it, or (models, encoders,
# VAE, data) what they stand for is in the record itself. docs/resume.md says the same in words.
FREE = (
    "max_train_steps",
    "num_train_epochs",
    "checkpoint*",
    "resume_from_checkpoint",
    "on_changed_data",
    "report_to",
    "tracker_project_name",
    "validation_*",
    "num_eval_images",
    "eval_*",
    "keep_best",
    "lora_format",
    "output_dir",
    "cache_dir",
    "cache_compression",
    "data_backend_config",
    "memory",
    "blocks_to_stream",
    "compile_blocks",
    "gradient_checkpointing",
    "quantize_via",
    "ema_device",
    "pretrained_*",
    "revision",
    "vae_dtype",
    "text_encoder_*",
)


def describe_run(
    settings: Settings,
    sources: Sequence[Source],
    *,
    transformer_digest: str,
    zero_cond_t: bool,
    recipes: Mapping[str, str],
    digests: Mapping[str, str] | None = None,
    start: str | None = None,
) -> dict[str, Any]:
    """Return what decides the run, as JSON: settings, model, recipes of the cached rows, pairs.

    Args:
        digests: of the samples of each source, where they are known already.
        recipes: fingerprints of the stores that rows are read from.
        start: digest of the LoRA that it begins with, if it does.
    """
    return {
        "settings": decisive(settings),
        "model": {"transformer": transformer_digest, "zero_cond_t": zero_cond_t},
        "recipes": dict(recipes),
        "datasets": describe_data(sources, digests),
        **({"start": start} if start else {}),
    }


def decisive(settings: Settings) -> dict[str, Any]:
    """Return those settings that decide what a run is."""
    values = settings.model_dump(mode="json")
    return {key: value for key, value in values.items() if decides(key)}


def decides(key: str) -> bool:
    """Return whether the setting `key` decides what a run is."""
    return not any(fnmatchcase(key, pattern) for pattern in FREE)


def digest_of_samples(samples: Sequence[Sample]) -> str:
    """Return a digest of everything that decides what these samples show."""
    return fingerprint({"samples": [identity(sample) for sample in samples]})


def describe_data(
    sources: Sequence[Source], digests: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """Return what decides the data of each source, as JSON; `digests` as in `describe_run`."""
    return {
        source.name: {
            "pairs": len(source.samples),
            "digest": (digests or {}).get(source.name) or digest_of_samples(source.samples),
            "repeats": source.repeats,
            "probability": source.probability,
            "start_step": source.start_step,
            "end_step": source.end_step,
        }
        for source in sources
    }


def identity(sample: Sample) -> list[Any]:
    """Return what a sample is, as JSON: its name, and the keys of its rows."""
    references = [picture.latent_key for picture in sample.references]
    what = [sample.name, sample.target.latent_key, references, sample.prefix_key, *sample.captions]
    mask = sample.mask and sample.mask.weight_key
    # nothing is said of what a sample has not, as before there were masks and groups
    return [*what, {"mask": mask, "group": sample.group}] if mask or sample.group else what


def refuse_another_run(there: Mapping[str, Any], run: Mapping[str, Any], *, where: Path) -> None:
    """Raise if `there` is another run than `run`, whatever data either has.

    Raises:
        AnotherRecipe: with every difference in words.
    """
    if differences := list(_differences(there, run)):
        raise AnotherRecipe(
            f"{where} belongs to another run:\n" + "\n".join(f"  {line}" for line in differences),
            "Choose another folder (`--set output_dir=…`), put the settings back, "
            "or move that folder away.",
        )


def is_same_run(there: Mapping[str, Any], run: Mapping[str, Any]) -> bool:
    """Return whether `refuse_another_run` would let `run` go on where `there` was."""
    return not any(_differences(there, run))


def refuse_strangers(foreign: Sequence[Path], *, where: Path) -> NoReturn:
    """Raise because `where` holds files of a training that was not done by qedit.

    Raises:
        AnotherRecipe: always.
    """
    names = ", ".join(path.name for path in foreign[:3])
    raise AnotherRecipe(
        f"{where} holds what another trainer left: {names}. Nothing of it was touched.",
        "Choose another folder (`--set output_dir=…`), or move that one away.",
    )


def begun_run(where: Path) -> dict[str, Any] | None:
    """Return the run that has made a checkpoint or a LoRA in this folder; None if there is none.

    One that came to nothing (out of memory, say) may be begun again with other settings.

    Raises:
        AnotherRecipe: what lies there was not made by qedit.
        Damaged: run.json cannot be read, and no checkpoint says the same.
    """
    foreign, lora = strangers(where), where / LORA_FILE
    came_to_something = bool(checkpoints(where)) or lora.exists()
    there = read_run(where) if came_to_something else None
    if there is None and lora.exists() and not checkpoints(where):
        foreign.append(lora)
    if foreign:
        refuse_strangers(foreign, where=where)
    return there


def refuse_folder(settings: Settings) -> None:
    """Raise if the output_dir belongs to another training, as far as settings tell.

    Raises:
        AnotherRecipe: with every difference in words.
    """
    there = begun_run(settings.output_dir)
    if there is not None:
        now = {**there, "settings": decisive(settings)}
        refuse_another_run(there, now, where=settings.output_dir)


def _differences(there: Mapping[str, Any], run: Mapping[str, Any]) -> Iterator[str]:
    there = {"settings": {}, "model": {}, "recipes": {}, "datasets": {}, **there}
    is_same_start = "start" in run and there.get("start") == run["start"]
    for key, value in run["settings"].items():
        before = there["settings"].get(key, _default(key))
        if key == "lr_scheduler_config":
            schedule = run["settings"]["lr_scheduler"]
            value, before = _options_of(value, schedule), _options_of(before, schedule)
        if before != value and not (key == "init_lora" and is_same_start):
            yield f"{key}: {_plain(before)} there, {_plain(value)} now"
    if there["model"] != run["model"]:
        yield "the transformer is another one"
    for what, name in run["recipes"].items():
        if there["recipes"].get(what) != name:
            yield f"the {what} were made by another recipe"


def _options_of(config: Mapping[str, Any] | None, schedule: str) -> dict[str, Any] | None:
    """Return the options that `schedule` takes: old configurations may hold others."""
    takes = SCHEDULE_OPTIONS.get(schedule, ())
    return {key: value for key, value in (config or {}).items() if key in takes} or None


def _default(key: str) -> Any:
    """Return the value of a setting for runs that were made before it existed."""
    field = Settings.model_fields.get(key)
    if field is None or field.default_factory is not None or field.is_required():
        return None
    return json.loads(json.dumps(field.get_default(), default=lambda value: dict(value)))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

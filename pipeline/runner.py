"""The stages in the order of work, run one by one or all."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..cache.errors import NotComplete, QeditError, WrongUse
from ..cache.files.atomic import sweep
from ..cache.files.workspace import refuse_source_folder
from ..config.configuration import Configuration
from ..stages.frozen_base.quantized import has_work
from ..stages.models.checkpoint.checkpoint import is_model_local
from ..stages.stage import Outcome, Progress
from ..stages.stores.run import Run
from .terminal.output import summary
from .upkeep.caches import Caches
from .upkeep.removable import removable_rows

SHARING = ("cache-vae", "cache-embeds")
ORDER = ("pair", "cache-vae", "cache-embeds", "cache-base", "train")


def stage_named(name: str) -> Callable[..., Outcome]:
    """Return the function of stage `name`; imported only now, because some import torch."""
    module = "train.loop" if name == "train" else f"{name.replace('-', '_')}.stage"
    stage: Callable[..., Outcome] = import_module(f"..stages.{module}", __package__).run
    return stage


def run_stages(
    names: Sequence[str],
    configuration: Configuration,
    progress: Progress,
    *,
    dry_run: bool = False,
    options: Mapping[str, dict[str, Any]] = MappingProxyType({}),
) -> list[Outcome]:
    """Run the stages called `names` one after the other, saying a line after each.

    Args:
        options: stage name -> keyword arguments of that stage alone.
    """
    refuse_several_processes(names)
    for folder in (configuration.settings.cache_dir, configuration.settings.output_dir):
        refuse_source_folder(Path(folder))
    if "train" in names and len(names) > 1:
        _refuse_early(configuration, device=options.get("train", {}).get("device", "auto"))
    outcomes: list[Outcome] = []
    with closing(_with_spool(names, options, configuration, dry_run=dry_run)) as stages:
        for name, extra in stages:
            if name == "cache-base" and len(names) > 1 and not has_work(configuration.settings):
                continue
            run = Run(configuration)  # its own: the stage before changed what there is
            given = run if name.startswith("cache-") else configuration
            try:
                outcome = stage_named(name)(given, progress, dry_run=dry_run, **extra)
            except NotComplete as missing:
                if not (dry_run and outcomes):
                    raise
                # what the earlier stages would make is not there yet
                what = f"cannot be counted before the stages above. {missing.what}"
                progress.say(f"{name:12}  {what}")
                break
            if dry_run and name in SHARING:
                orphaned = _count_unused(run, name)
                outcome = replace(outcome, facts=outcome.facts | {"orphaned": orphaned})
            for line in (*outcome.lines, summary(outcome, dry_run=dry_run)):
                progress.say(line)
            outcomes.append(outcome)
            if name == "pair" and len(names) > 1 and not dry_run:
                from ..stages.train.plan.changed_data import refuse_changed_data
                from .plan.disk import refuse_full_disks
                from .plan.planning import foreseen_disk

                # the stages would say so one by one, some of them after hours
                refuse_changed_data(configuration)
                refuse_full_disks(foreseen_disk(configuration))
    return outcomes


def _refuse_early(configuration: Configuration, *, device: Any) -> None:
    """Raise what the training, or the opening of a model, would raise hours later."""
    from ..stages.train.plan.refusals import refuse_to_train
    from ..stages.train.state.run_record import refuse_folder

    refuse_folder(configuration.settings)
    if is_model_local(configuration.settings):
        _ = Run(configuration).checkpoint
    refuse_to_train(configuration.settings, device=str(device))


def _count_unused(run: Run, stage: str) -> int | None:
    """Count the rows of a caching stage that nothing needs; None where that is not known."""
    try:
        latents, prefixes, tails, weights = run.stores.store_sets()
        sets = (latents, weights) if stage == SHARING[0] else (prefixes, tails)
        stores = [store for store_set in sets for store in store_set.stores()]
        return sum(found.rows for found in removable_rows(Caches(run), stores))
    except QeditError:
        return None  # what is to be done is known all the same; `gc` says what is wrong


def _with_spool(
    names: Sequence[str],
    options: Mapping[str, dict[str, Any]],
    configuration: Configuration,
    *,
    dry_run: bool,
) -> Generator[tuple[str, dict[str, Any]], None, None]:
    """Yield each stage with its options.

    Where both caching stages run, `cache-vae` leaves pictures for `cache-embeds` in a folder,
    which is gone after the second.
    """
    shared = set(SHARING) <= set(names) and not dry_run
    cache_dir = Path(configuration.settings.cache_dir)
    if not dry_run:
        sweep(cache_dir)  # which no lock guards
    with ExitStack() as stack:
        folder = None
        for name in names:
            extra = options.get(name, {})
            if shared and name in SHARING:
                from ..stages.encoding.device_options import DeviceOptions
                from ..stages.encoding.spool import spool_in

                folder = folder or stack.enter_context(spool_in(cache_dir))
                device = extra.get("options") or DeviceOptions()
                extra = extra | {"options": replace(device, spool=folder)}
            if name == "cache-base" and len(names) > 1:
                extra = extra | {"fully": False}  # training reads all of it right afterwards
            yield name, extra
            if name == SHARING[-1]:
                stack.close()


def refuse_several_processes(names: Sequence[str]) -> None:
    """Raise where a launcher (torchrun, accelerate) runs anything but the training.

    Raises:
        WrongUse: says how the earlier stages are run.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1" and tuple(names) != ("train",):
        raise WrongUse(
            "Several processes train together; the stages before that are run by one.",
            "Run the earlier stages without a launcher, then `train` alone with it.",
        )

"""The stages in the order of work, run one by one or all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..cache.errors import NotComplete
from ..cache.workspace import refuse_source_folder
from ..config.configuration import Configuration
from ..stages.frozen_base import has_work
from ..stages.stage import Outcome, Progress
from .report import summary

ORDER = ("pair", "cache-vae", "cache-embeds", "cache-base", "train")


def stage_named(name: str) -> Callable[..., Outcome]:
    """The function of stage `name`; imported only now, because some import torch."""
    if name == "pair":
        from ..stages.pair.stage import run as pair

        return pair
    if name == "cache-vae":
        from ..stages.cache_vae.stage import run as cache_vae

        return cache_vae
    if name == "cache-embeds":
        from ..stages.cache_embeds.stage import run as cache_embeds

        return cache_embeds
    if name == "cache-base":
        from ..stages.cache_base.stage import run as cache_base

        return cache_base
    if name == "preview":
        from ..stages.preview.stage import run as preview

        return preview
    from ..stages.train.loop import run as train

    return train


def run_stages(
    names: Sequence[str],
    configuration: Configuration,
    progress: Progress,
    *,
    dry_run: bool = False,
    options: dict[str, dict[str, object]] | None = None,
) -> list[Outcome]:
    """Run the stages called `names` one after the other, saying a line after each.

    Args:
        options: stage name -> keyword arguments of that stage alone.
    """
    for folder in (configuration.settings.cache_dir, configuration.settings.output_dir):
        refuse_source_folder(Path(folder))
    outcomes: list[Outcome] = []
    for name in names:
        if name == "cache-base" and len(names) > 1 and not has_work(configuration.settings):
            continue
        extra = (options or {}).get(name, {})
        try:
            outcome = stage_named(name)(configuration, progress, dry_run=dry_run, **extra)
        except NotComplete as missing:
            if not (dry_run and outcomes):
                raise
            # a dry run of several stages: what the earlier ones would make is not there yet
            progress.say(f"{name:12}  cannot be counted before the stages above. {missing.what}")
            break
        for line in outcome.lines:
            progress.say(line)
        progress.say(summary(outcome, dry_run=dry_run))
        outcomes.append(outcome)
    return outcomes

"""The common beginning and end of commands: read the configuration, report what was done."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

from ...cache.errors import WrongUse
from ..terminal.options import options_of
from ..terminal.output import TerminalProgress, as_object, details
from ..terminal.run_command import reporting


def run_named(command: str, *, all_stages: bool = False, **given: Any) -> None:
    """Load the configuration, run stages, report; every command that runs stages ends here.

    Args:
        all_stages: run every stage in order; else the one that `command` names.
        given: all options of the command.
    """
    with reporting(**given) as (progress, finish):
        from ..runner import ORDER, run_stages

        configuration = configuration_of(progress, **given)
        names = ORDER if all_stages else (command,)
        options = {name: options_of(name, given) for name in names}
        outcomes = run_stages(
            names, configuration, progress, dry_run=given["dry_run"], options=options
        )
        if given["verbose"]:
            for line in chain.from_iterable(map(details, outcomes)):
                progress.say(line)
        stages = [as_object(outcome) for outcome in outcomes]
        finish(stages[0] if len(stages) == 1 else {"stage": command, "stages": stages})


def configuration_of(
    progress: TerminalProgress,
    *,
    config: Path | None,
    data: Path | None,
    sets: tuple[str, ...],
    assignments: tuple[str, ...],
    tiny: bool,
    dry_run: bool = False,
    **_: Any,
) -> Any:
    """Return the configuration that the shared options name; its notes become warnings."""
    from ...config.loading import load
    from ..demo.examples import example_named, tiny_sets

    example = example_named(assignments)
    if tiny and example is None:
        raise WrongUse(
            "--tiny goes with a shipped example.",
            "Type `qedit train --prepare example=qwen_image.edit-v1-lora --tiny`.",
        )
    if tiny and example is not None:
        sets = (*tiny_sets(example, progress, dry_run=dry_run), *sets)
    configuration = load(config, data, sets=sets, example=example)
    for note in configuration.notes:
        progress.warn(note)
    return configuration

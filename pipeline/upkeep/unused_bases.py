"""What is kept ready of frozen bases, and which of it no settings and no run use."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...cache.files.fingerprint import fingerprint
from ...cache.store.store import Store
from ...config.configuration import Configuration
from ...config.settings import Settings
from ...stages.frozen_base.folder import base_folder
from ...stages.frozen_base.modulation_table import modulation_table, table_recipe, wants_table
from ...stages.frozen_base.quantized import (
    QUANTIZED_FILE,
    QuantizedBase,
    quantized_base,
    quantized_recipe,
    wants_quantized,
)
from ...stages.models.checkpoint.checkpoint import Checkpoint
from ...stages.run_output.run_file import read_run
from ...stages.stores.pins import Use, use_of
from .other_runs import others_of
from .unused_rows import stores_in


def tables_in(settings: Settings) -> list[Store]:
    """Every modulation table in the cache folder, of whatever model."""
    return list(stores_in(base_folder(settings)))


def bases_in(settings: Settings) -> Iterator[QuantizedBase]:
    """Every quantised base there, if its recipe is the one that it is named after."""
    for path in sorted(base_folder(settings).glob(f"*/{QUANTIZED_FILE}")):
        try:
            recipe = json.loads(path.read_bytes())
            recipe.pop("files")
        except (ValueError, KeyError, AttributeError):
            continue
        if fingerprint(recipe) == path.parent.name:
            yield QuantizedBase(path.parent, recipe)


def base_in_use(
    checkpoint: Checkpoint, settings: Settings
) -> tuple[list[Store], list[QuantizedBase]]:
    """The table and the quantised base of these settings, as far as they want and have one."""
    tables = [modulation_table(checkpoint, settings)] if wants_table(settings) else []
    bases = [quantized_base(checkpoint, settings)] if wants_quantized(settings) else []
    return tables, [base for base in bases if base.is_there()]


def needed_bases(configuration: Configuration, checkpoint: Checkpoint) -> set[str]:
    """The names of what these settings use, and of what the run in output_dir was made with.

    Raises:
        Damaged: what that run says of itself cannot be read.
    """
    in_use = base_in_use(checkpoint, configuration.settings)
    needed = {one.path.name for kind in in_use for one in kind}
    return needed | _named_by_run(Path(configuration.settings.output_dir))


def unused_bases(
    configuration: Configuration, checkpoint: Checkpoint, others: Sequence[Use]
) -> tuple[list[Store], list[QuantizedBase]]:
    """Tables and bases that neither these settings use, nor a run that is known.

    Args:
        others: uses by other runs, as notes in any cache tell of them.

    Raises:
        Damaged, NotComplete: what other runs want cannot be known.
    """
    settings, own = configuration.settings, use_of(configuration)
    needed = needed_bases(configuration, checkpoint)
    for folder in {use.output_dir for use in others}:
        needed |= _named_by_run(Path(folder))

    def goes(one: Store | QuantizedBase) -> bool:
        return one.path.name not in needed and not others_of(one, own)

    tables = [table for table in tables_in(settings) if goes(table)]
    return tables, [base for base in bases_in(settings) if goes(base)]


def _named_by_run(output_dir: Path) -> set[str]:
    """The names of what the run in this folder was trained with, or would be."""
    run = read_run(output_dir) or {}
    if "settings" not in run or "model" not in run:
        return set()
    settings = Settings.model_construct(**run["settings"])
    model = run["model"]["transformer"]
    recipes = [table_recipe(model)] if wants_table(settings) else []
    if wants_quantized(settings):
        recipes.append(quantized_recipe(model, settings))
    return {fingerprint(recipe) for recipe in recipes}

"""Find out whether training uses anything that `cache-base` makes, and whether that is there."""

from __future__ import annotations

from ...cache.errors import NotComplete
from ...cache.files.fingerprint import fingerprint
from ...config.settings import Settings
from ..models.checkpoint.checkpoint import Checkpoint
from .modulation_table import has_table, table_recipe, wants_table
from .quantized import quantized_recipe, wants_quantized


def has_work(settings: Settings) -> bool:
    """Return whether training with these settings uses anything that `cache-base` makes."""
    return wants_table(settings) or wants_quantized(settings)


def base_names(settings: Settings, model: str) -> set[str]:
    """Return the names of the table and the base that `settings` use of the model's transformer.

    Args:
        model: the transformer's digest.
    """
    recipes = [table_recipe(model)] if wants_table(settings) else []
    recipes += [quantized_recipe(model, settings)] if wants_quantized(settings) else []
    return {fingerprint(recipe) for recipe in recipes}


def refuse_incomplete_base(checkpoint: Checkpoint, settings: Settings) -> None:
    """Raise if training needs something of the base that is not there.

    Without a table the modulation would be quantised as well, and a run that goes on with a
    table would go on with another model.

    Raises:
        NotComplete: the message names `cache-base`, which makes it.
    """
    needed = wants_quantized(settings) and wants_table(settings)
    if needed and not has_table(checkpoint, settings):
        raise NotComplete(
            f"`base_model_precision` {settings.base_model_precision} needs the modulation table, "
            "which is not there.",
            "Run `qedit cache-base`, then `qedit train` again.",
        )

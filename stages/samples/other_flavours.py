"""Results of other flavours beside a missing one: an error message can then name both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...cache.store.recipe_file import RECIPE_FILE, read_recipe
from ..models.flavours import FLAVOURS, Flavour


def made_for_others(
    folder: Path, flavour: Flavour, *, fits: Callable[[Flavour, Mapping[str, Any]], bool]
) -> str:
    """Return words on results beside `folder` made for other flavours; "" if there are none.

    Args:
        fits: tells whether a recipe could have been a flavour's.
    """
    others: set[str] = set()
    for recipe in _recipes_beside(folder):
        if not fits(flavour, recipe):
            names = {other.name for other in FLAVOURS.values() if fits(other, recipe)}
            # of its own name, with other areas: the flavour is not what differs
            others |= set() if flavour.name in names else names
    return f"; what is there was made for {' or '.join(sorted(others))}" if others else ""


def _recipes_beside(folder: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the recipes that can be read of the results beside `folder`."""
    for path in sorted(folder.parent.glob(f"*/{RECIPE_FILE}")):
        recipe = read_recipe(path.parent)
        if path.parent != folder and recipe is not None:
            yield recipe

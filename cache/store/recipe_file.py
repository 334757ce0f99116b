"""recipe.json in a store's folder: the recipe whose fingerprint names the folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import AnotherRecipe, Broken
from ..files.atomic import write_json
from ..files.fingerprint import fingerprint
from ..files.json_file import read_object

RECIPE_FILE = "recipe.json"


def read_recipe(folder: Path) -> dict[str, Any] | None:
    """Return the recipe.json in `folder`; None if it is missing or unreadable."""
    try:
        return read_object(folder / RECIPE_FILE)
    except (OSError, Broken):
        return None


def keep_recipe(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Write recipe.json, or make sure that the one there says the same.

    Raises:
        AnotherRecipe: it says something else.
    """
    path = folder / RECIPE_FILE
    if not path.exists():
        write_json(path, dict(recipe))
    for what in wrong_recipe(folder, recipe, has_parts=True):
        raise AnotherRecipe(
            f"{path}: {what}.",
            f"Put it back, or delete the folder {folder} to make its rows anew.",
        )


def wrong_recipe(folder: Path, recipe: Mapping[str, Any], *, has_parts: bool) -> Iterator[str]:
    """Yield what is wrong with the recipe.json in `folder`, in words.

    Args:
        has_parts: a store without any needs none.
    """
    path, name = folder / RECIPE_FILE, fingerprint(recipe)
    if not path.exists():
        if has_parts:
            yield f"{RECIPE_FILE} is missing"
        return
    try:
        found = fingerprint(read_object(path))
    except (ValueError, Broken):
        found = ""
    if found != name:
        yield f"it is not the recipe that the folder is named after, {name}"

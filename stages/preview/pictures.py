"""The pictures of a run's previews: each is decoded once and names the latents it is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from ...cache.files.atomic import new_file
from ...cache.files.decides_nothing import make_way
from ...cache.files.fingerprint import fingerprint
from ..pictures.images import Unreadable, open_upright
from ..pictures.mask_weights import mask_values, open_mask
from ..run_output.previews import Stored, source_picture

SMALL_PIXELS = 640  # the longer edge of what the page and the sheets show of a picture

UNREADABLE = (OSError, SyntaxError, ValueError)  # what Pillow raises for a damaged file
MADE_FROM = "qedit"  # the text in a PNG that names what it was made from
_ABOUT = ("sample", "caption", "seed", "guidance", "steps", "negative_prompt", "flavour")


def is_current(stored: Stored) -> bool:
    """Return whether the preview's pictures are whole and were made of these latents."""
    return made_from(stored.picture) == stored.recipe and _reads(stored.small_picture)


def made_from(path: Path) -> str | None:
    """Return what a PNG says that it was made from; None where it says nothing, or is damaged."""
    try:
        with Image.open(path) as picture:
            recipe = picture.info.get(MADE_FROM)
            picture.verify()  # the checksums of its chunks
    except UNREADABLE:
        return None
    return None if recipe is None else str(recipe)


def _reads(path: Path, *, decodes: bool = False) -> bool:
    try:
        with Image.open(path) as picture:
            if decodes:
                picture.load()
    except UNREADABLE:
        return False
    return True


def save(picture: Image.Image, path: Path, *, recipe: str, about: Mapping[str, Any]) -> None:
    """Write a PNG, whole or not at all, that says what it was made from."""
    text = PngImagePlugin.PngInfo()
    text.add_text(MADE_FROM, recipe)
    for name, value in about.items():
        text.add_itxt(name, str(value))
    make_way(path)
    with new_file(path) as file:
        picture.save(file, "PNG", pnginfo=text)


def save_preview(picture: Image.Image, stored: Stored) -> None:
    """Write a preview's picture, and its small version before it."""
    _save_small(picture, stored.small_picture)
    about = {name: stored.about[name] for name in _ABOUT if name in stored.about}
    save(picture, stored.picture, recipe=stored.recipe, about=about | {"step": stored.step})


def _save_small(picture: Image.Image, path: Path) -> None:
    small = picture.copy()
    small.thumbnail((SMALL_PIXELS, SMALL_PIXELS), Image.Resampling.LANCZOS)
    make_way(path)
    with new_file(path) as file:
        small.save(file, "WEBP", quality=86)


class Sources:
    """References and targets as sheets and page show them: whole, upright, small.

    Args:
        folders: dataset id -> the folder of its pictures.
        warn: called once for each picture that cannot be shown any more.
    """

    def __init__(
        self, output_dir: Path, folders: Mapping[str, Path], warn: Callable[[str], None]
    ) -> None:
        self._output_dir, self._folders, self._warn = output_dir, folders, warn
        self._warned: set[str] = set()

    def small(self, facts: Mapping[str, Any]) -> Path | None:
        """Return the small version of a picture, made if need be; None where it cannot be made."""
        path = source_picture(self._output_dir, facts)
        if not _reads(path, decodes=True):
            whole = self.whole(facts)
            if whole is None:
                return None
            _save_small(whole, path)
        return path

    def whole(self, facts: Mapping[str, Any]) -> Image.Image | None:
        """Open the picture itself, upright; return None where that cannot be done."""
        return self._opened(facts, open_upright)

    def mask(self, facts: Mapping[str, Any]) -> Image.Image | None:
        """Return how much each pixel of a mask counts, as a picture of mode F; None likewise."""

        def values(path: Path) -> Image.Image:
            with path.open("rb") as file:
                return Image.fromarray(mask_values(open_mask(file)))

        return self._opened(facts, values)

    def _opened(
        self, facts: Mapping[str, Any], open_it: Callable[[Path], Image.Image]
    ) -> Image.Image | None:
        folder = self._folders.get(facts["dataset"])
        try:
            if folder is not None:
                return open_it(folder / facts["path"])
            why = f"dataset {facts['dataset']} is not in the configuration"
        except Unreadable as error:
            why = error.what
        except OSError as error:
            why = str(error.strerror)
        if facts["digest"] not in self._warned:
            self._warn(f"{facts['path']} cannot be shown: {why}.")
        self._warned.add(facts["digest"])
        return None


@lru_cache(maxsize=64)
def opened(path: Path) -> Image.Image:
    """Decode a picture that was written here."""
    with Image.open(path) as picture:
        return picture.convert("RGB")


def key_of_pictures(*recipes: str) -> str:
    """Return the recipe of a picture that shows several others."""
    return fingerprint({"made_from": recipes})

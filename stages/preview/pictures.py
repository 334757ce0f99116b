"""The pictures of a run's previews: decoded once, each named by the latents it is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from ...cache.files.atomic import new_file
from ...cache.files.fingerprint import fingerprint
from ..pictures.images import Unreadable, open_upright
from ..pictures.mask_weights import mask_values, open_mask
from ..run_output.previews import LATENTS, PREVIEWS, Stored

SMALL_PIXELS = 640  # the longer edge of what the page and the sheets show of a picture
SOURCES = "sources"
MADE_FROM = "qedit"  # the text in a PNG that names what it was made from
_ABOUT = ("sample", "caption", "seed", "guidance", "steps", "negative_prompt", "flavour")


def picture_path(stored: Stored) -> Path:
    """Where the picture of a preview lies."""
    return stored.path.with_name(stored.path.name.removesuffix(LATENTS) + ".png")


def small_path(path: Path) -> Path:
    """Where the small version of a picture lies, which the page holds."""
    return path.with_suffix(".webp")


def is_current(stored: Stored) -> bool:
    """Whether the preview's pictures are there and were made of these latents."""
    path = picture_path(stored)
    return made_from(path) == stored.recipe and small_path(path).is_file()


def made_from(path: Path) -> str | None:
    """What a PNG says that it was made from; None where there is none."""
    if not path.is_file():
        return None
    try:
        with Image.open(path) as picture:
            said = picture.info.get(MADE_FROM)
    except OSError:
        return None
    return str(said) if said is not None else None


def save(picture: Image.Image, path: Path, *, recipe: str, about: Mapping[str, Any]) -> None:
    """Write a PNG, whole or not at all, that says what it was made from."""
    text = PngImagePlugin.PngInfo()
    text.add_text(MADE_FROM, recipe)
    for name, value in about.items():
        text.add_itxt(name, str(value))
    with new_file(path) as file:
        picture.save(file, "PNG", pnginfo=text)


def save_preview(picture: Image.Image, stored: Stored) -> None:
    """Write a preview's picture, and its small version before it."""
    path = picture_path(stored)
    _save_small(picture, small_path(path))
    about = {name: stored.about[name] for name in _ABOUT if name in stored.about}
    save(picture, path, recipe=stored.recipe, about=about | {"step": stored.step})


def _save_small(picture: Image.Image, path: Path) -> None:
    small = picture.copy()
    small.thumbnail((SMALL_PIXELS, SMALL_PIXELS), Image.Resampling.LANCZOS)
    with new_file(path) as file:
        small.save(file, "WEBP", quality=86)


class Sources:
    """References and targets as sheets and page show them: whole, upright, small.

    Args:
        folders: dataset id -> the folder of its pictures.
        warn: told once of each picture that is no longer there to be shown.
    """

    def __init__(
        self, output_dir: Path, folders: Mapping[str, Path], warn: Callable[[str], None]
    ) -> None:
        self._folder = output_dir / PREVIEWS / SOURCES
        self._folders, self._warn = folders, warn
        self._told: set[str] = set()

    def small(self, facts: Mapping[str, Any]) -> Path | None:
        """The small version of a picture, made if need be; None where it cannot be had."""
        path = self._folder / f"{facts['digest']}.webp"
        if not path.is_file():
            whole = self.whole(facts)
            if whole is None:
                return None
            _save_small(whole, path)
        return path

    def whole(self, facts: Mapping[str, Any]) -> Image.Image | None:
        """The picture itself, upright; None where it cannot be had."""
        return self._opened(facts, open_upright)

    def mask(self, facts: Mapping[str, Any]) -> Image.Image | None:
        """How much each pixel of a mask counts, as a picture of mode F; None likewise."""

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
        if facts["digest"] not in self._told:
            self._warn(f"{facts['path']} cannot be shown: {why}.")
        self._told.add(facts["digest"])
        return None


@lru_cache(maxsize=64)
def opened(path: Path) -> Image.Image:
    """A picture that was written here, decoded."""
    with Image.open(path) as picture:
        return picture.convert("RGB")


def key_of_pictures(*recipes: str) -> str:
    """What a picture of pictures was made from."""
    return fingerprint({"made_from": recipes})

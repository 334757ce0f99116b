"""The quantised base: a folder of safetensors files with every tensor that training loads.

No torch: `status` and a run with nothing to do read this.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...cache.errors import Broken, Damaged, NotComplete, QeditError
from ...cache.files.atomic import readable_json, write_json
from ...cache.files.failing_disk import io_errors_as_damaged
from ...cache.files.fingerprint import fingerprint, has_digest
from ...cache.files.json_file import read_object
from ...cache.files.sealed import read_sealed, sealed
from ...config.settings import Settings
from ..models.checkpoint.checkpoint import Checkpoint
from ..models.checkpoint.digests import digests_file, model_digest
from ..models.checkpoint.tensor_checksums import checksums_in
from ..models.checkpoint.weights_header import tensor_entries
from ..stores.row_kinds import RowKind
from .modulation_table import base_folder, has_table, table_recipe, wants_table

QUANTIZED_VERSION = 1
QUANTIZED_FILE = "quantized.json"
CHECKSUMS_FILE = "checksums.json"
MAKE_ANEW = "Run `qedit cache-base`: it makes the base anew. Then run `qedit train` again."


def wants_quantized(settings: Settings) -> bool:
    """Return whether the frozen base is held in few bits."""
    return settings.base_model_precision != "no_change" and settings.model_type != "full"


def quantized_base(checkpoint: Checkpoint, settings: Settings) -> QuantizedBase:
    """Return the base of `checkpoint` in `base_model_precision`, written already or not.

    It is without the layers that training reads from the modulation table.
    """
    model = model_digest(checkpoint.transformer, remember=digests_file(settings))
    recipe = quantized_recipe(model, settings)
    return QuantizedBase(base_folder(settings) / fingerprint(recipe), recipe)


def quantized_recipe(model: str, settings: Settings) -> dict[str, Any]:
    """Return what decides the quantised base of the transformer with this digest."""
    return {
        "rows": RowKind.QUANTIZED.value,
        "version": QUANTIZED_VERSION,
        "model": model,
        "precision": settings.base_model_precision,
        "dtype": settings.mixed_precision,
        "modulation": not wants_table(settings),
    }


def bases_in(folder: Path) -> Iterator[QuantizedBase]:
    """Yield every quantised base in `folder` whose recipe is the one that it is named after."""
    for path in sorted(folder.glob(f"*/{QUANTIZED_FILE}")):
        try:
            recipe = read_object(path)
            recipe.pop("files")
        except (Broken, KeyError):
            continue
        if fingerprint(recipe) == path.parent.name:
            yield QuantizedBase(path.parent, recipe)


@dataclass(frozen=True)
class QuantizedBase:
    """A folder of safetensors files with every tensor that training loads.

    It is there whole or not at all. `quantized.json`, which names it, holds the recipe and the
    digest of every file; `checksums.json` holds the checksums of their tensors.
    """

    folder: Path
    recipe: dict[str, Any]

    @property
    def path(self) -> Path:
        """Return the folder, under the name that a store gives it."""
        return self.folder

    def is_there(self) -> bool:
        return (self.folder / QUANTIZED_FILE).is_file()

    def files(self) -> dict[str, str]:
        """Return the names of its files with their digests."""
        index = read_object(self.folder / QUANTIZED_FILE)
        return _texts_in(index["files"])

    def count_bytes(self) -> int:
        """Return how many bytes it takes on the disk."""
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))

    def checksums(self) -> dict[str, str]:
        """Return, for each of its files, the checksums of its tensors; numbers are not read.

        Of a base that an earlier version wrote, or whose checksums are damaged, they are recorded
        now, once each file is found to have its digest.

        Raises:
            Damaged: it has not, or a file is missing or cut short; the message names
                `cache-base`, which makes the base anew.
        """
        record = self.folder / CHECKSUMS_FILE
        try:
            found: dict[str, str] = _texts_in(read_sealed(record))
        except (Broken, OSError):
            for damage in self.damages():
                raise Damaged(f"{damage}.", MAKE_ANEW) from None
            found = {name: checksums_in((self.folder / name).read_bytes()) for name in self.files()}
            with contextlib.suppress(QeditError):  # where nothing can be written, again next time
                write_json(record, sealed(found))
        for path in (self.folder / name for name in found):
            try:
                tensor_entries(path)
            except (Damaged, OSError):
                raise Damaged(f"{path} is missing or cut short.", MAKE_ANEW) from None
        return found

    def damage(self, *, fully: bool) -> str | None:
        """Return what is wrong with the base that is there; None if nothing is found.

        Args:
            fully: whether all of it is read, or headers alone.
        """
        try:
            self.checksums()
        except Damaged as error:
            return error.what
        damage = next(self.damages(), None) if fully else None
        return f"{damage}." if damage else None

    def damages(self, *, share: float = 1.0) -> Iterator[str]:
        """Yield a line for each file that is not as it was written.

        Args:
            share: the share of the files that is read, drawn anew every time.
        """
        index = self.folder / QUANTIZED_FILE
        try:
            with io_errors_as_damaged():
                files = self.files()
                whole = {**self.recipe, "files": files}
                is_ours = index.read_text(encoding="utf-8") == readable_json(whole)
        except (ValueError, KeyError, TypeError, AttributeError, Broken):
            is_ours = False
        if not is_ours:
            yield f"{index} is not as it was written"
            return
        for name, digest in files.items():
            path = self.folder / name
            if not path.is_file():
                yield f"{path} is missing"
            elif (share >= 1.0 or random.random() < share) and not has_digest(path, digest):
                yield f"{path} is not as it was written"


def _texts_in(found: dict[str, str]) -> dict[str, str]:
    if not all(isinstance(text, str) for text in found.values()):
        raise Broken("it names no digests or checksums")
    return found


# -- table and base together -------------------------------------------------------------


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

"""Turns the values of both files into a configuration, and finds every mistake on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from .checks import Links, check_dataset, check_settings
from .configuration import Configuration
from .datasets import Dataset
from .mistakes import ODD_TEXT, Mistake, holds_odd_text, mistakes_in, refuse
from .overrides import Change, put, target_of
from .remarks import (
    known_elsewhere,
    links_notes,
    meaningless_note,
    settings_notes,
    without_meaning,
)
from .settings import Settings

Model = TypeVar("Model", bound=BaseModel)

# A dataset with a mistake in one of these cannot be judged any further.
DECIDING_FIELDS = frozenset({"id", "type", "dataset_type", "disabled"})
TRUE_WORDS = ("true", "yes", "on", "1")


class Draft:
    """Reads both files' values into models and remembers what is wrong.

    A mistake in one value never hides the others: the rest is read without it.
    """

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []
        self.settings: Settings | None = None
        self.datasets: list[Dataset] = []
        self._config_file = self._data_file = ""
        self._changes: list[tuple[str | None, str, Change]] = []
        self._given: dict[str | None, tuple[str, ...]] = {}
        self._meaningless: dict[str, set[str]] = {}
        self._disabled: list[str] = []
        self._unread: list[str] = []

    def change_settings(self, raw: dict[str, Any], changes: Iterable[Change]) -> None:
        """Apply the `--set` of config.json to `raw`, in place."""
        for change in changes:
            if not change.for_data:
                self._put(raw, None, change.key, change)

    def change_datasets(self, raw: Any, changes: Iterable[Change]) -> None:
        """Apply the `--set data.…` to the entries in `raw`, in place."""
        entries = [entry for entry in raw if isinstance(entry, dict)]
        by_id = {str(entry.get("id")): entry for entry in reversed(entries)}
        for change in changes:
            if not change.for_data:
                continue
            target = target_of(change, by_id)
            if isinstance(target, Mistake):
                self.mistakes.append(target)
            else:
                self._put(by_id[target[0]], target[0], target[1], change)

    def _put(self, raw: dict[str, Any], dataset: str | None, key: str, change: Change) -> None:
        wrong = put(raw, key, change)
        if wrong is not None:
            self.mistakes.append(wrong)
        self._changes.append((dataset, key, change))

    def read_settings(self, raw: Mapping[str, Any], file: str) -> None:
        """Make `settings` of the values of config.json."""
        self._config_file = file
        raw, self._meaningless[file] = without_meaning(raw, Settings)
        self._given[None] = tuple(_dotted(raw))
        # While the flavour is not known, the one that asks least stands for it.
        self.settings = self._read(Settings, raw, None, fallback={"model_flavour": "edit-v3"})
        if self.settings is not None:
            wrong = [key for key in Settings.model_fields if self._is_wrong(None, key)]
            self._report(None, check_settings(self.settings, wrong=wrong))

    def read_datasets(self, raw: Sequence[Any], file: str) -> None:
        """Make `datasets` of the entries of multidatabackend.json."""
        self._data_file = file
        self._meaningless[file] = set()
        for number, entry in enumerate(raw, start=1):
            if isinstance(entry, dict):
                self._read_dataset(entry, number)
            else:
                self._wrong(f"number {number}", None, "must be an object in braces")
        ids = [str(entry["id"]) for entry in raw if isinstance(entry, dict) and "id" in entry]
        for name, times in Counter(ids).items():
            if times > 1:
                self._wrong(name, "id", f"is used by {times} datasets; every id must be unique")

    def _read_dataset(self, entry: dict[str, Any], number: int) -> None:
        name = str(entry["id"]) if "id" in entry else f"number {number}"
        if str(entry.get("disabled", "")).lower() in TRUE_WORDS:
            self._disabled.append(name)
            return
        raw, names = without_meaning(entry, Dataset)
        self._meaningless[self._data_file] |= names
        self._given[name] = tuple(_dotted(raw))
        dataset = self._read(Dataset, raw, name)
        if dataset is None:
            self._unread.append(name)
        else:
            self.datasets.append(dataset)
            self._report(name, check_dataset(dataset))

    def _read(
        self,
        model: type[Model],
        raw: Mapping[str, Any],
        dataset: str | None,
        *,
        fallback: Mapping[str, Any] | None = None,
    ) -> Model | None:
        """Return the model of `raw`, or of what is right in it; None when that is too little."""
        odd = {key for key, value in raw.items() if holds_odd_text([key, value])}
        self._report(dataset, [(key, ODD_TEXT) for key in odd])
        raw = {key: value for key, value in raw.items() if key not in odd}
        try:
            return model.model_validate(raw)
        except ValidationError as error:
            found = mistakes_in(error, model, known=known_elsewhere(model))
            wrong = {str(key) for mistake in error.errors() for key in mistake["loc"][:1]}
        self._report(dataset, found)
        if dataset is not None and wrong & DECIDING_FIELDS:
            return None
        right = {key: value for key, value in raw.items() if key not in wrong}
        stand_in = {key: value for key, value in (fallback or {}).items() if key in wrong}
        try:
            return model.model_validate({**right, **stand_in})
        except ValidationError:
            return None

    def check_links(self) -> None:
        """Find what is wrong between the datasets, and between them and the settings."""
        links = Links(self.datasets, disabled=self._disabled, unread=self._unread)
        for main in self.datasets:
            if main.is_main and self.settings is not None:
                flavour = self._known("model_flavour")
                sampling = self._known("conditioning_multidataset_sampling")
                self._report(main.id, links.check(main, flavour=flavour, sampling=sampling))
        tails = [dataset.id for dataset in self.datasets if dataset.dataset_type == "text_embeds"]
        for name in tails[1:]:
            self._wrong(name, "dataset_type", f'"text_embeds" is already that of "{tails[0]}"')
        self._check_eval(links)
        self._check_mains()

    def _known(self, key: str) -> Any:
        """Return the value of a setting; None where the user's own is wrong."""
        return None if self._is_wrong(None, key) else getattr(self.settings, key)

    def _check_eval(self, links: Links) -> None:
        name = self.settings.eval_dataset_id if self.settings else None
        if name is not None and (why := links.fault(name, "eval", "image")) is not None:
            self._report(None, [("eval_dataset_id", why)])

    def _check_mains(self) -> None:
        images = [dataset.id for dataset in self.datasets if dataset.dataset_type == "image"]
        held_out = self.settings.eval_dataset_id if self.settings else None
        if self._unread or set(images) - {held_out}:
            return
        text = 'no dataset to train on: one of `dataset_type` "image" is needed'
        if images:
            text += f', beside "{held_out}", the `eval_dataset_id`'
        self.mistakes.append(Mistake(self._data_file, text))

    def configuration(self) -> Configuration:
        """Return what has been read.

        Raises:
            WrongUse: with every mistake found on the way, one a line.
        """
        refuse(self.mistakes)
        assert self.settings is not None, "settings that cannot be read are a mistake"
        notes = tuple(self._notes(self.settings))
        origins = {
            (dataset, key): self._origin(dataset, key)
            for dataset, keys in self._given.items()
            for key in keys
        }
        return Configuration(self.settings, tuple(self.datasets), notes, origins)

    def _notes(self, settings: Settings) -> Iterable[str]:
        for file, names in self._meaningless.items():
            yield from meaningless_note(file, names)
        yield from settings_notes(self._given[None], settings)
        yield from links_notes(self.datasets, self._given)

    def wrong_setting(self, key: str, text: str) -> None:
        """Remember a mistake in config.json that shows only when it is used."""
        self._report(None, [(key, text)])

    def _report(self, dataset: str | None, found: Iterable[tuple[str, str]]) -> None:
        """Remember mistakes, but only the first pass that finds one in a key."""
        for key, text in [finding for finding in found if not self._is_wrong(dataset, finding[0])]:
            self._wrong(dataset, key, text)

    def _wrong(self, dataset: str | None, key: str | None, text: str) -> None:
        label = self._origin(dataset, key or "")
        self.mistakes.append(Mistake(label, text, dataset=dataset, key=key))

    def _origin(self, dataset: str | None, key: str) -> str:
        """Return the last `--set` of a key, or of an object that holds it, or else the file."""
        for place, path, change in reversed(self._changes):
            inside = f"{key}.".startswith(f"{path}.") or f"{path}.".startswith(f"{key}.")
            if place == dataset and inside:
                return change.label
        return self._config_file if dataset is None else self._data_file

    def _is_wrong(self, dataset: str | None, key: str) -> bool:
        top = key.partition(".")[0]
        return any(
            mistake.dataset == dataset and (mistake.key or "").partition(".")[0] == top
            for mistake in self.mistakes
        )


def _dotted(raw: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys of an object, and with dots those of the objects in it."""
    for key, value in raw.items():
        yield key
        if isinstance(value, dict):
            yield from (f"{key}.{inner}" for inner in value)

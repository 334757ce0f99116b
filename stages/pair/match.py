"""Matching of references to targets, by relative path without the extension."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, KeysView, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest

from ...cache.errors import WrongUse
from ...cache.files.fingerprint import digest_bytes
from ..samples.schema import Rejection
from .scan import Files, printable

SHOWN_EXAMPLES = 2

Places = tuple[int, ...]


@dataclass
class Matched:
    """The pictures of a main dataset that belong together, and those that are alone.

    Attributes:
        matches: in the order of targets: the places of the target, of its references in their
            order, of its mask.
    """

    matches: list[Places] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)


def stem_of(path: str) -> str:
    """Return what files are matched by: the path without its extension, in Unicode's form NFC.

    macOS stores é as two characters; the same name is meant.
    """
    folder, slash, name = path.rpartition("/")
    stem = folder + slash + name.rpartition(".")[0]
    return stem if stem.isascii() else unicodedata.normalize("NFC", stem)


class Candidates:
    """The pictures of a folder under the names they are matched by."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._first: dict[str, int] = {}
        self._several: dict[str, list[int]] = {}
        for place, path in enumerate(files.paths):
            stem = stem_of(path)
            first = self._first.setdefault(stem, place)
            if first != place:
                self._several.setdefault(stem, [first]).append(place)

    @property
    def stems(self) -> KeysView[str]:
        """All names."""
        return self._first.keys()

    def places(self, stem: str) -> Sequence[int]:
        """Return the places of the pictures of this name: several have different extensions."""
        if stem in self._several:
            return self._several[stem]
        return (self._first[stem],) if stem in self._first else ()

    def paths(self, stem: str) -> list[str]:
        """Return the paths of the pictures of this name."""
        return [self._files.paths[place] for place in self.places(stem)]


def match(
    main: str,
    targets: Candidates,
    references: Mapping[str, Candidates],
    mask: tuple[str, Candidates] | None = None,
) -> Matched:
    """Find every target's references and, where there are masks, its mask.

    Args:
        main: id of the targets' dataset.
        references: id of each reference dataset, in its order -> its pictures.
        mask: the same of the masks.
    """
    matched = Matched()
    sides = {main: targets, **references, **dict([mask] if mask else [])}
    for stem in sorted(targets.stems):
        places = [candidates.places(stem) for candidates in sides.values()]
        if all(len(found) == 1 for found in places):
            matched.matches.append(tuple(place for (place,) in places))
            continue
        sample = targets.paths(stem)[0]
        matched.rejections += (
            _wrong(sample, dataset, found, is_mask=bool(mask and dataset == mask[0]))
            for dataset, candidates in sides.items()
            if len(found := candidates.paths(stem)) != 1
        )
    return matched


def extras(
    dataset: str, candidates: Candidates, wanted: Collection[str], *, is_mask: bool = False
) -> list[Rejection]:
    """Return rejections for references, or masks, that belong to no target of any dataset."""
    reason, what = ("extra_mask", "mask") if is_mask else ("extra_reference", "reference")
    return [
        Rejection(path, dataset, path, reason, f"a {what} without a target")
        for stem in sorted(candidates.stems)
        if stem not in wanted
        for path in candidates.paths(stem)
    ]


def refuse_strangers(main: str, targets: Candidates, references: Mapping[str, Candidates]) -> None:
    """Raise if a reference dataset has no stem in common with the targets.

    Raises:
        WrongUse: with names of both sides, since one folder is likely the wrong one.
    """
    for dataset, candidates in references.items():
        if targets.stems.isdisjoint(candidates.stems):
            raise WrongUse(
                f"No target of {main} has a picture in {dataset}. Pictures are paired by their "
                f"path inside the folder, without the extension.\n"
                f"  {main}: {_examples(targets)}\n  {dataset}: {_examples(candidates)}",
                "Give both pictures of a pair the same name, or fix `instance_data_dir`.",
            )


def subset(targets: Collection[str], most: int) -> set[str]:
    """Return at most so many paths, drawn by a digest of their names: the same ones every time."""
    return set(nsmallest(most, targets, key=lambda path: digest_bytes(stem_of(path).encode())))


def _wrong(sample: str, dataset: str, paths: Sequence[str], *, is_mask: bool) -> Rejection:
    if not paths:
        reason = "missing_mask" if is_mask else "missing_reference"
        return Rejection(sample, dataset, sample, reason, f"no picture of this name in {dataset}")
    names = " and ".join(paths)
    return Rejection(sample, dataset, paths[0], "ambiguous", f"one name, several files: {names}")


def _examples(candidates: Candidates) -> str:
    stems = nsmallest(SHOWN_EXAMPLES, candidates.stems)
    firsts = [candidates.paths(stem)[0] for stem in stems]
    more = ", ..." if len(candidates.stems) > SHOWN_EXAMPLES else ""
    return printable(", ".join(firsts)) + more

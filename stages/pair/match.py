"""Match: which reference belongs to which target, by relative path without the extension."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ...cache.errors import WrongUse
from ..pair_rows import Rejection
from .scan import File, Scan

SHOWN_EXAMPLES = 2

Candidates = dict[str, list[File]]


@dataclass(frozen=True, slots=True)
class Match:
    """A target and its reference files, one from each reference dataset, in their order."""

    target: File
    references: tuple[File, ...]


@dataclass
class Matched:
    """All matches of a main dataset in the order of their targets, and what found no partner."""

    matches: list[Match] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)


def stem_of(path: str) -> str:
    """What files are matched by: the path without its extension, composed as Unicode's NFC.

    macOS stores é as two characters; the same name is meant.
    """
    folder, slash, name = path.rpartition("/")
    stem = folder + slash + name.rpartition(".")[0]
    return stem if stem.isascii() else unicodedata.normalize("NFC", stem)


def by_stem(scan: Scan) -> Candidates:
    """The pictures of `scan` under the names they are matched by."""
    candidates: Candidates = defaultdict(list)
    for path, file in scan.pictures.items():
        candidates[stem_of(path)].append(file)
    return dict(candidates)


def match(main: str, targets: Candidates, references: Mapping[str, Candidates]) -> Matched:
    """Find every target's references.

    Args:
        main: id of the targets' dataset.
        references: id of each reference dataset, in its order -> its pictures.
    """
    matched = Matched()
    for stem in sorted(targets):
        sides = {main: targets[stem]} | {
            dataset: candidates.get(stem, []) for dataset, candidates in references.items()
        }
        sample = targets[stem][0].path
        wrong = [
            _wrong(sample, dataset, files) for dataset, files in sides.items() if len(files) != 1
        ]
        if wrong:
            matched.rejections += wrong
        else:
            target, *others = (files[0] for files in sides.values())
            matched.matches.append(Match(target, tuple(others)))
    return matched


def extras(dataset: str, candidates: Candidates, wanted: Collection[str]) -> list[Rejection]:
    """References for which no target of any dataset asks."""
    return [
        Rejection(file.path, dataset, file.path, "extra_reference", "a reference without a target")
        for stem in sorted(candidates)
        if stem not in wanted
        for file in candidates[stem]
    ]


def refuse_strangers(main: str, targets: Candidates, references: Mapping[str, Candidates]) -> None:
    """Stop where a reference dataset has not one name in common with the targets.

    Raises:
        WrongUse: shows names of both sides, since one folder is likely the wrong one.
    """
    for dataset, candidates in references.items():
        if targets.keys().isdisjoint(candidates):
            raise WrongUse(
                f"No target of {main} has a reference in {dataset}. Pictures are paired by their "
                f"path inside the folder, without the extension.\n"
                f"  {main}: {_examples(targets)}\n  {dataset}: {_examples(candidates)}",
                "Give each pair the same name, or correct `instance_data_dir`.",
            )


def subset(matches: Sequence[Match], most: int | None) -> list[Match]:
    """At most so many matches, drawn by a digest of their names: the same ones every time."""
    if most is None or len(matches) <= most:
        return list(matches)
    drawn = sorted(matches, key=lambda one: _lot(stem_of(one.target.path)))[:most]
    return sorted(drawn, key=lambda one: one.target.path)


def _lot(stem: str) -> bytes:
    return hashlib.blake2b(stem.encode(), digest_size=16).digest()


def _wrong(sample: str, dataset: str, files: Sequence[File]) -> Rejection:
    if not files:
        return Rejection(
            sample, dataset, sample, "missing_reference", f"no picture of this name in {dataset}"
        )
    names = " and ".join(file.path for file in files)
    return Rejection(
        sample, dataset, files[0].path, "ambiguous", f"one name, several files: {names}"
    )


def _examples(candidates: Candidates) -> str:
    firsts = [candidates[stem][0].path for stem in sorted(candidates)[:SHOWN_EXAMPLES]]
    more = ", ..." if len(candidates) > SHOWN_EXAMPLES else ""
    return ", ".join(firsts) + more

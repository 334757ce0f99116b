"""Match: which reference belongs to which target, by relative path without the extension."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest

from ...cache.errors import WrongUse
from ..pair_rows import Rejection
from .scan import File, Scan, printable

SHOWN_EXAMPLES = 2

Candidates = dict[str, list[File]]


@dataclass(frozen=True, slots=True)
class Match:
    """A target, its reference files, one from each reference dataset in their order, its mask."""

    target: File
    references: tuple[File, ...]
    mask: File | None = None


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
    for file in scan.pictures:
        candidates[stem_of(file.path)].append(file)
    return dict(candidates)


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
    pools = {**references, **dict([mask] if mask else [])}
    for stem in sorted(targets):
        sides = {main: targets[stem]} | {
            dataset: candidates.get(stem, []) for dataset, candidates in pools.items()
        }
        sample = targets[stem][0].path
        wrong = [
            _wrong(sample, dataset, files, is_mask=bool(mask and dataset == mask[0]))
            for dataset, files in sides.items()
            if len(files) != 1
        ]
        if wrong:
            matched.rejections += wrong
        else:
            target, *others = (files[0] for files in sides.values())
            last = others.pop() if mask else None
            matched.matches.append(Match(target, tuple(others), last))
    return matched


def extras(
    dataset: str, candidates: Candidates, wanted: Collection[str], *, is_mask: bool = False
) -> list[Rejection]:
    """References, or masks, for which no target of any dataset asks."""
    reason, what = ("extra_mask", "mask") if is_mask else ("extra_reference", "reference")
    return [
        Rejection(file.path, dataset, file.path, reason, f"a {what} without a target")
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
                f"No target of {main} has a picture in {dataset}. Pictures are paired by their "
                f"path inside the folder, without the extension.\n"
                f"  {main}: {_examples(targets)}\n  {dataset}: {_examples(candidates)}",
                "Give each pair the same name, or correct `instance_data_dir`.",
            )


def subset(targets: Collection[str], most: int) -> set[str]:
    """At most so many paths, drawn by a digest of their names: the same ones every time."""
    return set(nsmallest(most, targets, key=lambda path: _lot(stem_of(path))))


def _lot(stem: str) -> bytes:
    return hashlib.blake2b(stem.encode(), digest_size=16).digest()


def _wrong(sample: str, dataset: str, files: Sequence[File], *, is_mask: bool) -> Rejection:
    if not files:
        reason = "missing_mask" if is_mask else "missing_reference"
        return Rejection(sample, dataset, sample, reason, f"no picture of this name in {dataset}")
    names = " and ".join(file.path for file in files)
    return Rejection(
        sample, dataset, files[0].path, "ambiguous", f"one name, several files: {names}"
    )


def _examples(candidates: Candidates) -> str:
    firsts = [candidates[stem][0].path for stem in sorted(candidates)[:SHOWN_EXAMPLES]]
    more = ", ..." if len(candidates) > SHOWN_EXAMPLES else ""
    return printable(", ".join(firsts)) + more

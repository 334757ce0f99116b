"""Overview: a whole pairs table in numbers, and the few samples of it that a page shows."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from pathlib import Path
from typing import Any

from ...cache.errors import Damaged
from ...cache.tables import read_table
from ..pairs_table import blocks_in
from ..samples import Sample
from .look import alike_groups, are_alike
from .memory import MEMORY_FILE

SHOWN_SAMPLES = 96
SHOWN_FLAGGED = 48
SHOWN_GROUPS = 30
LOOKED_AT_SAMPLES = 300_000  # beyond that, comparing every target with its like takes too long
_LENGTHS = (3, 5, 10, 20, 40, 80, 160)  # words
_COMMON = frozenset({"upscaled", "not_decoded"})  # too common to be worth a place on the page
ALIKE, HARDLY_CHANGED = "near_duplicate", "hardly_changed"


@dataclass
class Overview:
    """What a page says of the samples.

    Attributes:
        chosen: the samples shown with their pictures, by `rule`; `flags` of each by name.
        looks: how many samples carry the flags that come from comparing looks.
    """

    totals: dict[str, int] = field(default_factory=dict)
    buckets: list[dict[str, Any]] = field(default_factory=list)
    lengths: list[dict[str, Any]] = field(default_factory=list)
    caption_words: str = ""
    alike: list[list[str]] = field(default_factory=list)
    alike_groups: int = 0
    looks: dict[str, int] = field(default_factory=dict)
    chosen: list[Sample] = field(default_factory=list)
    flags: dict[str, list[str]] = field(default_factory=dict)
    rule: str = ""


def overview_of(table: Path, memories: Mapping[str, Path], main: str) -> Overview:
    """Go through `table` once for the numbers, and once more for the samples to show."""
    looks = {name: _looks_in(folder / MEMORY_FILE) for name, folder in memories.items()}
    sizes, words, alternatives = Counter[tuple[int, int]](), Counter[int](), 0
    names: list[str] = []
    targets: dict[str, int] = {}  # one entry a file: it may be the target of several samples
    codes: dict[str, tuple[str, ...]] = {}
    warned, hardly, longest = 0, set[str](), 0
    for sample, warnings in _rows(table):
        names.append(sample.name)
        sizes[sample.target.size] += 1
        alternatives += len(sample.captions)
        for caption in sample.captions:
            count = len(caption.split())
            longest = max(longest, count)
            words[next((most for most in _LENGTHS if count <= most), 0)] += 1
        warned += bool(warnings)
        if special := tuple(code for code in warnings if code not in _COMMON):
            codes[sample.name] = special
        look = looks[main].get(sample.target.path)
        if look:
            targets.setdefault(sample.target.path, look)
            first = sample.references[0]
            other = looks[first.dataset].get(first.path)
            if other and are_alike(look, other):
                hardly.add(sample.name)
    groups = _groups(targets)
    doubles = {path for group in groups for path in group}
    found = Overview(
        totals={"warned": warned, "captions": alternatives, "alike": len(doubles)},
        buckets=_buckets(sizes),
        lengths=_lengths(words),
        caption_words=f"Words in each caption; the longest has {longest}. "
        f"{alternatives / max(len(names), 1):.1f} captions a pair.",
        alike=groups[:SHOWN_GROUPS],
        alike_groups=len(groups),
        looks={HARDLY_CHANGED: len(hardly), ALIKE: len(doubles)},
    )
    chosen = _choice(names, codes.keys() | hardly)
    found.rule = _rule(len(names), len(chosen))
    for sample, warnings in _rows(table):
        if sample.name in chosen:
            found.chosen.append(sample)
            own = [(ALIKE, sample.target.path in doubles), (HARDLY_CHANGED, sample.name in hardly)]
            found.flags[sample.name] = [*warnings, *(flag for flag, holds in own if holds)]
    return found


def _rows(table: Path) -> Iterator[tuple[Sample, tuple[str, ...]]]:
    for samples, warnings in blocks_in(table):
        yield from zip(samples, map(tuple, warnings), strict=True)


def _looks_in(memory: Path) -> dict[str, int]:
    """Path -> look of the pictures remembered there; nothing where nothing is remembered."""
    try:
        rows = read_table(memory, ["path", "look"])
    except (FileNotFoundError, Damaged):
        return {}  # near-duplicates are not found then; the pairs are as they were
    return dict(zip(rows["path"].to_pylist(), rows["look"].to_pylist(), strict=True))


def _groups(targets: Mapping[str, int]) -> list[list[str]]:
    if len(targets) > LOOKED_AT_SAMPLES:
        return []
    paths = list(targets)
    return [[paths[place] for place in group] for group in alike_groups(list(targets.values()))]


def _buckets(sizes: Counter[tuple[int, int]]) -> list[dict[str, Any]]:
    return [
        {"label": f"{width} \u00d7 {height}", "width": width, "height": height, "count": count}
        for (width, height), count in sizes.most_common()
    ]


def _lengths(words: Counter[int]) -> list[dict[str, Any]]:
    least = (0, *(most + 1 for most in _LENGTHS))
    labels = [f"{low} to {most}" for low, most in zip(least[:-1], _LENGTHS, strict=True)]
    rows = [*zip(labels, (words[most] for most in _LENGTHS), strict=True)]
    rows.append((f"over {_LENGTHS[-1]}", words[0]))
    while len(rows) > 1 and not rows[-1][1]:
        rows.pop()
    return [{"label": label, "count": count} for label, count in rows]


def _choice(names: Sequence[str], flagged: frozenset[str] | set[str]) -> set[str]:
    """All names where they are few; else some with a flag and some drawn from all."""
    if len(names) <= SHOWN_SAMPLES:
        return set(names)
    chosen = set(nsmallest(SHOWN_FLAGGED, flagged, key=_lot))
    rest = (name for name in names if name not in chosen)
    return chosen | set(nsmallest(SHOWN_SAMPLES - len(chosen), rest, key=_lot))


def _lot(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def _rule(total: int, shown: int) -> str:
    if shown == total:
        return "The page holds all of them."
    return (
        f"The page holds {shown} of {total:,} pairs: up to {SHOWN_FLAGGED} with something to look "
        "at, the others drawn by a digest of their names, the same ones every time."
    )

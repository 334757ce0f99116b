"""An overview of a pairs table: the numbers and the few samples that its page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...cache.errors import Damaged
from ...cache.files.fingerprint import digest_bytes
from ...cache.format.tables import read_table, table_in
from ..samples.sample import Sample
from ..samples.schema import blocks_at, flat, samples_in
from ..samples.table import verified
from .perceptual_hash import Looks, alike_groups
from .picture_records import MEMORY_FILE

Flags = npt.NDArray[np.bool_]

# Of 64. A saved copy differs in none or one; an edit of a few hundredths of a picture in more.
HARDLY_BITS = 1
SHOWN_SAMPLES = 96
SHOWN_FLAGGED = 48
SHOWN_GROUPS = 30
SHOWN_NAMES = 12  # of each group
_LENGTHS = (3, 5, 10, 20, 40, 80, 160)  # words
_COMMON = frozenset({"upscaled", "not_decoded"})  # too common to be worth a place on the page
_COLUMNS = (
    "sample",
    "target.path",
    "target.size",
    "references.list.element.dataset",
    "references.list.element.path",
    "captions",
    "warnings",
)
ALIKE, HARDLY_CHANGED = "near_duplicate", "hardly_changed"


@dataclass
class Overview:
    """The numbers and samples of a page.

    Attributes:
        totals: counts for the head of the page.
        parts: further parts of the page's data by their names, as they are.
        looks: how many samples carry the flags that come from comparing looks.
        chosen: the samples shown with their pictures.
        flags: those of each chosen sample, by its name.
    """

    totals: dict[str, int]
    parts: dict[str, Any]
    looks: dict[str, int]
    chosen: list[Sample] = field(default_factory=list)
    flags: dict[str, list[str]] = field(default_factory=dict)


def overview_of(table: Path, memories: Mapping[str, Path], main: str) -> Overview:
    """Read the columns of `table` for the numbers, and the rows of the samples to show.

    Works on columns, so that a million pairs are counted in seconds.

    Args:
        memories: dataset id -> the folder of what is remembered of its pictures.
        main: id of the targets' dataset.
    """
    columns = table_in(verified(table).read_bytes(), _COLUMNS)
    targets = flat(columns["target"])
    looks = _looks_of(targets.field("path"), memories[main] / MEMORY_FILE)
    before = _looks_of_references(flat(columns["references"]), memories)
    hardly = (looks != 0) & (before != 0) & (np.bitwise_count(looks ^ before) <= HARDLY_BITS)
    # each file once: several samples may have the same target
    files = targets.field("path").dictionary_encode()
    names, places = files.dictionary, files.indices.to_numpy(zero_copy_only=False)
    groups = alike_groups(looks[np.unique(places, return_index=True)[1]])
    doubles = np.isin(places, [place for group in groups for place in group])
    in_groups = sum(map(len, groups))
    words = _words_in(flat(columns["captions"]).flatten())
    samples = columns["sample"].to_pylist()
    warned, special = _warned(flat(columns["warnings"]))
    chosen = _choice(samples, np.flatnonzero(special | hardly | doubles).tolist())
    found = Overview(
        totals={"warned": int(warned.sum()), "captions": len(words), "alike": in_groups},
        parts={
            "buckets": _buckets(targets.field("size")),
            "lengths": _lengths(words),
            "captions": f"Words in each caption; the longest has {words.max(initial=0)}. "
            f"{len(words) / max(len(samples), 1):.1f} captions a pair.",
            "alike": [_shown(group, names) for group in groups[:SHOWN_GROUPS]],
            "alike_groups": len(groups),
            "rule": _rule(len(samples), len(chosen)),
        },
        looks={HARDLY_CHANGED: int(hardly.sum()), ALIKE: in_groups},
    )
    for rows, block in blocks_at(table, np.asarray(chosen, np.int64)):
        warnings = block["warnings"].to_pylist()
        for row, sample, codes in zip(rows.tolist(), samples_in(block), warnings, strict=True):
            own = [(ALIKE, doubles[row]), (HARDLY_CHANGED, hardly[row])]
            found.chosen.append(sample)
            found.flags[sample.name] = [*codes, *(flag for flag, holds in own if holds)]
    return found


def _looks_of(paths: pa.Array, memory: Path) -> Looks:
    """Return the look of each picture; 0 where none is remembered."""
    try:
        rows = read_table(memory, ["path", "look"])
    except (FileNotFoundError, Damaged):
        return np.zeros(len(paths), np.uint64)  # near-duplicates are not found then
    known = np.append(rows["look"].to_numpy(), np.uint64(0))
    at = pc.fill_null(pc.index_in(paths, value_set=flat(rows["path"])), len(known) - 1)
    found: Looks = known[at.to_numpy(zero_copy_only=False)]
    return found


def _looks_of_references(lists: pa.Array, memories: Mapping[str, Path]) -> Looks:
    """Return the look of each sample's first reference."""
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    firsts = lists.flatten().take(pa.array(np.cumsum(lengths) - lengths))
    datasets, looks = firsts.field("dataset"), np.zeros(len(lists), np.uint64)
    for dataset in pc.unique(datasets).to_pylist():
        here = pc.equal(datasets, dataset)
        paths = firsts.field("path").filter(here)
        looks[here.to_numpy(zero_copy_only=False)] = _looks_of(
            paths, memories[dataset] / MEMORY_FILE
        )
    return looks


def _shown(group: Sequence[int], names: pa.Array) -> list[str]:
    shown = [str(names[place]) for place in group[:SHOWN_NAMES]]
    rest = len(group) - len(shown)
    return [*shown, f"and {rest:,} more"] if rest else shown


def _words_in(captions: pa.Array) -> npt.NDArray[np.int64]:
    pieces = pc.list_value_length(pc.utf8_split_whitespace(captions))
    counts = pc.if_else(pc.equal(captions, ""), 0, pieces)
    found: npt.NDArray[np.int64] = counts.to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def _warned(lists: pa.Array) -> tuple[Flags, Flags]:
    """Return masks of samples with a warning, and with one that is worth a place on the page."""
    every, special = np.zeros(len(lists), bool), np.zeros(len(lists), bool)
    parents = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    common = pc.is_in(lists.flatten(), value_set=pa.array(sorted(_COMMON)))
    every[parents] = True
    special[parents[~common.to_numpy(zero_copy_only=False)]] = True
    return every, special


def _buckets(sizes: pa.Array) -> list[dict[str, Any]]:
    """Count the targets of each size, the most frequent first."""
    pairs = sizes.flatten().to_numpy(zero_copy_only=False).reshape(-1, 2)
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    return [
        {"label": f"{width} \u00d7 {height}", "width": width, "height": height, "count": count}
        for (width, height), count in sorted(
            zip(found.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1]
        )
    ]


def _lengths(words: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    counts = np.bincount(np.searchsorted(_LENGTHS, words), minlength=len(_LENGTHS) + 1).tolist()
    least = (0, *(most + 1 for most in _LENGTHS))
    labels = [f"{low} to {most}" for low, most in zip(least[:-1], _LENGTHS, strict=True)]
    labels.append(f"over {_LENGTHS[-1]}")
    rows = list(zip(labels, counts, strict=True))
    while len(rows) > 1 and not rows[-1][1]:
        rows.pop()
    return [{"label": label, "count": count} for label, count in rows]


def _choice(names: Sequence[str], flagged: Sequence[int]) -> list[int]:
    """Choose all rows where they are few, else some with a flag and some drawn from all."""
    if len(names) <= SHOWN_SAMPLES:
        return list(range(len(names)))

    def lot(row: int) -> str:
        return digest_bytes(names[row].encode())

    chosen = set(nsmallest(SHOWN_FLAGGED, flagged, key=lot))
    rest = (row for row in range(len(names)) if row not in chosen)
    return sorted(chosen | set(nsmallest(SHOWN_SAMPLES - len(chosen), rest, key=lot)))


def _rule(total: int, shown: int) -> str:
    if shown == total:
        return "The page holds all of them."
    return (
        f"The page holds {shown} of {total:,} pairs: up to {SHOWN_FLAGGED} with something to look "
        "at, the others drawn by a digest of their names, the same ones every time."
    )

"""Changes: what is new, different, gone or renamed since the last table."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ..samples.sample import Sample

Row = tuple[Sample, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Changes:
    """Numbers of samples; a renamed one counts neither as added nor as removed."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    renamed: int = 0

    @property
    def computed(self) -> int:
        """Samples whose row of the table is new."""
        return self.added + self.changed + self.renamed

    def __add__(self, other: Changes) -> Changes:
        return Changes(
            self.added + other.added,
            self.changed + other.changed,
            self.removed + other.removed,
            self.renamed + other.renamed,
        )

    def counts(self) -> dict[str, int]:
        """By kind, for `--json`."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """One line where a table that was there is another now."""
        if self.changed or self.removed or self.renamed:
            yield ", ".join(f"{count} {kind}" for kind, count in self.counts().items() if count)


class Tally:
    """Compares a table with the one before it, row by row, keeping three numbers a sample.

    Renamed: another name for the same target and references.
    """

    def __init__(self, before: Iterable[Sample]) -> None:
        self._before, self._after = array("q"), array("q")
        for sample in before:
            self._before.extend(_hashes(sample))

    def passing(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Hand `rows` on and count them."""
        for row in rows:
            self._after.extend(_hashes(row[0]))
            yield row

    def changes(self) -> Changes:
        """What the rows counted so far change; those not seen are taken to be gone."""
        before, after = (
            np.asarray(hashes).reshape(-1, 3) for hashes in (self._before, self._after)
        )
        _, stayed, stays = np.intersect1d(before[:, 0], after[:, 0], return_indices=True)
        gone, come = np.delete(before, stayed, axis=0), np.delete(after, stays, axis=0)
        renamed = int(np.isin(come[:, 2], gone[:, 2]).sum())
        return Changes(
            added=len(come) - renamed,
            changed=int((before[stayed, 1] != after[stays, 1]).sum()),
            removed=max(len(gone) - renamed, 0),
            renamed=renamed,
        )


def _hashes(sample: Sample) -> tuple[int, int, int]:
    """Of its name, of all of it, of its pictures' content."""
    content = (sample.target.digest, *(picture.digest for picture in sample.references))
    return hash(sample.name), hash(sample), hash(content)

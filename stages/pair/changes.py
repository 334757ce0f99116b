"""Changes: what is new, different, gone or renamed since the last table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from ..samples import Sample

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
    """Compares a table with the one before it, row by row, keeping two numbers a sample.

    Renamed: another name for the same target and references.
    """

    def __init__(self, before: Iterable[Sample]) -> None:
        self._gone = {sample.name: (hash(sample), hash(_content(sample))) for sample in before}
        self._come: list[int] = []
        self._changed = 0

    def passing(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Hand `rows` on and count them."""
        for row in rows:
            sample = row[0]
            if (known := self._gone.pop(sample.name, None)) is None:
                self._come.append(hash(_content(sample)))
            else:
                self._changed += known[0] != hash(sample)
            yield row

    def changes(self) -> Changes:
        """What the rows counted so far change; those not seen are taken to be gone."""
        contents = {content for _, content in self._gone.values()}
        renamed = sum(content in contents for content in self._come)
        return Changes(
            added=len(self._come) - renamed,
            changed=self._changed,
            removed=max(len(self._gone) - renamed, 0),
            renamed=renamed,
        )


def _content(sample: Sample) -> tuple[str, ...]:
    return (sample.target.digest, *(picture.digest for picture in sample.references))

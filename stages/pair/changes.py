"""Changes: what is new, different, gone or renamed since the last table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from ..samples import Sample


@dataclass(frozen=True, slots=True)
class Changes:
    """Numbers of samples; a renamed one counts neither as added nor as removed."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    renamed: int = 0

    @classmethod
    def between(cls, before: Sequence[Sample], now: Sequence[Sample]) -> Changes:
        """Compare two tables. Renamed: another name for the same target and references."""
        old = {sample.name: sample for sample in before}
        new = {sample.name: sample for sample in now}
        gone = [old[name] for name in old if name not in new]
        come = [new[name] for name in new if name not in old]
        contents = {_content(sample) for sample in gone}
        renamed = sum(_content(sample) in contents for sample in come)
        return cls(
            added=len(come) - renamed,
            changed=sum(new[name] != sample for name, sample in old.items() if name in new),
            removed=max(len(gone) - renamed, 0),
            renamed=renamed,
        )

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


def _content(sample: Sample) -> tuple[str, ...]:
    return (sample.target.digest, *(picture.digest for picture in sample.references))

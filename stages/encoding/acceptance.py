"""Rejected rows among those that are wanted, and the check that they are accepted, as in `pair`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...cache.errors import NotComplete
from ...cache.store.rejected_rows import RejectedRow, RejectedRows
from ...cache.store.store_set import StoreSet
from ..samples.store_keys import Keys, PairsKeys
from ..stores.row_kinds import RowKind
from .work_split import Shard

SHOWN = 5

OnReject = Literal["fail", "skip"]


class Rejections:
    """Rows that are wanted and were rejected, and how many samples that touches.

    Args:
        shard: look at the rows of this shard alone; those of others are in `other_shards`.

    Attributes:
        places: by key, where the rejection is remembered.
        other_shards: the kinds of the rows of other shards, by key.
    """

    def __init__(self, shard: Shard | None = None) -> None:
        self.places: dict[str, RejectedRows] = {}
        self.other_shards: dict[str, RowKind] = {}
        self._shard = shard
        self._samples: set[tuple[Path, int]] = set()

    def look(
        self,
        kind: RowKind,
        store_set: StoreSet,
        table: PairsKeys,
        keys: Keys,
        *,
        deciding: Keys | None = None,
    ) -> None:
        """Take in what of `keys`, wanted by `table`, was rejected.

        Args:
            deciding: the keys, by the table's rows, whose shards the rows are in; None: each
                key is in its own.
        """
        rejected = store_set.rejected()
        if not rejected:
            return
        wanted = np.asarray(pc.is_in(keys.keys, value_set=pa.array(list(rejected), pa.string())))
        found, rows = keys.keys.filter(pa.array(wanted)), keys.rows[wanted]
        of_shard = found
        if deciding is not None:
            of_shard = deciding.keys.take(pa.array(np.searchsorted(deciding.rows, rows)))
        for key, row, decides in zip(
            found.to_pylist(), rows.tolist(), of_shard.to_pylist(), strict=True
        ):
            if self._shard is None or self._shard.has(decides):
                self.places[key] = rejected[key]
                self._samples.add((table.path, row))
            else:
                self.other_shards[key] = kind

    def forget(self) -> None:
        """Forget all of them, so that they are encoded again."""
        for key, place in self.places.items():
            place.forget([key])
        self.places.clear()
        self._samples.clear()

    def rows(self) -> list[RejectedRow]:
        """Return all of them that no other process has forgotten since."""
        found = (place.read(key) for key, place in sorted(self.places.items()))
        return [row for row in found if row is not None]

    def settle(self, *, stage: str, on_reject: OnReject, max_rejected: int) -> None:
        """Accept them if that was asked for, else stop unless they were accepted before.

        Raises:
            NotComplete: reasons, the first pictures, and how to go on without them.
        """
        samples = len(self._samples)
        if on_reject == "skip" or samples <= max_rejected:
            for key, place in self.places.items():
                place.accept([key])
            return
        rows = self.rows()
        if all(row.accepted for row in rows):
            return
        reasons = Counter(row.reason for row in rows)
        lines = [f"Rejected samples: {samples}. Rows that could not be made: {len(rows)}."]
        lines += [f"{reason}: {count}" for reason, count in sorted(reasons.items())]
        lines += [f"  {row}" for row in rows[:SHOWN]]
        lines += [f"  ... and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else []
        raise NotComplete(
            "\n".join(lines),
            f"Fix them and run `qedit {stage} --retry-rejected`, or go on without them: "
            f"`qedit {stage} --on-reject skip` or `--max-rejected {samples}`.",
        )

    def lines(self) -> list[str]:
        """Return a line for each reason."""
        reasons = Counter(row.reason for row in self.rows())
        return [f"rejected: {count} {reason}" for reason, count in sorted(reasons.items())]

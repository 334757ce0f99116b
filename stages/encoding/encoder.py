"""The protocols that a stage's encoder follows, and the rows that come of one item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ...cache.store.rejected_rows import RejectedRow
from ..stores.row_kinds import RowKind


@dataclass(frozen=True)
class EncodedItem:
    """The rows that came of one item.

    Attributes:
        rows: by kind and key.
        rejected: by kind, the rows that there cannot be.
        datasets: by key, of rows that belong to another dataset than the item.
    """

    rows: dict[RowKind, dict[str, np.ndarray]] = field(default_factory=dict)
    rejected: dict[RowKind, list[RejectedRow]] = field(default_factory=dict)
    datasets: dict[str, str] = field(default_factory=dict)


class Unfit(Exception):
    """An item that no row can be made of: `reason` is a short code, `detail` says it in words."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


@runtime_checkable
class Encoder(Protocol):
    """A model on its device."""

    @property
    def device(self) -> Any: ...  # a torch.device: without work to do, torch is not imported

    def encode(self, items: Sequence[Any], read: Sequence[Any]) -> list[EncodedItem]:
        """Return the rows of each of `items`, given what `Encoding.read` returned of them."""
        ...


@runtime_checkable
class Encoding(Protocol):
    """Reads, compares and names the items of a stage, for the pipeline."""

    def read(self, item: Any) -> Any:
        """Do what needs no model, in some thread; raises Unfit for an item without rows."""
        ...

    def cost(self, item: Any) -> int:
        """Return how large the item is for the encoder, in a measure of its own."""
        ...

    def together(self, first: Any, other: Any) -> bool:
        """Return whether `other` may be in a batch that begins with `first`."""
        ...

    def rejected(self, item: Any, unfit: Unfit) -> EncodedItem:
        """Return the rejected rows of an item that could not be read."""
        ...

    def name(self, item: Any) -> str:
        """Return the name of the item's picture or sample, for messages."""
        ...

    def open(self) -> Encoder:
        """Load the encoder onto its device."""
        ...

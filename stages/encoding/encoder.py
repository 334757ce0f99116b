"""What the engine asks of an encoder, and what it is given back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ...cache.store.rejected_rows import RejectedRow


@dataclass(frozen=True)
class Made:
    """What came of one item.

    Attributes:
        rows: by kind and key.
        rejected: by kind, the rows that there cannot be.
        datasets: by key, of rows that belong to another dataset than the item.
    """

    rows: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    rejected: dict[str, list[RejectedRow]] = field(default_factory=dict)
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

    def encode(self, items: Sequence[Any], read: Sequence[Any]) -> list[Made]:
        """What comes of each of `items`, given what was read of them."""
        ...


@runtime_checkable
class Encoding(Protocol):
    """What a stage knows of its items and the engine does not."""

    def read(self, item: Any) -> Any:
        """Whatever needs no model, in some thread; raises Unfit for an item without rows."""
        ...

    def cost(self, item: Any) -> int:
        """How large it is for the encoder."""
        ...

    def together(self, one: Any, other: Any) -> bool:
        """Whether `other` may be in a batch that begins with `one`."""
        ...

    def rejected(self, item: Any, unfit: Unfit) -> Made:
        """What is remembered of an item that could not be read."""
        ...

    def name(self, item: Any) -> str:
        """Of its picture or sample, for messages."""
        ...

    def open(self) -> Encoder:
        """Load the encoder."""
        ...

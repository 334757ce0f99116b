"""Parts of stores that have lost a file: what lay in it is missing, and is made anew."""

from __future__ import annotations

from collections.abc import Sequence

from ..cache.dropping import drop_torn
from ..cache.errors import Locked
from ..cache.store import Store


def pass_over_torn(stores: Sequence[Store], *, drops: bool) -> tuple[str, ...]:
    """Have rows that went with a file count as missing; a sentence where there are any.

    While somebody is at work there they stay as they are, so that one may join the work.

    Args:
        drops: whether to give up the parts that they lay in, so that nobody else counts on
            them: what is whole there moves to other parts.
    """
    try:
        count = drop_torn(stores) if drops else sum(store.leave_out_torn() for store in stores)
    except Locked:
        count = sum(len(store.torn()) for store in stores)
        lost = f"{torn_words(count)}, and another process is at work there"
        return (f"{lost}: run this again after it, and what that held is made anew.",)
    return (f"{torn_words(count)}; what that held is made anew.",) if count else ()


def torn_words(count: int) -> str:
    """How many parts have lost a file, in words; nothing of none."""
    if not count:
        return ""
    return f"{count} part has lost a file" if count == 1 else f"{count} parts have lost a file"

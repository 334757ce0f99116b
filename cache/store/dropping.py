"""Removal of damaged rows and parts, and of nothing else."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ..errors import Broken, Locked
from ..files.atomic import remove, write_json
from ..files.claims import LOCK_PATIENCE_SECONDS, refuse_claims
from ..files.lock import writer_lock
from ..format.index import spoilt_indices
from ..format.open_files import OpenFiles
from ..format.part import Part, read_part, rows_in
from .recipe_file import RECIPE_FILE, keep_recipe
from .repacking import Repacking, carry_out
from .store import Store
from .verifying import Damage

TORN = "giving up what a part has lost"


def drop(store: Store, damages: Sequence[Damage]) -> None:
    """Remove the damaged rows; the other rows of their parts move to new parts.

    A part whose table cannot be read goes as a whole. What is lost is missing from now on,
    and its stage makes it anew. Only for who is alone in the store (`claims.alone_in`).
    """
    write_json(store.path / RECIPE_FILE, store.recipe)
    for path in spoilt_indices(store.path, store=store.fingerprint):
        remove(path)
    plan = _planned(store, damages)
    for name in plan.gone:
        remove(store.parts_folder / name)
    plan.gone.clear()
    store.refresh()
    with store.adding():
        carry_out(store, plan)


def drop_torn(stores: Sequence[Store]) -> int:
    """Drop the parts that have lost files, keeping their readable rows; return how many parts.

    Several processes may begin with this at once: one does it, and the others wait for it.

    Raises:
        Locked: somebody is at work in one of the stores.
        AnotherRecipe: the folder of one was made by another recipe.
    """
    if not any([store.torn() for store in stores]):
        return 0
    with contextlib.ExitStack() as stack:
        there = [store for store in stores if store.path.is_dir()]
        for store in sorted(there, key=lambda store: store.path):
            lock = writer_lock(store.path, doing=TORN, patience_seconds=LOCK_PATIENCE_SECONDS)
            stack.enter_context(lock)
            store.refresh()
        torn = {store: names for store in there if (names := store.torn())}
        for store in there if torn else ():
            refuse_claims(store.path)
        for store, names in torn.items():
            keep_recipe(store.path, store.recipe)
            drop(store, [Damage(store.parts_folder / name, None, TORN) for name in names])
    return sum(map(len, torn.values()))


def _planned(store: Store, damages: Sequence[Damage]) -> Repacking:
    bad: dict[Path, set[str]] = defaultdict(set)
    for damage in damages:
        if damage.part != store.path:
            bad[damage.part] |= {damage.key} if damage.key else set()
    plan = Repacking()
    for path, keys in bad.items():
        whole = _whole_rows(store, path)
        kept = [key for key in whole if key not in keys]
        if kept:
            plan.moved[path.name] = kept
        else:
            plan.gone.append(path.name)
    return plan


def _whole_rows(store: Store, path: Path) -> list[str]:
    """Return the keys of the rows of a part that can still be read."""
    try:
        listing = read_part(path, store.layout, store=store.fingerprint)
    except Broken:
        return []
    if listing is None:
        return []
    part, whole = Part(path, store.layout, listing.grids[0], files=OpenFiles(1)), []
    for key, row in rows_in(listing):
        try:
            part.check(row)
            whole.append(key)
        except Broken:
            continue
    return whole


def pass_over_torn(stores: Sequence[Store], *, drops: bool) -> tuple[str, ...]:
    """Treat rows whose files are lost as missing; return a sentence about them, if there are any.

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
    """Return "3 parts have lost a file" for a count of 3; an empty text for 0."""
    if not count:
        return ""
    return f"{count} part has lost a file" if count == 1 else f"{count} parts have lost a file"

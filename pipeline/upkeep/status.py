"""`qedit status`: what is there, what is missing, and what was made by other settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from ...cache.errors import AnotherRecipe, NotComplete, QeditError, Unreachable, WrongUse
from ...cache.store.dropping import torn_words
from ...cache.store.recipe_file import RECIPE_FILE
from ...cache.store.store import Store
from ...cache.store.store_set import StoreSet
from ...config.configuration import Configuration
from ...config.datasets import Dataset
from ...stages.frozen_base.modulation_table import rows_wanted
from ...stages.pair.stage import is_current
from ...stages.samples.store_keys import Keys, PairsKeys, distinct
from ...stages.samples.table import manifest_in
from ...stages.stores.previewed import only_previewed
from ...stages.stores.recipes import is_earlier
from ...stages.stores.row_kinds import RowKind
from ...stages.stores.run import Run
from ..terminal.output import TerminalProgress
from ..terminal.status_lines import Line, Status
from .caches import Caches
from .removable import removable_rows

CACHE_VAE = "Run `qedit cache-vae`."
CACHE_EMBEDS = "Run `qedit cache-embeds`."
CACHE_BASE = "Run `qedit cache-base`."
# What the keys of recipes are called where people read them; the others speak for themselves.
WORDS = {
    "model": "model (its weights or its configuration)",
    "dtype": "precision (vae_dtype, text_encoder_dtype)",
    "prefix": "prompt template",
    "processor": "image processor",
    "pictures": "way to read pictures",
    "float32": "float32 arithmetic (exact, or TF32 on a GPU)",
}
# What is said of rows whose recipe has been replaced since the run began.
_SHOWN = "the text encoder would see what pipelines with torchvision show it"
EARLIER = {
    kind: f"made by an earlier recipe, with which this run goes on; in a new `output_dir` {gain}"
    for kind, gain in (
        (RowKind.LATENTS, "float32 would be exact on GPUs, not TF32"),
        (RowKind.PREFIXES, _SHOWN),
        (RowKind.TAILS, _SHOWN),
    )
}


def status_of(run: Run) -> Status:
    """Look at every result of a run; nothing is changed."""
    status, configuration = Status(), run.configuration
    tables = list(_pairs(run, status))
    if status.next_command:
        return status
    _add_folders(status, configuration)
    try:
        caches = Caches(run)
    except Unreachable as unknown:  # which rows its recipes name is unknown
        status.found.append(Line("model", 1, 0, say=unknown.what, countable=False))
        status.next_command = status.next_command or unknown.do
        return status
    _add_rows(status, caches, tables)
    for line in _base(run):
        status.found.append(line)
        if line.there < line.wanted and not status.next_command:
            status.next_command = CACHE_BASE
    training, do = _training(configuration, countable=not status.next_command)
    status.found.append(training)
    status.next_command = status.next_command or do
    counted = configuration.settings.max_train_steps
    if status.next_command == CACHE_BASE and counted and training.there >= counted:
        status.next_command = ""  # no step is left that it would help
    return status


def _add_folders(status: Status, configuration: Configuration) -> None:
    """Add a line if the pairs tables do not match the folders as they are now."""
    try:
        if is_current(configuration):
            return
        what, do = "the folders have changed in the meantime", "Run `qedit pair`."
    except WrongUse as gone:  # what was made of them is there all the same
        what, do = gone.what, gone.do
    status.found.append(Line("pairs", 1, 0, say=what, countable=False))
    status.next_command = do


def _add_rows(status: Status, caches: Caches, tables: Sequence[PairsKeys]) -> None:
    """Add a line for each kind of row that `tables` want, and the command to type next."""
    run, stores, beside = caches.run, caches.run.stores, caches.run.captions_beside
    shown = only_previewed(run)
    for kind, command in (
        (RowKind.WEIGHTS, CACHE_VAE),
        (RowKind.LATENTS, CACHE_VAE),
        (RowKind.PREFIXES, CACHE_EMBEDS),
        (RowKind.TAILS, CACHE_EMBEDS),
    ):
        store_set, wanted = stores.of(kind), [kind.keys_in(table, beside) for table in tables]
        if kind is RowKind.WEIGHTS and not distinct(wanted):
            continue
        torn = torn_words(sum(store.leave_out_torn() for store in store_set.stores()))
        wanted += [one.keys(kind, beside) for one in shown]
        held = [_only_held(store_set, keys) for keys in wanted]
        there = distinct(held)
        lost, unaccepted = _rejected(store_set, wanted)
        beside_it = _beside(caches, store_set)
        orphaned, unknown = _orphaned(caches, store_set)
        if any(unknown in line.say for line in status.found):
            unknown = ""
        said = [torn, f"{lost} rejected" if lost else ""]
        said += [_reasons(caches, beside_it)] if there + lost < distinct(wanted) else []
        said += [EARLIER[kind]] if kind in EARLIER and is_earlier(store_set.recipe) else []
        line = Line(
            kind.words,
            distinct(wanted) - lost,
            there,
            _bytes_of(store_set.stores()),
            len({other.path for _, other in beside_it}),
            orphaned,
            ", ".join(filter(None, [*said, unknown])),
            datasets=tuple(_by_dataset(run, store_set, wanted, held)),
        )
        status.found.append(line)
        if line.there < line.wanted and not status.next_command:
            status.next_command = command
        if unaccepted and not status.next_command:
            status.next_command = command.replace("`.", " --on-reject skip` to go on without them.")


def _by_dataset(
    run: Run, store_set: StoreSet, wanted: Sequence[Keys], held: Sequence[Keys]
) -> Iterator[Line]:
    """Yield a line for each of several main datasets; rows that they share are counted for each."""
    mains = run.main_datasets
    if len(mains) < 2:
        return
    rejected = store_set.rejected()
    # what previews alone want comes after the last dataset
    for main, all_keys, there in zip(mains, wanted, held, strict=False):
        keys = all_keys.keys.unique()
        lost = sum(key in rejected for key in keys.to_pylist()) if rejected else 0
        count_bytes = _bytes_of(_stores_of(run.configuration, store_set, main))
        yield Line(main.id, len(keys) - lost, distinct([there]), count_bytes)


def _stores_of(configuration: Configuration, store_set: StoreSet, main: Dataset) -> list[Store]:
    """Return the stores that hold rows of a main dataset, its references and its masks."""
    datasets = [main, *configuration.references_of(main), configuration.mask_of(main)]
    return store_set.stores_of(one.id for one in datasets if one)


def _base(run: Run) -> Iterator[Line]:
    """Yield a line for each part of the frozen base that these settings use."""
    table, base = run.modulation_table, run.quantized_base
    if table is not None:
        torn = torn_words(table.leave_out_torn())
        wanted, there = rows_wanted(run.settings), table.keys()
        yield Line(
            "modulation",
            len(wanted),
            sum(key in there for key in wanted),
            table.nbytes() if there else 0,
            say=", ".join(filter(None, ["timesteps", torn])),
        )
    if base is not None:
        there_bytes = base.count_bytes() if base.is_there() else 0
        yield Line("quantised base", 1, int(base.is_there()), there_bytes)


def _pairs(run: Run, status: Status) -> Iterator[PairsKeys]:
    for main in run.main_datasets:
        try:
            table = run.pairs(main)
        except NotComplete as missing:
            say = f"{main.id}: {missing.what}"
            status.found.append(Line("pairs", 1, 0, say=say, countable=False))
            status.next_command = missing.do
            continue
        manifest = manifest_in(table.path.parent) or {}
        rejected = sum(manifest["rejected"].values())
        say = f"{main.id}: {rejected} rejected" if rejected else main.id
        count = manifest["samples"]
        status.found.append(Line("pairs", count, count, say=say))
        yield table


def _only_held(store_set: StoreSet, keys: Keys) -> Keys:
    held = store_set.contains_many(keys.keys)
    return Keys(keys.keys.filter(pa.array(held)), keys.rows[held])


def _rejected(store_set: StoreSet, wanted: Sequence[Keys]) -> tuple[int, bool]:
    """Return how many wanted rows were rejected, and whether any of them is not accepted yet."""
    rejected = store_set.rejected()
    if not rejected:
        return 0, False
    keys = {key for one in wanted for key in one.keys.to_pylist() if key in rejected}
    rows = (rejected[key].read(key) for key in keys)
    return len(keys), any(row is not None and not row.accepted for row in rows)


def _orphaned(caches: Caches, store_set: StoreSet) -> tuple[int, str]:
    """Return how many rows of a set of stores may go, or why that is not known."""
    try:
        return sum(one.rows for one in removable_rows(caches, store_set.stores())), ""
    except QeditError as error:
        return 0, f"what no table names is not known: {error.what}"


def _beside(caches: Caches, store_set: StoreSet) -> list[tuple[Store, Store]]:
    """Return every store of another recipe, with that of the run which it lies beside."""
    return [
        (store, other)
        for store in store_set.stores()
        for other in caches.stores
        if other.path.parent.resolve() == store.path.parent.resolve()
        and other.path.name != store.path.name
    ]


def _reasons(caches: Caches, beside: Sequence[tuple[Store, Store]]) -> str:
    """Return why rows that lie beside those of the run do not count: how their recipes differ."""
    reasons = []
    for store, other in beside:
        differing = [
            WORDS.get(key, key)
            for key in sorted({*other.recipe, *store.recipe})
            if other.recipe.get(key) != store.recipe.get(key)
        ]
        if "rows" not in differing:  # else it holds another kind of row
            reasons.append(f"{other.path.name} was made with another {', '.join(differing)}")
    folders = {store.path.parent for store, _ in beside}
    unnamed = [path for path in caches.unnamed if path.parent in folders]
    reasons += [f"{path / RECIPE_FILE} cannot be read (`qedit gc`)" for path in unnamed]
    return "; ".join(dict.fromkeys(reasons))


def _bytes_of(stores: Iterable[Store]) -> int:
    """Return the bytes that some stores take on the disk."""
    return sum(store.nbytes() for store in stores)


def _training(configuration: Configuration, *, countable: bool) -> tuple[Line, str]:
    """Return a line on the steps trained, and what to type to train the rest.

    How many there are to be is known once every row is there.
    """
    from ...stages.train.state.checkpoint import checkpoints, step_of

    where = configuration.settings.output_dir
    done = max((step_of(one) for one in checkpoints(where)), default=0)
    if not countable:
        steps = configuration.settings.max_train_steps
        return Line("steps trained", max(steps or 0, done), done, say=str(where)), ""
    from ...stages.train.loop import run as train

    try:
        foreseen = train(configuration, TerminalProgress(verbosity=-1), dry_run=True)
    except AnotherRecipe as other:
        say = other.what.replace(":\n  ", ": ").replace("\n  ", "; ")
        return Line("steps trained", 1, 0, say=say, countable=False), other.do
    do = "Run `qedit train`." if foreseen.kept < foreseen.wanted else ""
    return Line("steps trained", foreseen.wanted, foreseen.kept, say=str(where)), do

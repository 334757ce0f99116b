"""What is fresh, what is missing, and what lies there from other settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from ...cache.errors import AnotherRecipe, NotComplete, QeditError, Unreachable, WrongUse
from ...cache.store.dropping import torn_words
from ...cache.store.recipe_file import RECIPE_FILE, read_recipe
from ...cache.store.store import Store
from ...cache.store.store_set import StoreSet
from ...config.configuration import Configuration
from ...config.datasets import Dataset
from ...stages.frozen_base.modulation_table import modulation_table, rows_wanted, wants_table
from ...stages.frozen_base.quantized import quantized_base, wants_quantized
from ...stages.models.checkpoint.checkpoint import Checkpoint, flavour_of, open_checkpoint
from ...stages.models.flavours import Flavour
from ...stages.pair.stage import is_current
from ...stages.samples.store_keys import Keys, PairsKeys, distinct, pairs_keys
from ...stages.samples.table import captions_beside, manifest_in, used_main_datasets
from ...stages.stores.previewed import only_previewed
from ...stages.stores.row_kinds import RowKind
from ...stages.stores.run import Run
from ...stages.stores.run_stores import open_stores
from ..terminal.output import TerminalProgress
from ..terminal.status_lines import Line, Status
from .unused_rows import count_orphans

CACHE_VAE = "Run `qedit cache-vae`."
CACHE_EMBEDS = "Run `qedit cache-embeds`."
CACHE_BASE = "Run `qedit cache-base`."
# What has rows of its own where previews show whole references and training crops them.
# What the keys of recipes are called where people read them; the others speak for themselves.
WORDS = {
    "model": "model (its weights or its configuration)",
    "dtype": "precision (vae_dtype, text_encoder_dtype)",
    "prefix": "prompt template",
    "processor": "image processor",
    "pictures": "way to read pictures",
}


def status_of(configuration: Configuration) -> Status:
    """Look at every result of this configuration; nothing is changed."""
    status = Status()
    tables = list(_pairs(configuration, flavour_of(configuration.settings), status))
    if status.next_command:
        return status
    _add_folders(status, configuration)
    try:
        checkpoint = open_checkpoint(configuration.settings)
    except Unreachable as unknown:  # which rows its recipes name, nobody can tell
        status.found.append(Line("model", 1, 0, say=unknown.what, countable=False))
        status.next_command = status.next_command or unknown.do
        return status
    _add_rows(status, configuration, checkpoint, tables)
    for line in _base(configuration, checkpoint):
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
    """A line where the tables do not stand for the folders as they are now."""
    try:
        if is_current(configuration):
            return
        what, do = "the folders have changed in the meantime", "Run `qedit pair`."
    except WrongUse as gone:  # what was made of them is there all the same
        what, do = gone.what, gone.do
    status.found.append(Line("pairs", 1, 0, say=what, countable=False))
    status.next_command = do


def _add_rows(
    status: Status,
    configuration: Configuration,
    checkpoint: Checkpoint,
    tables: Sequence[PairsKeys],
) -> None:
    """A line for each kind of row that `tables` want, and what makes the first that is missing."""
    stores = open_stores(configuration, checkpoint)
    beside = captions_beside(configuration.settings)
    shown = only_previewed(Run(configuration))
    for kind, command in (
        (RowKind.WEIGHTS, CACHE_VAE),
        (RowKind.LATENTS, CACHE_VAE),
        (RowKind.PREFIXES, CACHE_EMBEDS),
        (RowKind.TAILS, CACHE_EMBEDS),
    ):
        store_set, wanted = stores.of(kind), [kind.keys_in(one, beside) for one in tables]
        if kind is RowKind.WEIGHTS and not distinct(wanted):
            continue
        torn = torn_words(sum(store.leave_out_torn() for store in store_set.stores()))
        wanted += [one.keys(kind, beside) for one in shown]
        held = [_only_held(store_set, keys) for keys in wanted]
        there = distinct(held)
        lost, unaccepted = _rejected(store_set, wanted)
        orphaned, unknown = _orphaned(configuration, checkpoint, store_set)
        said = [torn, f"{lost} rejected" if lost else ""]
        said += [reasons(store_set)] if there + lost < distinct(wanted) else []
        line = Line(
            kind.words,
            distinct(wanted) - lost,
            there,
            _bytes_of(store_set.stores()),
            other_recipes(store_set),
            orphaned,
            ", ".join(filter(None, [*said, unknown])),
            datasets=tuple(_by_dataset(configuration, store_set, wanted, held)),
        )
        status.found.append(line)
        if line.there < line.wanted and not status.next_command:
            status.next_command = command
        if unaccepted and not status.next_command:
            status.next_command = command.replace("`.", " --on-reject skip` to go on without them.")


def _by_dataset(
    configuration: Configuration, store_set: StoreSet, wanted: Sequence[Keys], held: Sequence[Keys]
) -> Iterator[Line]:
    """What each of several main datasets wants; rows that they share are counted for each."""
    mains = used_main_datasets(configuration)
    if len(mains) < 2:
        return
    rejected = store_set.rejected()
    # what previews alone want comes after the last dataset
    for main, all_keys, there in zip(mains, wanted, held, strict=False):
        keys = all_keys.keys.unique()
        lost = sum(key in rejected for key in keys.to_pylist()) if rejected else 0
        count_bytes = _bytes_of(_stores_of(configuration, store_set, main))
        yield Line(main.id, len(keys) - lost, distinct([there]), count_bytes)


def _stores_of(configuration: Configuration, store_set: StoreSet, main: Dataset) -> list[Store]:
    """The stores of the set for the rows of a main dataset, its references and its masks."""
    datasets = [main, *configuration.references_of(main), configuration.mask_of(main)]
    return store_set.stores_of(one.id for one in datasets if one)


def _base(configuration: Configuration, checkpoint: Checkpoint) -> Iterator[Line]:
    """What is kept ready of the frozen base, where these settings use any of it."""
    settings = configuration.settings
    if wants_table(settings):
        table = modulation_table(checkpoint, settings)
        torn = torn_words(table.leave_out_torn())
        wanted, there = rows_wanted(settings), table.keys()
        yield Line(
            "modulation",
            len(wanted),
            sum(key in there for key in wanted),
            table.nbytes() if there else 0,
            say=", ".join(filter(None, ["timesteps", torn])),
        )
    if wants_quantized(settings):
        base = quantized_base(checkpoint, settings)
        there_bytes = base.count_bytes() if base.is_there() else 0
        yield Line("quantised base", 1, int(base.is_there()), there_bytes)


def _pairs(configuration: Configuration, flavour: Flavour, status: Status) -> Iterator[PairsKeys]:
    for main in used_main_datasets(configuration):
        try:
            table = pairs_keys(configuration, main, flavour)
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
    """How many wanted rows could not be made, and whether nobody has accepted that yet."""
    rejected = store_set.rejected()
    if not rejected:
        return 0, False
    keys = {key for one in wanted for key in one.keys.to_pylist() if key in rejected}
    rows = (rejected[key].read(key) for key in keys)
    return len(keys), any(row is not None and not row.accepted for row in rows)


def _orphaned(
    configuration: Configuration, checkpoint: Checkpoint, store_set: StoreSet
) -> tuple[int, str]:
    """How many rows of a set of stores no table names any more, or why that is not known."""
    try:
        return count_orphans(configuration, checkpoint, store_set.stores()), ""
    except QeditError as error:
        return 0, f"what no table names is not known: {error.what}"


def reasons(store_set: StoreSet) -> str:
    """Why rows that lie beside those of the run do not count: what differs in their recipes."""
    said = []
    for store in store_set.stores():
        for path in sorted(store.path.parent.glob(f"*/{RECIPE_FILE}")):
            if path.parent.name == store.path.name:
                continue
            there = read_recipe(path.parent)
            if there is None:
                said.append(f"{path} cannot be read (`qedit gc`)")
                continue
            differing = [
                WORDS.get(key, key)
                for key in sorted({*there, *store.recipe})
                if there.get(key) != store.recipe.get(key)
            ]
            if "rows" not in differing:  # else it holds another kind of row
                said.append(f"{path.parent.name} was made with another {', '.join(differing)}")
    return "; ".join(dict.fromkeys(said))


def _bytes_of(stores: Iterable[Store]) -> int:
    """Bytes on disk of some stores."""
    return sum(store.nbytes() for store in stores)


def other_recipes(store_set: StoreSet) -> int:
    """How many stores of other recipes lie beside those of the run."""
    beside: set[Path] = set()
    for store in store_set.stores():
        if store.path.parent.is_dir():
            beside.update(
                path.resolve()
                for path in store.path.parent.iterdir()
                if (path / "recipe.json").is_file()
            )
    return len(beside - {store.path.resolve() for store in store_set.stores()})


def _training(configuration: Configuration, *, countable: bool) -> tuple[Line, str]:
    """The steps made, and what to type to have the rest.

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

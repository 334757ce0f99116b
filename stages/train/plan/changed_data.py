"""Data that have changed since a run began: whether it goes on, and which data each step has.

What is recorded holds for the steps that were made once: who resumes from a checkpoint before a
change trains on the former data up to it, as before. New data begin after the checkpoint that the
run goes on from; the order of their samples is that of a run that has always had them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise
from pathlib import Path
from shlex import quote
from typing import Any

from ....cache.errors import AnotherRecipe, NotComplete
from ....cache.files.fingerprint import has_digest
from ....cache.format.tables import table_in
from ....cache.store.rejected_rows import FOLDER as REJECTED
from ....config.configuration import Configuration
from ....config.datasets import Dataset
from ....config.settings import Settings
from ...models.lora.lora import CHANGES_BASE
from ...run_output.data_history import Entry, as_of, history_of, with_history
from ...samples.lazy_samples import SampleRows
from ...samples.recipe import picture_datasets
from ...samples.sample import NULL_CAPTION, Sample
from ...samples.schema import OF_SAMPLES
from ...samples.table import read_pairs, verified
from ...stores.row_kinds import SAMPLE_ROWS, row_keys
from ...stores.run import Run
from ..data.batches import Order, Orders, Source
from ..results.publish import result_of
from ..state import run_record
from ..state.checkpoint import checkpoint_to_resume, read_state, step_of
from .training_plan import Plan, steps_of, table_name

Facts = Mapping[str, Any]
"""The values that decide the data of one dataset, as in run.json."""


@dataclass(frozen=True)
class Standing:
    """State of the run in an output_dir: how far it is, and on which data.

    Attributes:
        runs: what decides it, as its folder and its checkpoint say.
        begin: the checkpoint that it goes on from; None: it begins again.
        step: that of the checkpoint.
        made: the data of the steps up to there.
        recorded: the same and those of later steps that were made once.
        tables: the names of the pairs tables of data, by their digests.
    """

    runs: Mapping[Path, Mapping[str, Any]]
    begin: Path | None
    step: int
    made: Sequence[Entry]
    recorded: Sequence[Entry]
    tables: Mapping[str, str]


def standing_of(settings: Settings) -> Standing | None:
    """Return how far the run in `output_dir` is; None where nothing has come of it."""
    where = settings.output_dir
    there = run_record.begun_run(where)
    begin = checkpoint_to_resume(where, settings.resume_from_checkpoint)
    runs = {where: there} if there else {}
    runs |= {begin: read_state(begin)["run"]} if begin else {}
    if not runs:
        return None
    step, run = step_of(begin) if begin else 0, runs[begin or where]
    made, recorded = history_of(as_of(run, step)), history_of(there or run)
    if history_of(as_of(there or run, step)) != made:
        recorded = made  # the checkpoint is of another training
    tables = {**run.get("tables", {}), **(there or {}).get("tables", {})}
    return Standing(runs, begin, step, made, recorded, tables)


def refuse_changed_data(configuration: Configuration) -> None:
    """Raise if the run in output_dir does not go on with the pairs tables that are there.

    Reads no model and no rows.

    Raises:
        AnotherRecipe: with what has changed, and the ways to go on.
        NotComplete: there are no pairs tables for these settings.
    """
    run_record.refuse_folder(configuration.settings)
    standing, opened = standing_of(configuration.settings), Run(configuration)
    if standing is None:
        return
    former = standing.recorded[-1]["datasets"]
    now = {
        main.id: _facts_now(opened, main, former.get(main.id, {}), standing.tables)
        for main in configuration.main_datasets()
    }
    _refuse(opened, standing, now)


def _facts_now(opened: Run, main: Dataset, former: Facts, tables: Mapping[str, str]) -> Facts:
    """Return what decides the data of `main`, from its pairs table alone.

    Rows that were rejected may lack for some samples, in a store whose name is not known yet.
    """
    digest, configuration = former.get("digest", ""), opened.configuration
    samples: Sequence[Sample] = ()
    is_same = tables.get(digest) == table_name(opened.pairs(main).path)
    if not is_same:
        samples = read_pairs(configuration, main, opened.flavour).samples
        pictures = picture_datasets(configuration, main)
        places = {kind.folder(configuration, one) for kind in SAMPLE_ROWS for one in pictures}
        lacking = {path.stem for place in places for path in place.glob(f"*/{REJECTED}/*.json")}
        beside = opened.captions_beside
        left = [one for one in samples if lacking.isdisjoint(row_keys(one, beside))]
        is_same = digest in map(run_record.digest_of_samples, (samples, left))
    facts = run_record.describe_data([Source.of(main, samples)])[main.id]
    return facts | {key: former[key] for key in ("pairs", "digest") if is_same}


def resumed(plan: Plan) -> tuple[Plan, Path | None]:
    """Return the plan with the data of each step, and the checkpoint that it goes on from.

    Raises:
        AnotherRecipe: the folder or the checkpoint belongs to another run, or the data changed.
        NotComplete: steps are to be made again on former data that are gone.
    """
    standing, now = standing_of(plan.settings), plan.run["datasets"]
    if standing is None:
        return plan, None
    for where, there in standing.runs.items():
        run_record.refuse_another_run(there, plan.run, where=where)
    _refuse(plan.opened, standing, now)
    changed = [*standing.made, {"from_step": standing.step + 1, "datasets": now}]
    known = (standing.recorded, standing.made)
    history = next((one for one in known if one[-1]["datasets"] == now), changed)
    tables = {
        facts["digest"]: table_name(table)
        for entry in history[:-1]
        for name, facts in entry["datasets"].items()
        if (table := _former_table(plan.opened, name, facts, standing.tables))
    }
    run = with_history({**plan.run, "tables": tables | plan.run["tables"]}, history)
    former = [
        (entry["from_step"], _former_order(plan, entry, tables, until=after["from_step"] - 1))
        for entry, after in pairwise(history)
        if standing.step < after["from_step"] - 1
    ]
    orders = Orders([*former, (history[-1]["from_step"], plan.feed.order)])
    feed = replace(plan.feed, order=orders) if former else plan.feed
    return replace(plan, run=run, feed=feed), standing.begin


def _former_order(plan: Plan, entry: Entry, tables: Mapping[str, str], *, until: int) -> Order:
    """Return the order of former data, whose last step is `until`.

    Raises:
        NotComplete: their tables or rows are gone.
    """
    opened, settings, sources = plan.opened, plan.settings, []
    for name, facts in entry["datasets"].items():
        samples = _samples_in(_former_table(opened, name, facts, tables))
        samples = opened.stores.without_rejected(samples, opened.captions_beside)
        passes = {key: facts[key] for key in facts if key not in ("pairs", "digest")}
        sources.append(Source(name, samples, **passes))
    order = Order.of(sources, settings)
    beside = (NULL_CAPTION,) if settings.caption_dropout_probability else ()
    missing = opened.stores.missing(order.samples, beside)
    if missing.latents or missing.embeds or run_record.describe_data(sources) != entry["datasets"]:
        raise NotComplete(
            f"The steps up to {until} of {settings.output_dir} were made with former pairs, which "
            "are not in the caches any more.",
            f"Resume from a checkpoint of step {until} or later, or begin another run: type the "
            f"same command with `--set output_dir={quote(_free_folder(settings))}`.",
        )
    return order


def _refuse(opened: Run, standing: Standing, now: Mapping[str, Facts]) -> None:
    """Raise if the run was made with other data than `now`, unless it is to go on with these."""
    before, settings = standing.recorded[-1]["datasets"], opened.settings
    if before == now:
        return
    mains, flavour = opened.configuration.main_datasets(), opened.flavour
    found = {main.id: read_pairs(opened.configuration, main, flavour).samples for main in mains}
    sources = [Source.of(main, found[main.id]) for main in mains]
    steps = steps_of(settings, Order.of(sources, settings))
    if settings.on_changed_data == "continue" and standing.begin and standing.step < steps:
        return
    changes = []
    for name in dict.fromkeys([*before, *now]):
        there, here = before.get(name, {}), now.get(name, {})
        for key in there:
            if key not in ("pairs", "digest") and there[key] != here.get(key, there[key]):
                changes.append(f"  dataset {name}, {key}: {there[key]} there, {here[key]} now")
        if there.get("digest") != here.get("digest"):
            table = _former_table(opened, name, there, standing.tables)
            counts = _counts(_samples_in(table), found.get(name, ())) if table or not there else ""
            pairs = f"{there.get('pairs', 0)} pairs there, {here.get('pairs', 0)} now"
            changes.append(f"  dataset {name}: {counts or pairs}")
    raise AnotherRecipe(
        f"{settings.output_dir} was trained on other pairs, up to step {standing.step}:\n"
        + "\n".join(changes),
        "Type the same command with one of these added:\n"
        + "\n".join(_ways(settings, standing, steps)),
    )


def _counts(before: Sequence[Sample], now: Sequence[Sample]) -> str:
    """Return how many pairs were added, removed and changed, in words; "" if none was."""
    identity = run_record.identity
    was, is_now = ({one.name: identity(one) for one in samples} for samples in (before, now))
    both = was.keys() & is_now.keys()
    counts = {
        "added": len(is_now) - len(both),
        "removed": len(was) - len(both),
        "changed": sum(was[name] != is_now[name] for name in both),
    }
    lines = (f"{many} pair{'s' * (many > 1)} {what}" for what, many in counts.items() if many)
    return ", ".join(lines)


def _ways(settings: Settings, standing: Standing, steps: int) -> Iterator[str]:
    """Yield what may be added to the command to train on the present pairs, and what it does."""
    step = standing.step
    if standing.begin:
        refuses = settings.on_changed_data == "refuse"
        sets, more = " --set on_changed_data=continue" if refuses else "", ""
        if step >= steps:
            key, value = "max_train_steps", step + max(1, step // 2)
            if settings.num_train_epochs:
                key, value = "num_train_epochs", settings.num_train_epochs * (step // steps + 1)
            sets += f" --set {key}={value}"
            more = f"; it has all its steps, so {key} must be higher, by any number"
        yield f"  `{sets.strip()}` goes on from step {step + 1} with the present pairs{more}"
    other = f"--set output_dir={quote(_free_folder(settings))}"
    yield f"  `{other}` begins another run"
    lora, is_plain = result_of(settings).resolve(), settings.lora_init_type not in CHANGES_BASE
    if settings.model_type == settings.lora_type == "lora" and is_plain and lora.is_file():
        yield f"  `{other} --set init_lora={quote(str(lora))}` begins it with the LoRA of this one"


def _free_folder(settings: Settings) -> str:
    """Return a folder beside `output_dir` that is not there."""
    names = (f"{settings.output_dir}-{number}" for number in count(2))
    return next(name for name in names if not Path(name).exists())


def _former_table(opened: Run, name: str, facts: Facts, tables: Mapping[str, str]) -> Path | None:
    """Return the pairs table of former data of the dataset `name`; None where it is gone."""
    folder, digest = opened.pairs_root / name, facts.get("digest", "")
    if digest in tables:
        table = folder / tables[digest]
        return table if table.is_file() else None
    for table in sorted(folder.glob("*/pairs-*.parquet")):  # of a run of an earlier version
        is_whole = has_digest(table, table.stem.rpartition("-")[2])
        if is_whole and run_record.digest_of_samples(_samples_in(table)) == digest:
            return table
    return None


def _samples_in(table: Path | None) -> Sequence[Sample]:
    """Return the samples of a pairs table, none of None."""
    return SampleRows(table_in(verified(table).read_bytes(), OF_SAMPLES)) if table else ()

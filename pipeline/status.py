"""What is fresh, what is missing, and what lies there from other settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..cache.errors import NotComplete
from ..config.configuration import Configuration
from ..stages.cache_embeds.stage import reference_sets
from ..stages.models.checkpoint import Checkpoint, open_checkpoint
from ..stages.pairs_table import read_pairs
from ..stages.samples import Sample
from ..stages.stores import (
    Shelf,
    captions_beside,
    open_stores,
    used_main_datasets,
    wanted_latents,
)
from .report import size


@dataclass(frozen=True)
class Line:
    """The state of one stage's results: rows wanted and there, bytes, other recipes beside."""

    what: str
    wanted: int
    there: int
    count_bytes: int = 0
    other_recipes: int = 0
    say: str = ""

    def text(self) -> str:
        state = "complete" if self.there >= self.wanted else f"{self.wanted - self.there} missing"
        parts = [f"{self.what:14} {self.there} of {self.wanted}", state]
        if self.count_bytes:
            parts.append(size(self.count_bytes))
        if self.other_recipes:
            parts.append(f"{self.other_recipes} other recipe(s) beside")
        if self.say:
            parts.append(self.say)
        return ", ".join(parts)


@dataclass
class Status:
    """A line for each kind of result, and what to type next."""

    found: list[Line] = field(default_factory=list)
    next_command: str = ""

    def lines(self) -> Iterator[str]:
        for line in self.found:
            yield line.text()
        if self.next_command:
            yield f"Next: {self.next_command}"

    def as_object(self) -> dict[str, Any]:
        """What `--json` says."""
        return {
            "stage": "status",
            "results": [
                {
                    "what": line.what,
                    "wanted": line.wanted,
                    "kept": line.there,
                    "missing": max(0, line.wanted - line.there),
                    "bytes": line.count_bytes,
                    "other_recipes": line.other_recipes,
                    "say": line.say,
                }
                for line in self.found
            ],
            "next": self.next_command,
        }


def status_of(configuration: Configuration) -> Status:
    """Look at every result of this configuration; nothing is changed."""
    checkpoint = open_checkpoint(configuration.settings)
    status = Status()
    samples = list(_pairs(configuration, checkpoint, status))
    if status.next_command:
        return status
    stores = open_stores(configuration, checkpoint)
    latents = wanted_latents(samples)
    sets = reference_sets(samples, captions_beside(configuration.settings))
    tails = [key for one in sets.values() for key in one.tails]
    for what, shelf, wanted, command in (
        ("latents", stores.latents, list(latents), "qedit cache-vae"),
        ("image prefixes", stores.prefixes, list(sets), "qedit cache-embeds"),
        ("text tails", stores.tails, tails, "qedit cache-embeds"),
    ):
        there = sum(key in shelf for key in wanted)
        status.found.append(
            Line(what, len(wanted), there, shelf_bytes(shelf), other_recipes(shelf))
        )
        if there < len(wanted) and not status.next_command:
            status.next_command = command
    status.found.append(_training(configuration))
    if not status.next_command and status.found[-1].there < status.found[-1].wanted:
        status.next_command = "qedit train"
    return status


def _pairs(
    configuration: Configuration, checkpoint: Checkpoint, status: Status
) -> Iterator[Sample]:
    for main in used_main_datasets(configuration):
        try:
            table = read_pairs(configuration, main, checkpoint.flavour)
        except NotComplete as missing:
            status.found.append(Line("pairs", 1, 0, say=f"{main.id}: {missing.what}"))
            status.next_command = "qedit pair"
            continue
        rejected = sum(table.rejected.values())
        say = f"{main.id}: {rejected} rejected" if rejected else main.id
        status.found.append(Line("pairs", len(table.samples), len(table.samples), say=say))
        yield from table.samples


def shelf_bytes(shelf: Shelf) -> int:
    """Bytes on disk of every store on the shelf."""
    return sum(store.nbytes() for store in shelf.stores())


def other_recipes(shelf: Shelf) -> int:
    """How many stores of other recipes lie beside those of the shelf."""
    beside: set[Path] = set()
    for store in shelf.stores():
        if store.path.parent.is_dir():
            beside.update(
                path.resolve()
                for path in store.path.parent.iterdir()
                if (path / "recipe.json").is_file()
            )
    return len(beside - {store.path.resolve() for store in shelf.stores()})


def _training(configuration: Configuration) -> Line:
    from ..stages.train.checkpoint import checkpoints, step_of

    settings = configuration.settings
    done = max((step_of(one) for one in checkpoints(settings.output_dir)), default=0)
    # with num_train_epochs the number of steps depends on the samples: what is there counts
    return Line(
        "steps trained", settings.max_train_steps or done, done, say=str(settings.output_dir)
    )

"""The frozen base as training needs it: what is kept of it on disk, where, and by which recipe.

No torch: `status` and a run with nothing to do read this.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from ..cache.atomic import readable_json
from ..cache.errors import Broken, NotComplete
from ..cache.failing_disk import lost_is_broken
from ..cache.fingerprint import fingerprint, has_digest
from ..cache.part import Layout
from ..cache.store import Store
from ..config.settings import Settings
from .models.checkpoint import Checkpoint, model_digest
from .models.layers import trains_modulation
from .models.timesteps import every_timestep, row_key
from .stores import digests_file

MODULATION = Layout("modulation", ("timestep", "layer", "channel"), ragged=False)
# Raised when the same weights give other rows.
TABLE_VERSION = 1
QUANTIZED_VERSION = 1
QUANTIZED_FILE = "quantized.json"

# The noise level down to which every timestep has a row, whatever is drawn: evaluation, previews
# and rollouts stay above. Where training draws lower ones, one draw in so many may lie below the
# table: its row is then computed, which reads a third of the model once.
LOWEST_SIGMA = 2.0**-10
RARE_DRAW = 2.0**-16
LOWEST_SIGMA_OF_ANY = 2.0**-24


def base_folder(settings: Settings) -> Path:
    """Where tables and quantised bases of all models lie."""
    return settings.cache_dir / "base"


def trains_time(settings: Settings) -> bool:
    """Whether weights that see nothing but the timestep are trained, so that they must stay."""
    return settings.model_type == "full" or trains_modulation(settings.lora_target_modules)


def subset_of(settings: Settings) -> str | tuple[str, ...] | None:
    """The layers that `model_type` full is to train: those the user named, else all."""
    named = "lora_target_modules" in settings.model_fields_set
    return settings.lora_target_modules if named else None


def wants_table(settings: Settings) -> bool:
    """Whether training can take modulation from a table: in bfloat16, where it is frozen."""
    return settings.mixed_precision == "bf16" and not trains_time(settings)


def has_work(settings: Settings) -> bool:
    """Whether training with these settings uses anything that `cache-base` makes."""
    return wants_table(settings) or wants_quantized(settings)


def wants_quantized(settings: Settings) -> bool:
    """Whether the frozen base is held in few bits."""
    return settings.base_model_precision != "no_change" and settings.model_type != "full"


def lowest_sigma(settings: Settings) -> float:
    """The noise level down to which every timestep has a row.

    By the closed forms of what training draws: sigmoid(scale*z), or the beginning of the
    distribution of Beta(a, b), x^a / (a*B(a, b)), whose special case Beta(1, 1) is uniform; and
    the fixed shift, where it lowers them. The automatic shift raises them.
    """
    if settings.flow_use_uniform_schedule:
        lowest = RARE_DRAW
    elif settings.flow_use_beta_schedule:
        a, b = settings.flow_beta_schedule_alpha, settings.flow_beta_schedule_beta
        log_of_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
        lowest = math.exp(min(0.0, (math.log(RARE_DRAW * a) + log_of_beta) / a))
    else:
        power = -settings.flow_sigmoid_scale * NormalDist().inv_cdf(RARE_DRAW)
        lowest = 1 / (1 + math.exp(min(power, 700.0)))  # e to the power of more is no float
    if not settings.flow_schedule_auto_shift:
        shift = settings.flow_schedule_shift or 1.0
        lowest = shift * lowest / (1 + (shift - 1) * lowest)
    return max(LOWEST_SIGMA_OF_ANY, min(LOWEST_SIGMA, lowest))


def sizes_of(checkpoint: Checkpoint) -> dict[str, int]:
    """How many blocks the transformer has and how wide they are, from its config.json."""
    config = json.loads((checkpoint.transformer / "config.json").read_text(encoding="utf-8"))
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return {"blocks": config["num_layers"], "width": width}


def has_table(checkpoint: Checkpoint, settings: Settings) -> bool:
    """Whether every row that these settings ask for often is there."""
    there = modulation_table(checkpoint, settings).keys()
    return all(key in there for key in rows_wanted(settings))


def rows_wanted(settings: Settings) -> list[str]:
    """The keys of the rows that these settings ask for often."""
    return [row_key(bits) for bits in every_timestep(lowest_sigma=lowest_sigma(settings))]


def modulation_table(checkpoint: Checkpoint, settings: Settings) -> Store:
    """The table of `checkpoint`; whether rows are in it is another question.

    edit-v2 and edit-v2+ share one: the row of t = 0 is always there.
    """
    model = model_digest(checkpoint.transformer, remember=digests_file(settings))
    return Store(base_folder(settings), table_recipe(model), MODULATION)


def table_recipe(model: str) -> dict[str, Any]:
    """What decides the rows of the table of the transformer with this digest."""
    return {
        "rows": "modulation",
        "version": TABLE_VERSION,
        "model": model,
        "stored": "bfloat16",
    }


# -- the quantised base ------------------------------------------------------------------


def quantized_base(checkpoint: Checkpoint, settings: Settings) -> QuantizedBase:
    """The base of `checkpoint` in `base_model_precision`; whether it is there, it says itself.

    Without the layers that training reads from the modulation table.
    """
    model = model_digest(checkpoint.transformer, remember=digests_file(settings))
    recipe = quantized_recipe(model, settings)
    return QuantizedBase(base_folder(settings) / fingerprint(recipe), recipe)


def quantized_recipe(model: str, settings: Settings) -> dict[str, Any]:
    """What decides the quantised base of the transformer with this digest."""
    return {
        "rows": "quantised base",
        "version": QUANTIZED_VERSION,
        "model": model,
        "precision": settings.base_model_precision,
        "dtype": settings.mixed_precision,
        "modulation": not wants_table(settings),
    }


@dataclass(frozen=True)
class QuantizedBase:
    """A folder of safetensors files with every tensor that training loads.

    It is there whole or not at all. `quantized.json`, which names it, holds the recipe and the
    digest of every file.
    """

    folder: Path
    recipe: dict[str, Any]

    @property
    def path(self) -> Path:
        """The folder, as a store calls it."""
        return self.folder

    def is_there(self) -> bool:
        return (self.folder / QUANTIZED_FILE).is_file()

    def files(self) -> dict[str, str]:
        """The names of its files with their digests."""
        said = json.loads((self.folder / QUANTIZED_FILE).read_text(encoding="utf-8"))
        files: dict[str, str] = said["files"]
        return files

    def count_bytes(self) -> int:
        """What it takes on the disk."""
        return sum((self.folder / name).stat().st_size for name in self.files())

    def damages(self, *, share: float = 1.0) -> Iterator[str]:
        """What is not as it was written, in words.

        Args:
            share: of the files that are read, drawn anew every time.
        """
        said = self.folder / QUANTIZED_FILE
        try:
            with lost_is_broken():
                files = self.files()
                whole = {**self.recipe, "files": files}
                is_ours = said.read_text(encoding="utf-8") == readable_json(whole)
        except (ValueError, KeyError, TypeError, Broken):
            is_ours = False
        if not is_ours:
            yield f"{said} is not as it was written"
            return
        for name, digest in files.items():
            path = self.folder / name
            if not path.is_file():
                yield f"{path} is missing"
            elif (share >= 1.0 or random.random() < share) and not has_digest(path, digest):
                yield f"{path} is not as it was written"


def refuse_incomplete_base(checkpoint: Checkpoint, settings: Settings) -> None:
    """Raise if training needs something of the base that is not there.

    Without a table the modulation would be quantised as well, and a run that goes on with a
    table would go on with another model.

    Raises:
        NotComplete: it is `cache-base` that makes it.
    """
    needed = wants_quantized(settings) and wants_table(settings)
    if needed and not has_table(checkpoint, settings):
        raise NotComplete(
            f"`base_model_precision` {settings.base_model_precision} needs the modulation table, "
            "which is not there.",
            "Run `qedit cache-base`, then `qedit train` again.",
        )

"""The modulation table: the rows that settings want, its folder and its recipe.

No torch: `status` and a run with nothing to do read this.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

from ...cache.store.store import Store
from ...config.settings import Settings
from ..models.checkpoint.checkpoint import Checkpoint
from ..models.checkpoint.config_values import config_in
from ..models.checkpoint.digests import digests_file, model_digest
from ..models.layers import trains_modulation
from ..models.timesteps import every_timestep, row_key
from ..stores.row_kinds import RowKind

# Raised when the same weights give other rows.
TABLE_VERSION = 1

# The noise level down to which every timestep has a row, whatever is drawn: evaluation, previews
# and rollouts stay above. Where training draws lower ones, one draw in so many may lie below the
# table: its row is then computed, which reads a third of the model once.
LOWEST_SIGMA = 2.0**-10
RARE_DRAW = 2.0**-16
LOWEST_SIGMA_OF_ANY = 2.0**-24


def base_folder(settings: Settings) -> Path:
    """Return the folder in which tables and quantised bases of all models lie."""
    return settings.cache_dir / "base"


def trains_time(settings: Settings) -> bool:
    """Return whether weights that see the timestep alone are trained, so that they must stay."""
    return settings.model_type == "full" or trains_modulation(settings.lora_target_modules)


def subset_of(settings: Settings) -> str | tuple[str, ...] | None:
    """Return the layers that `model_type` full trains: those the user named; None for all."""
    named = "lora_target_modules" in settings.model_fields_set
    return settings.lora_target_modules if named else None


def wants_table(settings: Settings) -> bool:
    """Return whether training can take modulation from a table: in bfloat16, where it is frozen."""
    return settings.mixed_precision == "bf16" and not trains_time(settings)


def lowest_sigma(settings: Settings) -> float:
    """Return the noise level (sigma) down to which every timestep has a row.

    It follows from the closed forms of what training draws: sigmoid(scale*z), or the beginning
    of the distribution of Beta(a, b), x^a / (a*B(a, b)), whose special case Beta(1, 1) is
    uniform; and the fixed shift, where it lowers them. The automatic shift raises them.
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
    """Return the number of the transformer's blocks and their width, from its config.json."""
    config = config_in(checkpoint.transformer)
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return {"blocks": config["num_layers"], "width": width}


def has_table(checkpoint: Checkpoint, settings: Settings) -> bool:
    """Return whether every row that these settings often need is there."""
    there = modulation_table(checkpoint, settings).keys()
    return all(key in there for key in rows_wanted(settings))


def rows_wanted(settings: Settings) -> list[str]:
    """Return the keys of the rows that these settings often need."""
    return [row_key(bits) for bits in every_timestep(lowest_sigma=lowest_sigma(settings))]


def modulation_table(checkpoint: Checkpoint, settings: Settings) -> Store:
    """Return the table of `checkpoint`, with or without rows in it.

    edit-v2 and edit-v2+ share one: the row of t = 0 is always there.
    """
    model = model_digest(checkpoint.transformer, remember=digests_file(settings))
    return Store(base_folder(settings), table_recipe(model), RowKind.MODULATION.layout)


def table_recipe(model: str) -> dict[str, Any]:
    """Return what decides the rows of the table of the transformer with this digest."""
    return {
        "rows": RowKind.MODULATION.value,
        "version": TABLE_VERSION,
        "model": model,
        "stored": "bfloat16",
    }

"""best/: the LoRA, or with `model_type` full the transformer, of the lowest held-out loss so far.

It says itself which step and loss it is of, so that it is replaced in one piece and a killed run
cannot mistake it; `state.json` beside it says the same for people and programs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ....cache.errors import Broken
from ....cache.files.atomic import readable_json, remove
from ....cache.files.decides_nothing import LOG, put_text, set_aside
from ....cache.files.json_file import object_in
from ...models.weights.file_checksum import is_whole
from ...run_output.run_file import STATE_FILE
from ..state.checkpoint import Trained
from .publish import Publisher, result_of
from .transformer_result import metadata_of

BEST_FOLDER = "best"
KEY = "held_out"


@dataclass(frozen=True)
class Best:
    """Keeps the best so far of the measured weights and averages.

    Attributes:
        measured_by: `HeldOut.name`: only losses of one name are compared.
    """

    publisher: Publisher
    measured_by: str

    @property
    def path(self) -> Path:
        """Return the path of the LoRA, or of the folder of a transformer."""
        return result_of(self.publisher.settings, BEST_FOLDER)

    def so_far(self) -> dict[str, Any] | None:
        """Return the state of the best; None where none was kept, or by another measure."""
        state = renew_state(self.path)
        return state if state and state.get("measured_by") == self.measured_by else None

    def consider(self, step: int, found: Mapping[str, Any], trained: Trained) -> bool:
        """Keep the weights, or their average, if their loss is the lowest; return whether it was.

        Args:
            found: what `HeldOut.measure` gave of the weights; under "ema" that of the average.
        """
        measured = {"weights": found, "ema": found.get("ema", {})}
        known = {kind: of for kind, of in measured.items() if of.get("loss") is not None}
        before = self.so_far()
        kind = min(known, key=lambda kind: known[kind]["loss"], default=None)
        if kind is None or (before is not None and known[kind]["loss"] >= before["loss"]):
            return False
        state = {
            "step": step,
            "loss": known[kind]["loss"],
            "weights": kind,
            "by_sigma": known[kind]["by_sigma"],
            "measured_by": self.measured_by,
        }
        tensors: Mapping[str, Tensor] = trained.weights
        if kind == "ema":
            assert trained.ema is not None, "only an average that is there was measured"
            tensors = trained.ema.shadow
        about = {"steps": step, "ema": kind == "ema", KEY: state}
        self.publisher.write(self.path, tensors, about)
        renew_state(self.path)
        return True


def renew_state(best: Path) -> dict[str, Any] | None:
    """Return the state that the best result at `best` holds, if there is one.

    The file state.json beside it is made to say the same: a kill may have come between the two. A
    result that cannot be read is set aside: the next one must not pass for better than it.
    """
    try:
        state = object_in(metadata_of(best)[KEY].encode())
    except (KeyError, Broken):
        state = None
    if state is None or (best.is_file() and not is_whole(best)):
        if os.path.lexists(best):
            set_aside(best)
        elif best.with_name(STATE_FILE).is_file():
            LOG.warning(f"{best} is missing: the best is kept from now on.")
            remove(best.with_name(STATE_FILE))
        return None
    put_text(best.with_name(STATE_FILE), readable_json(state))
    return state

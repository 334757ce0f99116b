"""best/: the LoRA, or with `model_type` full the transformer, of the lowest held-out loss so far.

It says itself which step and loss it is of, so that it is replaced in one piece and a killed run
cannot mistake it; `state.json` beside it says the same for people and programs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ....cache.files.atomic import readable_json, write_text
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
        try:
            state: dict[str, Any] = json.loads(metadata_of(self.path)[KEY])
        except (KeyError, ValueError):
            return None
        return state if state["measured_by"] == self.measured_by else None

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
            self._say(before)
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
        self._say(state)
        return True

    def _say(self, state: Mapping[str, Any] | None) -> None:
        """Make state.json agree with the LoRA: a kill may have come between the two."""
        path = self.path.with_name(STATE_FILE)
        text = readable_json(state) if state else ""
        if state and not (path.is_file() and path.read_text(encoding="utf-8") == text):
            write_text(path, text)

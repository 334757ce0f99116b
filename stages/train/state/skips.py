"""Skip steps whose loss or gradient is not finite; stop after 3 in a row or 10 in total."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass

from ..objective.step import StepLosses
from ..ranks import SameErrorOnAllRanks

# With one more the run ends: what is broken then is not one draw.
SKIPPED_IN_A_ROW = 3
SKIPPED_IN_ALL = 10


@dataclass
class Skips:
    """Counts skipped steps; a part of every checkpoint.

    Attributes:
        in_a_row: since the last step that was made.
        in_all: in the whole run.
    """

    in_a_row: int = 0
    in_all: int = 0

    def made(self) -> None:
        """Count a step that was made."""
        self.in_a_row = 0

    def skipped(self, broken: NotFinite) -> None:
        """Count a step that was skipped.

        Raises:
            SameErrorOnAllRanks: too many steps were skipped; nothing of this one was kept.
        """
        self.in_a_row += 1
        self.in_all += 1
        if self.in_a_row > SKIPPED_IN_A_ROW or self.in_all > SKIPPED_IN_ALL:
            before = f"{self.in_a_row - 1} steps before it in a row"
            if self.in_a_row <= SKIPPED_IN_A_ROW:
                before = f"{self.in_all - 1} steps of this run"
            raise SameErrorOnAllRanks(
                f"{broken.why} {before} were skipped too, so training ends here. "
                "The last checkpoint is untouched.",
                "Lower `learning_rate`, or take that sample out if it is broken; "
                f"`qedit inspect {shlex.quote(broken.sample)}` shows what training sees of it.",
            )


@dataclass(frozen=True)
class NotFinite:
    """Says which loss or gradient of a step is not finite.

    Attributes:
        why: in a sentence.
        sample: the one to look at first.
    """

    why: str
    sample: str


def find_not_finite(step: int, losses: StepLosses, norm: float) -> NotFinite | None:
    """Return what of the step is not finite; None if nothing is.

    Args:
        norm: of the gradient."""
    for place, loss in losses.not_finite.items():
        name, caption = losses.names[place], losses.captions[place]
        return NotFinite(
            f"The loss of {name} (caption: {caption!r}) at step {step} is {loss}.", name
        )
    if math.isfinite(norm):
        return None
    shown = ", ".join(losses.names)
    return NotFinite(f"The gradient of step {step} is {norm} (samples: {shown}).", losses.names[0])

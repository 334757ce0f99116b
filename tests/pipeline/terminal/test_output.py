"""What a stage says of itself in one line."""

from __future__ import annotations

import pytest

from qedit.pipeline.terminal.output import summary
from qedit.stages.stage import Outcome


@pytest.mark.parametrize(
    ("computed", "failed", "said"),
    [
        (0, 0, "cache-vae     9 wanted, 5 kept, nothing to do"),
        (1, 0, "cache-vae     9 wanted, 5 kept, 1 latent made in 2.0 s"),
        (4, 0, "cache-vae     9 wanted, 5 kept, 4 latents made in 2.0 s"),
        (3, 1, "cache-vae     9 wanted, 5 kept, 1 rejected, 3 latents made in 2.0 s"),
    ],
)
def test_one_line_says_what_a_stage_did(computed: int, failed: int, said: str) -> None:
    outcome = Outcome("cache-vae", 9, 5, computed, failed, 2.0, "cache/vae", unit="latents")
    assert summary(outcome) == said

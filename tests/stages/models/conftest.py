"""The text encoder of the tiny checkpoint, loaded once."""

from __future__ import annotations

import pytest
import torch

from qedit.stages.models.checkpoint.checkpoint import Checkpoint
from qedit.stages.models.text.prompt import PromptEncoder


@pytest.fixture(scope="session")
def prompt(checkpoint: Checkpoint) -> PromptEncoder:
    return PromptEncoder.load(checkpoint, dtype=torch.float32)

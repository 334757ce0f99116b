"""The model in evaluation: no gradients, no dropout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch gradients and dropout off in the block; afterwards all is as it was.

    Every part of `model` is in its own mode again afterwards: a part that never trains stays so.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True

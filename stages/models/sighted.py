"""A VAE of the real class whose weights are written by hand, so that the demo can see."""

from __future__ import annotations

from torch import nn


def sighted_vae() -> nn.Module:
    raise NotImplementedError


def give_sight(transformer: nn.Module) -> None:
    raise NotImplementedError

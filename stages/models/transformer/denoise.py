"""Denoising: noise to latents in Euler steps, as diffusers' edit pipelines do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ....cache.errors import WrongUse
from ..checkpoint.config_values import as_wrong_use
from ..timesteps import shift_exponent
from .transformer import pack, predict_velocity, unpack


def load_scheduler(folder: Path) -> Any:
    """Return the checkpoint's FlowMatchEulerDiscreteScheduler, which has no weights."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    kind: Any = FlowMatchEulerDiscreteScheduler
    with as_wrong_use(folder, "a scheduler"):
        return kind.from_pretrained(str(folder), local_files_only=True)


def set_sigmas(scheduler: Any, *, steps: int, target_tokens: int) -> Float[Tensor, " sigma"]:
    """Set the schedule for `steps` steps; return its sigmas, from 1 down to the final 0.

    Raises:
        WrongUse: one step alone, which the terminal stretch of these schedulers cannot do.
    """
    mu = shift_exponent(scheduler.config, target_tokens)
    with np.errstate(invalid="ignore"):
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    sigmas: Tensor = scheduler.sigmas
    if not bool(torch.isfinite(sigmas).all()):
        raise WrongUse(
            f"A schedule of {steps} step does not exist for this checkpoint's scheduler.",
            "Set `validation_num_inference_steps` to 2 or more.",
        )
    return sigmas


@torch.no_grad()
def denoise(
    transformer: nn.Module,
    scheduler: Any,
    noise: Float[Tensor, "batch channel height width"],
    references: Sequence[Float[Tensor, "batch channel _h _w"]],
    embeds: Float[Tensor, "batch _text dim"],
    null_embeds: Float[Tensor, "batch _null dim"] | None,
    *,
    steps: int,
    guidance: float,
    advance: Callable[[int], None] = lambda steps: None,
) -> Float[Tensor, "batch channel height width"]:
    """Integrate from `noise` to normalised latents in `steps` Euler steps.

    With `guidance` above 1 and null embeds this is true classifier-free guidance, two passes a
    step; else one pass. `advance` is told of each step done. The result equals that of the
    stock pipeline from the same noise.
    """
    height, width = noise.shape[-2:]
    sigmas = set_sigmas(scheduler, steps=steps, target_tokens=height * width // 4)
    scheduler.set_begin_index(0)
    guided = guidance > 1 and null_embeds is not None

    def velocity(latents: Tensor, sigma: Tensor, states: Tensor) -> Tensor:
        batched = sigma.expand(len(latents))
        return predict_velocity(transformer, latents, references, states, mask=None, sigma=batched)

    latents = noise
    for sigma, timestep in zip(sigmas[:-1], scheduler.timesteps, strict=True):
        predicted = velocity(latents, sigma, embeds)
        if guided:
            assert null_embeds is not None
            predicted = guide(predicted, velocity(latents, sigma, null_embeds), guidance=guidance)
        latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
        advance(1)
    return latents


def guide(
    positive: Float[Tensor, "batch channel height width"],
    negative: Float[Tensor, "batch channel height width"],
    *,
    guidance: float,
) -> Float[Tensor, "batch channel height width"]:
    """Apply true CFG: go from `negative` past `positive`, rescaled to each token's norm."""
    height, width = positive.shape[-2:]
    wanted, unwanted = pack(positive), pack(negative)
    combined = unwanted + guidance * (wanted - unwanted)
    norms = [torch.norm(tokens, dim=-1, keepdim=True) for tokens in (wanted, combined)]
    return unpack(combined * (norms[0] / norms[1]), height, width)

"""The transformer's forward, as diffusers' edit pipelines call it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .checkpoint import Checkpoint
from .loading import load_part

# The pipelines' clock: sigma 1 is timestep 1000.
TIMESTEPS = 1000


def load_transformer(
    checkpoint: Checkpoint, *, dtype: torch.dtype, device: str | torch.device
) -> nn.Module:
    """Load the transformer of `checkpoint`, frozen, with the flavour's own `zero_cond_t`."""
    from diffusers import QwenImageTransformer2DModel

    transformer: nn.Module = load_part(
        QwenImageTransformer2DModel,
        checkpoint.transformer,
        dtype=dtype,
        device=device,
        zero_cond_t=checkpoint.zero_cond_t,
    )
    return transformer


def pack(latents: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch token dim"]:
    """Latents as tokens: each 2x2 patch, row by row, becomes one token of 4 x channels."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    # batch, rows, columns, channel, row in the patch, column in the patch
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(
    tokens: Float[Tensor, "batch token dim"], height: int, width: int
) -> Float[Tensor, "batch channel height width"]:
    """Tokens as latents of `height` x `width`; undoes `pack`."""
    batch, _, dim = tokens.shape
    patches = tokens.reshape(batch, height // 2, width // 2, dim // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def predict_velocity(
    transformer: nn.Module,
    noisy: Float[Tensor, "batch channel height width"],
    references: Sequence[Float[Tensor, "batch channel _h _w"]],
    embeds: Float[Tensor, "batch text dim"],
    *,
    mask: Bool[Tensor, "batch text"] | None,
    sigma: Float[Tensor, " batch"],
) -> Float[Tensor, "batch channel height width"]:
    """Predict the velocity (noise - clean) of `noisy`, given clean references and embeds.

    The model sees [target; reference 1; reference 2; ...]; only the target's tokens of its
    output count. It is conditioned on sigma as the pipelines round it: as a timestep in the
    dtype of `noisy`, then divided by 1000 there.

    Args:
        noisy: (1 - sigma) * clean + sigma * noise, all of one size.
        references: normalised latents, one tensor for each place in the list; sizes may
            differ between places, never within one.
        mask: which embeds are real; None when nothing is padded, as in the pipelines.
        sigma: in (0, 1], one for each sample, in float32.
    """
    pictures = (noisy, *references)
    shapes = [(1, picture.shape[-2] // 2, picture.shape[-1] // 2) for picture in pictures]
    tokens: Tensor = transformer(
        hidden_states=torch.cat([pack(picture) for picture in pictures], dim=1),
        timestep=(sigma * TIMESTEPS).to(noisy.dtype) / TIMESTEPS,
        guidance=None,
        encoder_hidden_states=embeds,
        encoder_hidden_states_mask=mask,
        img_shapes=[shapes] * noisy.shape[0],
        return_dict=False,
    )[0]
    height, width = noisy.shape[-2:]
    return unpack(tokens[:, : height * width // 4], height, width)

"""The transformer's forward, as diffusers' edit pipelines call it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ....config.latent_geometry import PATCH_LATENTS as PATCH
from ..checkpoint.checkpoint import Checkpoint
from ..weights.streaming import empty_transformer, fill, tensors_in
from .modulation import with_timestep
from .side_by_side import Lengths, install_varlen_attention, padding

# The pipelines' clock: sigma 1 is timestep 1000.
TIMESTEPS = 1000


def load_transformer(
    checkpoint: Checkpoint, *, dtype: torch.dtype, device: str | torch.device
) -> nn.Module:
    """Load the transformer of `checkpoint`, frozen, with the flavour's own `zero_cond_t`."""
    folder = checkpoint.transformer
    empty = empty_transformer(folder, zero_cond_t=checkpoint.zero_cond_t)
    tensors = tensors_in(folder, remember=checkpoint.remember)
    return fill(empty, tensors, dtype=dtype, device=device, source=folder)


def pack(latents: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch token dim"]:
    """Turn latents into tokens: each 2x2 patch, row by row, is one token of 4 x channels."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    # batch, rows, columns, channel, row in the patch, column in the patch
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(
    tokens: Float[Tensor, "batch token dim"], height: int, width: int
) -> Float[Tensor, "batch channel height width"]:
    """Turn tokens into latents of `height` x `width`, the inverse of `pack`."""
    batch, _, dim = tokens.shape
    patches = tokens.reshape(batch, height // PATCH, width // PATCH, dim // PATCH**2, PATCH, PATCH)
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
        sigma: in (0, 1], one for each sample, in float32; on the CPU, or the device is waited for.
    """
    pictures = (noisy, *references)
    shapes = [_shape(picture) for picture in pictures]
    tokens = _forward(
        transformer,
        torch.cat([pack(picture) for picture in pictures], dim=1),
        sigma,
        encoder_hidden_states=embeds,
        encoder_hidden_states_mask=mask,
        img_shapes=[shapes] * noisy.shape[0],
    )
    return _target(tokens, noisy)


def _forward(
    transformer: nn.Module,
    tokens: Float[Tensor, "batch token dim"],
    sigma: Float[Tensor, " batch"],
    **others: Any,
) -> Float[Tensor, "batch token dim"]:
    timestep = _timestep(sigma.cpu(), tokens)
    with with_timestep(transformer, timestep):
        predicted: Tensor = transformer(
            hidden_states=tokens,
            timestep=timestep.to(tokens.device, non_blocking=True),
            guidance=None,
            return_dict=False,
            **others,
        )[0]
    return predicted


@dataclass(frozen=True)
class Shown:
    """A batch of samples of one shape for the transformer; see `predict_velocity`.

    Attributes:
        text_lengths: how many tokens of each text are real, those to the left.
        sigma: on the CPU, where others may be on a device: it is looked at in every forward.
    """

    noisy: Float[Tensor, "batch channel height width"]
    references: tuple[Float[Tensor, "batch channel _ _"], ...]
    embeds: Float[Tensor, "batch text dim"]
    text_lengths: tuple[int, ...]
    sigma: Float[Tensor, " batch"]

    @property
    def image_tokens(self) -> int:
        """Image tokens of one sample: target plus references."""
        pictures = (self.noisy, *self.references)
        return sum(picture.shape[-2] * picture.shape[-1] // PATCH**2 for picture in pictures)

    @property
    def padded(self) -> bool:
        """True if its texts differ in length."""
        return any(length < self.embeds.shape[1] for length in self.text_lengths)

    def row(self, place: int) -> Shown:
        """Return one of its samples, without padding."""
        own = slice(place, place + 1)
        length = self.text_lengths[place]
        return Shown(
            noisy=self.noisy[own],
            references=tuple(reference[own] for reference in self.references),
            embeds=self.embeds[own, :length],
            text_lengths=(length,),
            sigma=self.sigma[own],
        )


def predict_velocities(
    transformer: nn.Module, shown: Sequence[Shown]
) -> list[Float[Tensor, "batch channel _h _w"]]:
    """Predict in one forward what `predict_velocity` predicts for each sample alone.

    Sizes, numbers of references and lengths of text may differ. Where none of them does this
    is the stock forward, bit for bit.
    """
    if len(shown) == 1 and not shown[0].padded:
        (alone,) = shown
        return [
            predict_velocity(
                transformer,
                alone.noisy,
                alone.references,
                alone.embeds,
                mask=None,
                sigma=alone.sigma,
            )
        ]
    install_varlen_attention(transformer)
    image = max(part.image_tokens for part in shown)
    text = max(max(part.text_lengths) for part in shown)
    lengths: Lengths = tuple(
        (words, part.image_tokens) for part in shown for words in part.text_lengths
    )
    tokens = _forward(
        transformer,
        torch.cat([_image_tokens(part, upto=image) for part in shown]),
        torch.cat([part.sigma for part in shown]),
        encoder_hidden_states=torch.cat([_to_length(part.embeds, text) for part in shown]),
        img_shapes=[shapes for part in shown for shapes in _shapes(part, upto=image)],
        attention_kwargs={"lengths": lengths},
    )
    rows = tokens.split([len(part.sigma) for part in shown])
    return [_target(own, part.noisy) for own, part in zip(rows, shown, strict=True)]


def _image_tokens(part: Shown, *, upto: int) -> Float[Tensor, "batch token dim"]:
    pictures = (part.noisy, *part.references)
    return _to_length(torch.cat([pack(picture) for picture in pictures], dim=1), upto)


def _shapes(part: Shown, *, upto: int) -> list[list[tuple[int, int, int]]]:
    own = [_shape(picture) for picture in (part.noisy, *part.references)]
    missing = upto - part.image_tokens
    return [[*own, padding(missing)] if missing else own] * len(part.sigma)


def _shape(picture: Float[Tensor, "batch channel height width"]) -> tuple[int, int, int]:
    return (1, picture.shape[-2] // PATCH, picture.shape[-1] // PATCH)


def _timestep(sigma: Float[Tensor, " batch"], tokens: Tensor) -> Float[Tensor, " batch"]:
    """Return the timestep of `sigma`, computed on the CPU as the pipelines do.

    A GPU divides by a number by multiplying with its reciprocal, which may round otherwise.
    """
    clock = (sigma * TIMESTEPS).to(tokens.dtype)
    if tokens.device.type != "cuda":
        return clock / TIMESTEPS
    return (clock.float() * (torch.ones(()) / TIMESTEPS)).to(tokens.dtype)


def _to_length(
    tokens: Float[Tensor, "batch token dim"], length: int
) -> Float[Tensor, "batch _length dim"]:
    """Cut `tokens` to `length`, or pad them with zeros."""
    return nn.functional.pad(tokens, (0, 0, 0, length - tokens.shape[1]))


def _target(
    tokens: Float[Tensor, "batch token dim"], noisy: Float[Tensor, "batch channel height width"]
) -> Float[Tensor, "batch channel height width"]:
    height, width = noisy.shape[-2:]
    return unpack(tokens[:, : height * width // 4], height, width)

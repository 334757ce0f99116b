"""Makes batches of samples of several sizes, and their velocities together and one by one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tiny_transformer import TEXT_WIDTH, made_transformer, randomize
from torch import Tensor, nn

from qedit.stages.models.lora.lora import add_lora, target_modules
from qedit.stages.models.transformer.transformer import Shown, predict_velocities, predict_velocity

# sizes of target and references in latent pixels, and lengths of the texts
Mix = tuple[tuple[tuple[tuple[int, int], ...], tuple[int, ...]], ...]
MIXES: dict[str, Mix] = {
    "texts": ((((8, 12), (8, 12)), (20, 500, 133)),),
    "ratios": ((((8, 8), (8, 8)), (60,)), (((4, 16), (4, 16)), (60,)), (((16, 4), (16, 4)), (60,))),
    "references": (
        (((8, 8), (8, 8)), (77,)),
        (((8, 8), (8, 8), (6, 10)), (77,)),
        (((8, 8), (8, 8), (6, 10), (12, 4)), (77,)),
    ),
    "everything": (
        (((8, 8), (8, 12)), (20, 500)),
        (((8, 16), (8, 8), (12, 8)), (77,)),
        (((16, 8), (4, 4), (8, 8), (4, 16)), (300, 21)),
    ),
}
# relative: (fp32, bf16)
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def shown(mix: Mix, dtype: torch.dtype) -> list[Shown]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    parts = []
    for sizes, lengths in mix:
        noisy, *references = [random(len(lengths), 16, *size) for size in sizes]
        embeds = random(len(lengths), max(lengths), TEXT_WIDTH)
        sigma = torch.rand(len(lengths), generator=generator)
        parts.append(Shown(noisy, tuple(references), embeds, lengths, sigma))
    return parts


def alone(transformer: nn.Module, parts: Sequence[Shown]) -> list[Tensor]:
    """Each sample by itself, as the stock pipelines would show it."""
    return [
        predict_velocity(
            transformer,
            part.noisy[place : place + 1],
            [reference[place : place + 1] for reference in part.references],
            part.embeds[place : place + 1, :length],
            mask=None,
            sigma=part.sigma[place : place + 1],
        )
        for part in parts
        for place, length in enumerate(part.text_lengths)
    ]


def together(transformer: nn.Module, parts: Sequence[Shown]) -> list[Tensor]:
    velocities = predict_velocities(transformer, parts)
    return [each for velocity in velocities for each in velocity.split(1)]


def with_lora(*, zero_cond_t: bool, dtype: torch.dtype) -> tuple[nn.Module, dict[str, Tensor]]:
    """The modules as training has them: LoRA layers that matter, blocks recomputed."""
    transformer = made_transformer(zero_cond_t=zero_cond_t, dtype=dtype)
    transformer.requires_grad_(False)
    weights = add_lora(
        transformer,
        target_modules(transformer, "all-linear"),
        rank=4,
        alpha=4.0,
        dropout=0.0,
        init="default",
        seed=1,
    )
    randomize(weights)
    for weight in weights.values():
        weight.data = weight.data.to(dtype)
    transformer.train()
    transformer.enable_gradient_checkpointing()
    return transformer, dict(weights)


def gradient(weights: dict[str, Tensor], velocities: list[Tensor]) -> Tensor:
    """Of the mean over the samples."""
    for weight in weights.values():
        weight.grad = None
    losses = [(velocity.float() - 0.3).square().mean() for velocity in velocities]
    torch.stack(losses).mean().backward()
    return torch.cat(
        [weight.grad.float().flatten() for weight in weights.values() if weight.grad is not None]
    )

"""Dropout of a LoRA's inputs, drawn separately for each sample.

Torch's draws for a whole batch at once: another batch, or half of one in another process, and
every sample of it is dropped otherwise. Here the numbers of a sample come from a seed of its own
for each layer, token after token, so that neither its neighbours nor the padding behind it
matter, and a block that is computed again drops the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# So many tokens are drawn at a time: a GPU has other first numbers where more are asked for.
TOKENS_AT_A_TIME = 1024


class SampleDropout(nn.Module):
    """Dropout with probability `chance`, drawn by sample; the rest is scaled up.

    Attributes:
        seeds: of the samples of the next forward.
    """

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.chance = chance
        self.seeds = torch.zeros(0, dtype=torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` after dropout; its rows are the samples', once or several times over."""
        if not self.training:
            return x
        return x * _kept(x, self.seeds, self.chance) / (1 - self.chance)


def drop_by_sample(transformer: nn.Module) -> tuple[SampleDropout, ...]:
    """Make the LoRA on `transformer` drop by sample; return its dropouts in the model's order."""
    layers = []
    for module in transformer.modules():
        dropouts: Any = getattr(module, "lora_dropout", {})
        for name, plain in dropouts.items():
            if isinstance(plain, nn.Dropout):
                layers.append(SampleDropout(plain.p).train(plain.training))
                dropouts[name] = layers[-1]
    return tuple(layers)


def seed_dropouts(layers: Sequence[SampleDropout], randoms: Iterable[np.random.Generator]) -> None:
    """Seed the dropout of the next forward and its backward, with one generator for each sample."""
    if not layers:
        return
    seeds = np.stack([random.integers(2**63, size=len(layers)) for random in randoms], axis=1)
    for layer, own in zip(layers, torch.from_numpy(seeds), strict=True):
        layer.seeds = own


def _kept(x: Tensor, seeds: Tensor, chance: float) -> Tensor:
    kept: Tensor = torch.ops.qedit.kept(x, seeds, chance)
    return kept


def _draw(x: Tensor, seeds: Tensor, chance: float) -> Tensor:
    """Return a mask of the numbers of `x` that are kept."""
    samples = len(seeds)
    assert samples, "the samples of this forward have seeds"
    assert len(x) % samples == 0, f"{samples} samples have seeds, {len(x)} rows are given"
    tokens, width = (x.shape[1] if x.ndim == 3 else 1), x.shape[-1]
    at_a_time = TOKENS_AT_A_TIME if x.ndim == 3 else 1
    upto = -(-tokens // at_a_time) * at_a_time
    kept = torch.empty(samples, len(x) // samples, upto, width, dtype=torch.bool, device=x.device)
    random = torch.Generator(x.device)
    for own, seed in zip(kept, seeds.tolist(), strict=True):
        random.manual_seed(seed)
        for some in own.flatten(0, 1).split(at_a_time):
            some.bernoulli_(1 - chance, generator=random)
    # what comes several times over comes one after the other, as the transformer stacks them
    return kept[:, :, :tokens].transpose(0, 1).reshape(x.shape).contiguous()


# an operator of its own: a compiler calls it as it is, whatever the seeds
torch.library.custom_op(
    "qedit::kept", _draw, mutates_args=(), schema="(Tensor x, Tensor seeds, float chance) -> Tensor"
).register_fake(lambda x, seeds, chance: x.new_empty(x.shape, dtype=torch.bool))

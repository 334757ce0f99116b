"""Samples of any sizes in one forward give what each gives alone: velocities, gradients.

The weights are loud (see made_transformer): flat attention hides positions and masks.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from mixed_shapes import CLOSE, MIXES, alone, gradient, shown, together, with_lora
from tiny_transformer import made_transformer
from torch import Tensor, nn

from qedit.stages.models.memory_saving.recompute import Recomputation, recompute_blocks
from qedit.stages.models.transformer.modulation import tabulate
from qedit.stages.models.transformer.side_by_side import OwnAttention, install_varlen_attention
from qedit.stages.models.transformer.transformer import predict_velocities, predict_velocity

# every mix in one of the flavours here, in both with the longer tests
CASES = [
    pytest.param(mix, zero_cond_t, marks=() if here else pytest.mark.full, id=f"{mix}-{name}")
    for place, mix in enumerate(MIXES)
    for zero_cond_t, name in ((False, "v2"), (True, "v3"))
    for here in (mix == "everything" or zero_cond_t == bool(place % 2),)
]


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize(("mix", "zero_cond_t"), CASES)
def test_a_batch_equals_its_samples_one_by_one(
    mix: str, zero_cond_t: bool, dtype: torch.dtype
) -> None:
    transformer, weights = with_lora(zero_cond_t=zero_cond_t, dtype=dtype)
    parts = shown(MIXES[mix], dtype)
    one_by_one = alone(transformer, parts)
    expected = gradient(weights, one_by_one)
    batched = together(transformer, parts)
    found = gradient(weights, batched)
    for velocity, other in zip(batched, one_by_one, strict=True):
        assert (velocity - other).abs().max() <= CLOSE[dtype] * other.abs().max()
    assert (found - expected).norm() <= CLOSE[dtype] * expected.norm()


def test_what_is_padded_is_never_seen() -> None:
    transformer, _ = with_lora(zero_cond_t=True, dtype=torch.float32)
    (part, *others) = shown(MIXES["everything"], torch.float32)
    before = together(transformer, [part, *others])
    part.embeds[0, part.text_lengths[0] :] = 100.0
    after = together(transformer, [part, *others])
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_without_padding_it_is_the_stock_forward_bit_for_bit() -> None:
    parts = shown(((((8, 12), (8, 8)), (40, 40)),), torch.float32)
    (part,) = parts
    transformer = made_transformer(zero_cond_t=True)
    stock = predict_velocity(
        transformer, part.noisy, part.references, part.embeds, mask=None, sigma=part.sigma
    )
    (velocity,) = predict_velocities(transformer, parts)
    assert torch.equal(velocity, stock)
    assert not isinstance(transformer.transformer_blocks[0].attn.processor, OwnAttention)
    install_varlen_attention(transformer)
    (velocity,) = predict_velocities(transformer, parts)
    assert torch.equal(velocity, stock)


def test_the_stock_forward_reads_the_first_samples_shapes_alone() -> None:
    """Why there is an own way: two ratios of one area, batched by the stock code."""
    parts = shown(MIXES["ratios"][1:], torch.float32)
    transformer = made_transformer()
    expected = alone(transformer, parts)
    tokens = transformer(
        hidden_states=torch.cat(
            [
                torch.cat([_packed(part.noisy), *map(_packed, part.references)], dim=1)
                for part in parts
            ]
        ),
        encoder_hidden_states=torch.cat([part.embeds for part in parts]),
        timestep=torch.cat([part.sigma for part in parts]),
        img_shapes=[[(1, 2, 8), (1, 2, 8)], [(1, 2, 8), (1, 2, 8)]],
        return_dict=False,
    )[0]
    for row, velocity in zip(tokens, expected, strict=True):
        found = row[None, :16]
        error = (found - _packed(velocity)).abs().max() / velocity.abs().max()
        assert (error < 1e-5) == (velocity is expected[0])


def _packed(latents: Tensor) -> Tensor:
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * 4)


@pytest.mark.parametrize("kept", [0, 1])
def test_blocks_may_be_recomputed_in_any_way(kept: int) -> None:
    transformer, weights = with_lora(zero_cond_t=True, dtype=torch.float32)
    parts = shown(MIXES["everything"], torch.float32)
    plain = gradient(weights, together(transformer, parts))
    recompute_blocks(transformer, Recomputation(kept=kept, attention=1, inputs_to_host=True))
    assert torch.equal(gradient(weights, together(transformer, parts)), plain)


def test_modulation_may_come_from_its_table() -> None:
    """Rows follow the samples, two of each where references have a timestep of their own."""
    for zero_cond_t in (False, True):
        transformer = made_transformer(zero_cond_t=zero_cond_t, dtype=torch.bfloat16)
        parts = shown(MIXES["everything"], torch.bfloat16)
        with torch.no_grad():
            expected = together(transformer, parts)
            tabulate(transformer, partial(_row, made_transformer(dtype=torch.bfloat16)))
            found = together(transformer, parts)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@torch.no_grad()
def _row(transformer: nn.Module, bits: int) -> Tensor:
    """What the weights make of one timestep, for every layer."""
    value = torch.tensor([bits], dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    embedded = transformer.time_text_embed(value, torch.empty(0, dtype=torch.bfloat16))
    outputs = [
        layer(embedded)[0]
        for block in transformer.transformer_blocks
        for layer in (block.img_mod, block.txt_mod)
    ]
    final = transformer.norm_out.linear(nn.functional.silu(embedded))[0]
    outputs.append(nn.functional.pad(final, (0, len(outputs[0]) - len(final))))
    return torch.stack(outputs)

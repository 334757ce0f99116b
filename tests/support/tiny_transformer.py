"""A tiny transformer of the real class, made in memory, loud enough to show small mistakes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

TEXT_WIDTH = 16


def made_transformer(
    *,
    seed: int = 0,
    zero_cond_t: bool = False,
    layers: int = 2,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Random matrices of 1.5 times fan-in scale, 13 times the usual 0.02 at this width:
    attention is not flat."""
    from diffusers import QwenImageTransformer2DModel

    transformer: nn.Module = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=64,
        out_channels=16,
        num_layers=layers,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(4, 6, 6),
        zero_cond_t=zero_cond_t,
    )
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in transformer.named_parameters():
        if parameter.ndim > 1 or name.endswith("bias"):
            spread = 1.5 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.1
            values = spread * torch.randn(parameter.shape, generator=generator)
            parameter.data = values.to(dtype)
        else:
            parameter.data = parameter.data.to(dtype)
    return transformer


def one_forward(transformer: nn.Module) -> Tensor:
    """The transformer's own forward over one made-up target, reference and text."""
    dtype = next(transformer.parameters()).dtype
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randn(1, 8, 64, generator=generator).to(dtype)
    text = torch.randn(1, 5, TEXT_WIDTH, generator=generator).to(dtype)
    output = transformer(
        hidden_states=tokens,
        encoder_hidden_states=text,
        timestep=torch.tensor([0.5], dtype=dtype),
        img_shapes=[[(1, 2, 2), (1, 2, 2)]],
        return_dict=False,
    )[0]
    assert isinstance(output, Tensor)
    return output[:, :4]


def randomize(weights: Mapping[str, nn.Parameter], *, seed: int = 1) -> None:
    """Give every LoRA weight a value, as if trained."""
    generator = torch.Generator().manual_seed(seed)
    for weight in weights.values():
        weight.data = 0.3 * torch.randn(weight.shape, generator=generator)

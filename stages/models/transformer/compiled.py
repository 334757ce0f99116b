"""The repeated block, compiled: one program for all blocks and all sizes of pictures.

Only the block is compiled, not the loop over the blocks: the wait at the start is that of one
block, and recomputation, host memory and streaming stay around it as they are. Numbers of tokens
are left open, so that another bucket asks for no other program. What is compiled gives the
plain path's losses and gradients up to the order in which sums are rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .side_by_side import OwnAttention, heads_of, install_varlen_attention

Forward = Callable[..., tuple[Tensor, Tensor]]
# First, last and other blocks, with and without gradients, one sample and several, with attention
# computed again and without: past torch's own limit, which is 8, it would silently stop compiling.
MOST_PROGRAMS = 32


def compile_blocks(
    transformer: nn.Module, *, backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Compile the blocks of `transformer` on their first use; padded batches run as before.

    There is a program for the first block, whose inputs need no gradient, one for the others,
    and one without gradients; batches of several samples have their own three, and so has a
    last block whose LoRA lies on fewer layers.

    Args:
        backend: what `torch.compile` hands the traced block to.
    """
    install_varlen_attention(transformer)
    for block in transformer.transformer_blocks:  # type: ignore[union-attr]
        processor: Any = block.attn.processor
        assert isinstance(processor, OwnAttention)
        processor.stock = RealAttention(processor.stock)
        plain: Any = block.forward
        # the hooks of streaming run around `forward`, outside of what is compiled
        block.forward = _chosen(plain, torch.compile(plain, backend=backend))


def is_compiled(block: nn.Module) -> bool:
    """Return whether `block` runs the compiled forward of `compile_blocks`."""
    return "forward" in vars(block)


def _chosen(plain: Forward, compiled: Forward) -> Forward:
    """Return a forward that is `compiled` for inputs without padding and `plain` for others."""

    def forward(
        hidden_states: Float[Tensor, "batch image channel"],
        encoder_hidden_states: Float[Tensor, "batch text channel"],
        encoder_hidden_states_mask: Tensor | None,
        temb: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor],
        joint_attention_kwargs: dict[str, Any] | None = None,
        modulate_index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        given = (hidden_states, encoder_hidden_states, encoder_hidden_states_mask, temb)
        if joint_attention_kwargs or encoder_hidden_states_mask is not None:
            return plain(*given, image_rotary_emb, joint_attention_kwargs, modulate_index)
        turns = tuple(torch.view_as_real(table) for table in image_rotary_emb)
        for tensor, tokens in (
            (hidden_states, 1),
            (encoder_hidden_states, 1),
            *((table, 0) for table in turns),
            *(() if modulate_index is None else ((modulate_index, 1),)),
        ):
            torch._dynamo.maybe_mark_dynamic(tensor, tokens)
        # for this call alone: what else is compiled in this process has the limit it had
        with torch._dynamo.config.patch(recompile_limit=MOST_PROGRAMS):
            return compiled(*given, turns, joint_attention_kwargs, modulate_index)

    return forward


class RealAttention:
    """The processor of joint attention with rotations in real numbers.

    The stock one multiplies complex numbers, which compilers leave as they are. Complex tables
    are given to it.
    """

    def __init__(self, stock: Any) -> None:
        self.stock = stock
        self._attention_backend = stock._attention_backend

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "batch image channel"],
        encoder_hidden_states: Float[Tensor, "batch text channel"],
        encoder_hidden_states_mask: Tensor | None,
        attention_mask: Tensor | None,
        image_rotary_emb: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return the image's and the text's states [batch, token, channel]."""
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        if image_rotary_emb[0].is_complex():
            states: tuple[Tensor, Tensor] = self.stock(
                attn,
                hidden_states,
                encoder_hidden_states,
                encoder_hidden_states_mask,
                attention_mask,
                image_rotary_emb,
            )
            return states
        both = hidden_states, encoder_hidden_states
        image, text = heads_of(attn, *both, turns=image_rotary_emb, rotate=apply_rope_real)
        query, key, value = (torch.cat(pair, dim=1) for pair in zip(text, image, strict=True))
        joint = dispatch_attention_fn(
            query, key, value, dropout_p=0.0, backend=self._attention_backend
        )
        states_of_text, states_of_image = (
            joint.flatten(2, 3).to(query.dtype).split([text[0].shape[1], image[0].shape[1]], dim=1)
        )
        out, dropout = attn.to_out
        return (
            dropout(out(states_of_image.contiguous())),
            attn.to_add_out(states_of_text.contiguous()),
        )


def apply_rope_real(
    states: Float[Tensor, "batch token head channel"], turns: Float[Tensor, "token half 2"]
) -> Float[Tensor, "batch token head channel"]:
    """Rotate pairs of channels by the angles whose (cosine, sine) are `turns` (RoPE)."""
    first, second = states.float().unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = turns.unsqueeze(-3).unbind(-1)
    turned = torch.stack((first * cosine - second * sine, first * sine + second * cosine), -1)
    return turned.flatten(-2).type_as(states)

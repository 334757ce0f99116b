"""Samples of different sizes in one forward of the stock transformer, as if each were alone.

Pictures and texts are padded to the longest of their kind for the linear layers. Each sample
has its own positions, and its attention is computed over its own tokens, so that no padding is
ever attended to and no mask is needed: a mask would keep attention from its fastest kernels.
Where nothing is padded the stock code runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

Shape = tuple[int, int, int]
Heads = tuple[Tensor, Tensor, Tensor]
"""Query, key and value, each [batch, token, head, channel]."""
Lengths = tuple[tuple[int, int], ...]
"""Of each sample, how many text and how many image tokens are its own."""


def padding(tokens: int) -> Shape:
    """Return the `img_shapes` entry that stands for this many padded tokens.

    Pictures have one frame and at least two tokens along each edge, so this is none.
    """
    return (tokens, 1, 1)


def is_padding(shape: Shape) -> bool:
    """Return whether `shape` stands for padded tokens."""
    return shape[1:] == (1, 1)


def install_varlen_attention(transformer: nn.Module) -> None:
    """Install attention of varying lengths in `transformer`, once, for padded batches."""
    if isinstance(transformer.pos_embed, OwnPositions):
        return
    transformer.pos_embed = OwnPositions(transformer.pos_embed)  # type: ignore[arg-type]
    for block in transformer.transformer_blocks:  # type: ignore[union-attr]
        attention: Any = block.attn
        attention.set_processor(OwnAttention(attention.processor))


class OwnPositions(nn.Module):
    """Rotations of each sample's own pictures and text.

    The stock module looks at the first sample alone. It is asked here for each sample by
    itself; its tables are cached by the shape of a picture.
    """

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        self.stock = stock

    def forward(
        self,
        video_fhw: Sequence[Sequence[Shape]],
        device: torch.device | None = None,
        max_txt_seq_len: int | None = None,
    ) -> tuple[Complex[Tensor, "*batch image half"], Complex[Tensor, "*batch text half"]]:
        """Return the rotations of image and text.

        Returns:
            Tables [token, rotation] for all samples if their pictures are the same, else
            [batch, token, rotation], padded with zeros.
        """
        own = [[shape for shape in shapes if not is_padding(shape)] for shapes in video_fhw]
        tables = [
            self.stock([shapes], max_txt_seq_len=max_txt_seq_len, device=device)
            for shapes in (own[:1] if all(shapes == own[0] for shapes in own) else own)
        ]
        if len(tables) == 1:
            image, text = tables[0]
            return image, text
        images, texts = zip(*tables, strict=True)
        return pad_sequence(list(images), batch_first=True), torch.stack(texts)


class OwnAttention:
    """The stock processor of joint attention, and beside it the one for padded batches.

    Both go through the same layers, those of a LoRA among them.
    """

    def __init__(self, stock: Any) -> None:
        self.stock = stock

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "batch image channel"],
        encoder_hidden_states: Float[Tensor, "batch text channel"],
        encoder_hidden_states_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        lengths: Lengths | None = None,
    ) -> tuple[Float[Tensor, "batch image channel"], Float[Tensor, "batch text channel"]]:
        """Return the image's and the text's states; `lengths` are given if anything is padded."""
        if lengths is None:
            states: tuple[Tensor, Tensor] = self.stock(
                attn,
                hidden_states,
                encoder_hidden_states,
                encoder_hidden_states_mask,
                attention_mask,
                image_rotary_emb,
            )
            return states
        assert image_rotary_emb is not None
        states_of_both = hidden_states, encoder_hidden_states
        image, text = heads_of(attn, *states_of_both, turns=image_rotary_emb, rotate=apply_rope)
        images, texts = self._attend(text, image, lengths)
        dropout = attn.to_out[1]
        return (
            dropout(attn.to_out[0](pad_sequence(images, batch_first=True))),
            attn.to_add_out(pad_sequence(texts, batch_first=True)),
        )

    def _attend(
        self,
        text: Heads,
        image: Heads,
        lengths: Lengths,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return attention's output by sample, for its image tokens and its text tokens."""
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        images, texts = [], []
        for place, (words, pixels) in enumerate(lengths):
            query, key, value = (
                torch.cat([own[place, :words], other[place, :pixels]])[None]
                for own, other in zip(text, image, strict=True)
            )
            joint = dispatch_attention_fn(
                query, key, value, dropout_p=0.0, backend=self.stock._attention_backend
            )
            states = joint[0].flatten(1).to(query.dtype)
            texts.append(states[:words])
            images.append(states[words:])
        return images, texts


def heads_of(
    attn: Any,
    image: Float[Tensor, "batch image channel"],
    text: Float[Tensor, "batch text channel"],
    *,
    turns: tuple[Tensor, Tensor],
    rotate: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Heads, Heads]:
    """Return query, key and value [batch, token, head, channel] of the image and of the text.

    Args:
        turns: the rotations of image and text, as `rotate` takes them.
        rotate: returns queries or keys, rotated by their positions.
    """
    size = attn.inner_dim // attn.heads

    def heads(layer: Any, states: Tensor) -> Tensor:
        split: Tensor = layer(states).unflatten(-1, (-1, size))
        return split

    of_image, of_text = turns
    return (
        rotate(attn.norm_q(heads(attn.to_q, image)), of_image),
        rotate(attn.norm_k(heads(attn.to_k, image)), of_image),
        heads(attn.to_v, image),
    ), (
        rotate(attn.norm_added_q(heads(attn.add_q_proj, text)), of_text),
        rotate(attn.norm_added_k(heads(attn.add_k_proj, text)), of_text),
        heads(attn.add_v_proj, text),
    )


def apply_rope(
    states: Float[Tensor, "batch token head channel"], turns: Complex[Tensor, "*batch token half"]
) -> Float[Tensor, "batch token head channel"]:
    """Rotate pairs of channels by the positions' angles, of each sample or of all."""
    pairs = torch.view_as_complex(states.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns.unsqueeze(-2)).flatten(-2).type_as(states)

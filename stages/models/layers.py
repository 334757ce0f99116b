"""What the linear layers of the transformer's blocks are called, and the presets made of them."""

from __future__ import annotations

_IMAGE_ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
_TEXT_ATTENTION = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
_IMAGE_MLP = ("img_mlp.net.0.proj", "img_mlp.net.2")
_TEXT_MLP = ("txt_mlp.net.0.proj", "txt_mlp.net.2")

MODULATION = ("img_mod.1", "txt_mod.1")
BLOCK_LINEARS = (*_IMAGE_ATTENTION, *_TEXT_ATTENTION, *_IMAGE_MLP, *_TEXT_MLP)

PRESETS: dict[str, tuple[str, ...]] = {
    "attention": _IMAGE_ATTENTION,
    "joint-attention": (*_IMAGE_ATTENTION, *_TEXT_ATTENTION),
    "attention+mlp": (*_IMAGE_ATTENTION, *_IMAGE_MLP),
    "all-linear": BLOCK_LINEARS,
    "all-linear+modulation": (*BLOCK_LINEARS, *MODULATION),
}

# The text output of the last block is thrown away: what only that depends on never learns.
# Its text keys and values are seen by the picture, so they do.
IDLE_IN_LAST_BLOCK = ("attn.add_q_proj", "attn.to_add_out", *_TEXT_MLP)

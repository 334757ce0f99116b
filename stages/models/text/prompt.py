"""Reference pictures and captions turned into the embeds that the transformer reads.

The language model is causal and the pictures stand before the instruction, so what it makes
of the pictures (the image prefix) is the same for every caption. It is computed once, and
all text tails on its key-value cache. Positions are always M-RoPE: diffusers 0.42 leaves out
the field from which transformers 5 derives them.

Prefix and tail joined equal one pass over the whole prompt to 2e-6 of the largest value in
float32 (measured 6e-7), and to 1e-2 in bfloat16 (5e-3: a step of its rounding), where they are
as near to float32 as one pass is.

Several reference sets go through in one batch, and each gives what it gives alone: prefixes
are padded on the right, where a causal model never looks, and a tail sees its own prefix and
itself, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from inspect import signature
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..checkpoint.checkpoint import Checkpoint
from ..templates import DROPPED_TOKENS
from .prompt_reader import Prompt, PromptReader
from .text_encoder import load_text_encoder

# Tails of one set that go through together; more would make their mask large.
TAIL_TOKENS = 1024
PADDING = 0  # any token that is no picture: nothing ever looks at it

States = Float[Tensor, "_token channel"]
Encoded = tuple[States, list[States]]


class PromptEncoder:
    """The vision language model of a checkpoint, without its head."""

    def __init__(self, model: Any, reader: PromptReader) -> None:
        self.model = model
        self.reader = reader
        self._positions: dict[tuple[int, ...], Tensor] = {}

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: str | torch.device = "cpu",
        precision: Literal["no_change", "int8-quanto"] = "no_change",
        reader: PromptReader | None = None,
    ) -> PromptEncoder:
        """Load the text encoder straight to `device`, and its reader unless one is given.

        Args:
            precision: "int8-quanto" keeps the language model's matrices in 8 bits. They are
                made so one by one as they are read.

        Raises:
            WrongUse: a part is not what it should be.
        """
        reader = reader or PromptReader.load(checkpoint)
        eight_bits = precision == "int8-quanto"
        model = load_text_encoder(checkpoint, dtype=dtype, device=device, eight_bits=eight_bits)
        return cls(model, reader)

    def encode(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> Encoded:
        """Return `encode_all` of one reference set; arguments as for `PromptReader.read`."""
        (encoded,) = self.encode_all([self.reader.read(pictures, captions)])
        return encoded

    @torch.no_grad()
    def encode_all(self, prompts: Sequence[Prompt]) -> list[Encoded]:
        """Encode these reference sets, each with all of its captions.

        Returns:
            For each set the image prefix (after the 64 dropped positions) and one text tail
            for each caption, in the model's dtype on the CPU. Prefix and tail joined are what
            the pipelines give for that caption.
        """
        positions = [self._positions_of(prompt) for prompt in prompts]
        return [
            (prefix[DROPPED_TOKENS:].cpu(), [tail.cpu() for tail in tails])
            for prefix, tails in encode_on_prefixes(self.model, prompts, positions)
        ]

    def _positions_of(self, prompt: Prompt) -> Int[Tensor, "3 token"]:
        """Return the positions of a prompt, computed once for each layout of pictures."""
        layout = (len(prompt.prefix), *prompt.grid.flatten().tolist())
        if layout not in self._positions:
            found = mrope_positions(self.model, prompt.prefix, grid=prompt.grid)
            self._positions[layout] = found[:, 0]
        return self._positions[layout]


def encode_on_prefixes(
    model: Any, prompts: Sequence[Prompt], positions: Sequence[Int[Tensor, "3 _token"]]
) -> list[Encoded]:
    """Run `model` (Qwen2_5_VLModel) over all prefixes once, then over all tails on their cache.

    Args:
        positions: the M-RoPE positions of each prefix. A tail goes on from there, as text does.
    """
    from transformers import DynamicCache

    device, cache = model.device, DynamicCache()
    cached = {cache_argument(model): cache, "use_cache": True}
    lengths = torch.tensor([len(prompt.prefix) for prompt in prompts])
    prefixes = model(
        input_ids=_padded([prompt.prefix for prompt in prompts]).to(device),
        position_ids=_padded_positions(positions).to(device),
        **cached,
        pixel_values=torch.cat([prompt.patches for prompt in prompts]).to(device),
        image_grid_thw=torch.cat([prompt.grid for prompt in prompts]).to(device),
    ).last_hidden_state
    tails: list[list[Tensor]] = [[] for _ in prompts]
    ends = [int(known.max()) + 1 for known in positions]
    for rows in _rounds(prompts):
        tokens, places, segments = _side_by_side(rows, ends)
        states = model(
            input_ids=tokens.to(device),
            position_ids=places.to(device),
            attention_mask=tail_mask(lengths, segments, dtype=prefixes.dtype).to(device),
            **cached,
        ).last_hidden_state
        cache.crop(-tokens.shape[1])
        for found, row, here in zip(tails, rows, states, strict=True):
            found += here[: sum(map(len, row))].split([len(tail) for tail in row])
    whole = zip(prefixes, lengths.tolist(), tails, strict=True)
    return [(states[:length], found) for states, length, found in whole]


def cache_argument(model: Any) -> str:
    """Return the name under which `model` takes its cache: transformers 5.24 has renamed it."""
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


def tail_mask(
    lengths: Int[Tensor, " set"], segments: Int[Tensor, "set tail"], *, dtype: torch.dtype
) -> Float[Tensor, "set 1 tail key"]:
    """Return the additive attention mask of tails: 0 where they attend, else the least number.

    A token sees the prefix of its set without the padding, and of the tokens of its own tail
    (of one number in `segments`) those up to itself.
    """
    count = segments.shape[1]
    prefix = torch.arange(int(lengths.max())) < lengths[:, None]
    own = segments[:, :, None] == segments[:, None, :]
    seen = torch.cat(
        [
            prefix[:, None].expand(-1, count, -1),
            own & torch.ones(count, count, dtype=torch.bool).tril(),
        ],
        dim=2,
    )
    mask = torch.zeros(seen.shape, dtype=dtype)
    return mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def mrope_positions(
    model: Any, tokens: Int[Tensor, " token"], *, grid: Int[Tensor, "image 3"]
) -> Int[Tensor, "3 1 token"]:
    """Return time, height and width of every token: M-RoPE of Qwen2-VL, arXiv:2409.12191."""
    kinds = (tokens == model.config.image_token_id).int()
    positions: Tensor = model.get_rope_index(
        tokens[None], mm_token_type_ids=kinds[None], image_grid_thw=grid
    )[0]
    return positions


def _rounds(prompts: Sequence[Prompt]) -> Iterator[list[list[Tensor]]]:
    """Yield, for each set, as many of its tails as fit at once, until none is left."""
    left = [list(prompt.tails) for prompt in prompts]
    while any(left):
        rows = []
        for waiting in left:
            row: list[Tensor] = []
            while waiting and (not row or sum(map(len, [*row, waiting[0]])) <= TAIL_TOKENS):
                row.append(waiting.pop(0))
            rows.append(row)
        yield rows


def _side_by_side(
    rows: Sequence[Sequence[Tensor]], ends: Sequence[int]
) -> tuple[Int[Tensor, "set tail"], Int[Tensor, "3 set tail"], Int[Tensor, "set tail"]]:
    """Return each set's tails in one row: tokens, positions, and the tail each token is of."""
    none = torch.zeros(0, dtype=torch.long)
    tokens = _padded([torch.cat([none, *row]) for row in rows])
    places, segments = torch.zeros_like(tokens), torch.full_like(tokens, -1)
    for number, (row, end) in enumerate(zip(rows, ends, strict=True)):
        at = 0
        for segment, tail in enumerate(row):
            here = slice(at, at + len(tail))
            places[number, here] = torch.arange(end, end + len(tail))
            segments[number, here] = segment
            at += len(tail)
    return tokens, places.expand(3, -1, -1), segments


def _padded(rows: Sequence[Int[Tensor, " _token"]]) -> Int[Tensor, "row token"]:
    return pad_sequence(list(rows), batch_first=True, padding_value=PADDING)


def _padded_positions(rows: Sequence[Int[Tensor, "3 _token"]]) -> Int[Tensor, "3 row token"]:
    return pad_sequence([row.T for row in rows], batch_first=True).permute(2, 0, 1)

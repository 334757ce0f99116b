"""Reference pictures and captions to the embeds that the transformer is shown.

The language model is causal and the pictures stand before the instruction, so what it makes
of the pictures (the image prefix) is the same for every caption. It is computed once, and
each caption's text tail on its key-value cache. Positions are always M-RoPE: diffusers
0.42 leaves out the field from which transformers 5 derives them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from ...cache.errors import WrongUse
from .checkpoint import Checkpoint
from .loading import load_part
from .templates import (
    DROPPED_TOKENS,
    IMAGE_TOKEN,
    OPENING,
    PICTURE_TOKENS,
    prefix_text,
    prompt_text,
)


class PromptEncoder:
    """The vision language model of a checkpoint, without its head."""

    def __init__(
        self, model: Any, tokenizer: Any, image_processor: Any, *, numbered_pictures: bool
    ) -> None:
        self.model = model
        self._tokenizer = tokenizer
        self._image_processor = image_processor
        self._numbered = numbered_pictures
        self._image_token = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self._check_opening()

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: str | torch.device = "cpu",
    ) -> PromptEncoder:
        """Load the text encoder, the processor's tokenizer and its picture settings.

        Raises:
            WrongUse: a part is not what it should be, or its tokenizer cuts the system
                prompt into other than 64 tokens.
        """
        from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )

        # The class with the head is the one that knows every layout of the weights' names;
        # the head itself (a gigabyte at full scale) is let go at once.
        whole = load_part(
            Qwen2_5_VLForConditionalGeneration,
            checkpoint.text_encoder,
            dtype=dtype,
            device="cpu",
        )
        return cls(
            whole.model.to(device),
            Qwen2Tokenizer.from_pretrained(str(checkpoint.processor), local_files_only=True),
            Qwen2VLImageProcessorPil.from_pretrained(
                str(checkpoint.processor), local_files_only=True
            ),
            numbered_pictures=checkpoint.flavour.numbered_pictures,
        )

    @torch.no_grad()
    def encode(
        self, pictures: Sequence[Image.Image], captions: Sequence[str]
    ) -> tuple[Float[Tensor, "token channel"], list[Float[Tensor, "_tail channel"]]]:
        """Encode one reference set with each of `captions`.

        Args:
            pictures: the references in their order, RGB, each at its `vl_size`.
            captions: as they are trained on; " " is the null prompt.

        Returns:
            The image prefix (after the 64 dropped positions) and one text tail for each
            caption, in the model's dtype on the CPU. Prefix and tail joined are what the
            pipelines give for that caption.

        Raises:
            WrongUse: a caption holds one of the tokens that stand for pictures.
        """
        seen = self._image_processor(images=list(pictures), return_tensors="pt")
        pixel_values, grid = seen["pixel_values"], seen["image_grid_thw"]
        prefix = self._prefix_tokens(grid)
        tails = [self._tail_tokens(caption, pictures=len(pictures)) for caption in captions]
        states, tail_states = encode_on_prefix(
            self.model, prefix, tails, pixel_values=pixel_values, grid=grid
        )
        return states[DROPPED_TOKENS:].cpu(), [tail.cpu() for tail in tail_states]

    def caption_tokens(self, caption: str) -> int:
        """How many tokens `caption` has; the pipelines are made for at most 1024."""
        return len(self._ids(caption))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids

    def _check_opening(self) -> None:
        count = len(self._ids(OPENING))
        if count != DROPPED_TOKENS:
            raise WrongUse(
                f"This checkpoint's tokenizer cuts the system prompt into {count} tokens "
                f"instead of {DROPPED_TOKENS}: the wrong part of the embeds would be dropped.",
                "Use the tokenizer and processor that belong to the checkpoint.",
            )

    def _prefix_tokens(self, grid: Int[Tensor, "image 3"]) -> Int[Tensor, " token"]:
        """The prefix with each picture's one token repeated as often as it has patches."""
        counts = iter((grid.prod(dim=-1) // self._image_processor.merge_size**2).tolist())
        tokens: list[int] = []
        for token in self._ids(prefix_text(len(grid), numbered=self._numbered)):
            tokens += [token] * (next(counts) if token == self._image_token else 1)
        return torch.tensor(tokens)

    def _tail_tokens(self, caption: str, *, pictures: int) -> Int[Tensor, " token"]:
        """The caption and what closes the prompt, cut out of the whole prompt's tokens."""
        for token in PICTURE_TOKENS:
            if token in caption:
                raise WrongUse(
                    f"A caption holds {token}, which the model takes for a picture: {caption!r}.",
                    "Take it out of the caption.",
                )
        prefix = self._ids(prefix_text(pictures, numbered=self._numbered))
        whole = self._ids(prompt_text(caption, pictures=pictures, numbered=self._numbered))
        assert whole[: len(prefix)] == prefix, "the tokenizer joins the pictures with the caption"
        return torch.tensor(whole[len(prefix) :])


def encode_on_prefix(
    model: Any,
    prefix: Int[Tensor, " token"],
    tails: Sequence[Int[Tensor, " _tail"]],
    *,
    pixel_values: Float[Tensor, "patch values"],
    grid: Int[Tensor, "image 3"],
) -> tuple[Float[Tensor, "token channel"], list[Float[Tensor, "_tail channel"]]]:
    """Run `model` (Qwen2_5_VLModel) over `prefix` once, and over each tail on its cache.

    Every token has the M-RoPE position that it has when prefix and tail are run as one.
    Positions are always handed over, so nothing depends on what the model was run on before.
    """
    from transformers import DynamicCache

    device = model.device
    cache = DynamicCache()

    def states(tokens: Tensor, positions: Tensor, **pictures: Tensor) -> Tensor:
        output = model(
            input_ids=tokens[None].to(device),
            position_ids=positions.to(device),
            past_key_values=cache,
            use_cache=True,
            **pictures,
        )
        last: Tensor = output.last_hidden_state[0]
        return last

    split = len(prefix)
    prefix_states = states(
        prefix,
        mrope_positions(model, prefix, grid=grid),
        pixel_values=pixel_values.to(device),
        image_grid_thw=grid.to(device),
    )
    tail_states = []
    for tail in tails:
        positions = mrope_positions(model, torch.cat([prefix, tail]), grid=grid)
        tail_states.append(states(tail, positions[:, :, split:]))
        cache.crop(-len(tail))
    return prefix_states, tail_states


def mrope_positions(
    model: Any, tokens: Int[Tensor, " token"], *, grid: Int[Tensor, "image 3"]
) -> Int[Tensor, "3 1 token"]:
    """Time, height and width of every token, as Qwen2.5-VL was trained."""
    kinds = (tokens == model.config.image_token_id).int()
    positions: Tensor = model.get_rope_index(
        tokens[None], mm_token_type_ids=kinds[None], image_grid_thw=grid
    )[0]
    return positions

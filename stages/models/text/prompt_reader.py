"""Reference pictures and captions turned into the prompt encoder's input tensors.

No model in here: worker threads read the next reference sets while the model is at this one.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from ....cache.errors import WrongUse
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.config_values import as_wrong_use
from ..templates import (
    DROPPED_TOKENS,
    IMAGE_TOKEN,
    OPENING,
    PICTURE_TOKENS,
    prefix_text,
    prompt_text,
)


@dataclass(frozen=True)
class Prompt:
    """One reference set and the captions that follow it.

    Attributes:
        prefix: tokens up to the last picture, each picture's one token repeated as often as
            it has merged patches.
        tails: tokens of each caption and of what closes the prompt.
        patches: what the vision tower sees of all pictures, one row a patch.
        grid: time, height and width of each picture in patches.
    """

    prefix: Int[Tensor, " token"]
    tails: tuple[Int[Tensor, " _tail"], ...]
    patches: Float[Tensor, "patch values"]
    grid: Int[Tensor, "image 3"]


class PromptReader:
    """The tokenizer and the picture settings of a checkpoint. Threads may share one.

    Args:
        with_pillow: pictures are resized as Pillow does it, else as torchvision does.
    """

    def __init__(
        self,
        tokenizer: Any,
        image_processor: Any,
        *,
        numbered_pictures: bool,
        with_pillow: bool = False,
    ) -> None:
        self._with_pillow = with_pillow
        self._tokenizer = tokenizer
        self._image_processor = image_processor
        self._numbered = numbered_pictures
        self._image_token = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self._turn = threading.Lock()  # a tokenizer serves one thread at a time
        self._prefixes: dict[int, list[int]] = {}
        self._check_opening()

    @classmethod
    def load(cls, checkpoint: Checkpoint, *, with_pillow: bool = False) -> PromptReader:
        """Load the processor's tokenizer and its picture settings; no weights.

        Args:
            with_pillow: as in the class.

        Raises:
            WrongUse: the tokenizer cuts the system prompt into other than 64 tokens.
        """
        from transformers import Qwen2Tokenizer
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )

        folder = str(checkpoint.processor)
        with as_wrong_use(checkpoint.processor, "a processor"):
            return cls(
                Qwen2Tokenizer.from_pretrained(folder, local_files_only=True),
                Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True),
                numbered_pictures=checkpoint.flavour.numbered_pictures,
                with_pillow=with_pillow,
            )

    def read(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> Prompt:
        """Cut `pictures` into patches and the text around them into tokens.

        Args:
            pictures: the references in their order, RGB, each at its `vl_size`.
            captions: as they are trained on; " " is the null prompt.

        Raises:
            WrongUse: a caption holds one of the tokens that stand for pictures.
        """
        if self._image_processor.do_resize and not self._with_pillow:
            resized = [self._resized(picture) for picture in pictures]
            seen = self._image_processor(images=resized, do_resize=False, return_tensors="pt")
        else:
            seen = self._image_processor(images=list(pictures), return_tensors="pt")
        grid: Tensor = seen["image_grid_thw"]
        return Prompt(
            self._prefix_tokens(grid),
            tuple(self._tail_tokens(caption, pictures=len(pictures)) for caption in captions),
            seen["pixel_values"],
            grid,
        )

    def _resized(self, picture: Image.Image) -> UInt8[Tensor, "3 height width"]:
        """Resize as torchvision does for the pipelines: the same kernel, which is torch's own.

        On uint8 tensors of the CPU the two are equal bit for bit; Pillow's kernel is another.
        """
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        settings = self._image_processor
        size = smart_resize(
            picture.height,
            picture.width,
            factor=settings.patch_size * settings.merge_size,
            min_pixels=settings.size["shortest_edge"],
            max_pixels=settings.size["longest_edge"],
        )
        values = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
        mode = "bilinear" if settings.resample == Image.Resampling.BILINEAR else "bicubic"
        resized: Tensor = nn.functional.interpolate(
            values[None], size=size, mode=mode, antialias=True, align_corners=False
        )
        return resized[0]

    def _ids(self, text: str) -> list[int]:
        with self._turn:
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

    def _prefix_ids(self, pictures: int) -> list[int]:
        """Return the token ids of the prefix, with one image token for each picture."""
        if pictures not in self._prefixes:
            self._prefixes[pictures] = self._ids(prefix_text(pictures, numbered=self._numbered))
        return self._prefixes[pictures]

    def _prefix_tokens(self, grid: Int[Tensor, "image 3"]) -> Int[Tensor, " token"]:
        counts = iter((grid.prod(dim=-1) // self._image_processor.merge_size**2).tolist())
        tokens: list[int] = []
        for token in self._prefix_ids(len(grid)):
            tokens += [token] * (next(counts) if token == self._image_token else 1)
        return torch.tensor(tokens)

    def _tail_tokens(self, caption: str, *, pictures: int) -> Int[Tensor, " token"]:
        """Return the tokens of the caption and the end of the prompt."""
        for token in PICTURE_TOKENS:
            if token in caption:
                raise WrongUse(
                    f"A caption holds {token}, which the model takes for a picture: {caption!r}.",
                    "Take it out of the caption.",
                )
        prefix = self._prefix_ids(pictures)
        whole = self._ids(prompt_text(caption, pictures=pictures, numbered=self._numbered))
        assert whole[: len(prefix)] == prefix, "the tokenizer joins the pictures with the caption"
        return torch.tensor(whole[len(prefix) :])

"""The text around the pictures and the instruction in the language model's prompt.

The wording is that of diffusers' QwenImageEditPipeline and QwenImageEditPlusPipeline, which
is what the model was trained with (a test holds the two together). No torch in here: the
text is part of a recipe.
"""

from __future__ import annotations

# The system turn and the opening of the user's turn are dropped from the embeds.
DROPPED_TOKENS = 64
# The pipelines' own bound on a prompt (`tokenizer_max_length`); they do not cut at it.
CAPTION_LIMIT_TOKENS = 1024

IMAGE_TOKEN = "<|image_pad|>"
# A caption that holds one of these would be taken for a picture.
PICTURE_TOKENS = ("<|vision_start|>", IMAGE_TOKEN, "<|video_pad|>", "<|vision_end|>")

# A caption that holds one of these ends the user's turn early, or begins another.
TURN_TOKENS = ("<|im_start|>", "<|im_end|>")

OPENING = (
    "<|im_start|>system\n"
    "Describe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. "
    "Generate a new image that meets the user's requirements while maintaining consistency with "
    "the original input where appropriate.<|im_end|>\n"
    "<|im_start|>user\n"
)
CLOSING = "<|im_end|>\n<|im_start|>assistant\n"
_SLOT = f"<|vision_start|>{IMAGE_TOKEN}<|vision_end|>"


def prefix_text(pictures: int, *, numbered: bool) -> str:
    """Return the prompt up to the instruction, with one image token for each of `pictures`.

    >>> prefix_text(2, numbered=True).removeprefix(OPENING).replace(_SLOT, "*")
    'Picture 1: *Picture 2: *'
    """
    names = (f"Picture {number}: " if numbered else "" for number in range(1, pictures + 1))
    return OPENING + "".join(name + _SLOT for name in names)


def prompt_text(caption: str, *, pictures: int, numbered: bool) -> str:
    """Return the whole prompt that the pipelines' processor is given for `caption`."""
    return prefix_text(pictures, numbered=numbered) + caption + CLOSING

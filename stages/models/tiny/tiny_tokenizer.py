"""The tokenizer of the tiny checkpoint: Qwen2's class and rules, a few hundred words of its own.

The pipelines drop the first 64 positions of every prompt, so the opening of their
template must be exactly 64 tokens long here too: each of its words is one token.
Everything the word list does not know falls back to bytes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ..templates import DROPPED_TOKENS, OPENING

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer

_MARKS = ("object_ref", "box", "quad", "vision")
SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *(f"<|{mark}_{end}|>" for mark in _MARKS for end in ("start", "end")),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)

_TEMPLATE_TEXT = "\n".join(
    (
        OPENING.replace("<|im_start|>", "").replace("<|im_end|>", ""),
        "assistant\n",
        "Picture 1: Picture 2: Picture 3: ",
    )
)

_CAPTION_WORDS = """\
a an the and or of in on at to from into with without by as for behind above under over beside
between next left right top bottom middle corner side front it its them this that all one two
three four first second other same
make turn change replace add remove put place move draw paint mirror flip show give take fill
swap combine keep let use colour color paint outline style sketch drawing picture image photo
scene background foreground lines edges line light dark bright pale big small large little new
old round tall wide thin thick more less
red green blue yellow orange purple pink brown black white grey gray cyan golden silver colours
sky sun moon star stars cloud clouds rain snow night day sunset evening morning sea water lake
river beach sand hill hills mountain mountains field grass meadow forest tree trees flower
flowers leaf road street city house houses roof door window wall fence boat ship sail car bus
train balloon kite ball box circle square triangle rectangle ring heart cat dog bird fish horse
person man woman child face hat cup plate apple lemon cherry pear table chair lamp book clock
shape shapes stripe stripes dot dots object size half
"""


def train_tokenizer() -> Qwen2Tokenizer:
    """Train the tiny tokenizer, with the same result every time, in a fraction of a second.

    Raises:
        AssertionError: the template's opening is not 64 tokens long.
    """
    from transformers import Qwen2Tokenizer

    model = json.loads(_train_byte_pairs().to_str())["model"]
    merges: Any = [tuple(merge) for merge in model["merges"]]
    tokenizer: Qwen2Tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=merges,
        model_max_length=131072,
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
    )
    length = len(tokenizer(OPENING)["input_ids"])
    assert length == DROPPED_TOKENS, f"the template's opening is {length} tokens long"
    return tokenizer


def _train_byte_pairs() -> Tokenizer:
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8192,
        min_frequency=2,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_lines() * 2, trainer)
    return tokenizer


def _lines() -> list[str]:
    """Return every word as it stands in captions: capitalised, in lower case, after a blank."""
    words = _CAPTION_WORDS.split()
    return [_TEMPLATE_TEXT, *words, *(f" {word}" for word in words), *map(str.capitalize, words)]

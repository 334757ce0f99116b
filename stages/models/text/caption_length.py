"""The number of tokens of a caption, by the tokenizer alone: no model and no torch."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from ....cache.errors import NotComplete, WrongUse
from ....config.settings import Settings
from ..checkpoint.checkpoint import processor_of
from ..checkpoint.model_files import json_object
from ..templates import CAPTION_LIMIT_TOKENS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# How Qwen2's tokenizer cuts text into pieces before it merges bytes: a contraction, a word, a
# single digit, a run of signs, line ends, blanks.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class CaptionLength:
    """A counter of captions' tokens; the tokenizer is loaded for the first long caption.

    A token is at least one byte, so a caption of no more bytes than tokens are allowed is
    never too long, and most runs need no tokenizer at all.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tokenizer: Tokenizer | None = None

    def excess(self, caption: str) -> int:
        """Return the number of tokens of a caption that is too long for the encoder, else 0.

        Raises:
            WrongUse, NotComplete: the checkpoint's tokenizer cannot be had.
        """
        if _bytes_of(caption) <= CAPTION_LIMIT_TOKENS:
            return 0
        if self._tokenizer is None:
            self._tokenizer = self._load()
        tokens = len(self._tokenizer.encode(caption, add_special_tokens=False))
        return tokens if tokens > CAPTION_LIMIT_TOKENS else 0

    def _load(self) -> Tokenizer:
        try:
            return tokenizer_in(processor_of(self._settings))
        except WrongUse as error:
            raise WrongUse(
                f"A caption is longer than {CAPTION_LIMIT_TOKENS} bytes, and the tokenizer that "
                f"says whether it is too long cannot be had. {error.what}",
                error.do,
            ) from error


def tokenizer_in(folder: Path) -> Tokenizer:
    """Return the tokenizer in `folder`, from tokenizer.json or from vocab.json and merges.txt.

    Raises:
        NotComplete: they are not there, or cannot be read.
    """
    from tokenizers import Tokenizer

    if not folder.is_dir():
        raise NotComplete(
            f"The checkpoint is not complete: there is no folder {folder}.",
            "Finish the download, or name a complete checkpoint in diffusers' folder layout.",
        )
    whole = folder / "tokenizer.json"
    try:
        if not whole.is_file():
            return _from_merges(folder)
        tokenizer = Tokenizer.from_file(str(whole))
    except Exception as error:  # the library raises bare exceptions for whatever is wrong
        raise NotComplete(
            f"The tokenizer in {folder} cannot be read: {error}.", "Download the files again."
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _from_merges(folder: Path) -> Tokenizer:
    """Build the tokenizer as transformers' Qwen2 tokenizer class does."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = Tokenizer(models.BPE.from_file(*files))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    # those are one token each, not text
    config = folder / "tokenizer_config.json"
    added = json_object(config).get("added_tokens_decoder", {}) if config.is_file() else {}
    tokenizer.add_special_tokens(
        [AddedToken(token["content"], normalized=False) for token in added.values()]
    )
    return tokenizer


def _bytes_of(caption: str) -> int:
    """Return the caption's UTF-8 bytes after NFC, which lengthens a few characters."""
    if caption.isascii():
        return len(caption)
    return len(unicodedata.normalize("NFC", caption).encode("utf-8", "surrogatepass"))

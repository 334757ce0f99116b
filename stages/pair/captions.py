"""Captions become clean text here, from wherever a dataset keeps them; nothing later strips."""

from __future__ import annotations

import hashlib
import re
import textwrap
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import chain

from ...cache.errors import Broken, WrongUse
from ...cache.regular_file import TooLarge, content_of
from ...config.datasets import CaptionShuffle, Dataset
from ..models.templates import CAPTION_LIMIT_TOKENS, PICTURE_TOKENS
from ..models.text.caption_length import CaptionLength
from ..pictures.images import os_reason
from ..samples.recipe import filter_entries
from .caption_tables import MOST_CAPTION_BYTES, TableCaptions
from .match import stem_of
from .scan import TEXT_EXTENSION, Scan, printable

SHOWN_CHARACTERS = 80

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_LINE_END = re.compile(r"\r\n|\r|\n")
_REPLACEMENT = re.compile(r"s/((?:[^/\\]|\\.)+)/((?:[^/\\]|\\.)*)/", re.DOTALL)
_SEPARATORS = {"comma": ",", "semicolon": ";", "period": ".", "space": " "}

Edit = Callable[[str], str]


class NoCaption(Exception):
    """Raised for a target without a usable caption; `reason` is one of the codes of `checks`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class Captions:
    """The captions of the targets of one main dataset.

    Args:
        targets: the folder of the targets.
        length: tells which captions are too long for the encoder.

    Raises:
        WrongUse: a caption table that cannot be read, or an option that lacks its value.
    """

    def __init__(self, main: Dataset, targets: Scan, *, length: CaptionLength) -> None:
        self._main, self._targets, self._length = main, targets, length
        self._texts = frozenset(targets.texts.paths)
        self._only_prompts = main.only_instance_prompt or main.caption_strategy == "instanceprompt"
        if (self._only_prompts or main.prepend_instance_prompt) and not main.instance_prompt:
            raise WrongUse(
                f"Dataset {main.id} wants its `instance_prompt` as a caption and has none.",
                f"Give dataset {main.id} an `instance_prompt`.",
            )
        self._edits = [_edit(entry, main.id) for entry in filter_entries(main)]
        self._table = None if self._only_prompts else TableCaptions.of(main)

    def of(self, path: str) -> tuple[str, ...]:
        """Return the captions of the target at `path`, alternatives in their order, none twice.

        Raises:
            NoCaption: with a reason code, unless the dataset says `missing_caption: empty`.
        """
        try:
            return self._of(path)
        except NoCaption as missing:
            may_lack = missing.reason in ("missing_caption", "empty_caption")
            if may_lack and self._main.missing_caption == "empty":
                return ("",)
            raise

    def strange(self, stems: Collection[str]) -> str:
        """Return a sentence on captions that have no target; "" if there are none.

        Args:
            stems: what the targets are matched by.
        """
        main = self._main
        if self._table is not None:
            alone = self._table.rows_without(stems)
            where, what = self._table.path, "rows name no picture"
        elif main.caption_strategy == "textfile" and not self._only_prompts:
            alone = [path for path in self._targets.texts.paths if stem_of(path) not in stems]
            where, what = self._targets.folder, "texts have no picture of their name"
        else:
            return ""
        if not alone:
            return ""
        return f"{where}: {len(alone)} {what} of {main.id}, the first is {printable(alone[0])}"

    def _of(self, path: str) -> tuple[str, ...]:
        main = self._main
        if self._only_prompts:
            captions = _clean(main.instance_prompt)
        else:
            captions = self._pieces(self._raw(path))
            captions = _clean(self._edited(caption) for caption in captions)
            if main.caption_shuffle.enable:
                orders = (shuffled(caption, main.caption_shuffle) for caption in captions)
                captions = _clean(chain.from_iterable(orders))
            if main.prepend_instance_prompt:
                prompts = [prompt.strip() for prompt in main.instance_prompt]
                captions = _clean(f"{prompt} {text}" for text in captions for prompt in prompts)
        if not captions:
            raise NoCaption("empty_caption", "nothing but blanks")
        for caption in captions:
            self._check(caption)
        return captions

    def _check(self, caption: str) -> None:
        if "\0" in caption:
            where = printable(_start(caption))
            raise NoCaption("caption_not_utf8", f"zero bytes, as UTF-16 has them: {where}")
        for token in PICTURE_TOKENS:
            if token in caption:
                # the encoder would take it for a picture that is not there
                raise NoCaption("picture_token_in_caption", f"{token} in {_start(caption)}")
        if tokens := self._length.excess(caption):
            raise NoCaption(
                "caption_too_long",
                f"{tokens} tokens, at most {CAPTION_LIMIT_TOKENS} are possible: {_start(caption)}",
            )

    def _raw(self, path: str) -> Sequence[str]:
        match self._main.caption_strategy:
            case "filename":
                return (path.rpartition("/")[2].rpartition(".")[0].replace("_", " "),)
            case "textfile":
                return (self._text_beside(path),)
        if self._table is None:
            raise NoCaption("missing_caption", "the dataset has no caption_strategy")
        found = self._table.of_path(path)
        if found is None:
            raise NoCaption("missing_caption", f"no row of {self._table.path} names it")
        if any(len(text) > MOST_CAPTION_BYTES for text in found):
            raise NoCaption("caption_too_large", f"more than {MOST_CAPTION_BYTES} characters")
        return found

    def _text_beside(self, path: str) -> str:
        text_path = f"{path.rpartition('.')[0]}.{TEXT_EXTENSION}"
        if text_path not in self._texts:
            raise NoCaption("missing_caption", f"no {text_path} beside it")
        try:
            data = content_of(self._targets.folder / text_path, MOST_CAPTION_BYTES)
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            why = "UTF-16" if data.startswith(_UTF16_MARKS) else error.reason
            raise NoCaption("caption_not_utf8", f"{text_path}: {why}") from None
        except TooLarge as error:
            raise NoCaption("caption_too_large", f"{text_path}: {error}") from error
        except Broken as error:
            raise NoCaption("caption_not_a_file", f"{text_path}: {error}") from error
        except OSError as error:
            raise NoCaption(os_reason(error), f"{text_path}: {error.strerror}") from error

    def _pieces(self, texts: Iterable[str]) -> tuple[str, ...]:
        lines = [[line.strip() for line in _LINE_END.split(text)] for text in texts]
        if self._main.disable_multiline_split or self._main.caption_strategy == "filename":
            return _clean("\n".join(text) for text in lines)
        return _clean(line for text in lines for line in text)

    def _edited(self, caption: str) -> str:
        for edit in self._edits:
            caption = edit(caption)
        return re.sub(r" {2,}", " ", caption) if self._edits else caption


def shuffled(caption: str, options: CaptionShuffle) -> list[str]:
    """Return the caption and `count` more, with pieces after `position_start` in other orders.

    The order depends on the seed, the caption and the number of the variant alone.
    """
    separator = _SEPARATORS.get(options.split_on, options.split_on)
    pieces = [piece.strip() for piece in caption.split(separator) if piece.strip()]
    fixed, loose = pieces[: options.position_start], pieces[options.position_start :]
    glue = separator if separator == " " else f"{separator} "
    variants = [caption] if options.include_original else []
    for number in range(options.count):
        lots = [
            hashlib.blake2b(
                f"{options.seed} {number} {place} {caption}".encode(), digest_size=8
            ).digest()
            for place in range(len(loose))
        ]
        order = sorted(range(len(loose)), key=lots.__getitem__)
        variants.append(glue.join([*fixed, *(loose[place] for place in order)]))
    return variants


def _start(caption: str) -> str:
    return repr(textwrap.shorten(caption, SHOWN_CHARACTERS, placeholder=" ..."))


def _clean(captions: Iterable[str]) -> tuple[str, ...]:
    stripped = (caption.strip() for caption in captions)
    return tuple(dict.fromkeys(caption for caption in stripped if _says_something(caption)))


def _says_something(caption: str) -> bool:
    """Return whether the caption has a visible character."""
    return bool(caption) and (
        caption.isascii()
        or any(
            not char.isspace() and unicodedata.category(char) not in ("Cc", "Cf")
            for char in caption
        )
    )


def _edit(entry: str, dataset: str) -> Edit:
    """Return the edit for `s/pattern/replacement/`, or for other text to remove."""
    replacement = _REPLACEMENT.fullmatch(entry)
    if replacement is None:
        return lambda caption: caption.replace(entry, "")
    try:
        pattern = re.compile(replacement[1])
        pattern.sub(replacement[2], "")
    except (re.error, IndexError) as error:
        raise WrongUse(
            f"Dataset {dataset}: `caption_filter_list` has the pattern {entry!r}: {error}.",
            "Fix it; s/pattern/replacement/ takes Python's regular expressions.",
        ) from error
    return lambda caption: pattern.sub(replacement[2], caption)

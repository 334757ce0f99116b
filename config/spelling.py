"""Finds the known word that is nearest to an unknown one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

ALIKE = 0.6
NEARLY_EQUAL = 0.9
LONGEST_WORD = 100  # longer ones are no keys, and take long to compare


def nearest(word: str, known: Iterable[str], *, alike: float = ALIKE) -> str | None:
    """Return the known word that `word` was probably meant to be, or None.

    `alike`: difflib's ratio from which two words are taken for one, from 0 to 1.
    """
    if len(word) > LONGEST_WORD:
        return None
    words = {_folded(candidate): candidate for candidate in sorted(known, reverse=True)}
    close = get_close_matches(_folded(word), words, n=1, cutoff=alike)
    return words[close[0]] if close else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a sentence: "; did you mean `lora_rank`?", or nothing."""
    close = nearest(word, known)
    return f"; did you mean `{close}`?" if close else ""


def _folded(word: str) -> str:
    return word.lower().lstrip("-").replace("-", "_")

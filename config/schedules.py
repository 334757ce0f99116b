"""Lists what may be written in `lr_scheduler_config`, by `lr_scheduler`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .spelling import did_you_mean

# Another option would be ignored by that schedule.
SCHEDULE_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "constant": (),
    "constant_with_warmup": (),
    "linear": (),
    "cosine": (),
    "cosine_with_restarts": ("num_cycles",),
    "polynomial": ("power", "lr_end"),
    "piecewise_constant": ("step_rules",),
}
# Where a polynomial ends if nothing is said.
_END = 1e-7
_RULE, _LAST_RULE = r"\d*\.?\d+(e-?\d+)?:\d+", r"\d*\.?\d+(e-?\d+)?"
_RULES = re.compile(rf"({_RULE},)*{_LAST_RULE}", re.IGNORECASE)


def schedule_mistakes(
    name: str, config: Mapping[str, Any], *, peak: float
) -> Iterator[tuple[str, str]]:
    """Yield (option, text) of each option that schedule `name` does not take, lacks or cannot use.

    Args:
        peak: the highest learning rate.
    """
    takes = SCHEDULE_OPTIONS[name]
    for option, value in config.items():
        if option not in takes:
            yield option, f"is not an option of `lr_scheduler` {name}, {_takes(name, option)}"
        elif (why := _wrong(option, value, peak)) is not None:
            yield option, why
    if name == "piecewise_constant" and "step_rules" not in config:
        yield "step_rules", f'is required with `lr_scheduler` {name}, like "1:100,0.1"'
    if name == "polynomial" and "lr_end" not in config and peak <= _END:
        yield "lr_end", f"is {_END:g} where it is not given, and `learning_rate` is no more"


def _takes(name: str, option: str) -> str:
    """Return what is taken instead, or which schedule takes it."""
    takes = SCHEDULE_OPTIONS[name]
    own = f"which takes {' and '.join(takes) or 'none'}{did_you_mean(option, takes)}"
    others = [other for other, options in SCHEDULE_OPTIONS.items() if option in options]
    return f"{own}; {others[0]} takes it" if others else own


def _wrong(option: str, value: Any, peak: float) -> str | None:
    if option == "step_rules":
        if isinstance(value, str) and _RULES.fullmatch(value.replace(" ", "")):
            return None
        return f'must be like "1:100,0.1" (factor:until this step, ..., factor), not {value!r}'
    if type(value) not in (int, float) or not math.isfinite(value):
        return f"must be a number, not {value!r}"
    if option == "lr_end":
        # at the peak itself nothing would decay
        return None if 0 <= value < peak else f"must be from 0 to less than {peak:g}, not {value!r}"
    return None if value > 0 else f"must be more than 0, not {value!r}"

"""The rows as Markdown, and what they say of the targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

Row = dict[str, Any]
COLUMNS = (
    "row",
    "case",
    "s/step",
    "vs. yardstick",
    "peak GB",
    "planned GB",
    "% of ceiling",
    "first step s",
    "how",
)
WANTED_SPEED = 1.3  # times the yardstick's steps a second
WANTED_SHARE = 0.55  # of the ceiling
WANTED_ENCODING = 0.9  # of a bare loop's
PLANNED_WITHIN = 0.07
# A loss is a mean over 260 thousand numbers of a bf16 forward. Another order of its sums moves each
# by about 2^-8 of itself, to either side; a block that is left out moves them all.
SAME_LOSS_WITHIN = {"loss": 0.002, "grad_norm": 0.01}


def case_of(row: Row) -> str:
    return f"{row['flavour']}, {row['references']} ref."


def ceiling_of(rows: Sequence[Row]) -> float:
    """TFLOP/s of a large bf16 product; 0 where that was not measured."""
    return next(
        (row["tflops"] for row in rows if row["what"] == "ceiling" and "tflops" in row), 0.0
    )


def row_line(row: Row, ceiling: float, yardsticks: dict[str, float] | None = None) -> str:
    """A row of the table."""
    if row["what"] not in ("qedit", "stock"):
        facts = row.get("error") or ", ".join(f"{k} {v}" for k, v in row.get("facts", {}).items())
        return f"| {row['row']} |" + " |" * 7 + f" {facts} |"
    if "seconds" not in row:
        return f"| {row['row']} | {case_of(row)} |" + " |" * 6 + f" {row.get('error', '')} |"
    yardstick = (yardsticks or {}).get(case_of(row))
    facts = (
        case_of(row),
        f"{row['seconds']:.3f}",
        f"{yardstick / row['seconds']:.2f}" if yardstick else "",
        row["peak_gb"],
        row["planned_gb"],
        f"{100 * row['tflops'] / ceiling:.0f}" if ceiling else "",
        row["first_step_seconds"],
        row["fit"] + (f"; {row['programs']} programs compiled" if row["programs"] else ""),
    )
    return f"| {row['row']} | " + " | ".join(map(str, facts)) + " |"


def section(rows: Sequence[Row], *, command: str, source: str, day: str, seconds: float) -> str:
    """The table of one run, with what it ran on.

    Args:
        source: the JSON file with all of its rows.
    """
    about = next((row["facts"] for row in rows if row["what"] == "ceiling" and "facts" in row), {})
    ceiling = ceiling_of(rows)
    yardsticks = {
        case_of(row): row["seconds"]
        for row in rows
        if row["row"] == "yardstick, bf16" and "seconds" in row
    }
    lines = [
        f"## {day}, {about.get('device', 'unknown device')}",
        "",
        f"`{command}` in {seconds:.0f} s, all of it in `{source}`; {about.get('versions', '')}; "
        f"bf16 matmul ceiling {ceiling:.2f} TFLOP/s. The yardstick of a case is the stock loop on "
        "the same case in the same run, in bf16.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + " --- |" * len(COLUMNS),
        *(row_line(row, ceiling, yardsticks) for row in rows),
        "",
        *(f"* {verdict}" for verdict in verdicts(rows)),
    ]
    return "\n".join(lines)


def verdicts(rows: Sequence[Row]) -> Iterator[str]:
    """Every target against what was measured: ok, BELOW, or not measured."""
    found = {(row["row"], case_of(row)): row for row in rows}

    def seconds(name: str, case: str = "edit-v2, 1 ref.") -> float:
        return float(found.get((name, case), {}).get("seconds", 0.0))

    stock = seconds("yardstick, bf16")
    for name in ("bf16", "int8"):
        fastest = min(filter(None, _own_seconds(rows, name)), default=0.0)
        yield _at_least(f"{name}, recomputing, against the yardstick", stock, seconds(name))
        yield _at_least(f"{name}, the fastest way, against the yardstick", stock, fastest)
    ceiling = ceiling_of(rows)
    reached = max((row["tflops"] for row in _measured(rows, "bf16")), default=0.0)
    yield _said("share of the ceiling, bf16", reached, ceiling, wanted=WANTED_SHARE)
    full = seconds("int4")
    for name, most in (("12 GB, int4", 1.15), ("8 GB, int4", 1.5)):
        yield _said(f"{name}, against int4 without a cap", seconds(name), full, most=most)
    yield from _caps(rows)
    yield from _agreement(rows)
    for row in rows:
        if row["what"].startswith("cache-"):
            facts = row.get("facts", {})
            share = facts.get("per_second", 0.0), facts.get("bare_per_second", 0.0)
            yield _said(f"{row['what']}, against a bare loop", *share, wanted=WANTED_ENCODING)


def _measured(rows: Sequence[Row], name: str) -> list[Row]:
    return [
        row
        for row in rows
        if "seconds" in row
        and (row["row"] == name or row["row"].startswith(f"{name}, "))
        and case_of(row) == "edit-v2, 1 ref."
    ]


def _own_seconds(rows: Sequence[Row], name: str) -> list[float]:
    return [row["seconds"] for row in _measured(rows, name)]


def _at_least(what: str, yardstick: float, own: float) -> str:
    return _said(what, yardstick, own, wanted=WANTED_SPEED)


def _said(what: str, value: float, of: float, *, wanted: float = 0.0, most: float = 0.0) -> str:
    limit = f"at most {most}" if most else str(wanted)
    if not value or not of:
        return f"{what}: not measured (wanted {limit})"
    ratio = value / of
    fine = ratio <= most if most else ratio >= wanted
    return f"{what}: {ratio:.2f} (wanted {limit}) {'ok' if fine else 'BELOW'}"


def _caps(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        if not row.get("cap_gb"):
            continue
        if "seconds" not in row:
            yield f"{row['row']}: {row.get('error', 'not measured')}"
            continue
        verdict = "ok" if row["peak_gb"] <= row["cap_gb"] else "BELOW"
        peak = f"peak {row['peak_gb']} GB {verdict}" if row["peak_gb"] else "peak not measured"
        yield f"{row['row']}: {peak}; {row['fit']}"


def _agreement(rows: Sequence[Row]) -> Iterator[str]:
    """Estimates against counted memory, and the losses and gradients of all ways of a case."""
    own = [row for row in rows if row["what"] == "qedit" and "seconds" in row]
    off = [row["planned_gb"] / row["peak_gb"] - 1 for row in own if row["peak_gb"]]
    if off:
        fine = "ok" if max(map(abs, off)) <= PLANNED_WITHIN else "BELOW"
        yield (
            f"planned memory: {min(off):+.1%} to {max(off):+.1%} of the peak "
            f"(wanted within {PLANNED_WITHIN:.0%}) {fine}"
        )
    same: dict[tuple[Any, ...], list[Row]] = {}
    for row in own:
        key = (row["precision"], row["table"], row["flavour"], row["references"])
        same.setdefault(key, []).append(row)
    for (precision, *_), group in same.items():
        for name in ("loss", "grad_norm"):
            values = [row[name] for row in group]
            spread = max(values) / max(min(values), 1e-30) - 1
            if spread > SAME_LOSS_WITHIN[name]:
                yield (
                    f"{name} of {precision}, {case_of(group[0])}: {spread:.1%} apart between "
                    f"{', '.join(row['row'] for row in group)} BELOW"
                )

"""The page of a run: one HTML file, written as it goes, from what lies in the run's folder.

No picture library is needed, since training writes it too: the pictures are those that `preview`
has written beside the previews.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ...cache.files.decides_nothing import put_page, read_if_whole
from ...config.configuration import Configuration
from ..models.lora.lora_file import LORA_FILE
from ..pages.html_page import page_text, picture_link
from .data_history import history_of
from .metrics_file import METRICS_FILE, read_metrics
from .previews import (
    PREVIEWS,
    Stored,
    read_drift,
    source_picture,
    stored_previews,
    thinned,
)
from .run_file import read_run, write_as_run

PAGE_FILE = "index.html"
# The page holds its pictures: of a long run the steps are thinned to this many.
MOST_STEPS = 24
MOST_POINTS = 800  # of a curve: more than a screen has columns for it
PLAIN = ("loss", "lr", "grad_norm", "seconds", "data_wait_seconds", "memory_bytes", "held_out")
_MADE_BY = '<meta name="generator" content="qedit run page">'
_LINKED = (
    ("The LoRA", LORA_FILE),
    ("Its average", f"ema/{LORA_FILE}"),
    ("The best by held-out loss", "best"),
    ("Model card", "README.md"),
    ("Metrics", METRICS_FILE),
    ("Previews", PREVIEWS),
    ("Film strips", f"{PREVIEWS}/strips"),
    ("Configuration as run", "as-run"),
)

Curve = list[tuple[int, float | int]]
"""Pairs of (step, value)."""


def write_page(configuration: Configuration, *, steps: int | None = None) -> bool:
    """Write the page of the run if its folder holds something new.

    A page that somebody else wrote there stays.

    Args:
        steps: how many steps the run has in all, where that is known.

    Returns:
        Whether it was written.
    """
    output_dir = configuration.settings.output_dir
    data = page_data(configuration, steps=steps)
    text = page_text(__package__, data, title="qedit run", mark=_MADE_BY)
    return put_page(output_dir / PAGE_FILE, text, mark=_MADE_BY)


def page_data(configuration: Configuration, *, steps: int | None = None) -> dict[str, Any]:
    """Return everything that the page shows, as JSON values."""
    settings = configuration.settings
    output_dir = settings.output_dir
    as_run = write_as_run(configuration)
    config, data = as_run
    lines = read_metrics(output_dir)
    run = read_run(output_dir) or {}
    stored = list(stored_previews(output_dir))
    by_sample: dict[str, list[Stored]] = defaultdict(list)
    for preview in stored:
        by_sample[preview.sample].append(preview)
    return {
        "title": output_dir.absolute().name,
        "about": [
            str(settings.model_flavour),
            settings.pretrained_model_name_or_path or "",
            f"rank {settings.lora_rank}" if settings.model_type == "lora" else "full model",
        ],
        "updated": _changed(output_dir / METRICS_FILE),
        "steps": {
            "done": max((line["step"] for line in lines), default=0),
            "of": steps or settings.max_train_steps,
        },
        "curves": curves_of(lines),
        "sigma": {
            "training": by_sigma(lines, held_out=False),
            "held_out": by_sigma(lines, held_out=True),
        },
        "drift": _drift(output_dir, stored),
        "samples": [_sample(output_dir, previews) for previews in by_sample.values()],
        "datasets": run.get("datasets", {}),
        "history": history_of(run),
        "fingerprints": {**run.get("recipes", {}), **_model(run)},
        "command": shlex.join(
            ["qedit", "run", "-C", str(Path.cwd()), "--config", str(config), "--data", str(data)]
        ),
        "files": {path.name: text for path, text in as_run.items()},
        "links": [[name, link] for name, link in _LINKED if (output_dir / link).exists()],
    }


def _changed(path: Path) -> str:
    """Return when a file was last written, for people."""
    if not path.is_file():
        return ""
    return f"{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d %H:%M}"


def _model(run: Mapping[str, Any]) -> dict[str, str]:
    digest = run.get("model", {}).get("transformer")
    return {"transformer": str(digest)} if digest else {}


def _sample(output_dir: Path, stored: Sequence[Stored]) -> dict[str, Any]:
    """Return a sample with its pictures at every step, as links that hold them."""
    about = stored[-1].about
    steps = thinned(sorted({one.step for one in stored}), most=MOST_STEPS)
    frames: dict[str, dict[int, str]] = {}
    for one in stored:
        if one.step in steps and (link := _link(one.small_picture)):
            frames.setdefault(one.part, {})[one.step] = link
    sources = [
        _link(source_picture(output_dir, facts))
        for facts in (about["target"], *about["references"])
    ]
    return {
        "name": stored[0].sample,
        "caption": about["caption"],
        "size": about["size"],
        "references": sources[1:],
        "target": sources[0],
        "frames": frames,
    }


def _link(picture: Path) -> str | None:
    return read_if_whole(picture, picture_link, None)


def _drift(output_dir: Path, stored: Sequence[Stored]) -> dict[str, list[dict[str, Any]]]:
    """Return what was measured of each sample by step: of the base, then of the weights."""
    found: dict[str, list[dict[str, Any]]] = {}
    for step in sorted({one.step for one in stored}):
        for one in read_drift(output_dir, step).values():
            if one["part"] != "ema":
                kept = {key: one[key] for key in one if key not in ("recipe", "sample", "part")}
                found.setdefault(one["sample"], []).append({"step": step, **kept})
    return found


def curves_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """Return each plain curve by its name, the held-out loss among them as `held_out`."""
    curves: dict[str, Curve] = defaultdict(list)
    for line in lines:
        held_out = (line.get("held_out") or {}).get("loss")
        for name, value in _numbers({**line, "held_out": held_out}):
            if name in PLAIN:
                curves[name].append((line["step"], value))
    return {name: shortened(curves[name]) for name in PLAIN if name in curves}


def by_sigma(lines: Sequence[Mapping[str, Any]], *, held_out: bool) -> dict[str, Curve]:
    """Return a curve for each noise level (or band of them), of the training or held-out loss."""
    curves: dict[str, Curve] = defaultdict(list)
    for line in lines:
        losses = (line.get("held_out") or {}).get("by_sigma")
        for name, value in _numbers(losses if held_out else line.get("loss_by_sigma")):
            curves[name].append((line["step"], value))
    return {name: shortened(curves[name]) for name in sorted(curves)}


def shortened(curve: Curve, *, most: int = MOST_POINTS) -> Curve:
    """Return at most `most` points: means of neighbours, at their last step; ends stay."""
    if len(curve) <= most:
        return [(step, _short(value)) for step, value in curve]
    result: Curve = []
    for number in range(most):
        start, end = (at * len(curve) // most for at in (number, number + 1))
        values = [value for _, value in curve[start:end]]
        result.append((curve[end - 1][0], _short(sum(values) / len(values))))
    return result


def _numbers(values: Any) -> Iterator[tuple[str, float | int]]:
    """Yield the items of a mapping whose values are numbers; none of anything else."""
    for name, value in values.items() if isinstance(values, Mapping) else ():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield str(name), value


def _short(value: float | int) -> float:
    return float(f"{value:.6g}")

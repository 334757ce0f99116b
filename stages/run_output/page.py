"""Page: a run as one HTML file; written as it goes, from what lies in its folder.

Pure Python, no picture library: training writes it too. Pictures are those that `preview` has
left beside the previews.
"""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from ...cache.files.atomic import sweep, write_text
from ...config.configuration import Configuration
from ..models.lora.lora_file import LORA_FILE
from .as_run import write_as_run
from .curves import by_sigma, curves_of
from .metrics_file import METRICS_FILE, read_metrics
from .previews import LATENTS, PREVIEWS, Stored, step_folder, stored_previews
from .run_file import read_run

PAGE_FILE = "index.html"
# The page holds its pictures: of a long run the steps are thinned to this many.
MOST_STEPS = 24
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


def write_page(configuration: Configuration, *, steps: int | None = None) -> bool:
    """Write the page of the run if it has changed; return whether it had.

    A page that somebody else wrote there stays.

    Args:
        steps: how many steps the run has in all, where that is known.
    """
    output_dir = configuration.settings.output_dir
    page = output_dir / PAGE_FILE
    before = page.read_text(encoding="utf-8") if page.is_file() else None
    if before is not None and _MADE_BY not in before:
        return False
    data = page_data(configuration, steps=steps)
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    text = text.encode("utf-8", "backslashreplace").decode()
    template = (files("qedit.stages.run_output") / "page.html").read_text(encoding="utf-8")
    head, tail = template.replace("@MADE_BY@", _MADE_BY).split("@DATA@")
    made = f"{head}{text}{tail}"
    if made == before:
        return False
    sweep(output_dir)
    write_text(page, made)
    return True


def page_data(configuration: Configuration, *, steps: int | None = None) -> dict[str, Any]:
    """Return everything that the page shows, as JSON."""
    settings = configuration.settings
    output_dir = settings.output_dir
    config, data = write_as_run(configuration)
    lines = read_metrics(output_dir)
    run = read_run(output_dir) or {}
    stored = list(stored_previews(output_dir))
    return {
        "title": output_dir.absolute().name,
        "about": [
            str(settings.model_flavour),
            settings.pretrained_model_name_or_path or "",
            f"rank {settings.lora_rank}" if settings.model_type == "lora" else "full model",
        ],
        "updated": _changed(output_dir / METRICS_FILE),
        "steps": {"done": _last_step(lines), "of": steps or settings.max_train_steps},
        "curves": curves_of(lines),
        "sigma": {
            "training": by_sigma(lines, held_out=False),
            "held_out": by_sigma(lines, held_out=True),
        },
        "drift": _drift(output_dir, stored),
        "samples": [_sample(output_dir, of_one) for of_one in _by_sample(stored)],
        "datasets": run.get("datasets", {}),
        "fingerprints": {**run.get("recipes", {}), **_model(run)},
        "command": shlex.join(
            ["qedit", "run", "-C", str(Path.cwd()), "--config", str(config), "--data", str(data)]
        ),
        "files": {path.name: path.read_text(encoding="utf-8") for path in (config, data)},
        "links": [[name, link] for name, link in _LINKED if (output_dir / link).exists()],
    }


def _last_step(lines: Sequence[Mapping[str, Any]]) -> int:
    return max((line["step"] for line in lines), default=0)


def _changed(path: Path) -> str:
    """Return when a file was last written, for people."""
    if not path.is_file():
        return ""
    return f"{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d %H:%M}"


def _read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return value


def _model(run: Mapping[str, Any]) -> dict[str, str]:
    digest = run.get("model", {}).get("transformer")
    return {"transformer": str(digest)} if digest else {}


def _by_sample(stored: Sequence[Stored]) -> Iterator[list[Stored]]:
    samples: dict[str, list[Stored]] = {}
    for one in stored:
        samples.setdefault(one.sample, []).append(one)
    yield from samples.values()


def _sample(output_dir: Path, stored: Sequence[Stored]) -> dict[str, Any]:
    """Return a sample with its pictures at every step, as data: links."""
    about = stored[-1].about
    steps = sorted({one.step for one in stored})
    if len(steps) > MOST_STEPS:
        last = len(steps) - 1
        steps = [steps[round(place * last / (MOST_STEPS - 1))] for place in range(MOST_STEPS)]
    frames: dict[str, dict[int, str]] = {}
    for one in stored:
        picture = one.path.with_name(one.path.name.removesuffix(LATENTS) + ".webp")
        if one.step in steps and picture.is_file():
            frames.setdefault(one.part, {})[one.step] = _link(picture)
    return {
        "name": stored[0].sample,
        "caption": about["caption"],
        "size": about["size"],
        "references": [_source(output_dir, facts) for facts in about["references"]],
        "target": _source(output_dir, about["target"]),
        "frames": frames,
    }


def _source(output_dir: Path, facts: Mapping[str, Any]) -> str | None:
    path = output_dir / PREVIEWS / "sources" / f"{facts['digest']}.webp"
    return _link(path) if path.is_file() else None


def _link(picture: Path) -> str:
    return f"data:image/webp;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _drift(output_dir: Path, stored: Sequence[Stored]) -> dict[str, list[dict[str, Any]]]:
    """What was measured of each sample, by step: that of the base, then of the weights as they
    were."""
    found: dict[str, list[dict[str, Any]]] = {}
    for step in sorted({one.step for one in stored}):
        facts = _read_json(step_folder(output_dir, step) / "alignment.json")
        for one in facts.values():
            if one["part"] != "ema":
                kept = {key: one[key] for key in one if key not in ("recipe", "sample", "part")}
                found.setdefault(one["sample"], []).append({"step": step, **kept})
    return found

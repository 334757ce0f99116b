"""A proposal of both configuration files for given folders, after looking at them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from ...cache.errors import WrongUse
from ...cache.files.atomic import create
from ...config.reading import CONFIG_NAME, DATA_NAME
from ...config.remarks import SCHEMA_KEY
from ...config.schema import SCHEMA_NAMES
from ..pictures.images import Unreadable, quiet_decoding, size_in_header
from ..samples.sizes import Size
from .geometry import ratios_differ
from .match import Candidates, refuse_strangers
from .scan import Scan, printable, scan

MOST_REFERENCES = 3
LOOKED_AT = 200  # pairs whose headers are read, spread over the whole folder
TOLERANCE = 0.02
MOST_ODD = 0.1  # of the pairs may differ in their ratio where the others are strict
NAMED = 3
_RESOLUTIONS = (1024, 768, 512, 384, 256, 192, 128, 64)
_LEAST_USUAL = 512  # below that the model has learnt little
_SENTENCE_WORDS = 3


@dataclass(frozen=True)
class Proposal:
    """Both files as text, and what was chosen and why, one line each."""

    config: str
    data: str
    reasons: tuple[str, ...]

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write both files into `folder`.

        Raises:
            WrongUse: one of them is there already.
        """
        files = {folder / CONFIG_NAME: self.config, folder / DATA_NAME: self.data}
        taken = [path for path in files if path.exists() or path.is_symlink()]
        for path, text in files.items():
            if not taken and not create(path, text.encode()):
                taken.append(path)
        if taken:
            raise WrongUse(
                f"{' and '.join(map(str, taken))} exist already; nothing is overwritten.",
                "Work in another folder (`qedit init -C DIR ...`), or take the old files away.",
            )
        config, data = files
        return config, data


def propose(targets: Path, references: Sequence[Path]) -> Proposal:
    """Look at the folders and choose flavour, kinds of references, captions and resolution.

    Raises:
        WrongUse: folders that are missing, hold no pictures, or share no names.
    """
    if not 1 <= len(references) <= MOST_REFERENCES:
        raise WrongUse(
            f"{len(references)} folders of references are given; 1 to {MOST_REFERENCES} work.",
            "Type `qedit init TARGETS REFERENCES...`, one folder for each reference picture.",
        )
    names = _names((targets, *references))
    scans = {name: _scanned(path) for name, path in names.items()}
    main, *others = names
    stems = {name: Candidates(found.pictures) for name, found in scans.items()}
    refuse_strangers(main, stems[main], {name: stems[name] for name in others})
    flavour = "edit-v1" if len(others) == 1 else "edit-v2"
    why = "one folder of references" if len(others) == 1 else f"{len(others)} reference folders"
    reasons = [f"model_flavour {flavour}: {why}"]
    whole = [
        stem for stem in stems[main].stems if all(stem in stems[name].stems for name in others)
    ]
    reasons.append(f"{len(whole)} of {len(stems[main].stems)} targets have all their references")
    looked_at = _spread(whole)
    sizes = _sizes(scans, stems, looked_at)
    kinds = {}
    for name in others:
        kinds[name], why = _kind(looked_at, sizes[main], sizes[name])
        reasons.append(f"{name}: {kinds[name]}: {why}")
    strategy, why = _captions(scans[main])
    reasons.append(f"caption_strategy {strategy}: {why}")
    resolution, why = _resolution(sizes[main])
    reasons.append(f"resolution {resolution}: {why}")
    data = _data_text(names, kinds, strategy=strategy, resolution=resolution)
    return Proposal(_config_text(flavour, main), data, tuple(reasons))


def _names(folders: Sequence[Path]) -> dict[str, Path]:
    """Return an id for each folder: its own name, with a number where that is taken."""
    names: dict[str, Path] = {}
    for path in folders:
        own = re.sub(r"[^\w.-]+", "-", path.resolve().name).strip(".-") or "pictures"
        name, number = own, 1
        while name in names:
            number += 1
            name = f"{own}-{number}"
        names[name] = path
    return names


def _scanned(folder: Path) -> Scan:
    if not folder.is_dir():
        raise WrongUse(
            f"There is no folder {folder}.", f"Name one that exists; this is {Path.cwd()}."
        )
    found = scan(folder)
    if not found.pictures:
        raise WrongUse(f"The folder {folder} holds no pictures.", "Name a folder of pictures.")
    return found


def _spread(stems: Sequence[str]) -> list[str]:
    step = max(len(stems) // LOOKED_AT, 1)
    return list(stems[::step][:LOOKED_AT])


def _sizes(
    scans: Mapping[str, Scan], stems: Mapping[str, Candidates], looked_at: Sequence[str]
) -> dict[str, list[Size | None]]:
    """Read the upright sizes of the pictures, by dataset, in the order of `looked_at`.

    A size is None where a header is broken: `qedit pair` names the file with its reason.
    """
    with quiet_decoding():
        return {
            name: [_size_in(found.folder / stems[name].paths(stem)[0]) for stem in looked_at]
            for name, found in scans.items()
        }


def _size_in(path: Path) -> Size | None:
    try:
        return size_in_header(path)
    except Unreadable:
        return None


def _kind(
    looked_at: Sequence[str], targets: Sequence[Size | None], references: Sequence[Size | None]
) -> tuple[str, str]:
    """Choose the kind of references, and say why.

    They are strict even where a few pairs differ: those are likely mistakes, which `pair` names.
    """
    both = [
        (stem, one, two)
        for stem, one, two in zip(looked_at, targets, references, strict=True)
        if one and two
    ]
    odd = [stem for stem, one, two in both if ratios_differ(one, two, tolerance=TOLERANCE)]
    if not odd:
        return "reference_strict", f"the {len(both)} pairs looked at agree in their ratio"
    if len(odd) > MOST_ODD * len(both):
        return "reference_loose", f"{len(odd)} of {len(both)} pairs looked at differ in their ratio"
    names = printable(", ".join(odd[:NAMED])) + (", ..." if len(odd) > NAMED else "")
    why = f"{len(both) - len(odd)} of {len(both)} pairs looked at agree in their ratio"
    return "reference_strict", f"{why}; `qedit pair` will reject the others: {names}"


def _captions(targets: Scan) -> tuple[str, str]:
    beside = {path.rpartition(".")[0] for path in targets.texts.paths}
    with_text = sum(path.rpartition(".")[0] in beside for path in targets.pictures.paths)
    if with_text:
        return "textfile", f"{with_text} of {len(targets.pictures)} targets have a .txt beside them"
    stems = [path.rpartition("/")[2].rpartition(".")[0] for path in targets.pictures.paths]
    sentences = sum(len(re.findall(r"[^\W\d_]{2,}", stem)) >= _SENTENCE_WORDS for stem in stems)
    if 2 * sentences >= len(stems):
        return "filename", "no .txt files, and the names of the pictures are sentences"
    return "textfile", "no captions found: write one into NAME.txt beside each target"


def _resolution(sizes: Sequence[Size | None]) -> tuple[int, str]:
    edges = [(size[0] * size[1]) ** 0.5 for size in sizes if size]
    if not edges:
        return _RESOLUTIONS[0], "the default"
    middle = median(edges)
    fits = [edge for edge in _RESOLUTIONS if edge <= middle * 1.1]
    chosen = max(fits, default=_RESOLUTIONS[-1])
    why = f"half of the targets have at least the area of {middle:.0f} x {middle:.0f}"
    if chosen < _LEAST_USUAL:
        why += ": small for this model, whose pictures have 1024 x 1024. Are there larger ones?"
    return chosen, why


def _config_text(flavour: str, main: str) -> str:
    settings = {
        SCHEMA_KEY: f"./{SCHEMA_NAMES[CONFIG_NAME]}",
        "model_type": "lora",
        "model_family": "qwen_image",
        "model_flavour": flavour,
        "data_backend_config": DATA_NAME,
        "output_dir": f"output/{main}",
        "cache_dir": "cache",
        "max_train_steps": 3000,
        "train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "learning_rate": 1e-4,
        "lr_warmup_steps": 100,
        "lora_rank": 16,
        "mixed_precision": "bf16",
        "checkpoint_step_interval": 500,
        "checkpoints_total_limit": 5,
        "seed": 42,
    }
    head = "// Made by `qedit init`. Then: `qedit run --config config.json`."
    return f"{head}\n{json.dumps(settings, indent=2, ensure_ascii=False)}\n"


def _data_text(
    names: Mapping[str, Path], kinds: Mapping[str, str], *, strategy: str, resolution: int
) -> str:
    main, *others = names
    entries: list[dict[str, object]] = [
        {
            "id": main,
            "type": "local",
            "instance_data_dir": str(names[main]),
            "caption_strategy": strategy,
            "resolution": resolution,
            "conditioning_data": others,
        }
    ]
    entries += [
        {
            "id": name,
            "type": "local",
            "dataset_type": "conditioning",
            "conditioning_type": kinds[name],
            "instance_data_dir": str(names[name]),
        }
        for name in others
    ]
    body = ",\n".join("".join(_commented(entry, main)) for entry in entries)
    return f"// Made by `qedit init`. Paths are relative to the working directory.\n[\n{body}\n]\n"


def _commented(entry: Mapping[str, object], main: str) -> Iterator[str]:
    what = "what the model is to produce" if entry["id"] == main else "what it is made from"
    yield f"  // {what}\n"
    text = json.dumps(entry, indent=2, ensure_ascii=False)
    yield "\n".join(f"  {line}" for line in text.splitlines())

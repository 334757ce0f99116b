"""A whole project on a tiny model: two runs that share their caches, both to go on from step 2.

`config.json`: an int8 base, a held-out set, previews. `config-2.json`: a bfloat16 base with a
modulation table, compressed rows, and a LoRA to start from.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from crash_server import CrashServer
from make_run import held_out
from small_run import SIZES, draw, make_run

from qedit.config.loading import load
from qedit.pipeline.upkeep.caches import stores_in
from qedit.stages.samples.table import MANIFEST
from qedit.stages.stores.run import Run

STEPS, KEPT_STEPS = 4, 2
CONFIGS = ("config.json", "config-2.json")
OUTPUTS = ("out", "out-2")
START = "first.safetensors"
CACHES = "caches"
# one row a batch: a row that is made anew then meets no others and is the same to the bit
PLAIN = ("--vae-batch-size", "1", "--text-batch-size", "1")
SETTINGS: dict[str, Any] = {
    "max_train_steps": STEPS,
    "checkpoint_step_interval": 1,
    "lora_rank": 2,
    "learning_rate": 1e-3,
    "train_batch_size": 2,
    "base_model_precision": "int8-quanto",
    "validation_disable": False,
    "validation_resolution": "64x64",
    "validation_num_inference_steps": 2,
    "validation_step_interval": 2,
    "eval_steps_interval": 2,
    "num_eval_images": 1,
    "output_dir": OUTPUTS[0],
    "cache_dir": CACHES,
}
# what differs between two runs of the same steps
OF_THE_MACHINE = ("seconds", "data_wait_seconds", "memory_bytes")
NUMBER = re.compile(r"-?\d+\.?\d*(?:e[-+]?\d+)?")
# of the largest value: rows that are made anew may differ in their last bit
TOLERANCE = 0.02
ONE_OF_MANY = re.compile(r"[0-9a-f]{16,}|\d+|~.*")


def words_for(config: str, command: str, *options: str) -> list[str]:
    """The words of a command on one of the two configurations."""
    plain = PLAIN if command in ("run", "cache-vae", "cache-embeds") else ()
    if command == "cache-vae":
        plain = PLAIN[:2]
    elif command == "cache-embeds":
        plain = PLAIN[2:]
    return [command, "--config", config, "--data", "data.json", *options, *plain]


def lay_out(folder: Path) -> None:
    """Write pictures, captions, masks, the model and the configurations."""
    make_run(folder, flavour="edit-v2", references=2, **SETTINGS)
    for number, size in enumerate(SIZES):
        draw(folder / "mask" / f"p{number}.png", size, 300 + number)
    data = json.loads((folder / "data.json").read_text()) + held_out(folder)
    data[0]["conditioning_data"].append("mask")
    mask = {"id": "mask", "dataset_type": "conditioning", "conditioning_type": "mask"}
    data.append({**mask, "instance_data_dir": "mask", "resolution": 64})
    (folder / "data.json").write_text(json.dumps(data, indent=2))
    second = json.loads((folder / CONFIGS[0]).read_text()) | {
        "output_dir": OUTPUTS[1],
        "mixed_precision": "bf16",
        "base_model_precision": "no_change",
        "cache_compression": "zstd",
        "init_lora": START,
        "validation_disable": True,
    }
    (folder / CONFIGS[1]).write_text(json.dumps(second, indent=2))


def make_project(folder: Path, server: CrashServer, notes: Path) -> None:
    """Lay out the project and run both configurations to step 2; `notes` is for what they say."""
    lay_out(folder)
    kept = ("--set", f"max_train_steps={KEPT_STEPS}")
    first = words_for(CONFIGS[0], "run", *kept)
    lora = f"{OUTPUTS[0]}/pytorch_lora_weights.safetensors"
    export = ["export", lora, "--format", "comfyui", "--to", START]
    for words in (first, export, words_for(CONFIGS[1], "run", *kept)):
        code, said, _ = server.run([*words, "-C", str(folder)], folder, notes=notes, restored=True)
        assert code == 0, said


def files_in(folder: Path) -> list[Path]:
    """Every file of the project, relative to it."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sorted(path.relative_to(folder) for path in files)


def kind_of(path: Path) -> str:
    """The path without what tells files of one kind apart: numbers, digests, names of parts."""
    parts = [ONE_OF_MANY.sub("*", part) for part in path.parts]
    if path.parts[0] == CACHES and "parts" in parts:
        parts[parts.index("parts") + 1] = "*"
    return re.sub(r"(edited|held-out|reference|mask)(-[ab])?/", "*/", "/".join(parts))


# -- the result ------------------------------------------------------------------------


def result_of(config: str, output: Path) -> dict[str, str]:
    """What the run has made, by name: every file, row and number that decides something."""
    found = {str(path): _content(path) for path in _decisive(output)}
    for path in stores_of(config):
        if path.name == "quantized.json":
            found |= {str(file): _content(file) for file in path.parent.glob("*.safetensors")}
            continue
        (store,) = [s for s in stores_in(path.parent.parent) if s.path == path.parent]
        rows = {key: store.read(key).tobytes() for key in sorted(store.keys())}
        found |= {f"{store.path} {key}": _digest(row) for key, row in rows.items()}
    for path in sorted(Path(CACHES, "pairs").glob(f"*/*/{MANIFEST}")):
        manifest = json.loads(path.read_text())
        for name in ("pairs", "rejected_table"):
            table = path.parent / manifest[name]
            found[str(table)] = _digest(table.read_bytes())
    return found


def stores_of(config: str) -> list[Path]:
    """The recipe of every store that the configuration reads, and what describes its base."""
    run = Run(load(Path(config), Path("data.json")))
    stores = [store.path / "recipe.json" for store in run.stores.all_stores()]
    base = Path(CACHES, "base")
    if run.settings.base_model_precision == "no_change":
        return [*stores, *base.glob("*/recipe.json")]
    return [*stores, *base.glob("*/quantized.json")]


def looks_of(output: Path) -> dict[str, str]:
    """Files for people, by name; they decide nothing."""
    files = [path for path in output.rglob("*") if path.is_file()]
    decisive = set(_decisive(output))
    return {
        str(path): _digest(path.read_bytes())
        for path in files
        if path not in decisive and path.suffix in (".png", ".webp", ".md", ".json")
    }


def _decisive(output: Path) -> Iterator[Path]:
    patterns = ("*.safetensors", "checkpoint-*/state.json", "best/state.json", "run.json")
    for pattern in (*patterns, "metrics.jsonl"):
        yield from sorted(path for path in output.rglob(pattern) if path.is_file())


def _content(path: Path) -> str:
    """A digest of what the file says: without time, memory and random names."""
    data = path.read_bytes()
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in data.splitlines()]
        return json.dumps([_without(line, OF_THE_MACHINE) for line in lines])
    if path.name in ("run.json", "state.json", "alignment.json"):
        return json.dumps(_without(json.loads(data), ("crc32c", "id", "of_steps")), sort_keys=True)
    if path.suffix == ".safetensors":  # the order of what its header says is drawn by chance
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.dumps(json.loads(data[8:start]), sort_keys=True)
        return _digest(header.encode() + data[start:])
    return _digest(data)


def _without(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, list):
        return [_without(item, names) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _without(item, names) for key, item in value.items() if key not in names}


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def is_close(name: str, here: Path, there: Path) -> bool:
    """Whether this part of the result is the same in both folders, up to rounding."""
    if name.endswith(("state.json", "run.json")):
        return True  # digests, which rounding changes, and losses, which metrics.jsonl has too
    ours, theirs = (_numbers(name, folder) for folder in (here, there))
    if ours.shape != theirs.shape or not np.array_equal(np.isfinite(ours), np.isfinite(theirs)):
        return False
    scale = float(np.abs(theirs).max(initial=0.0))
    return bool(np.abs(ours - theirs).max(initial=0.0) <= TOLERANCE * scale)


def _numbers(name: str, folder: Path) -> np.ndarray:
    """All numbers of a row, a log or a file of tensors, as one vector."""
    store, _, key = name.partition(" ")
    if key:
        (found,) = [s for s in stores_in((folder / store).parent) if s.path == folder / store]
        return _widened(found.read(key).tobytes(), "BF16")
    path = folder / name
    if path.suffix == ".jsonl":
        lines = [_without(json.loads(line), OF_THE_MACHINE) for line in path.open()]
        return np.array([float(word) for word in NUMBER.findall(json.dumps(lines))])
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    tensors = [
        _widened(
            data[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]],
            entry["dtype"],
        )
        for _, entry in sorted(header.items())
    ]
    return np.concatenate([*tensors, np.zeros(0, np.float32)])


def _widened(data: bytes, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    kinds = {"F32": np.float32, "F16": np.float16, "I8": np.int8, "U8": np.uint8, "I64": np.int64}
    return np.frombuffer(data, kinds[dtype]).astype(np.float32)

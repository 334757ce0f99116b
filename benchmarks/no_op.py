"""What it costs to find nothing to do: `cache-vae` and `cache-embeds` over many pairs.

    python benchmarks/no_op.py [--folder DIR] [--pairs 1000000]

Makes a pairs table of so many pairs, each with a reference and a caption of its own, and stores
that hold every row they ask for (tiny ones: nothing reads them). Then each command is run in a
process of its own, as a user types it, and its time and peak memory are held against 10 s and
1.5 GB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from qedit.cache.store.store import Store
from qedit.config.configuration import Configuration
from qedit.config.loading import load
from qedit.stages.models.tiny.tiny import make_tiny
from qedit.stages.samples.recipe import pairs_recipe
from qedit.stages.samples.sample import NULL_CAPTION, Picture, Sample
from qedit.stages.samples.table import table_folder, write_pairs
from qedit.stages.stores.pins import pin_existing
from qedit.stages.stores.run import Run

ROWS_IN_PART = 512
WANTED_SECONDS, WANTED_MB = 10.0, 1500.0


def samples(count: int) -> Iterator[Sample]:
    """Pairs that share nothing."""
    for number in range(count):
        name = f"{number // 1000:04}/{number:07}.png"
        yield Sample(
            name, "edits", _picture("edits", name), (_picture("before", name),), (f"edit {number}",)
        )


def _picture(dataset: str, name: str) -> Picture:
    digest = hashlib.blake2b(f"{dataset}/{name}".encode(), digest_size=16).hexdigest()
    vl_size = (384, 384) if dataset == "before" else None
    return Picture(dataset, name, digest, 900, 900, (0.0, 0.0, 900.0, 900.0), (1024, 1024), vl_size)


def configured(folder: Path) -> Configuration:
    """Both files, an empty folder of pictures and a tiny checkpoint."""
    checkpoint = make_tiny(folder / "model", "edit-v2")
    (folder / "pictures").mkdir()
    config = {
        "model_flavour": "edit-v2",
        "pretrained_model_name_or_path": str(checkpoint),
        "cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "output"),
        "max_train_steps": 1,
    }
    pictures = str(folder / "pictures")
    data = [
        {"id": "edits", "instance_data_dir": pictures, "conditioning_data": ["before"]},
        {"id": "before", "instance_data_dir": pictures, "dataset_type": "conditioning"},
    ]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "data.json").write_text(json.dumps(data))
    return load(folder / "config.json", folder / "data.json")


def fill(configuration: Configuration, count: int) -> None:
    """The pairs table and every row, as the stages would leave them."""
    run = Run(configuration)
    (main,) = configuration.main_datasets()
    write_pairs(
        table_folder(configuration, main, run.flavour),
        recipe=pairs_recipe(configuration, main, run.flavour),
        rows=((sample, ()) for sample in samples(count)),
        rejections=(),
        inputs="",
        accept=True,
    )
    stores = run.stores
    latents, prefixes, tails = stores.latents, stores.prefixes.of("edits"), stores.tails.of("edits")
    _add(latents.of("edits"), (one.target.latent_key for one in samples(count)))
    _add(latents.of("before"), (one.references[0].latent_key for one in samples(count)))
    _add(prefixes, (one.prefix_key for one in samples(count)))
    captions = ((one, text) for one in samples(count) for text in (*one.captions, NULL_CAPTION))
    _add(tails, (one.tail_key(text) for one, text in captions))
    pin_existing(run, (*latents.stores(), prefixes, tails))


def _add(store: Store, keys: Iterable[str]) -> None:
    row = np.ones((1, 1, 1)[: len(store.layout.dimension_names) - (not store.layout.ragged)], "<u2")
    really, os.fsync = os.fsync, lambda handle: None  # to have it made sooner
    with store.adding():
        left = iter(keys)
        while some := list(islice(left, ROWS_IN_PART)):
            store.add(some, [row] * len(some))
    os.fsync = really


# What the system says of a process's peak includes the process that started it: so one starts it
# that is small itself.
STARTER = """
import json, os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE)
said = json.loads(child.stdout.read())
_, status, usage = os.wait4(child.pid, 0)
child.returncode = os.waitstatus_to_exitcode(status)
json.dump([usage.ru_maxrss / 1024, said], sys.stdout)
"""


def measured(command: str, folder: Path) -> tuple[float, float, dict[str, int]]:
    """Seconds, peak megabytes and what `--json` said of one command."""
    words = ["--config", str(folder / "config.json"), "--data", str(folder / "data.json"), "--json"]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", STARTER, sys.executable, "-m", "qedit.pipeline", command, *words],
        stdout=subprocess.PIPE,
        check=True,
        cwd=folder,
    )
    seconds = time.perf_counter() - start
    megabytes, said = json.loads(done.stdout)
    return seconds, megabytes, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--pairs", type=int, default=1_000_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        start = time.perf_counter()
        fill(configured(folder), given.pairs)
        print(f"{given.pairs} pairs and their rows made in {time.perf_counter() - start:.0f} s")
        for command in ("cache-vae", "cache-embeds") * 2:
            seconds, megabytes, said = measured(command, folder)
            assert said["computed"] == 0, said
            is_well = seconds < WANTED_SECONDS and megabytes < WANTED_MB
            print(
                f"{command:12} {said['wanted']} wanted, nothing to do: {seconds:5.1f} s "
                f"(wanted {WANTED_SECONDS:.0f}), {megabytes:5.0f} MB (wanted {WANTED_MB:.0f})  "
                f"{'ok' if is_well else 'ABOVE'}",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""A stage's wall time against its three parts alone: what both encoding benchmarks measure."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qedit.config.configuration import Configuration
from qedit.config.loading import load
from qedit.pipeline.terminal.output import TerminalProgress
from qedit.stages.cache_embeds.stage import run as cache_embeds
from qedit.stages.cache_vae.stage import run as cache_vae
from qedit.stages.encoding.device_options import DeviceOptions
from qedit.stages.encoding.encoder import EncodedItem, Encoder
from qedit.stages.encoding.run_on_device import Work, encode_missing
from qedit.stages.encoding.write_rows import RowWriter
from qedit.stages.pair.stage import run as pair
from qedit.stages.stores.run import Run

COUNT = itertools.count()  # of emptied caches


class Loaded:
    """An encoding whose encoder is there already: to load it is no part of the comparison."""

    def __init__(self, encoding: Any, encoder: Encoder) -> None:
        self._encoding, self._encoder = encoding, encoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoding, name)

    def open(self) -> Encoder:
        return self._encoder


def made_run(
    folder: Path,
    checkpoint: Path,
    *,
    flavour: str,
    pairs: int,
    size: tuple[int, int],
    resolution: int,
    captions: int = 1,
    **settings: Any,
) -> Configuration:
    """Photos in two folders, captions, and the pairs made of them."""
    for name in ("edited", "original"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(pairs):
            coarse = np.random.default_rng([number, len(name)]).integers(0, 256, (40, 50, 3))
            photo = Image.fromarray(coarse.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
            photo.save(folder / name / f"{number}.jpg", quality=90)
    for number in range(pairs):
        lines = [f"turn number {number} into picture number {one}" for one in range(captions)]
        (folder / "edited" / f"{number}.txt").write_text("\n".join(lines))
    config = {
        "model_flavour": flavour,
        "pretrained_model_name_or_path": str(checkpoint),
        "cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "output"),
        **settings,
    }
    main = {
        "id": "edited",
        "instance_data_dir": str(folder / "edited"),
        "caption_strategy": "textfile",
        "resolution": resolution,
        "conditioning_data": ["original"],
    }
    reference = {
        "id": "original",
        "dataset_type": "conditioning",
        "instance_data_dir": str(folder / "original"),
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "data.json").write_text(json.dumps([main, reference]))
    configuration = load(folder / "config.json", folder / "data.json")
    pair(configuration, TerminalProgress(verbosity=-1), no_report=True)
    return configuration


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def batches_of(work: Work) -> Iterator[list[Any]]:
    """The items of all parts in the batches that the engine makes of them."""
    for parts in work.parts.values():
        for keys in parts:
            batch: list[Any] = []
            for item in work.items_of(keys):
                full = batch and len(batch) >= work.batch_size.of(work.encoding.cost(batch[0]))
                if batch and (full or not work.encoding.together(batch[0], item)):
                    yield batch
                    batch = []
                batch.append(item)
            yield batch


def measure(
    make_work: Callable[[], Work], encoder: Encoder, options: DeviceOptions, *, times: int = 2
) -> tuple[dict[str, float], float]:
    """Seconds of reading, encoding and writing alone, and of the stage; the best of some.

    The stage is everything from looking what is missing to the last row on the disk; that
    `encoder` is loaded already.
    """
    best: dict[str, float] = {}

    def keep(part: str, seconds: float) -> None:
        best[part] = min(best.get(part, seconds), seconds)

    for _ in range(times):
        keep(
            "stage",
            seconds_of(lambda: encode_missing(_loaded(make_work(), encoder), Silent(), options)),
        )
        work = make_work()
        batches = list(batches_of(work))
        items = [item for batch in batches for item in batch]
        with ThreadPoolExecutor(options.readers) as pool:
            started = time.perf_counter()
            read = list(pool.map(work.encoding.read, items))
            keep("decode", time.perf_counter() - started)
        given = iter(read)
        pairs = [(batch, [next(given) for _ in batch]) for batch in batches]
        made: list[EncodedItem] = []
        keep(
            "encode",
            seconds_of(
                lambda pairs=pairs, made=made: made.extend(
                    one for batch, there in pairs for one in encoder.encode(batch, there)
                )
            ),
        )
        keep("write", seconds_of(lambda work=work, made=made: write(work, made)))
    return {part: best[part] for part in ("decode", "encode", "write")}, best["stage"]


def _loaded(work: Work, encoder: Encoder) -> Work:
    return replace(work, encoding=Loaded(work.encoding, encoder))


def write(work: Work, made: Sequence[EncodedItem]) -> None:
    """Add the rows part by part, as the engine does."""
    writer, at = RowWriter(work.store_sets), 0
    with writer.adding():
        for dataset, parts in work.parts.items():
            for keys in parts:
                count = len(work.items_of(keys))
                writer.write(dataset, made[at : at + count])
                at += count


class Silent(TerminalProgress):
    """Says nothing."""

    def __init__(self) -> None:
        super().__init__(verbosity=-1)


def emptied(configuration: Configuration, folder: Path) -> Configuration:
    """The same configuration with caches, new ones in `folder`, that hold the pairs and nothing
    else."""
    folder = folder / str(next(COUNT))
    (main,) = configuration.main_datasets()
    datasets = []
    for dataset in configuration.datasets:
        changed: Mapping[str, Any] = {"cache_dir_vae": folder / dataset.id}
        datasets.append(dataset.model_copy(update=changed))
    settings = configuration.settings.model_copy(update={"cache_dir": folder})
    made = replace(configuration, settings=settings, datasets=tuple(datasets))
    pairs = made.pairs_folder(main)
    if not pairs.exists():
        pairs.parent.mkdir(parents=True, exist_ok=True)
        pairs.symlink_to(configuration.pairs_folder(main).resolve())
    return made


def vae_work(configuration: Configuration, folder: Path, options: DeviceOptions) -> Work:
    """Everything that cache-vae has to do with caches that are new."""
    fresh = emptied(configuration, folder)
    run = Run(fresh)
    return next(cache_vae.works(run, cache_vae.find(run), options))


def embeds_work(configuration: Configuration, folder: Path, options: DeviceOptions) -> Work:
    """Everything that cache-embeds has to do with caches that are new."""
    run = Run(emptied(configuration, folder))
    return next(cache_embeds.works(run, cache_embeds.find(run), options))


def report(name: str, parts: Mapping[str, float], whole: float, *, items: int) -> None:
    slowest = max(parts, key=lambda part: parts[part])
    said = ", ".join(f"{part} {seconds:.2f} s" for part, seconds in parts.items())
    ratio = whole / parts[slowest]
    told(name, f"wall over its slowest part, {slowest}", ratio, wanted="<= 1.15", ok=ratio <= 1.15)
    print(f"{'':13} {whole:.2f} s for {items}; alone: {said}")


def told(name: str, what: str, value: float, *, wanted: str, ok: bool) -> None:
    """One figure, what is wanted of it, and whether it is that."""
    print(f"{name:13} {what}: {value:.2f} (wanted {wanted}) {'ok' if ok else 'BELOW'}", flush=True)

"""How fast `pair` is, each figure a ratio against a yardstick measured in the same run.

    python benchmarks/pair.py [--pairs 20000] [--pictures 24]

decode   looking at JPEGs in full against plain Pillow decoding, over all cores (>= 0.9)
headers  reading headers, without digests, against `Image.open(...).size` (>= 0.8)
no-op    a rerun on unchanged folders against a bare recursive scandir + stat (<= 3 times)
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from qedit.config.configuration import Configuration
from qedit.config.datasets import Dataset
from qedit.config.settings import Settings
from qedit.pipeline.report import TerminalProgress
from qedit.stages.images import header
from qedit.stages.pair.pictures import available_cores, examine
from qedit.stages.pair.stage import run


def best_seconds(work: Callable[[], object], *, times: int = 3) -> float:
    found = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def over_cores(work: Callable[[Path], object], paths: Iterable[Path]) -> None:
    with ThreadPoolExecutor(available_cores()) as pool:
        list(pool.map(work, paths))


def photo(size: tuple[int, int], seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def plainly(path: Path) -> None:
    with Image.open(path) as picture:
        picture.load()


def size_alone(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def header_alone(path: Path) -> tuple[int, int]:
    with path.open("rb") as file:
        return header(file)[0].size


def decoding(folder: Path, count: int) -> None:
    for megapixels, size in ((1, (1152, 896)), (8, (3264, 2448))):
        paths = [folder / f"{megapixels}-{number}.jpg" for number in range(count)]
        for number, path in enumerate(paths):
            photo(size, number).save(path, quality=90)
        yardstick = best_seconds(lambda paths=paths: over_cores(plainly, paths))
        seconds = best_seconds(lambda paths=paths: over_cores(examine, paths))
        print(f"decode {megapixels} MP   {yardstick / seconds:.2f} of plain Pillow (>= 0.9)")
        if megapixels == 1:
            many = paths * 40
            yardstick = best_seconds(lambda many=many: [size_alone(path) for path in many])
            seconds = best_seconds(lambda many=many: [header_alone(path) for path in many])
            print(f"headers       {yardstick / seconds:.2f} of Image.open().size (>= 0.8)")


def walk(folder: str) -> int:
    count = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                count += walk(entry.path)
            else:
                entry.stat()
                count += 1
    return count


def rerun(folder: Path, count: int) -> None:
    os.chdir(folder)
    tiny = folder / "tiny.png"
    Image.new("RGB", (2, 2)).save(tiny)
    data = tiny.read_bytes()
    for where in ("targets", "before"):
        for number in range(count):
            path = folder / where / f"{number // 1000:04d}" / f"picture-{number:07d}.png"
            if number % 1000 == 0:
                path.parent.mkdir(parents=True)
            path.write_bytes(data)
    main = Dataset(id="targets", instance_data_dir="targets", conditioning_data=["before"])
    other = Dataset(id="before", dataset_type="conditioning", instance_data_dir="before")
    configuration = Configuration(Settings(model_flavour="edit-v2"), (main, other))
    progress = TerminalProgress(verbosity=-1)
    started = time.perf_counter()
    run(configuration, progress)
    seconds, peak = time.perf_counter() - started, peak_megabytes()
    print(f"first run     {count} pairs in {seconds:.1f} s, peak {peak:.0f} MB")
    print(f"              {1e6 * seconds / count:.0f} us a pair")

    def bare() -> None:
        assert walk("targets") + walk("before") == 2 * count

    yardstick = best_seconds(bare)
    seconds = best_seconds(lambda: run(configuration, progress))
    print(f"no-op rerun   {seconds / yardstick:.2f} times scandir + stat (<= 3)")


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pairs", type=int, default=20_000)
    arguments.add_argument("--pictures", type=int, default=24)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as workplace:
        decoding(Path(workplace), given.pictures)
        rerun(Path(workplace), given.pairs)
        os.chdir("/")

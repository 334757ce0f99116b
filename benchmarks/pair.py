"""How fast `pair` is, each figure a ratio against a yardstick measured in the same run.

    python benchmarks/pair.py [--pairs 20000] [--pictures 24]     (--pairs 1000000: 15 GB of disk)

decode   looking at JPEGs in full against plain Pillow decoding, over all cores (>= 0.9)
headers  reading headers, without digests, against `Image.open(...).size` (>= 0.8)
no-op    a rerun on unchanged folders against a bare recursive scandir + stat (<= 3 times)
memory   at a million pairs, extrapolated from `--pairs 100000` or more and half of them
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from qedit.config.configuration import Configuration
from qedit.config.datasets import Dataset
from qedit.config.settings import Settings
from qedit.pipeline.terminal.output import TerminalProgress
from qedit.stages.pair.pictures import available_cores, examine
from qedit.stages.pair.stage import run
from qedit.stages.pictures.images import header

MILLION = 1_000_000
FEWEST_TO_EXTRAPOLATE = 100_000


def best_seconds(work: Callable[[], object], *, times: int) -> float:
    found = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def tell(
    what: str, value: float, *, at_least: float | None = None, at_most: float | None = None
) -> None:
    """One line: the figure, what is wanted, and whether it holds."""
    holds = value >= at_least if at_least is not None else value <= (at_most or 0)
    wanted = f">= {at_least:g}" if at_least is not None else f"<= {at_most:g}"
    verdict = "ok" if holds else ("BELOW" if at_least is not None else "ABOVE")
    print(f"{what:<46} {value:8.2f} (wanted {wanted}) {verdict}", flush=True)


def by_turns(
    yardstick: Callable[[], object], work: Callable[[], object], *, times: int = 3
) -> tuple[float, float]:
    """The best seconds of both, taken in turns: what else the machine does meets both."""
    pairs = [(best_seconds(yardstick, times=1), best_seconds(work, times=1)) for _ in range(times)]
    one, other = (min(column) for column in zip(*pairs, strict=True))
    return one, other


def over_cores(work: Callable[[Path], object], paths: Iterable[Path]) -> None:
    with ThreadPoolExecutor(available_cores()) as pool:
        list(pool.map(work, paths))


def one_by_one(work: Callable[[Path], object], paths: Iterable[Path]) -> None:
    for path in paths:
        work(path)


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
        yardstick, seconds = by_turns(
            partial(over_cores, plainly, paths), partial(over_cores, examine, paths)
        )
        tell(f"decode {megapixels} MP of plain Pillow", yardstick / seconds, at_least=0.9)
        if megapixels == 1:
            many = paths * 40
            yardstick, seconds = by_turns(
                partial(one_by_one, size_alone, many), partial(one_by_one, header_alone, many)
            )
            tell("headers of Image.open().size", yardstick / seconds, at_least=0.8)


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


def make_pairs(folder: Path, count: int) -> None:
    """Two trees of tiny pictures, no two alike, a thousand to a folder."""
    tiny = io.BytesIO()
    Image.new("RGB", (2, 2)).save(tiny, "PNG")
    for number in range(count):
        for where in ("targets", "before"):
            path = folder / where / f"{number // 1000:04d}" / f"picture-{number:07d}.png"
            if number % 1000 == 0:
                path.parent.mkdir(parents=True)
            # what stands behind the end of a PNG is not looked at, but digested
            path.write_bytes(tiny.getvalue() + f"{where}{number}".encode())


def configured() -> Configuration:
    main = Dataset(id="targets", instance_data_dir="targets", conditioning_data=["before"])
    other = Dataset(id="before", dataset_type="conditioning", instance_data_dir="before")
    return Configuration(Settings(model_flavour="edit-v2"), (main, other))


def pair_once() -> None:
    run(configured(), TerminalProgress(verbosity=-1))


def bare(count: int) -> None:
    assert walk("targets") + walk("before") == 2 * count


def first_run(count: int) -> dict[str, float]:
    return {"seconds": best_seconds(pair_once, times=1), "peak": peak_megabytes()}


def no_op_rerun(count: int) -> dict[str, float]:
    yardstick, seconds = by_turns(partial(bare, count), pair_once)
    return {"yardstick": yardstick, "seconds": seconds, "peak": peak_megabytes()}


def one_more_run(count: int) -> dict[str, float]:
    """One picture is new: every table and memory is read, compared and written."""
    Path("targets/0000/picture-0000000.png").write_bytes(Path("one.png").read_bytes())
    return {"seconds": best_seconds(pair_once, times=1), "peak": peak_megabytes()}


PHASES = {"first": first_run, "no-op": no_op_rerun, "one-more": one_more_run}


def in_its_own_process(phase: str, folder: Path, count: int) -> dict[str, float]:
    """Each phase in a process of its own: a peak of memory never comes down again."""
    command = [sys.executable, __file__, "--phase", phase, "--pairs", str(count)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def reruns(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """Each phase on a tree of so many pairs."""
    folder.mkdir()
    make_pairs(folder, count)
    Image.new("RGB", (2, 2), "red").save(folder / "one.png")
    return {phase: in_its_own_process(phase, folder, count) for phase in PHASES}


def scale(folder: Path, count: int) -> None:
    """A rerun's time, and the peak of every phase at a million pairs."""
    found = reruns(folder / "all", count)
    for phase, one in found.items():
        each = 1e6 * one["seconds"] / count
        print(f"{phase:<9} {count} pairs: {one['seconds']:.1f} s ({each:.0f} us a pair), ", end="")
        print(f"peak {one['peak']:.0f} MB")
    again = found["no-op"]
    what = f"no-op rerun, scandir + stat of {2 * count} files"
    tell(what, again["seconds"] / again["yardstick"], at_most=3)
    if count < FEWEST_TO_EXTRAPOLATE:  # what a run takes anyway would pass for what grows
        tell("MB of peak of a rerun here", again["peak"], at_most=1500)
        return
    less = reruns(folder / "half", count // 2)
    for phase, one in found.items():
        grown = (one["peak"] - less[phase]["peak"]) / (count - count // 2)
        peak = one["peak"] + max(grown, 0) * max(MILLION - count, 0)
        tell(f"{phase}: MB of peak at a million pairs", peak, at_most=1500)


def peak_megabytes() -> float:
    """Of this process alone: what `getrusage` says includes the process that started it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS: bytes
    (line,) = (one for one in status.read_text().splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) / 1000


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pairs", type=int, default=20_000)
    arguments.add_argument("--pictures", type=int, default=24)
    arguments.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.phase:
        print(json.dumps(PHASES[given.phase](given.pairs)))
        sys.exit()
    with tempfile.TemporaryDirectory() as workplace:
        decoding(Path(workplace), given.pictures)
        scale(Path(workplace), given.pairs)

"""What the store costs, as ratios against plain files in the same run.

    python benchmarks/cache.py [--folder DIR] [--rows-for-opening 1000000]

Every ratio is the yardstick's time divided by the store's: 1 is as fast, more is faster.
The yardsticks: a raw memmap of the same rows, a safetensors file and a `torch.save` file for each
row, a plain sequential write, and `cat` into nothing. Rows go, one by one and in an order of
chance, where training wants them: into their places in a batch; and, once more, into arrays of
their own. Everything is read from a warm page cache; the best of several rounds counts, taken in
turns. The bounds are what the system call alone reaches, and what it reaches together with the
checksum, piece by piece, without a store around it. `no_op.py` measures what finding nothing to do
costs over a million pairs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from qedit.cache.files.checksum import PIECE_BYTES, crc32c_of_more
from qedit.cache.store.store import COMPRESSION, EMBEDS, LATENTS, ZSTD, Layout, Store

ROUNDS = 9
WRITTEN = 3  # rounds
BATCH = 4
# name, layout, shape of a row, rows, rows a part
KINDS = (
    ("0.5 MB", LATENTS, (16, 128, 128), 256, 64),
    ("4 MB", EMBEDS, (572, 3584), 48, 24),
    ("10 MB", EMBEDS, (1400, 3584), 24, 11),
)


def best(*works: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """Seconds of the fastest of several rounds of each, in turns: all see the same machine."""
    times = [float("inf")] * len(works)
    for _ in range(rounds):
        for at, work in enumerate(works):
            start = time.perf_counter()
            work()
            times[at] = min(times[at], time.perf_counter() - start)
    return times


def show(what: str, ratio: float, target: float, detail: str = "") -> None:
    verdict = "ok" if ratio >= target else "BELOW"
    print(f"{what:52} {ratio:6.2f}  (wanted {target:4.2f}) {verdict:6}{detail}", flush=True)


def each(read: Callable[[int], object], order: list[int]) -> Callable[[], None]:
    """Read one after the other and keep none, as a training loop does."""

    def work() -> None:
        for at in order:
            read(at)

    return work


def reads(
    folder: Path, name: str, layout: Layout, shape: tuple[int, ...], parts: list[int]
) -> None:
    """One kind of row: read, append and verify; `parts` is (rows in all, rows a part)."""
    count, part = parts
    random = np.random.default_rng(0)
    keys = [f"{number:032x}" for number in range(count)]
    rows = random.integers(0, 2**16, (count, *shape), dtype=np.uint16)
    store = Store(folder / name, {"benchmark": name}, layout)

    def append() -> None:
        shutil.rmtree(folder / name, ignore_errors=True)
        fresh = Store(folder / name, {"benchmark": name}, layout)
        with fresh.adding():
            for at in range(0, count, part):
                fresh.add(keys[at : at + part], list(rows[at : at + part]))

    write_seconds, plain_seconds = best(
        append, lambda: plain_write(folder / "plain.bin", rows, part), rounds=WRITTEN
    )
    memmap = np.memmap(folder / "plain.bin", np.uint16, "r", shape=rows.shape)
    order = random.permutation(count).tolist()
    batch = torch.empty(BATCH, *shape, dtype=torch.uint16).numpy()
    places = [batch[at % BATCH] for at in range(count)]
    raw, full, plain, summed, raw_own, full_own = best(
        each(lambda at: np.copyto(places[at], memmap[at]), order),
        each(lambda at: store.read(keys[at], into=places[at]), order),
        each(system_reads(folder / "plain.bin", places), order),
        each(system_reads(folder / "plain.bin", places, piece_bytes=PIECE_BYTES), order),
        each(lambda at: np.array(memmap[at]), order),
        each(lambda at: store.read(keys[at]), order),
    )
    print(
        f"bounds {name}: pread alone {raw / plain:.2f}, with the checksum {raw / summed:.2f}; "
        f"rows of their own, verified: {raw_own / full_own:.2f}",
        flush=True,
    )
    detail = f"  {1e3 * full / count:.3f} ms a row"
    show(f"read {name}, verified, against a memmap", raw / full, 0.6, detail)
    show(f"append {name} against a plain write", plain_seconds / write_seconds, 0.5)
    if name == "0.5 MB":
        files(folder / "files", rows, order, each(lambda at: store.read(keys[at]), order))
    every_file = [path for path in store.path.rglob("*") if path.is_file()]
    verify_seconds, cat = best(
        store.verify,
        lambda: subprocess.run(["cat", *every_file], check=True, stdout=subprocess.DEVNULL),
    )
    show(f"verify {name} against cat", cat / verify_seconds, 0.6)
    shutil.rmtree(folder / name)
    packed_reads(folder / "packed", name, layout, shape, full / count)


def packed_reads(
    folder: Path, name: str, layout: Layout, shape: tuple[int, ...], plain_seconds: float
) -> None:
    """What `cache_compression: zstd` costs, on bfloat16 of a bell curve."""
    values = np.random.default_rng(1).standard_normal((8, *shape), np.float32).view(np.uint32)
    rows = (values >> 16).astype(np.uint16)
    store = Store(folder, {"benchmark": name, COMPRESSION: ZSTD}, layout)
    keys = [f"{number:032x}" for number in range(len(rows))]
    start = time.perf_counter()
    with store.adding():
        store.add(keys, list(rows))
    write_seconds = time.perf_counter() - start
    (seconds,) = best(each(lambda at: store.read(keys[at]), list(range(len(rows)))))
    print(
        f"packed {name}: {store.nbytes() / rows.nbytes:.2f} of the room, read "
        f"{seconds / len(rows) / plain_seconds:.1f} times as long, "
        f"{rows.nbytes / write_seconds / 1e6:.0f} MB/s written",
        flush=True,
    )
    shutil.rmtree(folder)


def system_reads(
    path: Path, places: list[np.ndarray], *, piece_bytes: int = 0
) -> Callable[[int], object]:
    """Nothing but the system call that a store makes for a row, and the checksum of each piece.

    Args:
        piece_bytes: 0 takes the row at once and no checksum.
    """
    file = path.open("rb", buffering=0)
    spaces = [place.reshape(-1).view(np.uint8) for place in places]

    def read(at: int) -> None:
        space, checksum = spaces[at], 0
        for begin in range(0, len(space), piece_bytes or len(space)):
            piece = space[begin : begin + (piece_bytes or len(space))]
            os.preadv(file.fileno(), [piece], at * len(space) + begin)
            if piece_bytes:
                checksum = crc32c_of_more(checksum, piece)

    return read


def plain_write(path: Path, rows: np.ndarray, part: int) -> None:
    """Write the same bytes to one new file, synced as often as parts are."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        for at in range(0, len(rows), part):
            file.write(rows[at : at + part].data)
            file.flush()
            os.fsync(file.fileno())


def files(folder: Path, rows: np.ndarray, order: list[int], ours: Callable[[], object]) -> None:
    """Against one file for each row."""
    folder.mkdir()
    for at, row in enumerate(rows):
        tensor = torch.from_numpy(row.view(np.int16)).view(torch.bfloat16)
        safetensors.torch.save_file({"row": tensor}, folder / f"{at}.safetensors")
        torch.save(tensor, folder / f"{at}.pt")
    full, safe, saved = best(
        ours,
        each(lambda at: safetensors.torch.load_file(folder / f"{at}.safetensors"), order),
        each(lambda at: torch.load(folder / f"{at}.pt", weights_only=True), order),
    )
    show("read 0.5 MB, verified, against safetensors", safe / full, 1.0)
    show("read 0.5 MB, verified, against torch.save", saved / full, 1.5)


OPEN = """
import sys, time
from pathlib import Path
from qedit.cache.store.store import LATENTS, Store
start = time.perf_counter()
store = Store(Path(sys.argv[1]), {"benchmark": "open"}, LATENTS)
store.read(sys.argv[2])
assert len(store) == int(sys.argv[3])
seconds, status = time.perf_counter() - start, Path("/proc/self/status").read_text()
# of this process alone: what getrusage says includes the one that started it
print(seconds, int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""


def opening(folder: Path, count: int) -> None:
    """Open a store of many rows in a fresh process, up to the first row read."""
    keys = [hashlib.blake2b(b"%d" % at, digest_size=16).hexdigest() for at in range(count)]
    store, row = Store(folder, {"benchmark": "open"}, LATENTS), np.ones((1, 2, 2), np.uint16)
    really, os.fsync = os.fsync, lambda handle: None  # to have it made sooner
    with store.adding():
        for at in range(0, count, 64):
            some = keys[at : at + 64]
            store.add(some, [row] * len(some))
    os.fsync = really
    told = subprocess.run(
        [sys.executable, "-c", OPEN, str(folder), keys[count // 2], str(count)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    show(f"open {count} rows: 2 s against the time", 2 / float(told[0]), 1.0, f"  {told[0][:5]} s")
    show("  and 500 MB against the memory", 500 / float(told[1]), 1.0, f"  {told[1][:5]} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--rows-for-opening", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        for kind, layout, shape, *parts in KINDS:
            reads(Path(name), kind, layout, shape, parts)
        if given.rows_for_opening:
            opening(Path(name) / "open", given.rows_for_opening)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of this benchmark: {peak:.0f} MB")


if __name__ == "__main__":
    main()

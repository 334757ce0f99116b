"""Damages files as disks, editors and people do: one mutation at a time, drawn from a seed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from qedit.cache.files.sealed import CHECKSUM, sealed

BLOCK = 4096  # bytes, as file systems lose them
# what a JSON value is replaced by, as it stands in the file
LITERALS = (
    *("null", "true", "-1", "0", "0.5", "NaN", "Infinity", "-Infinity", "1e308", "9" * 400),
    *('""', '"another"', '"\\u0000"', '"\\u001b[31m"', '"/nowhere"', "[]", "{}", '["another"]'),
    *('{"another": 1}', "9" * 5000, '"' + "x" * 300 + '"', "[" * 100_000 + "]" * 100_000),
)
_PLACE = "@@ this value @@"

# A mutation changes the file and returns what it did, or None if it cannot be made of that file.
# `others` are files of the same kind.
Mutation = Callable[[Path, Random, Sequence[Path]], str | None]


def flip_one_bit(path: Path, rng: Random, others: Sequence[Path]) -> str | None:
    data = bytearray(path.read_bytes())
    if not data:
        return None
    bit = rng.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return f"bit {bit % 8} of byte {bit // 8} of {len(data)} flipped"


def replace_one_byte(path: Path, rng: Random, others: Sequence[Path]) -> str | None:
    data = bytearray(path.read_bytes())
    if not data:
        return None
    at, value = rng.randrange(len(data)), rng.choice([0, 0x0A, 0x1B, 0x22, 0x80, 0xFF])
    if data[at] == value:
        return None
    data[at] = value
    path.write_bytes(data)
    return f"byte {at} of {len(data)} is now {value:#04x}"


def fill_with_zeros(path: Path, rng: Random, others: Sequence[Path]) -> str | None:
    data = bytearray(path.read_bytes())
    if not any(data):
        return None
    if rng.random() < 0.5:
        path.write_bytes(bytes(len(data)))
        return "zeros from begin to end"
    start = rng.randrange(0, len(data), BLOCK)
    length = min(BLOCK, len(data) - start)
    data[start : start + length] = bytes(length)
    path.write_bytes(data)
    return f"{length} zeros from byte {start} of {len(data)}"


def cut_short(path: Path, rng: Random, others: Sequence[Path]) -> str | None:
    size = path.stat().st_size
    if size == 0:
        return None
    left = 0 if rng.random() < 0.3 else rng.randrange(size)
    os.truncate(path, left)
    return f"cut to {left} of {size} bytes"


def append_garbage(path: Path, rng: Random, others: Sequence[Path]) -> str | None:
    garbage = rng.choice([b"\0", b"\n", b"}", rng.randbytes(7), rng.randbytes(5000)])
    with path.open("ab") as file:
        file.write(garbage)
    return f"{len(garbage)} bytes appended: {garbage[:7]!r}"


def overwrite_with_noise(path: Path, rng: Random, others: Sequence[Path]) -> str | None:
    data = bytearray(path.read_bytes())
    if not data:
        return None
    start = rng.randrange(len(data))
    length = min(rng.choice([16, 1000, 100_000]), len(data) - start)
    data[start : start + length] = rng.randbytes(length)
    path.write_bytes(data)
    return f"{length} bytes of noise from byte {start} of {len(data)}"


def delete(path: Path, rng: Random, others: Sequence[Path]) -> str | None:
    path.unlink()
    return "deleted"


def replace_by_folder(path: Path, rng: Random, others: Sequence[Path]) -> str | None:
    path.unlink()
    path.mkdir()
    if rng.random() < 0.5:
        return "an empty folder in its place"
    (path / "a file").write_text("a file\n")
    return "a folder in its place"


def replace_by_dead_link(path: Path, rng: Random, others: Sequence[Path]) -> str | None:
    path.unlink()
    path.symlink_to("nowhere")
    return "a link to nothing in its place"


def swap_with_another(path: Path, rng: Random, others: Sequence[Path]) -> str | None:
    data = path.read_bytes()
    different = [other for other in others if other.read_bytes() != data]
    if not different:
        return None
    other = rng.choice(different)
    theirs = other.read_bytes()
    if rng.random() < 0.5:
        other.write_bytes(data)
    path.write_bytes(theirs)
    return f"has the content of {other.parent.name}/{other.name}"


def save_in_another_encoding(path: Path, rng: Random, others: Sequence[Path]) -> str | None:
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        return None
    name = rng.choice(["utf-16", "utf-8-sig", "latin-1"])
    if name == "latin-1":
        place = rng.randrange(len(text) + 1)
        text = text[:place] + "\u00e9" + text[place:]
    path.write_bytes(text.encode(name, errors="replace"))
    return f"saved as {name}"


def save_with_other_line_ends(path: Path, rng: Random, others: Sequence[Path]) -> str | None:
    data = path.read_bytes()
    if b"\n" not in data or b"\0" in data:
        return None
    path.write_bytes(data.replace(b"\n", b"\r\n"))
    return "saved with CRLF"


def change_json(path: Path, rng: Random, others: Sequence[Path]) -> str | None:
    """Replace, remove or rename one value; half of the checksums are made right again."""
    lines, value = _json_in(path, rng)
    if value is None:
        return None
    nodes = list(_nodes(value))
    if not nodes:
        return None
    holder, key = rng.choice(nodes)
    way = rng.choice(["value", "value", "value", "remove", "rename"])
    literal = rng.choice(LITERALS)
    if way == "value":
        holder[key] = _PLACE
    elif way == "remove":
        del holder[key]
    elif isinstance(holder, dict):
        holder[key + "~"] = holder.pop(key)
    else:
        holder.append(holder[key])
    is_sealed = isinstance(value, dict) and CHECKSUM in value and key != CHECKSUM
    sealed_anew = is_sealed and rng.random() < 0.5
    if sealed_anew:
        try:
            known = json.loads(json.dumps(value).replace(json.dumps(_PLACE), literal))
            value[CHECKSUM] = sealed({k: v for k, v in known.items() if k != CHECKSUM})[CHECKSUM]
        except (ValueError, RecursionError):
            sealed_anew = False
    text = json.dumps(value, indent=None if lines else 2).replace(json.dumps(_PLACE), literal)
    _put_json(path, text, lines)
    done = f"is now {literal[:40]}" if way == "value" else f"{way}d".replace("ed", "ed")
    return f"JSON: {key} {done}" + (", with a right checksum" if sealed_anew else "")


def _json_in(path: Path, rng: Random) -> tuple[tuple[list[str], int] | None, Any]:
    """Return the file's JSON value; of a file of lines, those and the place of one of them."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            lines = text.splitlines()
            place = rng.randrange(len(lines))
            return (lines, place), json.loads(lines[place])
        return None, json.loads(text) if path.suffix == ".json" else None
    except ValueError:
        return None, None


def _put_json(path: Path, text: str, lines: tuple[list[str], int] | None) -> None:
    if lines is not None:
        every, place = lines
        every[place] = text
        text = "\n".join(every) + "\n"
    path.write_text(text, encoding="utf-8")


def _nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place in a JSON value: what holds it, and its key there."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(pairs):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _nodes(inner)


def shuffle_lines(path: Path, rng: Random, others: Sequence[Path]) -> str | None:
    """Double, lose or move a line of a text file."""
    if path.suffix not in (".jsonl", ".txt", ".md", ".log", ".html"):
        return None
    lines = path.read_bytes().splitlines(keepends=True)
    if not lines:
        return None
    place = rng.randrange(len(lines))
    way = rng.choice(["doubled", "lost", "moved to the end"])
    line = lines[place] if way == "doubled" else lines.pop(place)
    lines += [] if way == "lost" else [line]
    path.write_bytes(b"".join(lines))
    return f"line {place + 1} {way}"


def replace_by_pipe(path: Path, rng: Random, others: Sequence[Path]) -> str | None:
    path.unlink()
    os.mkfifo(path)
    return "a named pipe in its place"


# each with how often it is drawn
MUTATIONS: tuple[tuple[Mutation, int], ...] = (
    *((flip_one_bit, 6), (replace_one_byte, 3), (fill_with_zeros, 3), (cut_short, 4)),
    *((append_garbage, 2), (overwrite_with_noise, 2), (delete, 2), (replace_by_folder, 1)),
    *((replace_by_dead_link, 1), (swap_with_another, 2), (save_in_another_encoding, 2)),
    *((save_with_other_line_ends, 1), (change_json, 6), (shuffle_lines, 2)),
)


def mutate(path: Path, rng: Random, others: Sequence[Path], *, unnoticed: bool) -> str:
    """Change the file in some way and return what was done.

    Args:
        unnoticed: the file keeps its times, as it does when a disk loses bits; else it looks
            as if somebody had saved it.
    """
    before = path.stat()
    ways, weights = zip(*MUTATIONS, strict=True)
    done = None
    while done is None:
        (way,) = rng.choices(ways, weights)
        kept = path.read_bytes()
        done = way(path, rng, others)
        if path.is_file() and path.read_bytes() == kept:
            done = None
    if unnoticed and path.is_file():
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return done + (", times kept" if unnoticed else "")


def put_back(pristine: Path, path: Path) -> None:
    """Make `path` again what `pristine` is, as from a backup."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.is_symlink() or path.exists():
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(pristine, path)

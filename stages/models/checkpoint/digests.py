"""Model digests, 32 hex digits: of a model's configuration and the bytes of its tensors.

Neither the folder's name nor how tensors are spread over files counts, so a moved or
re-sharded model keeps its digest and every cache made with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ....cache.errors import Broken, Damaged, NotComplete, QeditError
from ....cache.files.atomic import readable_json
from ....cache.files.decides_nothing import put_text
from ....cache.files.fingerprint import canonical_json, digest_bytes, digest_file
from ....cache.files.sealed import read_sealed, sealed
from ....config.settings import Settings
from .model_files import fetch_again, json_object, weight_files
from .tensor_checksums import checksum_of
from .weights_header import TensorEntry, tensor_entries

REMEMBERED_DIGESTS = "model-digests.json"
CHECKSUMS = "checksums"

DIGEST_BYTES = 16
BLOCK_BYTES = 8 << 20
THREADS = min(8, os.cpu_count() or 1)
# A file changed this shortly ago may change again without its time stamp moving on.
SETTLED_SECONDS = 2.0
# Who wrote a configuration and in which dtype it is loaded by default: decides no result,
# because qedit always says the dtype itself.
_BOOKKEEPING = frozenset({"transformers_version", "torch_dtype", "dtype", "name_or_path"})


def model_digest(folder: Path, *, remember: Path | None) -> str:
    """Digest config.json and every tensor of the model in `folder`.

    Reading the weights is remembered in the JSON file `remember` by path, size and times of
    change, so the second call costs nothing; None: nothing is. Of a folder that is gone the digest
    it had last is remembered: rows that were made with it can be used without it.

    Raises:
        NotComplete: there is no config.json or no safetensors file, or no folder and no memory.
        Damaged: a safetensors file whose header cannot be read or promises more bytes than
            there are.
    """
    if not folder.is_dir():
        return _digest_before(folder, remember)
    config = folder / "config.json"
    files = weight_files(folder)
    needed = [config, *(files or [folder / "*.safetensors"])]
    missing = [path.name for path in needed if not path.is_file()]
    if missing:
        raise NotComplete(
            f"{folder} holds no model: {missing[0]} is missing.",
            "Finish the download of the model.",
        )
    meaning = _without_bookkeeping(json_object(config))
    tensors = _hex(sum(_remembered(files, remember)))
    digest = digest_bytes(canonical_json({"config": meaning, "tensors": tensors}).encode())
    known, name = _recall(remember), str(folder.resolve())
    if known.get(name) != {"model": digest}:
        _write(remember, {**known, name: {"model": digest}})
    return digest


def remembered(name: str, find: Callable[[], str], *, remember: Path) -> str:
    """Return the result of `find` for `name`, computed once and then read from the file `remember`.

    Args:
        name: says all that decides it.
    """
    entry = _recall(remember).get(name)
    if isinstance(entry, dict) and isinstance(entry.get("found"), str):
        return str(entry["found"])
    found = find()
    _write(remember, {**_recall(remember), name: {"found": found}})
    return found


def _digest_before(folder: Path, remember: Path | None) -> str:
    """Return the remembered digest of the model that was once in `folder`."""
    entry = _recall(remember).get(str(folder.resolve()))
    if not isinstance(entry, dict) or "model" not in entry:
        raise NotComplete(
            f"There is no folder {folder}, and {remember} does not know what was in it.",
            "Put the model back, or have `qedit cache-vae` and `qedit cache-embeds` fetch it.",
        )
    return str(entry["model"])


def files_digest(folder: Path, names: Iterable[str]) -> str:
    """Digest the contents of the small files `names` in `folder`; one may be absent."""
    contents = {
        name: digest_file(folder / name) if (folder / name).is_file() else None for name in names
    }
    return digest_bytes(canonical_json(contents).encode())


def _without_bookkeeping(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_bookkeeping(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _without_bookkeeping(item)
        for key, item in value.items()
        if not key.startswith("_") and key not in _BOOKKEEPING
    }


# -- tensors ---------------------------------------------------------------------------


def _digest(path: Path, entry: TensorEntry) -> tuple[int, str]:
    """Return the digest and the checksum of one tensor."""
    digest = hashlib.blake2b(entry.label, digest_size=DIGEST_BYTES)
    checksum = checksum_of(entry, _blocks(path, entry, digest))
    return int.from_bytes(digest.digest(), "big"), checksum


def _blocks(path: Path, entry: TensorEntry, digest: hashlib.blake2b) -> Iterator[Any]:
    """Yield the bytes of a tensor, each block once it is digested."""
    with path.open("rb") as file:
        file.seek(entry.start)
        left = entry.nbytes
        while left:
            block = file.read(min(BLOCK_BYTES, left))
            if not block:
                raise Damaged(f"{path} is cut short.", fetch_again(path))
            digest.update(block)
            yield np.frombuffer(block, np.uint8)
            left -= len(block)


def _digests(files: Iterable[Path]) -> dict[Path, tuple[int, str]]:
    """Return, for each file, the sum of its tensors' digests, and their checksums.

    The sum is independent of the order of tensors and of how they are spread over files.
    """
    tensors = [(path, entry) for path in files for entry in tensor_entries(path)]
    found = dict.fromkeys(files, (0, ""))
    with ThreadPoolExecutor(THREADS) as pool:  # hashing a large block releases the GIL
        digests = pool.map(lambda tensor: _digest(*tensor), tensors)
        for (path, _), (digest, checksum) in zip(tensors, digests, strict=True):
            total, checksums = found[path]
            found[path] = total + digest, checksums + checksum
    return found


def _hex(total: int) -> str:
    return f"{total % (1 << 8 * DIGEST_BYTES):0{2 * DIGEST_BYTES}x}"


# -- what is remembered ----------------------------------------------------------------


def _remembered(files: list[Path], remember: Path | None) -> Iterator[int]:
    """Yield the digest of each file: remembered if the file still looks the same, else computed.

    Raises:
        Damaged: a file of which an earlier version remembered the digest alone has another one.
    """
    known = _recall(remember)
    looks = {path: _look(path) for path in files}
    same = {path: entry for path in files if (entry := _entry_of(path, looks[path], known))}
    unknown = [path for path in files if CHECKSUMS not in same.get(path, {})]
    fresh = _digests(unknown)
    for path in same.keys() & fresh.keys():
        if _hex(fresh[path][0]) != same[path].get("digest"):
            raise Damaged(f"{path} is not as it was when it was first read.", fetch_again(path))
    settled_before_ns = time.time_ns() - int(SETTLED_SECONDS * 1e9)
    settled = {
        str(path.resolve()): {**looks[path], "digest": _hex(digest), CHECKSUMS: checksums}
        for path, (digest, checksums) in fresh.items()
        if looks[path]["mtime_ns"] < settled_before_ns
    }
    if settled:  # others may have remembered more, in the minutes that this took
        _write(remember, {**_recall(remember), **settled})
    for path in files:
        yield fresh[path][0] if path in fresh else int(same[path]["digest"], 16)


def recorded_checksums(path: Path, remember: Path | None) -> str | None:
    """Return the checksums of the tensors of a file that `model_digest` has read.

    None where it has read none that looks like this one.
    """
    entry = _entry_of(path, _look(path), _recall(remember)) if remember else None
    return entry.get(CHECKSUMS) if entry else None


def _entry_of(
    path: Path, look: Mapping[str, int], known: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return what is remembered of the file at `path`, if that still looks the same."""
    entry = known.get(str(path.resolve()))
    is_same = isinstance(entry, dict) and all(entry.get(key) == look[key] for key in look)
    return entry if is_same else None


def _look(path: Path) -> dict[str, int]:
    stat = path.stat()
    # the second time is the system's own: archives and copies keep the first
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns}


def _write(remember: Path | None, known: Mapping[str, Any]) -> None:
    if remember is None:
        return
    # where nothing may be written, or there is no room, the weights are read again next time
    with contextlib.suppress(QeditError):
        put_text(remember, readable_json(sealed(known)))


def _recall(remember: Path | None) -> dict[str, Any]:
    """Return the remembered digests; a damaged file only means that weights are read again."""
    if remember is None:
        return {}
    try:
        return read_sealed(remember)
    except (Broken, OSError):
        return {}


def digests_file(settings: Settings) -> Path:
    """Return the file in which digests of large model files are remembered between runs."""
    return Path(settings.cache_dir) / REMEMBERED_DIGESTS

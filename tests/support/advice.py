"""Does what a message of qedit says is to be done, as a user would who types what is written."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from finished_project import CONFIGS, PLAIN

COMMAND = re.compile(r"`qedit ([^`]+)`")
DELETION = re.compile(r"\b(?:[Dd]elete|[Rr]emove) (\S+)")
BY_HAND = re.compile(r"Delete a damaged pairs table or checkpoint by hand")
CHECKPOINT = re.compile(r"\S+/checkpoint-\d+")
MOVE = re.compile(r"\bmove (\S+)( \S+)? away", re.IGNORECASE)
STAGES = ("cache-vae", "cache-embeds", "cache-base")
# ways to say that a file of the user's is to be as it was
BACK = re.compile(
    r"[Dd]ownload|[Pp]ut (it|the|them)|[Ff]ix|[Nn]ame (a|the|another)|[Ss]ave|[Cc]heck|[Tt]ake"
    r"|[Gg]ive|[Cc]onvert|[Rr]estore|[Uu]se the|[Ss]et |[Cc]hoose|[Ww]rite"
)
PLACEHOLDER = re.compile(r"\b[A-Z]{3,}\b|…|\.\.\.")


def follow(
    said: str,
    folder: Path,
    rng: Random,
    *,
    type_it: Callable[[list[str]], tuple[int, str]],
    put_back: Callable[[], str] | None,
    depth: int = 2,
) -> list[str]:
    """Follow one of the ways that the message shows; return what was done.

    Args:
        said: what the command printed.
        folder: where it was typed.
        type_it: types a command there and returns its exit code and what it printed.
        put_back: puts the damaged file back, if it is one that a user has elsewhere.
        depth: how many messages of commands that are typed on advice are followed themselves.
    """
    deletions = [lambda path=path: _delete(path, folder) for path in _to_delete(said, folder)]
    typed = [found for found in COMMAND.findall(said) if not PLACEHOLDER.search(found)]
    commands = list(dict.fromkeys(typed))
    if "caching stages of" in said:  # of a run that the message cannot know the files of
        commands += [
            f"{stage} --config {file} --data data.json" for file in CONFIGS for stage in STAGES
        ]
    done = []
    # what changed of the user's is put back; the other ways on make another run on purpose
    if put_back is not None and BACK.search(said) and not (deletions and rng.random() < 0.5):
        return [put_back()]
    is_choice = any("verify --drop" in words for words in commands) and not BY_HAND.search(said)
    if deletions and (not is_choice or rng.random() < 0.5):
        done.append(deletions[0]())
        commands = [words for words in commands if not is_choice or "verify --drop" not in words]
    for words in commands:
        code, answer = type_it(_plain(shlex.split(words), folder))
        done.append(f"typed qedit {words}: {code}")
        if code and depth:
            options = {"type_it": type_it, "put_back": put_back, "depth": depth - 1}
            done += follow(answer, folder, rng, **options)
    if not done and put_back is not None:
        done.append(put_back() + " (nothing else to do)")
    return done


def _plain(words: list[str], folder: Path) -> list[str]:
    """The words without -C, which is added again; rows are encoded one by one."""
    if "-C" in words:
        at = words.index("-C")
        del words[at : at + 2]
    options = {"run": PLAIN, "cache-vae": PLAIN[:2], "cache-embeds": PLAIN[2:]}
    return [*words, *options.get(words[0], ())]


def _to_delete(said: str, folder: Path) -> list[Path]:
    """The files and folders that are to be deleted or moved away, in their order."""
    damaged = CHECKPOINT.search(said)
    if BY_HAND.search(said):
        return [folder / damaged[0]] if damaged and (folder / damaged[0]).exists() else []
    found = []
    for match in (*DELETION.finditer(said), *MOVE.finditer(said)):
        named = folder / match[1].strip("`'\".,;:")
        if match[1] in ("that", "it", "it,", "it.", "them", "the"):
            before = _paths(said[: match.start()], folder)
            named = before[-1] if before else folder / "nothing"
        if named.exists() or named.is_symlink():
            found.append(named)
    return found


def _paths(said: str, folder: Path) -> list[Path]:
    words = [word.strip("`'\".,;:()") for word in said.split()]
    paths = [folder / word for word in words if "/" in word]
    return [path for path in paths if path != folder and (path.exists() or path.is_symlink())]


def _delete(path: Path, folder: Path) -> str:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    return f"deleted {path.relative_to(folder) if path.is_relative_to(folder) else path}"

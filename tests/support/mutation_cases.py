"""Damages a file of a finished project, goes on with it as a user would, and judges the result.

A case is drawn from its seed: a file, a mutation of it, some commands, and at last `run` or
`train`. Where a command fails, what it says is to be done is done.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from advice import follow
from crash_server import CrashServer, one_time
from finished_project import (
    CONFIGS,
    OUTPUTS,
    START,
    files_in,
    is_close,
    kind_of,
    looks_of,
    make_project,
    result_of,
    stores_of,
    words_for,
)
from mutations import mutate, put_back

from qedit.cache.errors import QeditError
from qedit.config.loading import load

# from the worst to the best
VERDICTS = {
    "traceback": "a defect in qedit, a Python warning, or a command that never ended",
    "wrong": "exit 0, and the result is another one without a line that says so",
    "advice fails": "what the messages say was done, and it does not end at the clean result",
    "costly": "what the messages say was done, and the whole training was done again",
    "stopped": "a file that decides nothing ended the training",
    "for people": "exit 0, and nothing but a picture or a page for people is another one",
    "meant": "another valid configuration, picture, caption or model: it was used as it is",
    "detected": "a message or a line named it, and the advice led to the clean result",
    "harmless": "exit 0 and the clean result",
}
BAD = tuple(VERDICTS)[:5]
SECONDS = 120
LOOKING: tuple[tuple[str, ...], ...] = (
    *(("status",), ("plan",), ("verify",), ("gc",), ("inspect", "p0.png"), ("preview",)),
    *(("gc", "--yes"), ("verify", "--drop"), ("pair", "--dry-run"), ("train", "--dry-run")),
    *(("pair",), ("cache-vae",), ("cache-embeds",), ("cache-base",), ("gc", "--compact", "--yes")),
    *(("inspect", "p1.png", "--export", "../p1.safetensors"), ("status", "--json")),
)
HARMLESS_LOOKS: tuple[tuple[str, ...], ...] = (("status",), ("plan",), ("verify",), ("gc",))
FOR_PEOPLE = ("README.md", ".html", ".png", ".webp", "as-run", "preview.log", "metrics.jsonl")
OTHERS = ("alignment.json", "best/state.json", "model-digests.json", "quantized.json", "report")
USERS = ("model", "edited", "held-out", "mask", "reference", "config", "data.json", START)
# lines that name files whether they are damaged or not
USUAL = ("Trained:", "The run as a page:", "report:", "Kept:", "steps trained", "Going on", "out/")
DEFECT = re.compile(r"a defect in qedit|Traceback \(most|[a-z]Warning: |Exception ignored")
MADE = re.compile(r"\d (sample|latent|embed|piece)s? made in")
MADE_ROWS = re.compile(r"\d (latent|embed)s? made in")
# how often each room of the project is drawn; in it, each kind of file is drawn alike
ROOMS = {"out": 5, "out-2": 2, "caches": 7, "model": 3, "pictures": 2, "settings": 1}


@dataclass
class Case:
    """One seed: what was damaged, what was typed, what was said, and the verdict."""

    seed: int
    config: str = ""
    file: str = ""
    mutation: str = ""
    verdict: str = "harmless"
    why: str = ""
    is_fresh: bool = False
    log: list[str] = field(default_factory=list)

    def worse(self, verdict: str, why: str = "") -> None:
        order = list(VERDICTS)
        if order.index(verdict) < order.index(self.verdict):
            self.verdict, self.why = verdict, why

    @property
    def said(self) -> str:
        return "\n".join(self.log)

    def told(self) -> str:
        """The case for people, whole."""
        start = ", before its first step" if self.is_fresh else ""
        head = (
            f"seed {self.seed}: {self.verdict}: {self.file}: {self.mutation} ({self.config}{start})"
        )
        return "\n".join([head, f"    {self.why}", *self.log])


class Project:
    """The finished project at a place where it can be damaged and put back."""

    def __init__(self, folder: Path, server: CrashServer) -> None:
        self.server, self.folder = server, folder / "project"
        self.pristine, self.notes = folder / "pristine", folder / "notes"
        self.notes.mkdir()
        make_project(self.folder, server, self.notes)
        shutil.move(self.folder, self.pristine)
        self.rooms: dict[str, dict[str, list[Path]]] = {}
        for path in files_in(self.pristine):
            self.rooms.setdefault(_room_of(path), {}).setdefault(kind_of(path), []).append(path)
        self.clean, self.clean_looks = [], []
        self.needs = []
        for number in range(2):
            self.restore()
            code, said = self.type(words_for(CONFIGS[number], "run"))
            assert code == 0, said
            self.clean.append(self.result(number))
            self.clean_looks.append(self.looks(number))
            self.needs.append(self._needs(number))
            shutil.move(self.folder, self.clean_folder(number))

    def clean_folder(self, number: int) -> Path:
        """The project as the clean run of this configuration left it."""
        return self.pristine.with_name(f"clean-{number}")

    def _needs(self, number: int) -> set[str]:
        """The fingerprints of what the configuration needs of the caches."""
        with chdir(self.folder), one_time():
            return {store.parent.name for store in stores_of(CONFIGS[number])}

    def result(self, number: int) -> dict[str, str]:
        """What decides something."""
        with chdir(self.folder), one_time():
            return result_of(CONFIGS[number], Path(OUTPUTS[number]))

    def looks(self, number: int) -> dict[str, str]:
        """What is for people."""
        with chdir(self.folder):
            return looks_of(Path(OUTPUTS[number]))

    def number_for(self, path: Path, rng: Random) -> int:
        """Which of the two configurations reads this file; either, if both do."""
        if path.parts[0] in OUTPUTS:
            return OUTPUTS.index(path.parts[0])
        if path.name in (*CONFIGS, START):
            return int(path.name != CONFIGS[0])
        needed = [bool(names & set(path.parts)) for names in self.needs]
        return needed.index(True) if sum(needed) == 1 else int(rng.random() < 0.3)

    def restore(self) -> None:
        """Put the finished project in its place; large files that nothing changes are links."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.pristine, self.folder, copy_function=_copy_or_link)

    def type(self, words: Sequence[str]) -> tuple[int, str]:
        """Type a command in the project's folder."""
        line = [*words, "-C", str(self.folder)]
        code, said, _ = self.server.run(
            line, self.folder, seconds=SECONDS, notes=self.notes, restored=True
        )
        return code, said


def _is_linked(path: str) -> bool:
    return path.endswith("model.safetensors")


def _copy_or_link(source: str, target: str) -> None:
    if _is_linked(source):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def _room_of(path: Path) -> str:
    first = path.parts[0]
    if first in ROOMS:
        return first
    return "settings" if len(path.parts) == 1 else "pictures"


def run_case(project: Project, seed: int) -> Case:
    """Draw the case, carry it out, and judge it."""
    rng, case = Random(seed), Case(seed)
    project.restore()
    path, number, is_meant = _damage(project, case, rng)
    looks = [rng.choice(LOOKING) for _ in range(rng.choice([0, 1, 1]))]
    last = rng.choice(["run", "run", "train"])
    if is_meant:
        case.worse("meant")
        for words in rng.sample(HARMLESS_LOOKS, 2):
            _type_once(project, case, words_for(CONFIGS[number], *words))
        put_back(project.pristine / path, project.folder / path)
        looks = []
    try:
        for words in [*looks, (last,)]:
            _type_until_done(project, case, rng, words_for(CONFIGS[number], *words), path)
            if case.verdict in BAD:
                return case
        if _room_of(path) in ("settings", "model") and last == "train":  # it may be unread
            _type_until_done(project, case, rng, words_for(CONFIGS[number], "run"), path)
        _judge(project, case, rng, number, path)
    except Exception as error:
        case.worse("wrong", f"the result cannot be read: {error!r}")
    return case


def _damage(project: Project, case: Case, rng: Random) -> tuple[Path, int, bool]:
    """Damage a file; return it, the configuration that reads it, and whether it asks for more.

    The last is true where the configuration is valid still, and another one.
    """
    room = rng.choices(list(ROOMS), list(ROOMS.values()))[0]
    kind = rng.choice(sorted(project.rooms[room]))
    files = project.rooms[room][kind]
    path = rng.choice(files)
    number = project.number_for(path, rng)
    case.config, case.file = CONFIGS[number], str(path)
    if room not in ("out", "out-2") and rng.random() < 0.2:
        case.is_fresh = True
        shutil.rmtree(project.folder / OUTPUTS[number])
    others = [project.folder / file for file in files if file != path]
    for file in files if _is_linked(str(path)) else ():
        (project.folder / file).unlink()
        shutil.copy2(project.pristine / file, project.folder / file)
    unnoticed = rng.random() < 0.5
    with chdir(project.folder):
        before = _meaning(project, number)
        case.mutation = mutate(project.folder / path, rng, others, unnoticed=unnoticed)
        after = _meaning(project, number)
    return path, number, before != after and after is not None


def _meaning(project: Project, number: int) -> str | None:
    """What the configuration asks for; None where it is refused."""
    try:
        configuration = load(Path(CONFIGS[number]), Path("data.json"))
    except (QeditError, OSError):
        return None
    except Exception as error:
        return repr(error)
    return repr((configuration.settings, configuration.datasets))


def _type_once(project: Project, case: Case, words: list[str]) -> tuple[int, str]:
    code, said = project.type(words)
    case.log.append(f"  $ qedit {' '.join(words)}   -> {code}")
    case.log += ["    | " + line for line in said.splitlines()[-40:]]
    if code < 0:
        case.worse("traceback", f"{words[0]} was ended by signal {-code}")
    if DEFECT.search(said):
        case.worse("traceback", f"in {words[0]}")
    return code, said


def _type_until_done(
    project: Project, case: Case, rng: Random, words: list[str], path: Path
) -> None:
    """Type the command; while it fails, do what it says and type it again."""
    last = ""
    for _ in range(6):
        code, said = _type_once(project, case, words)
        if code == 0 or case.verdict in BAD:
            return
        if _decides_nothing(path) and words[0] in ("run", "train", "preview", "status"):
            case.worse("stopped", f"{words[0]}: {said.strip().splitlines()[-2:]}")
        case.worse("detected")
        if said == last:
            case.worse("advice fails", f"{words[0]} says the same again")
            return
        last = said
        done = follow(
            said,
            project.folder,
            rng,
            type_it=lambda line: _type_once(project, case, line),
            put_back=_restorer(project, path),
        )
        case.log += [f"  > {line}" for line in done]
        if not done:
            case.worse("advice fails", f"{words[0]} gives no advice that can be followed")
            return
    case.worse("advice fails", f"{words[0]} fails again and again")


def _restorer(project: Project, path: Path):
    """What puts the file back, if it is one that users have another copy of."""
    if not str(path).startswith(USERS):
        return None

    def back() -> str:
        for file in files_in(project.pristine):
            if kind_of(file) == kind_of(path):
                put_back(project.pristine / file, project.folder / file)
        return f"{path} put back"

    return back


def _decides_nothing(path: Path) -> bool:
    return _room_of(path) in ("out", "out-2", "caches") and any(
        name in str(path) for name in (*FOR_PEOPLE, *OTHERS)
    )


def _judge(project: Project, case: Case, rng: Random, number: int, path: Path) -> None:
    """Hold the result against the clean one; what no command had to read, `verify` names."""
    different = _differences(project, case, number)
    gone = "deleted" in case.mutation or "in its place" in case.mutation
    excused = gone and _decides_nothing(path)
    if different and not excused:
        _type_until_done(project, case, rng, words_for(CONFIGS[number], "verify"), path)
        _type_until_done(project, case, rng, words_for(CONFIGS[number], "run"), path)
        different = _differences(project, case, number)
    if different and _is_another_input(case, path):
        case.worse("meant", f"{different[:4]}")
    elif different and not _names(case.said, path) and not excused:
        case.worse("wrong", f"another result: {different[:4]} ({len(different)})")
    elif all(_belongs(name, path) for name in different) and different:
        case.worse("detected", f"named, and gone: {different[:4]}")
    elif different:
        case.worse("advice fails", f"named, and another result: {different[:4]}")
    elif not case.is_fresh and _trained_again(project, number):
        case.worse("costly")
    looks, clean = project.looks(number), project.clean_looks[number]
    other_looks = [name for name, value in clean.items() if looks.get(name) != value]
    if other_looks and not _names(case.said, path) and not gone and not case.is_fresh:
        case.worse("for people", f"{other_looks[:4]}")


def _belongs(name: str, path: Path) -> bool:
    """Whether this part of the result is the file, or is of the same checkpoint."""
    checkpoint = next((part for part in path.parts if part.startswith("checkpoint-")), None)
    in_best = path.parent.name == "best" and Path(name).parent == path.parent
    return (
        name == str(path) or in_best or (checkpoint is not None and checkpoint in Path(name).parts)
    )


def _is_another_input(case: Case, path: Path) -> bool:
    """Whether the file is the user's, and the result was made of it as it is, which was said."""
    is_seen = "times kept" not in case.mutation or _room_of(path) == "pictures"
    return str(path).startswith(USERS) and is_seen and bool(MADE.search(case.said))


def _differences(project: Project, case: Case, number: int) -> list[str]:
    """What is another one than in the clean result."""
    try:
        result = project.result(number)
    except Exception as error:
        return [f"cannot be read: {error!r}"]
    clean = project.clean[number].items()
    different = [name for name, value in clean if result.get(name) != value]
    if MADE_ROWS.search(case.said) and all(name in result for name in different):
        there = project.clean_folder(number)
        different = [name for name in different if not is_close(name, project.folder, there)]
    return different


def _trained_again(project: Project, number: int) -> bool:
    name = f"{OUTPUTS[number]}/metrics.jsonl"
    first = [
        (folder / name).read_text().splitlines()[1] for folder in (project.pristine, project.folder)
    ]
    seconds = [json.loads(line).get("seconds") for line in first]
    return seconds[0] != seconds[1]


def _names(said: str, path: Path) -> bool:
    """Whether a line names the file, or the folder or sample that it belongs to."""
    lines = [line[6:] for line in said.splitlines() if line.startswith("    | ")]
    output = "\n".join(line for line in lines if not line.startswith(USUAL))
    names = (path.name, str(path.parent) + " ", str(path.parent) + ":")
    folders = [
        part for part in path.parent.parts if len(part) > 15 or part.startswith("checkpoint")
    ]
    return any(name in output for name in (*names, *folders))


def table_of(cases: Sequence[Case]) -> str:
    """How many cases there are of each verdict, by the room of their file."""
    rooms = list(ROOMS)
    lines = [" " * 14 + "".join(f"{room:>10}" for room in rooms) + f"{'all':>8}"]
    for verdict in reversed(VERDICTS):
        found = [_room_of(Path(case.file)) for case in cases if case.verdict == verdict]
        counts = "".join(f"{found.count(room):>10}" for room in rooms)
        lines.append(f"{verdict:<14}{counts}{len(found):>8}")
    return "\n".join(lines)

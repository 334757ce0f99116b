"""Every message that qedit can end with, read from its source, and the page that shows them.

docs/messages.md shows each message filled in, under the commands that can end with it. The words
are those of the source; message_values.py has an example of what is filled in.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from message_values import EVERYWHERE, VALUES
from paths import ROOT

from qedit.cache import errors

KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.QeditError)
}
# which commands can end with a message of these folders and files; the longest path decides
COMMANDS = {
    "Every command": (
        *("pipeline/terminal", "config", "cache/files/workspace.py", "cache/files/atomic.py"),
    ),
    "Commands that use the caches": ("cache", "stages/samples", "stages/stores"),
    "Commands that use the model": ("stages/models",),
    "`qedit init`": ("stages/pair/proposal.py", "pipeline/first_files.py"),
    "`qedit pair`": ("stages/pair", "stages/models/text/caption_length.py"),
    "`qedit cache-vae` and `qedit cache-embeds`": (
        *("stages/encoding", "stages/cache_vae", "stages/cache_embeds", "stages/estimates"),
        *("stages/models/text", "cache/files/free_space.py"),
    ),
    "`qedit cache-base`": ("stages/cache_base", "stages/models/quantization"),
    "`qedit train`": (
        *("stages/train", "stages/frozen_base", "stages/models/layers.py"),
        *("stages/models/learning_rate.py", "stages/models/lora", "stages/models/memory_estimate"),
        "stages/run_output/run_file.py",
    ),
    "`qedit run` and `qedit train --prepare`": (
        *("pipeline/runner.py", "pipeline/commands", "pipeline/demo/examples.py"),
    ),
    "`qedit preview`": ("stages/preview", "stages/run_output", "stages/models/transformer"),
    "`qedit inspect`": ("stages/inspect_sample.py", "pipeline/commands/looking.py"),
    "`qedit plan`": ("pipeline/plan",),
    "`qedit export`": (
        *("stages/export", "pipeline/commands/files.py"),
        *("stages/models/lora/lora_file.py", "stages/models/lora/adapter_reading.py"),
    ),
    "`qedit status`, `verify`, `gc` and `unlock`": (
        "pipeline/upkeep",
        "pipeline/commands/upkeep.py",
    ),
    "`qedit keys`": ("pipeline/key_lines.py",),
    "`qedit demo`": ("pipeline/demo", "stages/models/tiny"),
}
HEAD = """# Every error message

This page is made from the source: `pytest tests/promises/test_docs.py --renew`. Each message stands
under the commands that can end with it; names, paths and numbers in it are examples. The number in
front is the exit code: 1 failed, 2 wrong use, 3 made by other settings, 4 not complete, 5 damaged,
6 locked. [troubleshooting.md](troubleshooting.md) starts from symptoms.
"""


@dataclass(frozen=True)
class Message:
    """A message with examples filled in: what is wrong, and what to do."""

    commands: str
    exit_code: int
    what: str
    do: str

    def __str__(self) -> str:
        return f"- ({self.exit_code}) {self.what}\n" + (f"  *{self.do}*\n" if self.do else "")


@dataclass
class Reader:
    """Reads messages from the source and fills them in.

    Attributes:
        used: place and expression of the values of message_values.py that were filled in.
        lacking: file and expression of those that it does not have.
    """

    used: set[tuple[str, str]] = field(default_factory=set)
    lacking: set[tuple[str, str]] = field(default_factory=set)

    def messages(self) -> list[Message]:
        """Return every message of the source, each once for the commands that end with it."""
        found: dict[Message, None] = {}
        for room in ("config", "cache", "stages", "pipeline"):
            for path in sorted((ROOT / room).rglob("*.py")):
                tree = ast.parse(path.read_text(encoding="utf-8"))
                name = path.relative_to(ROOT).as_posix()
                found |= dict.fromkeys(self._messages_in(tree, name, function=""))
        return sorted(found, key=lambda one: (one.exit_code, one.what.lower(), one.do))

    def _messages_in(self, node: ast.AST, path: str, *, function: str) -> Iterator[Message]:
        for child in ast.iter_child_nodes(node):
            inner = child.name if isinstance(child, ast.FunctionDef) else function
            yield from self._messages_in(child, path, function=inner)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
            kind = KINDS.get(node.func.id)
            # `error.what` passes on what another message says
            if kind and ast.unparse(node.args[0]) != "error.what":
                places = [path, f"{path}:{function}"]
                texts = [self._text(one, places) for one in (*node.args, ast.Constant(""))]
                yield Message(commands_of(path), kind.exit_code, *map(_in_markdown, texts[:2]))

    def _text(self, node: ast.expr, places: Sequence[str]) -> str:
        """Return the words of an expression; of two alternatives the first."""
        if isinstance(node, ast.Constant):
            return str(node.value)
        if isinstance(node, ast.JoinedStr):
            return "".join(self._text(part, places) for part in node.values)
        if isinstance(node, ast.FormattedValue):
            return self._text(node.value, places)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self._text(node.left, places) + self._text(node.right, places)
        if isinstance(node, ast.IfExp):
            return self._text(node.body, places)
        expression = ast.unparse(node)
        path, within = (place.rpartition("/")[2] for place in places)
        for place in (within, path, EVERYWHERE):
            if expression in VALUES.get(place, {}):
                self.used.add((place, expression))
                return VALUES[place][expression]
        self.lacking.add((within, expression))
        return "..."


def commands_of(path: str) -> str:
    """Return the heading that messages of the file at `path` stand under."""
    headings = {place: title for title, places in COMMANDS.items() for place in places}
    parts = path.split("/")
    places = ("/".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next(headings[place] for place in places if place in headings)


def page() -> Iterator[str]:
    """Yield docs/messages.md: the messages by command, exit code and words."""
    found = Reader().messages()
    yield HEAD
    for title in COMMANDS:
        if of_title := [str(one) for one in found if one.commands == title]:
            yield f"\n## {title}\n\n" + "\n".join(of_title)


def _in_markdown(text: str) -> str:
    """Return `text` as one line of Markdown that shows its lines."""
    return "<br>".join(" ".join(line.split()) for line in text.splitlines())

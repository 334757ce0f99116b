"""Every message that qedit can end with, read from its source: docs/messages.md is made of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from paths import ROOT

from qedit.cache import errors

ROOMS = ("config", "cache", "stages", "pipeline")
GAP = "..."
KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.QeditError)
}


@dataclass(frozen=True, order=True)
class Message:
    """What is said and what to do, with gaps where something is filled in."""

    exit_code: int
    what: str
    do: str


def messages() -> list[Message]:
    """Every message that stands in a `raise`, once."""
    found = set()
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            found |= set(_messages_in(ast.parse(path.read_text(encoding="utf-8"))))
    return sorted(found, key=lambda one: (one.exit_code, one.what.lower()))


def _messages_in(tree: ast.Module) -> Iterator[Message]:
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
            continue
        name = node.exc.func.id if isinstance(node.exc.func, ast.Name) else ""
        if name in KINDS and node.exc.args:
            what, do = [_text(argument) for argument in (*node.exc.args, ast.Constant(""))][:2]
            if what.strip(f"{GAP} \n"):
                yield Message(KINDS[name].exit_code, what, do)


def _text(node: ast.expr) -> str:
    """The words of an expression; a gap for every value."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.IfExp):
        return f"{_text(node.body)} / {_text(node.orelse)}"
    return GAP

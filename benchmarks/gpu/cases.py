"""What is measured, in the order of its worth. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

READY = "ready"  # what a script says once it has imported everything


@dataclass(frozen=True)
class Asked:
    """One row of the table.

    Attributes:
        row: what it is called.
        what: "qedit", "stock" (diffusers + PEFT), or what another script calls its own.
        way: how the step is fitted in: auto, plain, recompute, attention, host, stream:N.
        cap_gb: how much of the device may be used, 10^9 bytes, its context included; 0: all.
        limit_seconds: it is ended after so long, its process's start included.
    """

    row: str
    what: str = "qedit"
    precision: str = "no_change"
    flavour: str = "edit-v2"
    references: int = 1
    way: str = "recompute"
    cap_gb: float = 0
    compiled: bool = False
    attention: str = ""
    table: bool = True
    limit_seconds: float = 70

    def as_object(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Session:
    """One process and the rows it measures one after the other: its base is made once."""

    script: str
    cases: tuple[Asked, ...]


def sessions() -> list[Session]:
    """Every process in the order of its worth, and in each its rows likewise."""
    return [
        Session("step.py", (Asked("matmul ceiling", what="ceiling"), *_stock())),
        Session("step.py", _own("bf16", "no_change", caps=(48,))),
        Session("step.py", _own("int8", "int8-quanto", caps=(24, 32))),
        Session("step.py", _few_bits()),
        Session("step.py", _compiled("bf16", "no_change")),
        Session("encoding.py", (_encoder("cache-vae"), _encoder("cache-embeds"))),
        Session("step.py", _small("nf4", "nf4-bnb")),
        Session("step.py", _small("fp8", "fp8-quanto")),
        Session("startup.py", _startup()),
        Session("step.py", _compiled("int8", "int8-quanto")),
        Session("step.py", (Asked("yardstick, int8 (quanto)", what="stock", precision="int8"),)),
        Session("step.py", _streamed()),
        Session("step.py", (Asked("bf16, modulation's weights kept", table=False),)),
    ]


def _stock() -> tuple[Asked, ...]:
    one = Asked("yardstick, bf16", what="stock")
    return (
        one,
        replace(one, references=3),
        replace(one, flavour="edit-v3"),
        replace(one, flavour="edit-v1"),
        replace(one, references=2),
    )


def _own(name: str, precision: str, *, caps: tuple[float, ...]) -> tuple[Asked, ...]:
    one = Asked(name, precision=precision)
    capped = [replace(one, row=f"{cap:g} GB, {name}", way="auto", cap_gb=cap) for cap in caps]
    return (
        one,
        *capped,
        replace(one, references=3),
        replace(one, flavour="edit-v3"),
        replace(one, flavour="edit-v1"),
        replace(one, row=f"{name}, attention kept", way="attention"),
        replace(one, row=f"{name}, all the memory", way="auto"),
        replace(one, row=f"{name}, cuDNN attention", attention="cudnn"),
        replace(one, references=2),
        replace(one, flavour="edit-v3", references=3),
        replace(one, flavour="edit-v3", references=2),
    )


def _few_bits() -> tuple[Asked, ...]:
    one = Asked("int4", precision="int4-quanto")
    auto = replace(one, way="auto")
    return (
        one,
        replace(auto, row="24 GB, int4, 3 references", cap_gb=24, references=3),
        replace(auto, row="16 GB, int4", cap_gb=16),
        replace(auto, row="12 GB, int4", cap_gb=12),
        replace(one, references=3),
        replace(one, references=2),
        replace(one, flavour="edit-v3"),
        replace(one, flavour="edit-v1"),
        # blocks that have gone to the host do not come back: these are last
        replace(auto, row="8 GB, int4", cap_gb=8),
    )


def _small(name: str, precision: str) -> tuple[Asked, ...]:
    one = Asked(name, precision=precision)
    return (one, replace(one, references=3), replace(one, flavour="edit-v3"))


def _compiled(name: str, precision: str) -> tuple[Asked, ...]:
    one = Asked(f"{name}, compiled", precision=precision, compiled=True, limit_seconds=150)
    return (
        one,
        replace(one, row=f"{name}, compiled, attention kept", way="attention"),
        replace(one, references=2),  # another shape: a program more?
        replace(one, row=f"{name}, compiled, all the memory", way="auto"),
    )


def _streamed() -> tuple[Asked, ...]:
    few = Asked("int4, 30 blocks streamed", precision="int4-quanto", way="stream:30")
    return (
        few,
        replace(few, row="int4, 60 blocks streamed", way="stream:60"),
        Asked("bf16, 60 blocks streamed", way="stream:60", limit_seconds=100),
    )


def _encoder(what: str) -> Asked:
    return Asked(what, what=what, limit_seconds=110)


def _startup() -> tuple[Asked, ...]:
    names = ("no_change", "int8-quanto", "int4-quanto", "table")
    return tuple(Asked(f"start-up, {name}", what="startup", precision=name) for name in names)

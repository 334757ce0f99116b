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
        steps: how many are timed, after one that is not.
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
    steps: int = 3
    limit_seconds: float = 70

    def as_object(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Session:
    """One process and the rows it measures one after the other: its base is made once."""

    script: str
    cases: tuple[Asked, ...]


def sessions() -> list[Session]:
    """Every process in the order of its worth, and in each its rows likewise.

    The first ones hold a row of each kind, and every target; what repeats them with more
    references, other flavours or more memory comes after all of those.
    """
    return [*essential_sessions(), *_repeated()]


def essential_sessions() -> list[Session]:
    """What answers every question once, in less than 400 seconds of a large GPU."""
    compiled = Asked("bf16, compiled", compiled=True, limit_seconds=150)
    quanto = Asked("yardstick, int8 (quanto)", what="stock", precision="int8")
    return [
        _steps(Asked("matmul ceiling", what="ceiling"), Asked("yardstick, bf16", what="stock")),
        _steps(*_capped("bf16", "no_change", caps=(48,))),
        _steps(*_capped("int8", "int8-quanto", caps=(24,))),
        _few_bits(),
        _steps(compiled),
        Session("encoding.py", (_encoder("cache-vae"), _encoder("cache-embeds"))),
        _steps(Asked("nf4", precision="nf4-bnb")),
        _steps(Asked("fp8", precision="fp8-quanto")),
        Session("startup.py", _startup()),
        _steps(quanto),
    ]


def _repeated() -> list[Session]:
    streamed = Asked("int4, 30 blocks streamed", precision="int4-quanto", way="stream:30", steps=2)
    return [
        _steps(*_other_loads(Asked("yardstick, bf16", what="stock"))),
        _steps(*_other_ways("bf16", "no_change")),
        _steps(*_other_ways("int8", "int8-quanto")),
        _steps(*_other_loads(Asked("int4", precision="int4-quanto"))),
        _compiled("bf16", "no_change"),
        _compiled("int8", "int8-quanto", first=True),
        *(_steps(*_small(one)) for one in ("nf4", "fp8")),
        _steps(streamed, replace(streamed, row="int4, 60 blocks streamed", way="stream:60")),
        _steps(Asked("bf16, 60 blocks streamed", way="stream:60", steps=2, limit_seconds=100)),
        _steps(Asked("bf16, modulation's weights kept", table=False)),
    ]


def _steps(*cases: Asked) -> Session:
    return Session("step.py", cases)


def _capped(name: str, precision: str, *, caps: tuple[float, ...]) -> tuple[Asked, ...]:
    one = Asked(name, precision=precision)
    return (one, *(replace(one, row=f"{cap:g} GB, {name}", way="auto", cap_gb=cap) for cap in caps))


def _few_bits() -> Session:
    one = Asked("int4", precision="int4-quanto")
    auto = replace(one, way="auto")
    return _steps(
        one,
        replace(auto, row="24 GB, int4, 3 references", cap_gb=24, references=3, steps=1),
        replace(auto, row="16 GB, int4", cap_gb=16),
        replace(auto, row="12 GB, int4", cap_gb=12),
        # blocks that have gone to the host do not come back: these are last
        replace(auto, row="8 GB, int4", cap_gb=8),
    )


def _other_loads(one: Asked) -> tuple[Asked, ...]:
    return (
        replace(one, references=3, steps=1),
        replace(one, flavour="edit-v3"),
        replace(one, flavour="edit-v1"),
        replace(one, references=2, steps=2),
    )


def _other_ways(name: str, precision: str) -> tuple[Asked, ...]:
    one = Asked(name, precision=precision)
    cap = (replace(one, row="32 GB, int8", way="auto", cap_gb=32),) if name == "int8" else ()
    return (
        *cap,
        replace(one, row=f"{name}, attention kept", way="attention"),
        *_other_loads(one),
        replace(one, flavour="edit-v3", references=3, steps=1),
        replace(one, flavour="edit-v3", references=2, steps=2),
        replace(one, row=f"{name}, cuDNN attention", attention="cudnn"),
        replace(one, row=f"{name}, all the memory", way="auto"),
    )


def _compiled(name: str, precision: str, *, first: bool = False) -> Session:
    one = Asked(f"{name}, compiled", precision=precision, compiled=True, limit_seconds=150)
    return _steps(
        *([one] if first else []),
        replace(one, row=f"{name}, compiled, attention kept", way="attention"),
        replace(one, references=2, steps=2),  # another shape: a program more?
        replace(one, row=f"{name}, compiled, all the memory", way="auto"),
    )


def _small(name: str) -> tuple[Asked, ...]:
    one = Asked(name, precision={"nf4": "nf4-bnb", "fp8": "fp8-quanto"}[name])
    return (replace(one, references=3, steps=1), replace(one, flavour="edit-v3"))


def _encoder(what: str) -> Asked:
    return Asked(what, what=what, limit_seconds=110)


def _startup() -> tuple[Asked, ...]:
    names = ("no_change", "int8-quanto", "int4-quanto", "table")
    return tuple(Asked(f"start-up, {name}", what="startup", precision=name) for name in names)

"""Everything that is to be known of a GPU, in one command and under nine minutes.

    python benchmarks/gpu/measure.py                    # on the GPU, at full scale
    python benchmarks/gpu/measure.py --small            # on the CPU, to try the harness

Each row is a process of its own (step.py, encoding.py), so that peaks and caps are clean. Rows
stand in the order of their worth; those that do not fit into --budget seconds stay empty and
say so. The table goes to benchmarks/RESULTS.md, everything else to the JSON beside it.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
RESULTS = HERE.parent / "RESULTS.md"
PACKAGES = ("torch", "diffusers", "transformers", "peft")
CEILING_EDGE = 8192
# One process must not eat the time of all that follow.
MOST_SECONDS_OF_A_JOB = 110
Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One process: what it is for, and what it is told."""

    about: str
    options: tuple[str, ...]
    script: str = "step.py"


def jobs() -> list[Job]:
    """Every process, the most telling first."""

    def step(about: str, *options: str) -> Job:
        return Job(about, options)

    yardstick = ("--what", "stock", "--references", "1,2,3")
    recompute = ("--way", "recompute")
    listed = [
        step("yardstick, bf16", *yardstick),
        step("bf16", *recompute, "--references", "1,2,3"),
        step("bf16, compiled", *recompute, "--compile"),
        step("bf16, cuDNN attention", *recompute, "--attention", "cudnn"),
        step("bf16, attention kept", "--way", "attention"),
        step("bf16, all the memory", "--references", "1,3"),
        step("int8", "--precision", "int8-quanto", *recompute, "--references", "1,2,3"),
        step("int8, compiled", "--precision", "int8-quanto", *recompute, "--compile"),
        step("int4", "--precision", "int4-quanto", *recompute, "--references", "1,3"),
        step("24 GB, int8", "--precision", "int8-quanto", "--cap", "24"),
        step(
            "24 GB, int4, 3 references",
            "--precision",
            "int4-quanto",
            "--references",
            "3",
            "--cap",
            "24",
        ),
        step("16 GB, int4", "--precision", "int4-quanto", "--cap", "16"),
        step("12 GB, int4", "--precision", "int4-quanto", "--cap", "12"),
        step("8 GB, int4", "--precision", "int4-quanto", "--cap", "8"),
        step("48 GB, bf16", "--cap", "48"),
        step("32 GB, int8", "--precision", "int8-quanto", "--cap", "32"),
        step("bf16, v1 and v3", *recompute, "--flavours", "edit-v1,edit-v3"),
        step("yardstick, v1 and v3", "--what", "stock", "--flavours", "edit-v1,edit-v3"),
        step("nf4", "--precision", "nf4-bnb", *recompute),
        step("fp8", "--precision", "fp8-quanto", *recompute),
        step("inputs on the host, int4", "--precision", "int4-quanto", "--way", "host"),
        step("30 blocks streamed, int4", "--precision", "int4-quanto", "--way", "stream:30"),
        step("60 blocks streamed, int4", "--precision", "int4-quanto", "--way", "stream:60"),
        step("60 blocks streamed, bf16", "--way", "stream:60"),
        step("modulation's weights kept, bf16", *recompute, "--no-table"),
    ]
    if (HERE / "encoding.py").is_file():
        listed.insert(7, Job("encoders", (), "encoding.py"))
    return listed


@dataclass
class Measured:
    """What came of all jobs."""

    ceiling_tflops: float
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a small model on the CPU")
    parser.add_argument("--budget", type=float, default=520, help="seconds for all of it")
    parser.add_argument("--only", default="", help="rows whose names hold this")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the Markdown file to add to")
    given = parser.parse_args()
    deadline = time.monotonic() + given.budget
    device = "cpu" if given.small else "cuda"
    measured = Measured(ceiling_tflops=matmul_ceiling(torch.device(device)))
    print(f"matmul ceiling: {measured.ceiling_tflops:.2f} TFLOP/s", flush=True)
    for job in jobs():
        if given.only not in job.about:
            continue
        left = deadline - time.monotonic()
        if left < (5 if given.small else 25):
            measured.left_out.append(job.about)
            continue
        extra = ["--small", "--edge", "64", "--steps", "1"] if given.small else []
        extra = ["--small"] if given.small and job.script != "step.py" else extra
        for row in rows_of(
            job, [*extra, "--device", device], seconds=min(left, MOST_SECONDS_OF_A_JOB)
        ):
            measured.rows.append({"about": job.about, **row})
            print(line_of(measured.rows[-1], measured.ceiling_tflops), flush=True)
    write(measured, given.out, command=" ".join(sys.argv))


def matmul_ceiling(device: torch.device) -> float:
    """TFLOP/s of a large bf16 product: what nothing here can beat."""
    edge = CEILING_EDGE if device.type == "cuda" else 512
    left, right = (torch.randn(edge, edge, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(12):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        torch.matmul(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * edge**3 / best / 1e12


def rows_of(job: Job, extra: Sequence[str], *, seconds: float) -> list[Row]:
    """What the process of `job` printed, a row for each JSON line; why there are none."""
    command = [sys.executable, str(HERE / job.script), *job.options, *extra]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        printed, error = done.stdout, done.stderr.strip().splitlines()[-1:]
    except subprocess.TimeoutExpired as late:
        held = late.stdout or b""
        printed = held.decode() if isinstance(held, bytes) else held
        error = ["out of time"]
    rows: list[Row] = [json.loads(line) for line in printed.splitlines() if line[:1] == "{"]
    return rows or [{"error": " ".join(error) or "nothing was printed"}]


COLUMNS = ("row", "case", "s/step", "vs. yardstick", "peak GB", "planned GB", "% of ceiling", "how")


def line_of(row: Row, ceiling: float, yardsticks: dict[str, float] | None = None) -> str:
    """A row of the table."""
    if "error" in row:
        return f"| {row['about']} | {row.get('case', '')} | | | | | | {row['error']} |"
    if "seconds" not in row:
        facts = ", ".join(f"{name} {value}" for name, value in row.items() if name != "about")
        return f"| {row['about']} | | | | | | | {facts} |"
    yardstick = (yardsticks or {}).get(row["case"])
    ratio = f"{yardstick / row['seconds']:.2f}" if yardstick else ""
    share = f"{100 * row['tflops'] / ceiling:.0f}" if ceiling else ""
    facts = [row["case"], f"{row['seconds']:.3f}", ratio, row["peak_gb"], row["planned_gb"], share]
    return f"| {row['about']} | " + " | ".join(map(str, facts)) + f" | {row['fit']} |"


def write(measured: Measured, path: Path, *, command: str) -> None:
    """Add the table to `path`, and everything to the JSON beside it."""
    now = datetime.now(UTC)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    yardsticks = {
        row["case"]: row["seconds"]
        for row in measured.rows
        if row.get("what") == "stock" and "seconds" in row
    }
    lines = [
        f"## {now:%Y-%m-%d}, {gpu or 'CPU'}",
        "",
        f"`python {command}`; {versions}; bf16 matmul ceiling "
        f"{measured.ceiling_tflops:.2f} TFLOP/s. The yardstick of a case is the stock loop "
        "on the same case in the same run.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + " --- |" * len(COLUMNS),
        *(line_of(row, measured.ceiling_tflops, yardsticks) for row in measured.rows),
        *(f"| {about} | | | | | | | not run: out of time |" for about in measured.left_out),
        "",
    ]
    before = path.read_text(encoding="utf-8") if path.is_file() else "# Results on GPUs\n\n"
    path.write_text(before + "\n".join(lines) + "\n", encoding="utf-8")
    beside = path.with_name(f"results-{now:%Y%m%d-%H%M%S}.json")
    about = {"ceiling_tflops": measured.ceiling_tflops, "rows": measured.rows, "gpu": gpu}
    beside.write_text(json.dumps(about, indent=1), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

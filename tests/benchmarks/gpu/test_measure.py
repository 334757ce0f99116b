"""The GPU benchmark's own arithmetic, and that no row can take the others with it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT
from tiny_transformer import TEXT_WIDTH
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from qedit.stages.models.lora.lora import add_lora, target_modules
from qedit.stages.models.memory_estimate.dimensions import Dimensions
from qedit.stages.models.memory_estimate.memory import Load, Way
from qedit.stages.models.memory_estimate.memory_plan import (
    GIGABYTE,
    Fit,
    Recomputation,
    budget_of,
    fit_into,
    needed_bytes,
)
from qedit.stages.models.memory_saving.recompute import recompute_blocks
from qedit.stages.models.transformer.transformer import predict_velocity

GPU = ROOT / "benchmarks" / "gpu"
sys.path.insert(0, str(GPU))

import expected  # noqa: E402
import measure  # noqa: E402
import results  # noqa: E402
import shapes  # noqa: E402
import step as steps  # noqa: E402
import table  # noqa: E402
from cases import Asked, Session, essential_sessions, sessions  # noqa: E402

_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
# attention on CPUs, which torch's counter does not know
ON_CPU = {
    _FORWARD: lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value),
    _BACKWARD: lambda *given, **_: sdpa_backward_flop_count(*given[:4]),
}
SCRIPT = """
import json, sys, time
if {broken}: raise ImportError("no such thing")
print("ready", flush=True)
sys.stdin.readline()
for case in json.loads(sys.argv[sys.argv.index("--cases") + 1]):
    if case["row"] == "dies": print("it broke", file=sys.stderr); sys.exit(3)
    if case["row"] == "hangs": time.sleep(60)
    print(json.dumps({{**case, "seconds": 1.0}}), flush=True)
"""


def session_of(folder: Path, *names: str, broken: bool = False, limit: float = 30) -> Session:
    path = folder / f"script{broken}.py"
    path.write_text(SCRIPT.format(broken=broken))
    cases = tuple(Asked(name, what="other", limit_seconds=limit) for name in names)
    return Session(str(path), cases)


def measured(folder: Path, *wanted: Session, budget: float = 300) -> list[dict[str, Any]]:
    book = measure.Book(folder / "results.json")
    with_links = folder / "links"
    with_links.mkdir()
    measure.measure(wanted, book, with_links, budget)
    rows = json.loads(book.path.read_text())
    assert rows == book.rows
    return rows


def said(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["row"]: row.get("error", "measured") for row in rows}


def test_a_row_that_dies_leaves_the_others_standing(tmp_path: Path) -> None:
    rows = measured(tmp_path, session_of(tmp_path, "one", "dies", "two"))
    why = "its process ended with 3: it broke"
    assert said(rows) == {"one": "measured", "dies": why, "two": "measured"}


@pytest.mark.full
def test_a_row_that_hangs_leaves_the_others_standing(tmp_path: Path) -> None:
    rows = measured(tmp_path, session_of(tmp_path, "one", "hangs", "two", limit=3))
    assert said(rows) == {"one": "measured", "hangs": "ended after 3 s", "two": "measured"}


def test_what_cannot_be_imported_is_tried_once_and_said_of_every_row(tmp_path: Path) -> None:
    broken = session_of(tmp_path, "one", "two", broken=True)
    rows = said(measured(tmp_path, broken, session_of(tmp_path, "three")))
    why = "its process ended with 1: ImportError: no such thing"
    assert rows == {"one": why, "two": why, "three": "measured"}


@pytest.mark.full
def test_what_the_budget_does_not_hold_is_named(tmp_path: Path) -> None:
    first, second = session_of(tmp_path, "one", "hangs", "two"), session_of(tmp_path, "three")
    began = time.monotonic()
    rows = said(measured(tmp_path, first, second, budget=6))
    assert time.monotonic() - began < 20
    assert rows["one"] == "measured"
    assert rows["hangs"].startswith("ended after")
    assert (rows["two"], rows["three"]) == ("not run: out of time",) * 2


def test_qedit_is_the_checkout_without_being_installed(tmp_path: Path) -> None:
    code = "import qedit.stages.models.memory_estimate.memory_plan as found; print(found.__file__)"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env=measure.with_qedit(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.startswith(str(tmp_path / "qedit"))


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(None, marks=pytest.mark.full),
        pytest.param(Recomputation(), marks=pytest.mark.full),
        pytest.param(Recomputation(kept=2), marks=pytest.mark.full),
        Recomputation(kept=1, attention=2),
    ],
    ids=repr,
)
def test_the_operations_of_a_step_are_those_that_torch_counts(how: Recomputation | None) -> None:
    """Within what the formula leaves out: the LoRA, the ends, the first block's inputs."""
    from diffusers import QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel(
        num_layers=4,
        attention_head_dim=64,
        num_attention_heads=4,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(16, 24, 24),
    )
    config: Any = transformer.config
    sizes = Dimensions.of_config(config, zero_cond_t=False)
    targets = target_modules(transformer, "attention")
    add_lora(transformer, targets, rank=1, alpha=1.0)
    if how is not None:
        recompute_blocks(transformer, how)
    load = Load(((256, 256), (256, 256)), 64)
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        predicted = predict_velocity(
            transformer.train(),
            torch.randn(1, 16, 32, 32),
            [torch.randn(1, 16, 32, 32)],
            torch.randn(1, 64, TEXT_WIDTH),
            mask=None,
            sigma=torch.tensor([0.5]),
        )
        torch.autograd.backward(predicted.square().mean())
    counted = counter.get_total_flops()
    assert steps.flops_of(sizes, load, Fit(how)) == pytest.approx(counted, rel=0.05)


CAPPED = [case for session in sessions() for case in session.cases if case.cap_gb]


@pytest.mark.parametrize("case", CAPPED, ids=lambda case: case.row)
def test_every_cap_that_is_measured_has_a_way_to_fit(case: Asked) -> None:
    sizes = shapes.sizes_of(shapes.FULL, case.flavour)
    load = shapes.Case(case.flavour, case.references, 1024).load
    way = Way(precision=case.precision, table=True)
    budget = budget_of(case.cap_gb * GIGABYTE)
    fit = fit_into(budget, sizes, load, way)
    assert needed_bytes(fit, sizes, load, way) <= budget
    if case.cap_gb >= 16:
        assert fit.streamed == 0
        assert fit.recomputation is None or not fit.recomputation.inputs_to_host


def row(name: str, seconds: float = 2.0, **other: Any) -> dict[str, Any]:
    facts = {"seconds": seconds, "tflops": 400.0, "peak_gb": 20.0, "planned_gb": 20.5, "fit": ""}
    numbers = {"loss": 1.0, "grad_norm": 0.5, "first_step_seconds": 3.0, "programs": 0}
    return {**Asked(name).as_object(), **facts, **numbers, **other}


def test_the_targets_are_held_against_what_was_measured() -> None:
    rows = [
        {**Asked("matmul ceiling", what="ceiling").as_object(), "tflops": 700.0, "facts": {}},
        row("yardstick, bf16", 2.8, what="stock"),
        row("bf16", 2.0),
        row("int8", 2.4, precision="int8-quanto"),
        row("24 GB, int8", 2.4, precision="int8-quanto", cap_gb=24, peak_gb=24.5),
        row("int4", 2.0, precision="int4-quanto"),
        row("12 GB, int4", 2.2, precision="int4-quanto", loss=1.1),
    ]
    lines = list(table.verdicts(rows))
    assert "bf16, recomputing, against the yardstick: 1.40 (wanted 1.3) ok" in lines
    assert "int8, recomputing, against the yardstick: 1.17 (wanted 1.3) BELOW" in lines
    assert "share of the ceiling, bf16: 0.57 (wanted 0.55) ok" in lines
    assert "12 GB, int4, against int4 without a cap: 1.10 (wanted at most 1.15) ok" in lines
    assert "8 GB, int4, against int4 without a cap: not measured (wanted at most 1.5)" in lines
    assert any(line.startswith("24 GB, int8: peak 24.5 GB BELOW") for line in lines)
    assert any("+2.5% of the peak" in line and "-16.3%" in line for line in lines)
    assert any(line.startswith("loss of int4-quanto") and line.endswith("BELOW") for line in lines)
    text = table.section(rows, command="c", source="s.json", day="d", seconds=1)
    assert "| bf16 | edit-v2, 1 ref. | 2.000 | 1.40 | 20.0 | 20.5 | 57 | 3.0 |  |" in text


def test_every_row_there_is_to_measure_stands_in_the_results_once() -> None:
    text = (GPU.parent / "RESULTS.md").read_text(encoding="utf-8")
    cases = [case.as_object() for session in sessions() for case in session.cases]
    starts = [results._start(case) for case in cases]
    assert len(set(starts)) == len(starts)
    for start in starts:
        assert sum(line.startswith(start) for line in text.splitlines()) >= 1, start
    assert "python benchmarks/gpu/measure.py" in text


def test_a_row_of_each_kind_is_measured_in_400_seconds() -> None:
    essential = essential_sessions()
    assert sessions()[: len(essential)] == essential
    assert expected.total_seconds(essential) <= 400
    named = {case.row for session in essential for case in session.cases}
    assert named >= {"matmul ceiling", "yardstick, bf16", "yardstick, int8 (quanto)"}
    assert named >= {"bf16", "int8", "int4", "nf4", "fp8", "bf16, compiled"}
    assert named >= {"48 GB, bf16", "24 GB, int8", "16 GB, int4", "12 GB, int4", "8 GB, int4"}
    assert named >= {"cache-vae", "cache-embeds", "start-up, int8-quanto", "start-up, table"}


EMPTY = """# Results

## Not measured yet

Some rows are empty.

| row | case | s/step |
| --- | --- | --- |
| bf16 | edit-v2, 1 ref. | |
| bf16 | edit-v3, 1 ref. | |
| cache-vae | | |
"""


def test_what_was_measured_takes_the_place_of_the_empty_row() -> None:
    one = row("bf16")
    failed = {**Asked("cache-vae", what="cache-vae").as_object(), "error": "not run: out of time"}
    text = results.with_section(EMPTY, "## day\n\n`s.json`", [one, failed], source="s.json")
    assert "| bf16 | edit-v2" not in text
    assert "| bf16 | edit-v3" in text
    assert "| cache-vae |" in text
    rest = [row("bf16", flavour="edit-v3"), {**failed, "error": ""}]
    del rest[1]["error"]
    # the same run, gone on with: its section is there once, and nothing is empty any more
    text = results.with_section(text, "## later\n\n`s.json`", [one, *rest], source="s.json")
    assert text == "# Results\n\n## later\n\n`s.json`\n"


def test_a_run_goes_on_with_the_rows_it_is_without(tmp_path: Path) -> None:
    session = session_of(tmp_path, "one", "dies", "two")
    measured(tmp_path, session)
    book = measure.Book(tmp_path / "results.json")
    book.take_over()
    assert [one.row for one in measure._only(session, "", book).cases] == ["dies"]


def test_processes_leave_nothing_outside_of_the_folder_of_the_benchmark(tmp_path: Path) -> None:
    code = "import tempfile; print(tempfile.mkdtemp())"
    environment = measure.with_qedit(tmp_path)
    made = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert made.startswith(str(tmp_path))

"""Drift is measured where a mask, or the target, leaves the reference alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qedit.stages.preview.drift import measured
from qedit.stages.preview.pictures import Sources
from qedit.stages.run_output.previews import Stored

SIZE = 96
HALF = SIZE // 2


def painted(left: float, right: float) -> np.ndarray:
    values = np.full((SIZE, SIZE, 3), right)
    values[:, :HALF] = left
    return values


def saved(path: Path, values: np.ndarray) -> str:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray((255 * values).astype(np.uint8)).save(path)
    return path.name


def facts(dataset: str) -> dict[str, str]:
    return {"dataset": dataset, "path": "a.png", "digest": dataset}


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def sources(tmp_path: Path, told: list[str]) -> Sources:
    """The edit changed the left half; the target is the reference, so nothing was to change."""
    saved(tmp_path / "reference" / "a.png", painted(0.4, 0.6))
    saved(tmp_path / "target" / "a.png", painted(0.4, 0.6))
    saved(tmp_path / "0-a.now.png", painted(0.6, 0.6))
    folders = {name: tmp_path / name for name in ("reference", "target", "masks")}
    return Sources(tmp_path, folders, told.append)


def outside(folder: Path, sources: Sources, mask: np.ndarray | None) -> float:
    about: dict[str, Any] = {"references": [facts("reference")], "target": facts("target")}
    if mask is not None:
        about["mask"] = facts("masks")
        if mask.size:
            saved(folder / "masks" / "a.png", mask)
    drift = measured(Stored(folder / "0-a.now.safetensors", 1, "now", "r", about), sources)
    assert drift is not None
    return drift.outside


def test_without_a_mask_the_target_says_what_is_to_change(tmp_path: Path, sources: Sources) -> None:
    assert outside(tmp_path, sources, None) == pytest.approx(0.1, abs=0.005)


def test_a_mask_says_what_is_to_change(tmp_path: Path, sources: Sources) -> None:
    assert outside(tmp_path, sources, painted(1.0, 0.0)) < 0.01
    assert outside(tmp_path, sources, painted(0.0, 1.0)) == pytest.approx(0.2, abs=0.01)


def test_what_is_transparent_in_a_mask_is_to_stay(tmp_path: Path, sources: Sources) -> None:
    alpha = painted(1.0, 0.0)[..., :1]
    assert outside(tmp_path, sources, np.concatenate([painted(1.0, 1.0), alpha], axis=2)) < 0.01


def test_a_mask_of_nearly_all_says_nothing(tmp_path: Path, sources: Sources) -> None:
    """It leaves out of the loss what is broken, say; then the target speaks."""
    assert outside(tmp_path, sources, painted(1.0, 1.0)) == pytest.approx(0.1, abs=0.005)


def test_a_mask_that_is_gone_is_told(tmp_path: Path, sources: Sources, told: list[str]) -> None:
    assert outside(tmp_path, sources, np.zeros(0)) == pytest.approx(0.1, abs=0.005)
    assert len(told) == 1
    assert "a.png cannot be shown" in told[0]

"""Makes a small run with all that one may leave: a base, an average, previews, the best."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_run import draw, make_run, with_files

from qedit.stages.train.evaluation.preview_process import Decoding

STEPS = 2


def finished_run(folder: Path) -> Path:
    """Lay out the run and finish it, pictures of its previews included."""
    make_run(
        folder,
        flavour="edit-v2",
        mixed_precision="bf16",
        base_model_precision="int8-quanto",
        max_train_steps=STEPS,
        checkpoint_step_interval=1,
        validation_disable=False,
        validation_resolution="64x64",
        validation_num_inference_steps=2,
        validation_step_interval=STEPS,
        num_eval_images=1,
        eval_dataset_id="held",
        eval_steps_interval=1,
    )
    held = {
        "id": "held",
        "type": "local",
        "dataset_type": "eval",
        "instance_data_dir": "held",
        "resolution": 64,
        "conditioning_data": ["reference-held"],
    }
    reference = {
        "id": "reference-held",
        "type": "local",
        "dataset_type": "conditioning",
        "conditioning_type": "reference_strict",
        "instance_data_dir": "reference-held",
        "resolution": 64,
    }
    for name in ("held", "reference-held"):
        draw(folder / name / "h0.png", (96, 96), len(name))
    data = json.loads((folder / "data.json").read_text())
    (folder / "data.json").write_text(json.dumps([*data, held, reference]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(Decoding, "start", lambda self, **_: None)
        with_files("run")
        with_files("preview")
    return folder

"""The memory that the text encoder takes, measured in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import SUPPORT
from safetensors.torch import save_file

from qedit.stages.models.tiny.tiny import make_tiny

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells peaks"),
]

SHARD_BYTES = 64 << 20
WIDTH, WIDER, LAYERS = 1024, 4096, 6

LOADING = """
import json, sys, torch
from pathlib import Path
from qedit.stages.models.text.prompt import PromptEncoder
from qedit.stages.models.text.prompt_reader import PromptReader
from tiny_checkpoints import opened

def resident(kind):
    lines = open("/proc/self/status").read().splitlines()
    (line,) = (line for line in lines if line.startswith(kind))
    return int(line.split()[1]) * 1024

checkpoint = opened(Path(sys.argv[1]))
reader = PromptReader.load(checkpoint)
taken = {}
PromptEncoder.load(checkpoint, reader=reader, precision="int8-quanto")  # all is imported
for precision in ("no_change", "int8-quanto"):
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
    before = resident("VmRSS")
    encoder = PromptEncoder.load(
        checkpoint, reader=reader, dtype=torch.bfloat16, precision=precision
    )
    weights = sum(one.numel() * one.element_size() for one in encoder.model.state_dict().values())
    taken[precision] = [weights, resident("VmHWM") - before, resident("VmRSS") - before]
    del encoder
print(json.dumps(taken))
"""


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose text encoder weighs about 180 MB in bf16, in files of 64 MiB."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    folder = make_tiny(tmp_path_factory.mktemp("heavy") / "v2", "edit-v2")
    place = folder / "text_encoder"
    config = json.loads((place / "config.json").read_text())
    wide: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": WIDER,
        "num_hidden_layers": LAYERS,
    }
    config["text_config"] |= wide
    config["text_config"].pop("layer_types", None)
    rope = config["text_config"]["rope_parameters"]
    config["text_config"]["rope_parameters"] = rope | {"mrope_section": [32, 48, 48]}
    config["vision_config"]["out_hidden_size"] = WIDTH
    shutil.rmtree(place)
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config))
    shard: dict[str, torch.Tensor] = {}
    lies_in: dict[str, str] = {}
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for number, (name, shape) in enumerate(shapes.items()):
        shard[name] = torch.full(shape, 0.01, dtype=torch.bfloat16)
        size = sum(2 * tensor.numel() for tensor in shard.values())
        if size > SHARD_BYTES - 2 * WIDTH * WIDER or number == len(shapes) - 1:
            file = f"model-{number:05}.safetensors"
            save_file(shard, place / file, metadata={"format": "pt"})
            lies_in |= dict.fromkeys(shard, file)
            shard = {}
    index = {"metadata": {}, "weight_map": lies_in}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_the_text_encoder_is_loaded_without_a_second_copy(heavy: Path) -> None:
    """At most its own weights, one file of the checkpoint and a matrix that is being rounded."""
    done = subprocess.run(
        [sys.executable, "-c", LOADING, str(heavy)],
        capture_output=True,
        text=True,
        check=False,
        # what is freed goes back at once, so that a peak is one of what is in use
        env=os.environ | {"PYTHONPATH": str(SUPPORT), "MALLOC_MMAP_THRESHOLD_": "1000000"},
    )
    assert done.returncode == 0, done.stderr
    taken = json.loads(done.stdout)
    one_matrix = 4 * WIDTH * WIDER  # in float32
    for weights, peak, stays in taken.values():
        assert peak <= weights + SHARD_BYTES + 4 * one_matrix
        assert abs(stays - weights) <= 0.15 * weights + (8 << 20)
    assert taken["no_change"][0] > 150e6
    assert taken["int8-quanto"][0] < 0.55 * taken["no_change"][0]

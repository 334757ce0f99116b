"""Make mrope-transformers-4.57.3.safetensors: embeds by a transformers that M-RoPE is right in.

Needed only to add cases; the numbers themselves never change. transformers 4.57.3 does not
live in one environment with the one that qedit uses, so make one for it:

    python -m venv legacy
    legacy/bin/pip install torch==2.13.0 transformers==4.57.3 safetensors numpy
    legacy/bin/python tests/golden/make_mrope.py

The file holds everything the test needs: the configuration and weights of a very small
Qwen2.5-VL (rounded to bfloat16 beforehand, so that storing them so is exact), tokens and
patches of two prompts, and the positions and last hidden states that follow from them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

VERSION = "4.57.3"
PATH = Path(__file__).with_name(f"mrope-transformers-{VERSION}.safetensors")

IMAGE, VISION_START, VISION_END, VIDEO = 28, 29, 30, 31
CONFIG: dict[str, Any] = {
    "text_config": {
        "vocab_size": 32,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
    },
    "vision_config": {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [1],
    },
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
    "tie_word_embeddings": False,
}
ROPE_THETA = 1e6
MROPE_SECTION = [2, 3, 3]

# Grids in patches, and the words before each picture and after the last one. The first picture
# is more than one attention window high.
CASES = {
    "one": {"grids": [(1, 10, 4)], "words": [[1, 2, 3, 4]], "tail": [5, 6, 7, 8, 9, 10]},
    "two": {
        "grids": [(1, 10, 4), (1, 4, 6)],
        "words": [[1, 2, 3], [11, 12]],
        "tail": [13, 5, 14, 2, 15],
    },
}


def made_model() -> Any:
    """A model whose attention is not flat: every matrix of fan-in scale or sharper."""
    text = CONFIG["text_config"] | {
        "rope_theta": ROPE_THETA,
        "rope_scaling": {
            "type": "mrope",
            "rope_type": "default",
            "mrope_section": MROPE_SECTION,
        },
    }
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**CONFIG | {"text_config": text}))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            drawn = torch.ones_like(noise) if "norm" in name or "ln_q" in name else 0.1 * noise
        else:
            gain = 2.0 if "q_proj" in name or "k_proj" in name or "qkv" in name else 1.0
            drawn = noise * (gain / parameter[0].numel() ** 0.5)
        parameter.data = drawn.bfloat16().float()
    return model.eval()


def tokens_of(case: dict[str, Any]) -> tuple[list[int], list[int]]:
    """The prompt up to its last picture, and the rest."""
    prefix: list[int] = []
    for words, (_, rows, columns) in zip(case["words"], case["grids"], strict=True):
        prefix += [*words, VISION_START, *[IMAGE] * (rows * columns // 4), VISION_END]
    return prefix, case["tail"]


def answers(model: Any, case: dict[str, Any], patches: Tensor) -> dict[str, Tensor]:
    """Call the model exactly as diffusers' pipelines call it."""
    prefix, tail = tokens_of(case)
    tokens = torch.tensor([prefix + tail])
    grid = torch.tensor(case["grids"])
    mask = torch.ones_like(tokens)
    with torch.no_grad():
        states = model(
            input_ids=tokens,
            attention_mask=mask,
            pixel_values=patches.float() / 64,
            image_grid_thw=grid,
            output_hidden_states=True,
        ).hidden_states[-1][0]
    positions, _ = model.model.get_rope_index(tokens, grid, attention_mask=mask)
    return {
        "prefix": torch.tensor(prefix),
        "tail": torch.tensor(tail),
        "grid": grid,
        "patches": patches,
        "positions": positions,
        "states": states,
    }


def main() -> None:
    assert transformers.__version__ == VERSION, transformers.__version__
    model = made_model()
    tensors = {
        f"weights.{name}": value.bfloat16() for name, value in model.model.state_dict().items()
    }
    generator = torch.Generator().manual_seed(1)
    for name, case in CASES.items():
        count = sum(rows * columns for _, rows, columns in case["grids"])
        patches = torch.randint(-127, 128, (count, 1176), generator=generator, dtype=torch.int8)
        found = answers(model, case, patches)
        tensors |= {f"{name}.{key}": value.contiguous() for key, value in found.items()}
    rope = {"rope_theta": ROPE_THETA, "mrope_section": MROPE_SECTION}
    metadata = {"config": json.dumps(CONFIG), "rope": json.dumps(rope), "transformers": VERSION}
    save_file(tensors, PATH, metadata=metadata)
    print(f"{PATH.name}: {PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()

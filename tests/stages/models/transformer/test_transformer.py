"""The transformer's forward: packing, references, padding, and how edit-v2+ differs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImageEditPlusPipeline
from tiny_checkpoints import difference, opened
from torch import Tensor

from qedit.stages.models.checkpoint.checkpoint import Checkpoint
from qedit.stages.models.transformer.transformer import (
    load_transformer,
    pack,
    predict_velocity,
    unpack,
)


@pytest.fixture(scope="module")
def transformer(checkpoint: Checkpoint) -> Any:
    return load_transformer(checkpoint, dtype=torch.float32, device="cpu")


def made_inputs() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "noisy": torch.randn(2, 16, 8, 10, generator=generator),
        "references": [
            torch.randn(2, 16, 12, 8, generator=generator),
            torch.randn(2, 16, 6, 6, generator=generator),
        ],
        "embeds": torch.randn(2, 9, 64, generator=generator),
        "sigma": torch.tensor([0.9, 0.3]),
    }


def predict(
    model: Any, inputs: dict[str, Any], references: list[Tensor], mask: Tensor | None = None
) -> Tensor:
    with torch.no_grad():
        return predict_velocity(
            model,
            inputs["noisy"],
            references,
            inputs["embeds"],
            mask=mask,
            sigma=inputs["sigma"],
        )


@pytest.mark.parametrize("shape", [(1, 16, 8, 10), (2, 4, 2, 6)])
def test_packing_is_that_of_the_pipelines(shape: tuple[int, int, int, int]) -> None:
    latents = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    batch, channels, height, width = shape
    stock = QwenImageEditPlusPipeline._pack_latents(latents, batch, channels, height, width)
    assert torch.equal(pack(latents), stock)
    assert torch.equal(unpack(stock, height, width), latents)


def test_every_reference_and_its_place_count(transformer: Any) -> None:
    inputs = made_inputs()
    first, second = inputs["references"]
    full = predict(transformer, inputs, [first, second])
    assert difference(predict(transformer, inputs, [first]), full) > 0.01
    assert difference(predict(transformer, inputs, [second, first]), full) > 0.01


def test_padding_of_the_text_changes_nothing_behind_its_mask(transformer: Any) -> None:
    inputs = made_inputs()
    full = predict(transformer, inputs, inputs["references"])
    padding = torch.full((2, 4, 64), 7.0)
    padded = inputs | {"embeds": torch.cat([inputs["embeds"], padding], dim=1)}
    mask = torch.arange(13).expand(2, -1) < 9
    assert difference(predict(transformer, padded, inputs["references"], mask), full) < 5e-6
    assert difference(predict(transformer, padded, inputs["references"]), full) > 0.01


def test_edit_v2_plus_modulates_references_at_zero(tiny: Path) -> None:
    plus = load_transformer(opened(tiny, "edit-v2+"), dtype=torch.float32, device="cpu")
    plain = load_transformer(opened(tiny), dtype=torch.float32, device="cpu")
    inputs = made_inputs()
    one, other = (predict(model, inputs, inputs["references"]) for model in (plus, plain))
    assert difference(one, other) > 0.01
    one, other = (predict(model, inputs, []) for model in (plus, plain))
    assert difference(one, other) < 5e-6

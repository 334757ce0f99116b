"""The model card beside a LoRA: what it is of, how it is loaded, and how it was made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training import made_runs, train

from qedit.config.loading import Configuration


@pytest.fixture
def made(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Configuration]:
    return made_runs(tmp_path, tmp_path_factory)


def python_in(card: str) -> str:
    return card.partition("```python\n")[2].partition("```")[0]


def test_the_card_says_how_the_lora_was_made_and_is_loaded(made: Any) -> None:
    configuration = made(max_train_steps=2, learning_rate=0.0123, lora_alpha=2.0)
    train(configuration)
    file = configuration.settings.output_dir / "README.md"
    card = file.read_text(encoding="utf-8")
    assert "base_model: Qwen/Qwen-Image-Edit-2509" in card
    assert "on 8 pairs\nfor 2 steps" in card
    assert "| learning_rate | 0.0123 |" in card
    assert "| effective scale (alpha / rank) | 0.5 |" in card
    assert "M-RoPE" in card
    assert "ComfyUI/models/loras" in card
    compile(python_in(card), "card", "exec")
    assert "QwenImageEditPlusPipeline" in python_in(card)
    assert "zero_cond_t" not in python_in(card)
    file.unlink()
    train(made(max_train_steps=2, learning_rate=0.0123, lora_alpha=2.0))
    assert file.read_text(encoding="utf-8") == card
    file.write_text("my own notes", encoding="utf-8")
    train(made(max_train_steps=2, learning_rate=0.0123, lora_alpha=2.0))
    assert file.read_text(encoding="utf-8") == "my own notes"


def test_an_overridden_zero_cond_t_is_in_the_lines_to_copy(made: Any) -> None:
    configuration = made(flavour="edit-v2+", max_train_steps=1)
    train(configuration)
    card = (configuration.settings.output_dir / "README.md").read_text(encoding="utf-8")
    compile(python_in(card), "card", "exec")
    assert "zero_cond_t=True" in python_in(card)
    assert "import QwenImageEditPlusPipeline, QwenImageTransformer2DModel" in python_in(card)

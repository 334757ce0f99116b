"""The model card beside a LoRA: what it is of, how it is loaded, and how it was made."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from training import LORA, SAMPLES, train

from qedit.config.loading import Configuration


def python_in(card: str) -> str:
    return card.partition("```python\n")[2].partition("```")[0]


def card_of(configuration: Configuration) -> str:
    text = (configuration.settings.output_dir / "README.md").read_text(encoding="utf-8")
    compile(python_in(text), "card", "exec")
    assert not re.search(r"\n\n\n|\bNone\b|[{}]", text)
    return text


def test_the_card_says_how_the_lora_was_made_and_is_loaded(made: Any) -> None:
    settings = {"learning_rate": 0.0123, "lora_alpha": 2.0, "optimizer_config": None}
    configuration = made(max_train_steps=2, **settings)
    train(configuration)
    file = configuration.settings.output_dir / "README.md"
    card = card_of(configuration)
    assert "base_model: Qwen/Qwen-Image-Edit-2509" in card
    assert "A LoRA for" in card
    assert "on 8 pairs\nfor 2 steps" in card
    assert "| learning_rate | 0.0123 |" in card
    assert "| effective scale (alpha / rank) | 0.5 |" in card
    assert "| use_ema | true |" in card
    assert "M-RoPE" in card
    assert "ComfyUI/models/loras" in card
    assert "| output_dir" not in card
    assert f"`ema/{LORA}`" in card
    assert "QwenImageEditPlusPipeline" in python_in(card)
    assert f'prompt="{SAMPLES[0].captions[0]}"' in python_in(card)
    assert "zero_cond_t" not in python_in(card)
    file.unlink()
    train(made(max_train_steps=2, **settings))
    assert file.read_text(encoding="utf-8") == card
    file.write_text("my own notes", encoding="utf-8")
    train(made(max_train_steps=2, **settings))
    assert file.read_text(encoding="utf-8") == "my own notes"


def test_the_lines_to_copy_make_a_picture_as_the_previews_are_made(made: Any) -> None:
    configuration = made(
        max_train_steps=1, validation_guidance=2.5, validation_num_inference_steps=7
    )
    train(configuration)
    lines = python_in(card_of(configuration))
    assert "true_cfg_scale=2.5," in lines
    assert "num_inference_steps=7," in lines


def test_an_overridden_zero_cond_t_is_in_the_lines_to_copy(made: Any) -> None:
    configuration = made(flavour="edit-v2+", max_train_steps=1)
    train(configuration)
    card = card_of(configuration)
    assert "zero_cond_t=True" in python_in(card)
    assert "import QwenImageEditPlusPipeline, QwenImageTransformer2DModel" in python_in(card)
    assert "index_timestep_zero" in card


class Shown(Exception):
    """Raised by the stand-in for a GPU."""


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lora_type": "dora"}, "--base CHECKPOINT --format comfyui"),
        ({"lora_type": "lokr"}, "ComfyUI/models/loras"),
        ({"model_type": "full", "mixed_precision": "bf16"}, "A fine-tune of"),
    ],
)
def test_the_lines_to_copy_load_what_lies_beside_the_card(
    made: Any, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], said: str
) -> None:
    """Run as they stand, up to the picture, on a pipeline around the tiny transformer."""
    import diffusers

    configuration = made(max_train_steps=1, use_ema=False, **settings)
    train(configuration)
    card = card_of(configuration)
    assert said in card
    model = Path(configuration.settings.pretrained_model_name_or_path)
    kind: Any = diffusers.QwenImageTransformer2DModel
    stock = kind.from_pretrained(str(model / "transformer"))
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "processor"))
    shown: list[Any] = []

    class Pipeline(diffusers.QwenImageEditPlusPipeline):
        @classmethod
        def from_pretrained(cls, name: str, *, transformer: Any = stock, **_: Any) -> Any:
            assert name == "Qwen/Qwen-Image-Edit-2509"
            scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
            return cls(scheduler=scheduler, transformer=transformer, **parts)

        def to(self, device: str) -> Any:
            return self

        def __call__(self, **options: Any) -> Any:
            shown.append(self.transformer)
            raise Shown

    monkeypatch.setattr(diffusers, "QwenImageEditPlusPipeline", Pipeline)
    monkeypatch.setattr("diffusers.utils.load_image", lambda name: name)
    monkeypatch.chdir(configuration.settings.output_dir)
    with pytest.raises(Shown):
        exec(compile(python_in(card), "card", "exec"), {})
    (loaded,) = shown
    base = kind.from_pretrained(str(model / "transformer"))
    kept = {name.replace(".base_layer", "") for name, _ in loaded.named_parameters()}
    assert {name for name, _ in base.named_parameters()} <= kept
    trained = [name for name in kept if "lora_" in name or "lokr_" in name]
    assert bool(trained) == (settings.get("model_type") != "full")


def test_the_card_shows_the_newest_previews_of_what_was_trained(made: Any, tmp_path: Path) -> None:
    configuration = made(max_train_steps=1)
    train(configuration)
    assert "sheet.png" not in card_of(configuration)
    where = configuration.settings.output_dir
    for step, part in ((0, "base"), (500, "now"), (1000, "now"), (1500, "base")):
        latents = where / f"previews/step-{step:06}/00-cat.{part}.safetensors"
        latents.parent.mkdir(parents=True)
        latents.touch()
    train(configuration)
    assert "](previews/step-001000/sheet.png)" in card_of(configuration)

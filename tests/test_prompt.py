"""The prompt encoder: its wording, its prefix and tails, and M-RoPE."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
)
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import difference, opened, picture
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from qedit.cache.errors import WrongUse
from qedit.stages.models import templates
from qedit.stages.models.checkpoint import Checkpoint
from qedit.stages.models.prompt import PromptEncoder, encode_on_prefix, mrope_positions
from qedit.stages.models.tiny import make_tiny

GOLDEN = Path(__file__).parent / "golden" / "mrope-transformers-4.57.3.safetensors"
CAPTIONS = ["make the sky red", " ", "add a dog, and then a second dog beside it"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny") / "v2", "edit-v2")


@pytest.fixture(scope="module")
def checkpoint(tiny: Path) -> Checkpoint:
    return opened(tiny)


@pytest.fixture(scope="module")
def prompt(checkpoint: Checkpoint) -> PromptEncoder:
    return PromptEncoder.load(checkpoint, dtype=torch.float32)


@pytest.fixture
def copied(tiny: Path, tmp_path: Path) -> Path:
    """A checkpoint to be changed."""
    return Path(shutil.copytree(tiny, tmp_path / "copied"))


# -- the words around pictures and captions --------------------------------------------


@pytest.mark.parametrize("kind", [QwenImageEditPipeline, QwenImageEditPlusPipeline])
def test_the_wording_is_that_of_the_pipelines(kind: Any) -> None:
    parts = ("scheduler", "vae", "text_encoder", "tokenizer", "processor", "transformer")
    stock = kind(**dict.fromkeys(parts))
    numbered = kind is QwenImageEditPlusPipeline
    shown = "Picture 1: <|vision_start|><|image_pad|><|vision_end|>" if numbered else ""
    expected = stock.prompt_template_encode.format(f"{shown}a {{word}}")
    assert templates.prompt_text("a {word}", pictures=1, numbered=numbered) == expected
    assert stock.prompt_template_encode_start_idx == templates.DROPPED_TOKENS
    assert stock.tokenizer_max_length == templates.CAPTION_LIMIT_TOKENS


def test_a_system_prompt_of_other_than_64_tokens_is_refused(copied: Path) -> None:
    written = json.loads((copied / "processor/tokenizer.json").read_text())
    written["model"]["merges"] = []
    written["model"]["vocab"] = {
        token: number for token, number in written["model"]["vocab"].items() if len(token) == 1
    }
    (copied / "processor/tokenizer.json").write_text(json.dumps(written))
    with pytest.raises(WrongUse, match="instead of 64"):
        PromptEncoder.load(opened(copied))


@pytest.mark.parametrize("token", ["<|vision_end|>", "<|image_pad|>"])
def test_a_caption_that_would_pass_for_a_picture_is_refused(
    token: str, prompt: PromptEncoder
) -> None:
    with pytest.raises(WrongUse, match="takes for a picture"):
        prompt.encode([picture(56, 56)], [f"a {token} b"])


def test_caption_tokens_are_those_of_the_caption_alone(prompt: PromptEncoder) -> None:
    closing = prompt.encode([picture(56, 56)], ["make the sky red"])[1][0].shape[0] - 4
    assert prompt.caption_tokens("make the sky red") == 4
    for caption in CAPTIONS:
        (tail,) = prompt.encode([picture(56, 56)], [caption])[1]
        assert tail.shape[0] == prompt.caption_tokens(caption) + closing


# -- the image prefix and the text tails -----------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_prefix_and_tails_equal_one_pass(attention: str, checkpoint: Checkpoint) -> None:
    encoder = PromptEncoder.load(checkpoint, dtype=torch.float32)
    encoder.model.set_attn_implementation(attention)
    pictures = [picture(168, 84), picture(56, 140, seed=1)]
    shown: list[Any] = []
    hook = encoder.model.register_forward_pre_hook(
        lambda module, _, options: shown.append(options), with_kwargs=True
    )
    prefix, tails = encoder.encode(pictures, CAPTIONS)
    hook.remove()
    for tail, tail_call in zip(tails, shown[1:], strict=True):
        tokens = torch.cat([shown[0]["input_ids"], tail_call["input_ids"]], dim=1)
        with torch.no_grad():
            whole = encoder.model(
                input_ids=tokens,
                pixel_values=shown[0]["pixel_values"],
                image_grid_thw=shown[0]["image_grid_thw"],
                mm_token_type_ids=(tokens == encoder.model.config.image_token_id).int(),
            ).last_hidden_state[0]
        assert difference(torch.cat([prefix, tail]), whole[templates.DROPPED_TOKENS :]) < 5e-6


def test_a_tail_is_the_same_whatever_else_is_encoded(prompt: PromptEncoder) -> None:
    pictures = [picture(84, 84)]
    prefix, tails = prompt.encode(pictures, CAPTIONS)
    # other pictures in between, and other captions, must leave nothing behind
    prompt.encode([picture(140, 56, seed=3), picture(56, 56, seed=4)], ["remove the house"])
    for caption, tail in zip(CAPTIONS, tails, strict=True):
        again, (alone,) = prompt.encode(pictures, [caption])
        assert torch.equal(again, prefix)
        assert torch.equal(alone, tail)
    assert torch.equal(prompt.encode(pictures, [])[0], prefix)


def test_the_order_of_pictures_counts(prompt: PromptEncoder) -> None:
    one, other = picture(84, 84), picture(84, 84, seed=1)
    straight, swapped = (prompt.encode(pair, [])[0] for pair in ([one, other], [other, one]))
    assert difference(straight, swapped) > 0.1


def test_the_processors_own_limit_of_pixels_is_kept(prompt: PromptEncoder) -> None:
    # 1024^2 is shown as 1036^2, 37 x 37 tokens; the class's default limit would make it 1225
    prefix, _ = prompt.encode([picture(1024, 1024)], [])
    words = prompt.caption_tokens("Picture 1: ")
    vision_start_and_end = 2
    assert prefix.shape[0] == words + 1369 + vision_start_and_end


@pytest.mark.parametrize("name", ["one", "two"])
def test_mrope_is_that_of_transformers_4(name: str) -> None:
    golden, model = load_file(GOLDEN), _golden_model()
    case = {
        key: golden[f"{name}.{key}"]
        for key in ("prefix", "tail", "grid", "patches", "positions", "states")
    }
    tokens = torch.cat([case["prefix"], case["tail"]])
    assert torch.equal(mrope_positions(model, tokens, grid=case["grid"]), case["positions"])
    with torch.no_grad():
        prefix, (tail,) = encode_on_prefix(
            model,
            case["prefix"],
            [case["tail"]],
            pixel_values=case["patches"].float() / 64,
            grid=case["grid"],
        )
    assert difference(torch.cat([prefix, tail]), case["states"]) < 1e-5


def test_the_golden_file_would_show_one_dimensional_positions() -> None:
    golden, model = load_file(GOLDEN), _golden_model()
    tokens = torch.cat([golden["one.prefix"], golden["one.tail"]])[None]
    with torch.no_grad():
        states = model(
            input_ids=tokens,
            pixel_values=golden["one.patches"].float() / 64,
            image_grid_thw=golden["one.grid"],
        ).last_hidden_state[0]
    assert difference(states, golden["one.states"]) > 0.1


def _golden_model() -> Any:
    with safe_open(GOLDEN, "pt") as file:
        metadata = file.metadata()
    config, rope = json.loads(metadata["config"]), json.loads(metadata["rope"])
    config["text_config"]["rope_parameters"] = rope | {"rope_type": "default"}
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config)).model
    weights = {
        name.removeprefix("weights."): value.float()
        for name, value in load_file(GOLDEN).items()
        if name.startswith("weights.")
    }
    model.load_state_dict(weights)
    return model.eval()

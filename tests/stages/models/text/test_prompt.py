"""The prompt encoder: its wording, its prefix and tails, and M-RoPE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline
from paths import GOLDEN
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_checkpoints import difference, opened, picture
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from qedit.cache.errors import WrongUse
from qedit.stages.models import templates
from qedit.stages.models.checkpoint.checkpoint import Checkpoint
from qedit.stages.models.text import prompt as prompt_module
from qedit.stages.models.text.prompt import (
    PromptEncoder,
    cache_argument,
    encode_on_prefixes,
    mrope_positions,
)
from qedit.stages.models.text.prompt_reader import Prompt

MROPE = GOLDEN / "mrope-transformers-4.57.3.safetensors"
CAPTIONS = ["make the sky red", " ", "add a dog, and then a second dog beside it"]


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


# -- the image prefix and the text tails -----------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_prefix_and_tails_equal_one_pass(attention: str, checkpoint: Checkpoint) -> None:
    encoder = PromptEncoder.load(checkpoint, dtype=torch.float32)
    encoder.model.set_attn_implementation(attention)
    read = encoder.reader.read([picture(168, 84), picture(56, 140, seed=1)], CAPTIONS)
    ((prefix, tails),) = encoder.encode_all([read])
    for tail, whole in zip(tails, in_one_pass(encoder.model, read), strict=True):
        assert difference(torch.cat([prefix, tail]), whole) < 2e-6


def test_prefix_and_tails_err_in_bf16_as_one_pass_does(checkpoint: Checkpoint) -> None:
    exact = PromptEncoder.load(checkpoint, dtype=torch.float32)
    coarse = PromptEncoder.load(checkpoint, dtype=torch.bfloat16)
    read = exact.reader.read([picture(168, 84), picture(56, 140, seed=1)], CAPTIONS)
    ((prefix, tails),) = coarse.encode_all([read])
    truths, passes = in_one_pass(exact.model, read), in_one_pass(coarse.model, read)
    for tail, truth, whole in zip(tails, truths, passes, strict=True):
        ours = (torch.cat([prefix, tail]).float() - truth).norm() / truth.norm()
        theirs = (whole.float() - truth).norm() / truth.norm()
        assert 0 < ours < 1.05 * theirs
        # from each other they differ by a step or two of bf16 (2^-8 to 2^-9 of the value)
        assert difference(torch.cat([prefix, tail]).float(), whole.float()) < 1e-2


def in_one_pass(model: Any, read: Prompt) -> list[torch.Tensor]:
    """What the model gives when each caption's whole prompt is run by itself."""
    wholes = []
    for tail in read.tails:
        tokens = torch.cat([read.prefix, tail])[None]
        with torch.no_grad():
            states = model(
                input_ids=tokens,
                pixel_values=read.patches,
                image_grid_thw=read.grid,
                mm_token_type_ids=(tokens == model.config.image_token_id).int(),
            ).last_hidden_state[0]
        wholes.append(states[templates.DROPPED_TOKENS :])
    return wholes


# -- batches ---------------------------------------------------------------------------

# references of every number and size, no caption, one, several, and long ones
SETS: list[tuple[list[tuple[int, int]], list[str]]] = [
    ([(84, 84)], ["make the sky red", " "]),
    ([(168, 84), (56, 140)], []),
    ([(84, 84)], [" "]),
    ([(56, 56), (140, 56), (84, 112)], ["add a dog " * 12, " ", "x"]),
    ([(140, 140)], [f"caption number {number}" for number in range(7)]),
]


@pytest.fixture(scope="module")
def steep(checkpoint: Checkpoint) -> PromptEncoder:
    """Weights so large that attention is far from flat: a wrong mask or position shows."""
    encoder = PromptEncoder.load(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in encoder.model.named_parameters():
            if "q_proj.weight" in name or "k_proj.weight" in name or "qkv.weight" in name:
                parameter *= 4
    return encoder


def made_prompts(encoder: PromptEncoder) -> list[Prompt]:
    return [
        encoder.reader.read(
            [picture(*size, seed=10 * number + place) for place, size in enumerate(sizes)],
            captions,
        )
        for number, (sizes, captions) in enumerate(SETS)
    ]


def assert_alike(batch: Any, alone: Any) -> None:
    for (prefix, tails), (other_prefix, other_tails) in zip(batch, alone, strict=True):
        assert difference(prefix, other_prefix) < 1e-5
        for tail, other in zip(tails, other_tails, strict=True):
            assert difference(tail, other) < 1e-5


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 2), (3, 0, 1)])
def test_a_batch_gives_what_each_set_gives_alone(
    order: tuple[int, ...], steep: PromptEncoder
) -> None:
    read = made_prompts(steep)
    batch = steep.encode_all([read[place] for place in order])
    assert_alike(batch, [steep.encode_all([read[place]])[0] for place in order])


def test_tails_that_do_not_go_through_together_are_the_same(
    steep: PromptEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = made_prompts(steep)
    whole = steep.encode_all(read)
    monkeypatch.setattr(prompt_module, "TAIL_TOKENS", 20)
    assert_alike(steep.encode_all(read), whole)


def test_a_tail_does_not_see_the_other_tails(steep: PromptEncoder) -> None:
    pictures = [picture(84, 84)]
    _, (first, second) = steep.encode(pictures, ["make the sky red", "a dog"])
    _, (_, again) = steep.encode(pictures, ["turn everything blue now", "a dog"])
    _, (alone,) = steep.encode(pictures, ["make the sky red"])
    assert difference(second, again) < 1e-5
    assert difference(first, alone) < 1e-5


def test_a_neighbours_nan_stays_with_it(steep: PromptEncoder) -> None:
    good, bad = made_prompts(steep)[0], made_prompts(steep)[3]
    bad.patches.fill_(float("nan"))
    (prefix, tails), (spoilt, _) = steep.encode_all([good, bad])
    assert not torch.isfinite(spoilt).all()
    assert_alike([(prefix, tails)], steep.encode_all([good]))


@pytest.mark.parametrize("sizes", [[(84, 56)], [(56, 140), (84, 84)], [(56, 56)] * 3])
def test_tails_stand_where_they_stand_in_one_pass(
    sizes: list[tuple[int, int]], prompt: PromptEncoder
) -> None:
    read = prompt.reader.read([picture(*size) for size in sizes], ["make the sky red"])
    shown: list[Any] = []
    hook = prompt.model.register_forward_pre_hook(
        lambda module, _, options: shown.append(options["position_ids"]), with_kwargs=True
    )
    prompt.encode_all([read])
    hook.remove()
    tokens = torch.cat([read.prefix, *read.tails])
    expected = mrope_positions(prompt.model, tokens, grid=read.grid)
    assert torch.equal(torch.cat(shown, dim=2), expected)


def test_a_tail_is_the_same_whatever_else_is_encoded(prompt: PromptEncoder) -> None:
    pictures = [picture(84, 84)]
    prefix, tails = prompt.encode(pictures, CAPTIONS)
    # other pictures in between, and other captions, must leave nothing behind
    prompt.encode([picture(140, 56, seed=3), picture(56, 56, seed=4)], ["remove the house"])
    for caption, tail in zip(CAPTIONS, tails, strict=True):
        again, (alone,) = prompt.encode(pictures, [caption])
        assert torch.equal(again, prefix)
        assert difference(alone, tail) < 1e-5
    assert torch.equal(prompt.encode(pictures, [])[0], prefix)


def test_the_order_of_pictures_counts(prompt: PromptEncoder) -> None:
    one, other = picture(84, 84), picture(84, 84, seed=1)
    straight, swapped = (prompt.encode(pair, [])[0] for pair in ([one, other], [other, one]))
    assert difference(straight, swapped) > 0.1


def test_the_processors_own_limit_of_pixels_is_kept(prompt: PromptEncoder) -> None:
    # 1024^2 is shown as 1036^2, 37 x 37 tokens; the class's default limit would make it 1225
    prefix, _ = prompt.encode([picture(1024, 1024)], [])
    words = len(prompt.reader._ids("Picture 1: "))
    vision_start_and_end = 2
    assert prefix.shape[0] == words + 1369 + vision_start_and_end


@pytest.mark.parametrize("name", ["one", "two"])
def test_mrope_is_that_of_transformers_4(name: str) -> None:
    golden, model = load_file(MROPE), _golden_model()
    case = {
        key: golden[f"{name}.{key}"]
        for key in ("prefix", "tail", "grid", "patches", "positions", "states")
    }
    tokens = torch.cat([case["prefix"], case["tail"]])
    assert torch.equal(mrope_positions(model, tokens, grid=case["grid"]), case["positions"])
    with torch.no_grad():
        read = Prompt(case["prefix"], (case["tail"],), case["patches"].float() / 64, case["grid"])
        positions = mrope_positions(model, case["prefix"], grid=case["grid"])[:, 0]
        ((prefix, (tail,)),) = encode_on_prefixes(model, [read], [positions])
    assert difference(torch.cat([prefix, tail]), case["states"]) < 1e-5


def test_the_golden_file_would_show_one_dimensional_positions() -> None:
    golden, model = load_file(MROPE), _golden_model()
    tokens = torch.cat([golden["one.prefix"], golden["one.tail"]])[None]
    with torch.no_grad():
        states = model(
            input_ids=tokens,
            pixel_values=golden["one.patches"].float() / 64,
            image_grid_thw=golden["one.grid"],
        ).last_hidden_state[0]
    assert difference(states, golden["one.states"]) > 0.1


def _golden_model() -> Any:
    with safe_open(MROPE, "pt") as file:
        metadata = file.metadata()
    config, rope = json.loads(metadata["config"]), json.loads(metadata["rope"])
    config["text_config"]["rope_parameters"] = rope | {"rope_type": "default"}
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config)).model
    weights = {
        name.removeprefix("weights."): value.float()
        for name, value in load_file(MROPE).items()
        if name.startswith("weights.")
    }
    model.load_state_dict(weights)
    return model.eval()


class _Former:
    def forward(self, *, past_key_values: object = None) -> None: ...


class _Renamed:
    def forward(self, *, cache: object = None) -> None: ...


def test_the_cache_is_given_under_the_name_that_the_model_knows() -> None:
    assert cache_argument(_Former()) == "past_key_values"
    assert cache_argument(_Renamed()) == "cache"

"""The encoders, the recipes and the transformer's forward, each against a plain computation."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
)
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from qedit.cache.errors import WrongUse
from qedit.cache.fingerprint import fingerprint
from qedit.stages.models import templates
from qedit.stages.models.checkpoint import Checkpoint, open_checkpoint
from qedit.stages.models.denoise import guide, load_scheduler, set_sigmas, shift_exponent
from qedit.stages.models.prompt import PromptEncoder, encode_on_prefix, mrope_positions
from qedit.stages.models.recipes import latent_recipe, prompt_recipe
from qedit.stages.models.tiny import make_tiny
from qedit.stages.models.transformer import load_transformer, pack, predict_velocity, unpack
from qedit.stages.models.vae import LatentEncoder

GOLDEN = Path(__file__).parent / "golden" / "mrope-transformers-4.57.3.safetensors"
CAPTIONS = ["make the sky red", " ", "add a dog, and then a second dog beside it"]


@dataclass(frozen=True)
class ModelSettings:
    model_flavour: str = "edit-v2"
    pretrained_model_name_or_path: str = ""
    revision: None = None
    pretrained_transformer_model_name_or_path: None = None
    pretrained_vae_model_name_or_path: None = None
    pretrained_text_encoder_model_name_or_path: None = None
    vae_dtype: str = "fp32"
    text_encoder_dtype: str = "bf16"


def opened(folder: Path, flavour: str = "edit-v2") -> Checkpoint:
    return open_checkpoint(ModelSettings(flavour, str(folder)))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny") / "v2", "edit-v2")


@pytest.fixture(scope="module")
def checkpoint(tiny: Path) -> Checkpoint:
    return opened(tiny)


@pytest.fixture(scope="module")
def prompt(checkpoint: Checkpoint) -> PromptEncoder:
    return PromptEncoder.load(checkpoint, dtype=torch.float32)


@pytest.fixture(scope="module")
def transformer(checkpoint: Checkpoint) -> Any:
    return load_transformer(checkpoint, dtype=torch.float32, device="cpu")


@pytest.fixture
def copied(tiny: Path, tmp_path: Path) -> Path:
    """A checkpoint to be changed."""
    return Path(shutil.copytree(tiny, tmp_path / "copied"))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def difference(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max() / other.abs().max())


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


# -- loading ---------------------------------------------------------------------------


def test_both_layouts_of_the_text_encoders_names_load_alike(
    copied: Path, prompt: PromptEncoder
) -> None:
    file = copied / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    assert "visual.merger.ln_q.weight" in weights, "the layout of the released checkpoints"
    newer = {
        name.replace("model.", "model.language_model.", 1)
        if name.startswith("model.")
        else (f"model.{name}" if name.startswith("visual.") else name): value
        for name, value in weights.items()
    }
    save_file(newer, file, metadata={"format": "pt"})
    encoder = PromptEncoder.load(opened(copied), dtype=torch.float32)
    pictures = [picture(84, 56)]
    assert torch.equal(encoder.encode(pictures, [])[0], prompt.encode(pictures, [])[0])


@pytest.mark.parametrize("part", ["text_encoder", "vae", "transformer"])
def test_missing_weights_are_refused_and_never_made_up(part: str, copied: Path) -> None:
    (file,) = (copied / part).glob("*.safetensors")
    weights = load_file(file)
    gone = sorted(name for name in weights if name.endswith("weight") and "lm_head" not in name)[3]
    save_file({k: v for k, v in weights.items() if k != gone}, file, metadata={"format": "pt"})
    load: dict[str, Any] = {
        "text_encoder": PromptEncoder.load,
        "vae": LatentEncoder.load,
        "transformer": lambda found: load_transformer(found, dtype=torch.float32, device="cpu"),
    }
    with pytest.raises(WrongUse, match="1 tensors are missing"):
        load[part](opened(copied))


def test_models_are_loaded_frozen_and_in_the_dtype_asked_for(checkpoint: Checkpoint) -> None:
    loaded = [
        LatentEncoder.load(checkpoint, dtype=torch.bfloat16).vae,
        PromptEncoder.load(checkpoint, dtype=torch.bfloat16).model,
        load_transformer(checkpoint, dtype=torch.bfloat16, device="cpu"),
    ]
    for model in loaded:
        assert not model.training
        for parameter in model.parameters():
            assert parameter.dtype == torch.bfloat16
            assert not parameter.requires_grad


def test_edit_v2_plus_modulates_references_at_zero(tiny: Path) -> None:
    plus = load_transformer(opened(tiny, "edit-v2+"), dtype=torch.float32, device="cpu")
    plain = load_transformer(opened(tiny), dtype=torch.float32, device="cpu")
    inputs = made_inputs()
    one, other = (predict(model, inputs, inputs["references"]) for model in (plus, plain))
    assert difference(one, other) > 0.01
    one, other = (predict(model, inputs, []) for model in (plus, plain))
    assert difference(one, other) < 5e-6


# -- latents ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stock_vae(checkpoint: Checkpoint) -> Any:
    return AutoencoderKLQwenImage.from_pretrained(str(checkpoint.vae)).eval()


def test_latents_are_the_normalised_mode(checkpoint: Checkpoint, stock_vae: Any) -> None:
    # larger than a tile of the VAE, so that tiling would show
    pixels = torch.rand(2, 3, 64, 320, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        mode = stock_vae.encode(pixels.unsqueeze(2)).latent_dist.mode()
    mean, std = (
        torch.tensor(values).view(1, 16, 1, 1)
        for values in (stock_vae.config.latents_mean, stock_vae.config.latents_std)
    )
    latents = LatentEncoder.load(checkpoint).encode(pixels)
    assert latents.shape == (2, 16, 8, 40)
    # two-dimensional convolutions do the work of the causal ones, to rounding
    assert difference(latents, (mode.squeeze(2) - mean) / std) < 2e-6


def test_decoding_undoes_the_normalisation(checkpoint: Checkpoint, stock_vae: Any) -> None:
    latents = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    mean, std = (
        torch.tensor(values).view(1, 16, 1, 1)
        for values in (stock_vae.config.latents_mean, stock_vae.config.latents_std)
    )
    with torch.no_grad():
        expected = stock_vae.decode((latents * std + mean).unsqueeze(2)).sample.squeeze(2)
    decoded = LatentEncoder.load(checkpoint).decode(latents)
    assert decoded.shape == (1, 3, 64, 96)
    assert difference(decoded, expected) < 1e-5


# -- the transformer's forward ---------------------------------------------------------


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


# -- the schedule ----------------------------------------------------------------------


@pytest.mark.parametrize(("side", "shift"), [(512, 1.714), (1024, 2.001)])
def test_the_shift_grows_with_the_target(side: int, shift: float, checkpoint: Checkpoint) -> None:
    config = load_scheduler(checkpoint.scheduler).config
    assert math.exp(shift_exponent(config, (side // 16) ** 2)) == pytest.approx(shift, abs=5e-4)


def test_the_schedule_runs_from_one_to_its_terminal_value(checkpoint: Checkpoint) -> None:
    sigmas = set_sigmas(load_scheduler(checkpoint.scheduler), steps=5, target_tokens=4096)
    assert len(sigmas) == 6
    assert sigmas[0] == 1
    assert sigmas[-2] == pytest.approx(0.02)
    assert sigmas[-1] == 0
    assert bool((sigmas.diff() < 0).all())


def test_a_schedule_of_one_step_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(WrongUse, match="validation_num_inference_steps"):
        set_sigmas(load_scheduler(checkpoint.scheduler), steps=1, target_tokens=4096)


def test_guidance_keeps_each_tokens_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(2, 1, 16, 4, 6, generator=generator)
    guided = guide(positive, negative, guidance=4.0)
    norms = [pack(latents).norm(dim=-1) for latents in (guided, positive)]
    assert torch.allclose(*norms)
    direction = pack(negative + 4.0 * (positive - negative))
    assert torch.allclose(
        torch.cosine_similarity(pack(guided), direction, dim=-1), torch.ones(1, 6)
    )


# -- recipes ---------------------------------------------------------------------------


def recipes(checkpoint: Checkpoint, folder: Path, **changed: str) -> tuple[str, str]:
    settings = replace(ModelSettings(), **changed)
    remember = folder / "digests.json"
    return (
        fingerprint(latent_recipe(checkpoint, settings, remember=remember)),
        fingerprint(prompt_recipe(checkpoint, settings, remember=remember)),
    )


def test_recipes_do_not_depend_on_where_the_model_lies(
    checkpoint: Checkpoint, copied: Path, tmp_path: Path
) -> None:
    assert recipes(opened(copied), tmp_path) == recipes(checkpoint, tmp_path)


def test_recipes_leave_out_flavour_and_areas(
    checkpoint: Checkpoint, copied: Path, tmp_path: Path
) -> None:
    (copied / "qedit.json").write_text('{"vae_area": 4096, "vl_area": 4096}')
    moved = opened(copied, "edit-v2+")
    assert moved.flavour.vae_area == 4096
    assert recipes(moved, tmp_path) == recipes(checkpoint, tmp_path)


@pytest.mark.parametrize(
    ("file", "latents_too"),
    [
        ("vae/diffusion_pytorch_model.safetensors", True),
        ("text_encoder/model.safetensors", False),
        ("processor/tokenizer.json", False),
        ("processor/preprocessor_config.json", False),
    ],
)
def test_another_encoder_is_another_recipe(
    file: str, latents_too: bool, checkpoint: Checkpoint, copied: Path, tmp_path: Path
) -> None:
    changed = copied / file
    if file.endswith("json"):
        written = json.loads(changed.read_text())
        written |= {"max_pixels": 784} if "config" in file else {"padding": {"strategy": "x"}}
        changed.write_text(json.dumps(written))
    else:
        weights = load_file(changed)
        name = sorted(weights)[0]
        save_file(weights | {name: weights[name] + 1}, changed, metadata={"format": "pt"})
    before, after = recipes(checkpoint, tmp_path), recipes(opened(copied), tmp_path)
    assert (before[0] != after[0]) == latents_too
    assert (before[1] != after[1]) == (not latents_too)


def test_another_precision_is_another_recipe(checkpoint: Checkpoint, tmp_path: Path) -> None:
    usual = recipes(checkpoint, tmp_path)
    assert recipes(checkpoint, tmp_path, vae_dtype="bf16")[0] != usual[0]
    assert recipes(checkpoint, tmp_path, text_encoder_dtype="fp32")[1] != usual[1]


def test_one_picture_is_told_otherwise_in_edit_v1(checkpoint: Checkpoint, tmp_path: Path) -> None:
    plain = replace(checkpoint.flavour, numbered_pictures=False)
    other = recipes(replace(checkpoint, flavour=plain), tmp_path)
    assert other[0] == recipes(checkpoint, tmp_path)[0]
    assert other[1] != recipes(checkpoint, tmp_path)[1]


def test_recipes_need_no_torch() -> None:
    code = "import sys, qedit.stages.models.recipes; print('torch' in sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert said.strip() == "False"

"""Loading, latents, the transformer's forward and the schedule, against plain computations."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    QwenImageEditPlusPipeline,
)
from safetensors.torch import load_file, save_file
from tiny_checkpoints import difference, opened, picture
from torch import Tensor

from qedit.cache.errors import WrongUse
from qedit.stages.models.checkpoint.checkpoint import Checkpoint
from qedit.stages.models.text.prompt import PromptEncoder
from qedit.stages.models.tiny.tiny import make_tiny
from qedit.stages.models.transformer.denoise import (
    guide,
    load_scheduler,
    set_sigmas,
    shift_exponent,
)
from qedit.stages.models.transformer.transformer import (
    load_transformer,
    pack,
    predict_velocity,
    unpack,
)
from qedit.stages.models.vae import LatentEncoder


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


def test_the_text_encoder_in_eight_bits_is_near_and_small(checkpoint: Checkpoint) -> None:
    exact = PromptEncoder.load(checkpoint, dtype=torch.float32)
    small = PromptEncoder.load(checkpoint, dtype=torch.float32, precision="int8-quanto")
    shown = [picture(84, 56)]
    (prefix, (tail,)), (near, (near_tail,)) = (
        encoder.encode(shown, ["make the sky red"]) for encoder in (exact, small)
    )
    for truth, coarse in ((prefix, near), (tail, near_tail)):
        assert 0 < (coarse - truth).norm() / truth.norm() < 0.05
    bytes_of = [_bytes_in(one.model.language_model.layers) for one in (exact, small)]
    assert bytes_of[1] < 0.35 * bytes_of[0]


def _bytes_in(module: Any) -> int:
    total = 0
    for tensor in module.state_dict().values():
        total += tensor.numel() * tensor.element_size()
    return total


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
    assert relative(latents, (mode.squeeze(2) - mean) / std) < 1e-6


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.fixture(scope="module")
def steep_vae(checkpoint: Checkpoint) -> LatentEncoder:
    """With an attention that is far from flat."""
    encoder = LatentEncoder.load(checkpoint)
    with torch.no_grad():
        for name, parameter in encoder.vae.named_parameters():
            if "to_qkv" in name:
                parameter[: 2 * len(parameter) // 3] *= 4  # queries and keys
    return encoder


def test_a_batch_of_pictures_gives_what_each_gives_alone(steep_vae: LatentEncoder) -> None:
    for height, width in ((64, 96), (160, 32), (32, 32)):
        generator = torch.Generator().manual_seed(height)
        pixels = torch.rand(5, 3, height, width, generator=generator) * 2 - 1
        batch = steep_vae.encode(pixels)
        for latents, picture_alone in zip(batch, pixels, strict=True):
            assert difference(latents, steep_vae.encode(picture_alone[None])[0]) < 1e-5
        again = steep_vae.encode(torch.cat([pixels[:1], torch.full_like(pixels[:1], torch.nan)]))
        assert difference(again[0], batch[0]) < 1e-5


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
    assert relative(decoded, expected) < 1e-6


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

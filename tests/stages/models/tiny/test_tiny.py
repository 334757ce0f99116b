"""The tiny checkpoint: real classes, real geometry, the same bytes every time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoints import relative
from torch import Tensor

from qedit.cache.errors import WrongUse
from qedit.cache.files.fingerprint import digest_file
from qedit.pipeline.demo.scenes import Scene, Thing, picture_of
from qedit.stages.models.flavours import FLAVOURS
from qedit.stages.models.templates import OPENING
from qedit.stages.models.tiny import tiny as tiny_module
from qedit.stages.models.tiny.tiny import make_tiny
from qedit.stages.models.transformer.transformer import predict_velocity


@pytest.fixture(scope="module")
def sighted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny") / "sighted", "edit-v2", sighted=True)


def content(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): digest_file(path) for path in files}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def load(folder: Path, name: str, *, dtype: torch.dtype = torch.float32) -> Any:
    import diffusers
    import transformers

    library, kind = read_json(folder / "model_index.json")[name]
    model = getattr({"diffusers": diffusers, "transformers": transformers}[library], kind)
    option = "torch_dtype" if library == "diffusers" else "dtype"
    return model.from_pretrained(folder / name, **{option: dtype}).eval()


# -- the folder ------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", ["edit-v1", "edit-v2", "edit-v2+", "edit-v3"])
def test_the_folder_says_which_pipeline_and_which_modulation(tmp_path: Path, flavour: str) -> None:
    folder = make_tiny(tmp_path / "model", flavour)
    index = read_json(folder / "model_index.json")
    config = read_json(folder / "transformer/config.json")
    assert index["_class_name"] == FLAVOURS[flavour].pipeline
    assert index["transformer"] == ["diffusers", "QwenImageTransformer2DModel"]
    assert config["zero_cond_t"] is (flavour == "edit-v3")  # edit-v2+ overrides edit-v2's
    assert not (folder / "qedit.json").exists()


def test_edit_v2_plus_is_the_checkpoint_of_edit_v2(tiny: Path, tmp_path: Path) -> None:
    assert content(make_tiny(tmp_path / "plus", "edit-v2+")) == content(tiny)


def test_areas_are_written_when_given(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "model", "edit-v2", vae_area=4096)
    assert read_json(folder / "qedit.json") == {"vae_area": 4096}


def test_the_pipeline_s_constants_are_the_true_ones(tiny: Path) -> None:
    scheduler = read_json(tiny / "scheduler/scheduler_config.json")
    true = {
        "use_dynamic_shifting": True,
        "base_shift": 0.5,
        "max_shift": 0.9,
        "base_image_seq_len": 256,
        "max_image_seq_len": 8192,
        "shift_terminal": 0.02,
        "time_shift_type": "exponential",
    }
    assert {key: scheduler[key] for key in true} == true
    vae = load(tiny, "vae")
    assert (vae.spatial_compression_ratio, vae.config.z_dim) == (8, 16)
    assert vae.config.latents_mean[:2] == [-0.7571, -0.7089]
    assert vae.config.latents_std[-1] == 1.916


def test_the_processor_keeps_a_megapixel_whole(tiny: Path) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil.from_pretrained(tiny / "processor")
    seen = processor(images=[Image.new("RGB", (1024, 1024))], return_tensors="pt")
    assert seen["image_grid_thw"].tolist() == [[1, 74, 74]]  # 1369 tokens after 2x2 merging


# -- the tokenizer ---------------------------------------------------------------------


def test_the_opening_of_the_template_is_64_tokens(tiny: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    assert len(tokenizer(OPENING)["input_ids"]) == 64


def load_tokenizer(folder: Path) -> Any:
    from transformers import Qwen2Tokenizer

    return Qwen2Tokenizer.from_pretrained(folder / "tokenizer")


def test_ordinary_captions_are_short(tiny: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    for caption in ("Make the sky red.", "add a small boat to the sea", "Turn the day into night."):
        assert len(tokenizer(caption)["input_ids"]) <= len(caption.split()) + 1, caption


def test_every_text_survives_the_tokenizer(tiny: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    text = "Zwölf Boxkämpfer\u2026 猫を赤く <|image_pad|> \t{x}"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_encoder_knows_the_tokens_that_stand_for_pictures(tiny: Path) -> None:
    tokenizer, config = load_tokenizer(tiny), read_json(tiny / "text_encoder/config.json")
    assert config["image_token_id"] == tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert len(tokenizer) <= config["text_config"]["vocab_size"]


# -- made once, the same every time ----------------------------------------------------


def test_the_same_bytes_whatever_was_drawn_before(tiny: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)
    np.random.seed(123)
    before = torch.get_rng_state()
    again = make_tiny(tmp_path / "again", "edit-v2")
    assert content(again) == content(tiny)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_gives_other_weights_in_every_model(tiny: Path, tmp_path: Path) -> None:
    other = content(make_tiny(tmp_path / "other", "edit-v2", seed=1))
    changed = {path for path, digest in content(tiny).items() if other[path] != digest}
    assert {path for path in other if path.endswith(".safetensors")} <= changed
    assert "transformer/config.json" not in changed


def test_a_second_call_finds_it_done(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(tiny_module, "_save_models", never)
    assert make_tiny(tiny, "edit-v2") == tiny
    with pytest.raises(AssertionError, match="made again"):
        make_tiny(tiny.with_name("other"), "edit-v2", seed=1)
    assert not tiny.with_name("other").exists()


def test_other_arguments_replace_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(folder: Path, *_: object, **__: object) -> None:
        (folder / "new").touch()

    monkeypatch.setattr(tiny_module, "_save_models", empty)
    folder = make_tiny(tmp_path / "model", "edit-v2")
    (folder / "stale").touch()
    make_tiny(folder, "edit-v2", vl_area=4096)
    assert {path.name for path in folder.iterdir()} == {"new", "tiny.json", "qedit.json"}


def test_it_never_replaces_a_real_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(WrongUse, match="is not a tiny checkpoint"):
        make_tiny(tmp_path, "edit-v2")
    assert [path.name for path in tmp_path.iterdir()] == ["model_index.json"]


def test_an_unknown_flavour_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match="edit-v1, edit-v2"):
        make_tiny(tmp_path / "model", "edit-v9")


def test_it_is_made_without_a_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_tiny(tmp_path / "model", "edit-v2")
    assert capfd.readouterr() == ("", "")


# -- weights that show mistakes --------------------------------------------------------


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_transformer_minds_places_references_and_words(tiny: Path, dtype: torch.dtype) -> None:
    transformer = load(tiny, "transformer", dtype=dtype)
    tokens = noise(1, 24 + 24 + 35, 64).to(dtype)
    text = noise(1, 20, 64, seed=1).to(dtype)

    @torch.no_grad()
    def predict(
        shapes: tuple[tuple[int, int, int], ...] = ((1, 4, 6), (1, 4, 6), (1, 5, 7)),
        tokens: Tensor = tokens,
        text: Tensor = text,
        sigma: float = 0.5,
    ) -> Tensor:
        (output,) = transformer(
            hidden_states=tokens,
            encoder_hidden_states=text,
            encoder_hidden_states_mask=None,
            timestep=torch.tensor([sigma], dtype=dtype),
            img_shapes=[list(shapes)],
            return_dict=False,
        )
        return output[:, :24].float()

    true = predict()
    assert true.isfinite().all()
    assert 0.5 < true.std() < 2
    swapped = torch.cat([tokens[:, :24], tokens[:, 24:48].flip(1), tokens[:, 48:]], 1)
    exchanged = torch.cat([tokens[:, :24], tokens[:, 48:], tokens[:, 24:48]], 1)
    changes = {
        "rows for columns": predict(((1, 6, 4), (1, 6, 4), (1, 7, 5))),
        "a reference upside down": predict(tokens=swapped),
        "references exchanged": predict(((1, 4, 6), (1, 5, 7), (1, 4, 6)), tokens=exchanged),
        "words reversed": predict(text=text.flip(1)),
        "another time": predict(sigma=0.4),
    }
    assert {
        name: relative(changed, true) > 0.1 for name, changed in changes.items()
    } == dict.fromkeys(changes, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_encoder_minds_places_and_pictures(tiny: Path, dtype: torch.dtype) -> None:
    encoder, tokenizer = load(tiny, "text_encoder", dtype=dtype), load_tokenizer(tiny)
    text = "<|vision_start|>" + "<|image_pad|>" * 12 + "<|vision_end|>make the sky red"
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    kinds = (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
    pixels = noise(48, 3 * 2 * 14 * 14).to(dtype)

    @torch.no_grad()
    def tail(
        pixels: Tensor = pixels,
        grid: tuple[int, int, int] = (1, 6, 8),
        kinds: Tensor | None = kinds,
        ids: Tensor = ids,
    ) -> Tensor:
        states = encoder.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels,
            image_grid_thw=torch.tensor([grid]),
            mm_token_type_ids=kinds,
        ).last_hidden_state
        return states[:, 14:].float()

    true = tail()
    assert true.isfinite().all()
    assert 0.5 < true.std() < 2
    assert relative(tail(kinds=None), true) > 0.1  # positions in one dimension
    assert relative(tail(grid=(1, 8, 6)), true) > 0.1
    assert relative(tail(pixels=pixels.flip(0)), true) > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latents_are_of_the_size_that_real_ones_are(tiny: Path, dtype: torch.dtype) -> None:
    vae = load(tiny, "vae", dtype=dtype)
    with torch.no_grad():
        latents = vae.encode(noise(1, 3, 1, 64, 96).clamp(-1, 1).to(dtype)).latent_dist.mode()
        decoded = vae.decode(latents).sample
    assert latents.shape == (1, 16, 1, 8, 12)
    assert 0.5 < latents.float().std() / np.mean(vae.config.latents_std) < 2
    assert decoded.isfinite().all()
    assert decoded.float().std() > 0.1


# -- eyes ------------------------------------------------------------------------------

SCENE = Scene(
    "meadow",
    (
        Thing("house", "red", x=0.3, size=0.55),
        Thing("tree", "green", x=0.75, size=0.45),
        Thing("sun", "yellow", x=0.85, y=0.3, size=0.2),
    ),
)


def as_pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]


def psnr(one: Tensor, other: Tensor) -> float:
    """Peak signal to noise ratio in dB of pixels in [-1, 1]."""
    return float(-10 * torch.log10((one - other).square().mean() / 4))


@torch.no_grad()
def there_and_back(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    latents = vae.encode(pixels[:, :, None].to(vae.dtype)).latent_dist.mode()
    return latents[:, :, 0].float(), vae.decode(latents).sample[:, :, 0].float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("size", "at_least_db"), [((160, 128), 24), ((320, 256), 27)])
def test_a_sighted_vae_shows_the_picture_again(
    sighted: Path, dtype: torch.dtype, size: tuple[int, int], at_least_db: float
) -> None:
    pixels = as_pixels(picture_of(SCENE, size))
    latents, seen = there_and_back(load(sighted, "vae", dtype=dtype), pixels)
    assert latents.shape == (1, 16, size[1] // 8, size[0] // 8)
    assert psnr(seen, pixels) > at_least_db
    # more than the mean colour of each 8x8 block
    blocks = torch.nn.functional.avg_pool2d(pixels, 8).repeat_interleave(8, 2)
    assert psnr(seen, pixels) > psnr(blocks.repeat_interleave(8, 3), pixels) + 3


def test_a_plain_surface_comes_back_plain_up_to_the_border(sighted: Path) -> None:
    pixels = torch.tensor([0.8, -0.5, 0.1])[None, :, None, None].expand(1, 3, 64, 96)
    _, seen = there_and_back(load(sighted, "vae"), pixels)
    torch.testing.assert_close(seen, pixels, atol=5e-3, rtol=0)


def test_sighted_latents_are_spread_as_real_ones_are(sighted: Path) -> None:
    vae = load(sighted, "vae")
    mean = torch.tensor(vae.config.latents_mean)[:, None]
    deviation = torch.tensor(vae.config.latents_std)[:, None]
    scenes = [SCENE, *(Scene(ground, SCENE.things[:1]) for ground in ("beach", "snow"))]
    scenes += [Scene("sea", (Thing("boat", "blue", x=0.4),), night=True)]
    latents = [there_and_back(vae, as_pixels(picture_of(scene, (160, 128))))[0] for scene in scenes]
    normalised = (torch.cat(latents).transpose(0, 1).flatten(1) - mean) / deviation
    assert normalised.mean(1).abs().max() < 0.8
    assert ((normalised.std(1) > 0.3) & (normalised.std(1) < 2)).all()


@pytest.mark.parametrize("flavour", ["edit-v2", "edit-v3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sighted_transformer_repeats_its_first_reference(
    flavour: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = make_tiny(tmp_path / "model", flavour, sighted=True)
    transformer = load(folder, "transformer", dtype=dtype)
    first, second = noise(1, 16, 12, 16, seed=1), noise(1, 16, 10, 16, seed=2)
    eps = noise(1, 16, 12, 16, seed=3)
    text = noise(1, 20, 64, seed=4)

    @torch.no_grad()
    def estimate(*references: Tensor, sigma: float) -> Tensor:
        """What the model takes the clean latents to be, told the noise of `first`."""
        noisy = (1 - sigma) * first + sigma * eps
        velocity = predict_velocity(
            transformer,
            noisy.to(dtype),
            [reference.to(dtype) for reference in references],
            text.to(dtype),
            mask=None,
            sigma=torch.tensor([sigma]),
        )
        return noisy - sigma * velocity.float()

    for sigma in (0.25, 0.5, 1.0):
        assert relative(estimate(first, second, sigma=sigma), first) < 0.3
    assert relative(estimate(second.repeat(1, 1, 2, 1)[:, :, :12], first, sigma=1.0), first) > 1

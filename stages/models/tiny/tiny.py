"""A tiny checkpoint of the real classes, in diffusers' folder layout: for tests and the demo.

Everything that decides geometry and wiring is as at full scale (factor 8, 16 latent
channels, 2x2 patches, M-RoPE, the scheduler's constants, the 64-token template prefix);
only widths and depths are small. The weights are drawn from the seed and the name of each
tensor, wide enough that attention is not flat: a wrong position or mask shows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ....cache.errors import WrongUse
from ....cache.files.atomic import new_folder, remove
from ....cache.files.json_file import read_object
from ..flavours import FLAVOURS, Flavour
from .copy_transformer import HEAD_WIDTH, HEADS, LAYERS, teach_to_copy
from .handmade_vae import sighted_vae, small_vae
from .tiny_tokenizer import train_tokenizer
from .tiny_weights import draw_weights

# Raised whenever the same arguments give other files, so that old folders are made anew.
VERSION = 3
RECIPE_FILE = "tiny.json"
AREAS_FILE = "qedit.json"

TEXT_WIDTH = 64
MAX_PIXELS = 12_845_056


def make_tiny(
    folder: Path,
    flavour: str,
    *,
    vae_area: int | None = None,
    vl_area: int | None = None,
    seed: int = 0,
    sighted: bool = False,
) -> Path:
    """Make a tiny checkpoint of `flavour` at `folder`, unless the same one is there already.

    Args:
        folder: made whole or not at all; remade if an older or other tiny checkpoint lies there.
        flavour: a name of `FLAVOURS`; edit-v2+ is the checkpoint of edit-v2.
        vae_area, vl_area: areas in square pixels that references are shown to the two
            encoders at, written to qedit.json; None leaves them to the flavour.
        sighted: with a VAE that really shows (coarse) pictures, and a transformer that, before
            any training, repeats its first reference.

    Raises:
        WrongUse: an unknown flavour, or `folder` holds something else.
    """
    shown = _checkpoint_flavour(flavour)
    areas = {"vae_area": vae_area, "vl_area": vl_area}
    recipe = {"version": VERSION, "flavour": shown.name, "seed": seed, "sighted": sighted, **areas}
    if _recipe_in(folder) == recipe:
        return folder
    _clear(folder)
    with new_folder(folder) as fresh, _undisturbed():
        _save_models(fresh, shown, seed=seed, sighted=sighted)
        given = {name: area for name, area in areas.items() if area is not None}
        if given:
            _write_json(fresh / AREAS_FILE, given)
        _write_json(fresh / RECIPE_FILE, recipe)
    return folder


def _checkpoint_flavour(name: str) -> Flavour:
    """Return the flavour whose checkpoint `name` uses: edit-v2+ runs on that of edit-v2."""
    if name not in FLAVOURS:
        raise WrongUse(f'There is no flavour "{name}".', f"Choose one of {', '.join(FLAVOURS)}.")
    repository = FLAVOURS[name].repository
    own = (flavour for flavour in FLAVOURS.values() if not flavour.overrides_zero_cond_t)
    return next(flavour for flavour in own if flavour.repository == repository)


def _recipe_in(folder: Path) -> Any:
    path = folder / RECIPE_FILE
    return read_object(path) if path.is_file() else None


def _clear(folder: Path) -> None:
    """Remove another tiny checkpoint; refuse to remove anything else."""
    if not folder.exists():
        return
    if not (folder / RECIPE_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise WrongUse(
            f"{folder} exists and is not a tiny checkpoint.",
            "Name another folder, or take this one away.",
        )
    remove(folder)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let model constructors draw from their own generators and save without progress bars."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        if bars:
            logging.enable_progress_bar()


def _save_models(folder: Path, flavour: Flavour, *, seed: int, sighted: bool) -> None:
    tokenizer = train_tokenizer()
    text_encoder = _text_encoder(tokenizer)
    transformer = _transformer(zero_cond_t=flavour.zero_cond_t, sighted=sighted)
    vae = sighted_vae() if sighted else small_vae()
    draw_weights(text_encoder, seed=seed)
    draw_weights(transformer, seed=seed)
    if sighted:
        teach_to_copy(transformer)
    else:
        draw_weights(vae, seed=seed)
    parts = {
        "text_encoder": text_encoder,
        "transformer": transformer,
        "vae": vae,
        "scheduler": _scheduler(),
        "tokenizer": tokenizer,
        "processor": tokenizer,
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    for file, value in _PROCESSOR_FILES.items():
        _write_json(folder / "processor" / file, value)
    kinds = {name: [_library(part), type(part).__name__] for name, part in parts.items()}
    index = {"_class_name": flavour.pipeline, "_diffusers_version": "0.36.0.dev0"}
    processor = {"processor": ["transformers", "Qwen2VLProcessor"]}  # its class needs torchvision
    _write_json(folder / "model_index.json", index | kinds | processor)


def _library(part: object) -> str:
    return type(part).__module__.partition(".")[0]


def _text_encoder(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    def token(name: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(name))

    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128_000,
            "rms_norm_eps": 1e-6,
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            # the three sections share the half of a head: 64 / 4 / 2 = 8
            "rope_parameters": {
                "rope_theta": 1e6,
                "rope_type": "default",
                "mrope_section": [2, 3, 3],
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": TEXT_WIDTH,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def _transformer(*, zero_cond_t: bool, sighted: bool) -> Any:
    from diffusers import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=64,
        out_channels=16,
        num_layers=LAYERS if sighted else 2,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=HEADS if sighted else 2,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(8, 12, 12),
        zero_cond_t=zero_cond_t,
    )


def _scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=1.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        base_image_seq_len=256,
        max_image_seq_len=8192,
        shift_terminal=0.02,
        time_shift_type="exponential",
    )


_PIXELS: dict[str, object] = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_pixels": MAX_PIXELS,
    "merge_size": 2,
    "min_pixels": 3136,
    "patch_size": 14,
    "processor_class": "Qwen2VLProcessor",
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"longest_edge": MAX_PIXELS, "shortest_edge": 3136},
    "temporal_patch_size": 2,
}
# Written by hand: transformers saves these classes only where torchvision is installed.
_PROCESSOR_FILES = {
    "preprocessor_config.json": {**_PIXELS, "image_processor_type": "Qwen2VLImageProcessor"},
    "video_preprocessor_config.json": {
        **_PIXELS,
        "video_processor_type": "Qwen2VLVideoProcessor",
    },
}


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")

"""diffusers' own edit pipelines, made to run in a test and to tell what they do.

They are mended from outside in two places and changed in none:

* transformers' Qwen2VLProcessor wants torchvision, which nothing here has; it is built without
  its video side, and resizes with torch's own kernel, which torchvision calls.
* diffusers 0.42 does not hand `mm_token_type_ids` to the text encoder, which then takes 1-D
  positions for M-RoPE. The field is put back (`mended=False` leaves it out).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit as edit_module
import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus as edit_plus_module
import numpy as np
import pytest
import torch
from diffusers import (
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from PIL import Image
from torch import Tensor
from transformers import Qwen2Tokenizer, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)

from qedit.stages.models.checkpoint.checkpoint import Checkpoint
from qedit.stages.models.flavours import Flavour
from qedit.stages.samples.sample import NULL_CAPTION

PIPELINES = {kind.__name__: kind for kind in (QwenImageEditPipeline, QwenImageEditPlusPipeline)}


class TorchvisionResize(Qwen2VLImageProcessorPil):
    """The picture processor, with the resize that it has where torchvision is installed."""

    def resize(self, image: Any, size: Any, resample: Any, factor: int, **_: Any) -> Any:
        assert image.dtype == np.uint8, "the kernel for floats is another one"
        bounds = {"min_pixels": size.shortest_edge, "max_pixels": size.longest_edge}
        edges = smart_resize(image.shape[1], image.shape[2], factor=factor, **bounds)
        kernel = {"mode": "bicubic", "antialias": True, "align_corners": False}
        values = torch.from_numpy(np.ascontiguousarray(image))[None]
        return torch.nn.functional.interpolate(values, edges, **kernel)[0].numpy()


class PictureProcessor(Qwen2VLProcessor):
    """Qwen2VLProcessor without videos: only what makes it is replaced, never what it does."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Qwen2Tokenizer.from_pretrained(str(folder))
        self.image_processor = TorchvisionResize.from_pretrained(str(folder))
        self.chat_template = None
        for name in ("image", "video"):
            token = f"<|{name}_pad|>"
            setattr(self, f"{name}_token", token)
            setattr(self, f"{name}_token_id", self.tokenizer.convert_tokens_to_ids(token))
        self.shown: list[Sequence[Image.Image]] = []

    def __call__(self, images: Any = None, **options: Any) -> Any:
        self.shown.append(images if isinstance(images, list) else [images])
        return super().__call__(images=images, **options)


@dataclass
class Seen:
    """What went through a pipeline in one run, in order.

    `prompts` are the text encoder's arguments, `pixels` the VAE's input, `calls` the
    transformer's arguments with its output under "prediction"; with guidance they go in pairs,
    positive and negative. `sigmas` are the schedule's, the final 0 included.
    """

    pictures: list[Sequence[Image.Image]] = field(default_factory=list)
    prompts: list[dict[str, Any]] = field(default_factory=list)
    pixels: list[Tensor] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    latents: Tensor = field(default_factory=lambda: torch.empty(0))
    sigmas: Tensor = field(default_factory=lambda: torch.empty(0))


class StockPipeline:
    """The pipeline that a checkpoint's model_index.json names, with hooks in it."""

    def __init__(
        self, checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float32, mended: bool = True
    ) -> None:
        parts: dict[str, Any] = {"processor": PictureProcessor(checkpoint.processor)}
        if checkpoint.flavour.overrides_zero_cond_t:
            parts["transformer"] = QwenImageTransformer2DModel.from_pretrained(
                str(checkpoint.transformer), zero_cond_t=True, torch_dtype=dtype
            )
        self.pipeline: Any = PIPELINES[checkpoint.flavour.pipeline].from_pretrained(
            str(checkpoint.vae.parent), dtype=dtype, **parts
        )
        self.pipeline.set_progress_bar_config(disable=True)
        self._flavour = checkpoint.flavour
        if mended:
            _mend(self.pipeline.text_encoder)

    def run(
        self,
        pictures: Sequence[Image.Image],
        prompt: str,
        *,
        size: tuple[int, int],
        seed: int = 0,
        steps: int = 2,
        guidance: float = 1.0,
        only_first_step: bool = False,
    ) -> Seen:
        """Run the pipeline as a user would, with `pictures` and a target of `size` pixels.

        `guidance` above 1 is true CFG against the null prompt. After `only_first_step` the
        pipeline is interrupted, by its own means.
        """
        seen = Seen()
        guided = {"negative_prompt": NULL_CAPTION} if guidance > 1 else {}
        with areas(self._flavour), _hooks(self.pipeline, seen):
            self.pipeline.processor.shown = seen.pictures
            seen.latents = self.pipeline(
                image=list(pictures) if self._flavour.numbered_pictures else pictures[0],
                prompt=prompt,
                width=size[0],
                height=size[1],
                num_inference_steps=steps,
                generator=torch.Generator().manual_seed(seed),
                true_cfg_scale=guidance,
                output_type="latent",
                callback_on_step_end=_interrupt if only_first_step else None,
                **guided,
            ).images
        seen.sigmas = self.pipeline.scheduler.sigmas
        return seen


def _interrupt(pipeline: Any, step: int, timestep: Tensor, state: dict[str, Any]) -> dict[str, Any]:
    pipeline._interrupt = True
    return state


def _mend(text_encoder: Any) -> None:
    forward = text_encoder.forward

    def with_kinds_of_tokens(input_ids: Tensor, **options: Any) -> Any:
        kinds = (input_ids == text_encoder.config.image_token_id).int()
        return forward(input_ids=input_ids, mm_token_type_ids=kinds, **options)

    text_encoder.forward = with_kinds_of_tokens


@contextmanager
def areas(flavour: Flavour) -> Iterator[None]:
    """Let the pipelines' modules scale references to the flavour's areas.

    At the flavour's true areas this changes nothing; tests use small ones to be quick.
    """
    calculate = edit_module.calculate_dimensions
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            edit_module, "calculate_dimensions", lambda _, ratio: calculate(flavour.vae_area, ratio)
        )
        patch.setattr(edit_plus_module, "CONDITION_IMAGE_SIZE", flavour.vl_area)
        patch.setattr(edit_plus_module, "VAE_IMAGE_SIZE", flavour.vae_area)
        yield


@contextmanager
def _hooks(pipeline: Any, seen: Seen) -> Iterator[None]:
    def encode(pixels: Tensor, *rest: Any, **options: Any) -> Any:
        seen.pixels.append(pixels)
        return original_encode(pixels, *rest, **options)

    original_encode = pipeline.vae.encode
    pipeline.vae.encode = encode
    handles = [
        pipeline.text_encoder.register_forward_pre_hook(
            lambda module, _, options: seen.prompts.append(options), with_kwargs=True
        ),
        pipeline.transformer.register_forward_hook(
            lambda module, _, options, output: seen.calls.append(
                {**options, "prediction": output[0]}
            ),
            with_kwargs=True,
        ),
    ]
    try:
        yield
    finally:
        del pipeline.vae.encode
        for handle in handles:
            handle.remove()

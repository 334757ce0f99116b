"""The model card beside a published LoRA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...config.settings import Settings
from ..models.flavours import Flavour
from ..models.lora_file import LORA_FILE

CARD_FILE = "README.md"
# by this line a card is told from a page that somebody wrote
MADE_BY = "tags: [lora, qwen-image-edit, qedit]"

_CARD = """---
base_model: {repository}
library_name: diffusers
pipeline_tag: image-to-image
tags: [lora, qwen-image-edit, qedit]
---

# {title}

A LoRA for {repository} (flavour `{flavour}`), trained with qedit on {samples} pairs
for {steps} steps. Tensors are named for {style}.

## diffusers

```python
import torch
from diffusers import {pipeline}{imports}

pipeline = {pipeline}.from_pretrained(
    "{repository}", torch_dtype=torch.bfloat16{override}
)
pipeline.load_lora_weights("{file}")
```

With transformers 5.3 or newer, the pipelines of diffusers 0.42 give the text encoder 1-D
positions instead of the M-RoPE positions that the model, and this LoRA, were trained with
(https://github.com/huggingface/diffusers/issues/14194). Use an older transformers, or hand the
pipeline the `prompt_embeds` that `qedit inspect SAMPLE --export FILE` writes.

## ComfyUI

Copy `{file}` to `ComfyUI/models/loras/` and load it with "Load LoRA (Model Only)" at
strength 1. `qedit export {file} --format comfyui --to FILE` writes it under
ComfyUI's own names.

## Recipe

| | |
|---|---|
{recipe}
"""
# what a flavour that overrides the base's zero_cond_t is to be loaded with
_OVERRIDE = """,
    transformer=QwenImageTransformer2DModel.from_pretrained(
        "{repository}", subfolder="transformer", zero_cond_t=True, torch_dtype=torch.bfloat16
    ),"""
_RECIPE = (
    *("lora_rank", "lora_alpha", "lora_dropout", "lora_target_modules"),
    *("learning_rate", "lr_scheduler", "lr_warmup_steps", "optimizer", "train_batch_size"),
    *("gradient_accumulation_steps", "max_grad_norm", "mixed_precision", "loss_type"),
    *("caption_dropout_probability", "use_ema", "seed"),
)


def model_card(settings: Settings, flavour: Flavour, about: Mapping[str, Any], steps: int) -> str:
    """The card of the LoRA that `steps` steps of these settings made, in Markdown."""
    overrides = flavour.overrides_zero_cond_t
    return _CARD.format(
        repository=flavour.repository,
        title=settings.output_dir.absolute().name,
        flavour=flavour.name,
        pipeline=flavour.pipeline,
        samples=about["samples"],
        steps=steps,
        style=settings.lora_format,
        file=LORA_FILE,
        imports=", QwenImageTransformer2DModel" if overrides else "",
        override=_OVERRIDE.format(repository=flavour.repository) if overrides else "",
        recipe="\n".join(_recipe(settings, about)),
    )


def _recipe(settings: Settings, about: Mapping[str, Any]) -> Iterator[str]:
    yield f"| base | `{about['base']}` |"
    yield f"| digest of its transformer | `{about['base_digest']}` |"
    yield f"| zero_cond_t | {str(about['zero_cond_t']).lower()} |"
    scale = float(settings.lora_alpha) / settings.lora_rank
    yield f"| effective scale (alpha / rank) | {scale:g} |"
    for key, value in settings.model_dump(mode="json", include=set(_RECIPE)).items():
        yield f"| {key} | {', '.join(value) if isinstance(value, list) else value} |"

"""The model card beside the results of a run: what they are, how to load them, the recipe."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ....config.settings import Settings
from ...models.flavours import Flavour
from ...models.lora.lora_file import LORA_FILE, lora_scale
from ...run_output.previews import PREVIEWS, SHEET_FILE, step_folder
from ..state.run_record import decides

CARD_FILE = "README.md"
# by these words a card is told from a page that somebody wrote
MADE_BY = "qwen-image-edit, qedit]"

_KINDS = {
    "lora": "A LoRA for",
    "dora": "A DoRA for",
    "lokr": "A LoKr for",
    "full": "A fine-tune of",
}
_FIRST = (
    *("lora_type", "lora_rank", "lora_alpha", "lora_target_modules", "learning_rate"),
    *("lr_scheduler", "optimizer", "train_batch_size", "gradient_accumulation_steps"),
    *("mixed_precision", "base_model_precision", "caption_dropout_probability", "use_ema", "seed"),
)
_OF_ADAPTERS = ("lora_type", "lora_rank", "lora_alpha", "lora_target_modules")
_LOAD = {
    "lora": f'pipeline.load_lora_weights("{LORA_FILE}")',
    "dora": f'pipeline.load_lora_weights("{LORA_FILE}")',
    "lokr": f'pipeline.transformer.load_lora_adapter("{LORA_FILE}", prefix="transformer")',
}
_POSITIONS = """
With transformers 5.3 or newer, the pipelines of diffusers 0.42 give the text encoder 1-D
positions instead of the M-RoPE positions that the model, and this training, had
(https://github.com/huggingface/diffusers/issues/14194). Use an older transformers, or hand the
pipeline the `prompt_embeds` that `qedit inspect SAMPLE --export FILE` writes.
"""


def model_card(
    settings: Settings,
    flavour: Flavour,
    about: Mapping[str, Any],
    *,
    steps: int,
    caption: str,
    sheet: str | None = None,
) -> str:
    """Return the card of the results of `steps` steps, in Markdown.

    Args:
        about: what the files' metadata say of the run.
        caption: an instruction that it was trained on.
        sheet: where a sheet of previews lies, seen from the card.
    """
    kind = "full" if settings.model_type == "full" else settings.lora_type
    parts = [
        _head(kind, settings, flavour, about, steps=steps),
        _previews(sheet, settings),
        f"## diffusers\n\n```python\n{_python(kind, settings, flavour, caption)}```\n{_POSITIONS}",
        _comfyui(kind, flavour),
        _table("Files", _files(settings, kind)),
        _table("Recipe", _recipe(settings, about)),
    ]
    return "\n".join(part for part in parts if part)


def newest_sheet(output_dir: Path) -> str | None:
    """Return the sheet of the newest previews of trained weights, relative to `output_dir`."""
    steps = [path.parent.name for path in (output_dir / PREVIEWS).glob("step-*/*.now.safetensors")]
    if not steps:
        return None
    folder = step_folder(output_dir, int(max(steps).removeprefix("step-")))
    return (folder / SHEET_FILE).relative_to(output_dir).as_posix()


def _head(
    kind: str, settings: Settings, flavour: Flavour, about: Mapping[str, Any], *, steps: int
) -> str:
    named = "" if kind == "full" else f" Tensors are named for {settings.lora_format}."
    return f"""---
base_model: {flavour.repository}
library_name: diffusers
pipeline_tag: image-to-image
tags: [{kind}, {MADE_BY}
---

# {settings.output_dir.absolute().name}

{_KINDS[kind]} {flavour.repository} (flavour `{flavour.name}`), trained with qedit on \
{about["samples"]} pairs{f" ({about['pairs']})" if "pairs" in about else ""}
for {steps} step{"" if steps == 1 else "s"}.{named}
"""


def _previews(sheet: str | None, settings: Settings) -> str:
    if sheet is None:
        return ""
    what = "references, the base model's edit, the trained model's"
    average = ", its average's" if settings.use_ema else ""
    return f"""## Previews

![{what}{average}, the target]({sheet})

Each row: {what}{average}, and the target; seed {settings.validation_seed}, guidance \
{settings.validation_guidance:g}.
"""


def _python(kind: str, settings: Settings, flavour: Flavour, caption: str) -> str:
    """Return lines that make a picture as the previews are made, to be run beside the card."""
    own = kind == "full" or flavour.overrides_zero_cond_t
    imports = f"{flavour.pipeline}{', QwenImageTransformer2DModel' if own else ''}"
    arguments = [f'"{flavour.repository}"']
    if own:
        arguments += [f"transformer={_transformer(kind, flavour)}"]
    arguments += ["torch_dtype=torch.bfloat16"]
    several = not flavour.pipeline.endswith("EditPipeline")
    picture = 'load_image("reference.png")'
    return f"""import torch
from diffusers import {imports}
from diffusers.utils import load_image

pipeline = {flavour.pipeline}.from_pretrained(
    {_joined(arguments)}
).to("cuda")
{"" if kind == "full" else _LOAD[kind] + chr(10)}
edited = pipeline(
    image={f"[{picture}]" if several else picture},
    prompt={json.dumps(caption, ensure_ascii=False)},
    negative_prompt=" ",
    true_cfg_scale={float(settings.validation_guidance)},
    num_inference_steps={settings.validation_num_inference_steps},
).images[0]
edited.save("edited.png")
"""


def _transformer(kind: str, flavour: Flavour) -> str:
    if kind == "full":
        where = ['"transformer"']
    else:
        where = [f'"{flavour.repository}"', 'subfolder="transformer"', "zero_cond_t=True"]
    inner = ",\n        ".join((", ".join(where), "torch_dtype=torch.bfloat16"))
    return f"QwenImageTransformer2DModel.from_pretrained(\n        {inner},\n    )"


def _joined(arguments: Sequence[str]) -> str:
    line = ", ".join(arguments)
    return line if "\n" not in line else ",\n    ".join(arguments) + ","


def _comfyui(kind: str, flavour: Flavour) -> str:
    """Return where ComfyUI finds the result, what makes its form of it, and its size."""
    export = "`qedit export {} --format comfyui --to FILE.safetensors`"
    if kind == "full":
        lines = [
            f"{export.format('transformer')} writes one file of about",
            "41 GB (bfloat16). Copy it to `ComfyUI/models/diffusion_models/`.",
        ]
    elif kind == "dora":
        lines = [
            "ComfyUI divides by other norms. "
            + export.format(f"{LORA_FILE} --base CHECKPOINT")
            + " writes its form,",
            "which computes the same. Copy that file to `ComfyUI/models/loras/`.",
        ]
    else:
        lines = [
            f"Copy `{LORA_FILE}` to `ComfyUI/models/loras/` and load it with",
            '"Load LoRA (Model Only)" at strength 1. Or bake it into the transformer:',
            f"`qedit export {LORA_FILE} --merge --base CHECKPOINT --format comfyui --to FILE`",
            "writes one file of about 41 GB (bfloat16) for `ComfyUI/models/diffusion_models/`.",
        ]
    if flavour.zero_cond_t and kind != "full":
        lines += [
            "",
            "References were shown at timestep 0: put the node",
            '"FluxKontextMultiReferenceLatentMethod" with `index_timestep_zero` behind both',
            "conditionings.",
        ]
    lines += [
        "",
        "`qedit export --workflow FILE.json --config config.json` writes a graph that shows",
        "ComfyUI what training showed.",
    ]
    return "\n".join(("## ComfyUI", "", *lines, ""))


def _table(title: str, rows: Iterable[tuple[str, str]]) -> str:
    lines = (f"| {name} | {value} |" for name, value in rows)
    return "\n".join((f"## {title}\n", "| | |", "|---|---|", *lines, ""))


def _files(settings: Settings, kind: str) -> Iterator[tuple[str, str]]:
    result = "transformer/" if kind == "full" else LORA_FILE
    yield f"`{result}`", "the weights after the last step"
    if settings.use_ema:
        yield f"`ema/{result}`", "their average over the last steps"
    if settings.keep_best:
        yield f"`best/{result}`", "lowest loss on held-out pairs, where there are some"


def _recipe(settings: Settings, about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "base", f"`{about['base']}`"
    yield "digest of its transformer", f"`{about['base_digest']}`"
    yield "zero_cond_t", str(about["zero_cond_t"]).lower()
    adapter = settings.model_type == "lora"
    if adapter:
        scale = lora_scale(alpha=float(settings.lora_alpha), rank=settings.lora_rank)
        yield "effective scale (alpha / rank)", f"{scale:g}"
    values = settings.model_dump(mode="json")
    in_head = {"model_flavour", "model_family"}
    for key in (*_FIRST, *sorted(settings.model_fields_set - {*_FIRST, *in_head})):
        if decides(key) and (adapter or key not in _OF_ADAPTERS):
            yield key, _plain(values[key])


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)

"""Publish a checkpoint: LoRA files or a transformer, for other tools to load, and a card."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from ....cache.files.atomic import remove, write_bytes
from ....cache.files.decides_nothing import put_page
from ....config.settings import Settings
from ...models.lora.adapter_file import adapter_file
from ...models.lora.lora_file import LORA_FILE, lora_file
from ...models.weights.file_checksum import is_whole
from ...run_output.data_history import as_of, history_of
from ..plan.training_plan import Plan
from ..state.checkpoint import EMA_FILE, WEIGHTS_FILE, read_state, read_tensors, step_of
from ..state.initial_lora import read_initial_weights, subtract_initial
from .card import CARD_FILE, MADE_BY, model_card, newest_sheet
from .transformer_result import FOLDER, metadata_of, replace_trained, write_trained

EMA_FOLDER = "ema"
# The settings that the files' metadata hold.
_TRAINING = {
    *("learning_rate", "lr_scheduler", "lr_warmup_steps", "optimizer", "max_grad_norm"),
    *("train_batch_size", "gradient_accumulation_steps", "loss_type", "seed"),
    *("mixed_precision", "base_model_precision", "caption_dropout_probability"),
    *("lora_type", "lora_init_type", "lora_dropout", "use_ema", "ema_decay"),
}


class Publisher:
    """Writes the results of the run `plan`, and a card beside them.

    They are `pytorch_lora_weights.safetensors`, or with `model_type` full `transformer/`; and
    `ema/` with the average of the same.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan, self.settings = plan, plan.settings
        # the transformer whose weights are trained, if they are those of the model itself
        self._base = plan.checkpoint if plan.settings.model_type == "full" else None

    def publish(self, checkpoint: Path) -> None:
        """Make the files those of `checkpoint`, unless they are already."""
        step, digests = step_of(checkpoint), read_state(checkpoint)["files"]
        for source, place in ((WEIGHTS_FILE, ""), (EMA_FILE, EMA_FOLDER)):
            path = result_of(self.settings, place)
            if source not in digests or self._is_published(path, digests[source]):
                continue
            weights = read_tensors(checkpoint, source)
            about = {"steps": step, "checkpoint_digest": digests[source]}
            if self._base is None:
                self.write(path, weights, {**about, "ema": bool(place)})
            else:
                remove(path)  # the checkpoint has these weights: no room for both is needed
                write_trained(path, weights, base=self._base, about=_about(self._plan, about))
        self.write_card(step)

    def _is_published(self, path: Path, digest: str) -> bool:
        """Return whether the result at `path` is that of the checkpoint with this digest."""
        known = metadata_of(path)
        in_style = self._base is not None or known.get("lora_format") == self.settings.lora_format
        is_same = known.get("checkpoint_digest") == digest and in_style
        return is_same and (path.is_dir() or is_whole(path))

    def write_card(self, step: int) -> None:
        """Write the model card for `step`, with the newest previews, if it has changed."""
        output_dir = self.settings.output_dir
        card = model_card(
            self.settings,
            self._plan.checkpoint.flavour,
            _about(self._plan, {"steps": step}),
            steps=step,
            caption=self._plan.feed.order.samples[0].captions[0],
            sheet=newest_sheet(output_dir),
        )
        put_page(output_dir / CARD_FILE, card, mark=MADE_BY)

    def write(self, path: Path, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Write `weights` as a result to `path`; its metadata hold `about` and what the run says.

        What was there is there until the new one is whole.
        """
        facts = _about(self._plan, about)
        if self._base is not None:
            replace_trained(path, weights, base=self._base, about=facts)
        else:
            write_bytes(path, self._adapter(weights, facts))

    def _adapter(self, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
        settings, times = self.settings, 1
        start = read_initial_weights(settings.output_dir, run=self._plan.run)
        if start is not None:
            weights, times = subtract_initial(weights, start), 2
        kind = settings.lora_type
        return (lora_file if kind == "lora" else partial(adapter_file, kind))(
            weights,
            rank=times * settings.lora_rank,
            alpha=times * float(settings.lora_alpha),
            about=facts,
            style=settings.lora_format,
        )


def _about(plan: Plan, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the run says of a result, and `more`, which names its `steps`."""
    flavour, kind = plan.checkpoint.flavour, plan.settings.lora_type
    full = plan.settings.model_type == "full"
    architecture = flavour.repository.partition("/")[2]
    run = as_of(plan.run, more["steps"])
    counts = [
        (sum(facts["pairs"] for facts in entry["datasets"].values()), entry["from_step"])
        for entry in history_of(run)
    ]
    samples, by_step = counts[-1][0], ", ".join(f"{some} from step {step}" for some, step in counts)
    return {
        "qedit": version("qedit"),
        "base": plan.checkpoint.source,
        "base_digest": plan.run["model"]["transformer"],
        "flavour": flavour.name,
        "zero_cond_t": plan.checkpoint.zero_cond_t,
        "targets": plan.settings.lora_target_modules,
        "samples": samples,
        **({"pairs": by_step} if len(counts) > 1 else {}),
        "training": plan.settings.model_dump(mode="json", include=_TRAINING),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture if full else f"{architecture}/{kind}",
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": plan.settings.output_dir.absolute().name,
        "modelspec.description": (
            f"{'Fine-tune of' if full else 'Adapter for'} {flavour.repository} ({flavour.name}), "
            f"trained on {samples} pairs with qedit."
        ),
        "modelspec.tags": f"{flavour.name}, image editing",
        **more,
    }


def result_of(settings: Settings, place: str = "") -> Path:
    """Return the path of a result: a LoRA file, or the folder of a transformer.

    Args:
        place: the folder in `output_dir` with that of the average, or the best; "": the main one.
    """
    name = FOLDER if settings.model_type == "full" else LORA_FILE
    return settings.output_dir / place / name

"""Publish a checkpoint: LoRA files or a transformer, for other tools to load, and a card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from ....cache.files.atomic import write_bytes, write_text
from ....config.settings import Settings
from ...models.lora.adapter_file import adapter_file
from ...models.lora.lora_file import LORA_FILE, Style, lora_file
from ...models.weights.tensor_file import metadata_in
from ..plan.training_plan import Plan
from ..state.checkpoint import EMA_FILE, WEIGHTS_FILE, read_state, read_tensors, step_of
from .card import CARD_FILE, MADE_BY, model_card, newest_sheet
from .initial_lora_file import read_initial_weights, subtract_initial
from .transformer_result import FOLDER, keep_transformer, publish_transformer

EMA_FOLDER = "ema"
# The settings that the files' metadata hold.
_TRAINING = {
    *("learning_rate", "lr_scheduler", "lr_warmup_steps", "optimizer", "max_grad_norm"),
    *("train_batch_size", "gradient_accumulation_steps", "loss_type", "seed"),
    *("mixed_precision", "base_model_precision", "caption_dropout_probability"),
    *("lora_type", "lora_init_type", "lora_dropout", "use_ema", "ema_decay"),
}


@dataclass(frozen=True)
class Publisher:
    """Writes `pytorch_lora_weights.safetensors` (or `transformer/`), `ema/`, and a card beside it.

    Attributes:
        style: whose names the files' tensors have.
        about: what the files' metadata say of the run.
        card: `model_card` of so many `steps`, with a `sheet` of previews or None.
        kind: `lora`, `dora` or `lokr`.
        start: what the LoRA began as, where that was taken out of the base; else None.
        base: with `model_type` full, the transformer whose weights are trained.
    """

    output_dir: Path
    rank: int
    alpha: float
    style: Style
    about: Mapping[str, Any]
    card: Callable[..., str]
    kind: str = "lora"
    start: Callable[[], Mapping[str, Tensor] | None] = lambda: None
    base: Path | None = None

    def publish(self, checkpoint: Path) -> None:
        """Make the files those of `checkpoint`, unless they are already."""
        step, digests = step_of(checkpoint), read_state(checkpoint)["files"]
        if self.base is not None:
            publish_transformer(self.output_dir, checkpoint, base=self.base, about=self.about)
        else:
            self._publish_adapter(checkpoint, step=step, digests=digests)
        self.write_card(step)

    def _publish_adapter(self, checkpoint: Path, *, step: int, digests: Mapping[str, str]) -> None:
        files = {LORA_FILE: WEIGHTS_FILE}
        if EMA_FILE in digests:
            files[f"{EMA_FOLDER}/{LORA_FILE}"] = EMA_FILE
        for name, source in files.items():
            path = self.output_dir / name
            if published(path) != (digests[source], self.style):
                about = {
                    "steps": step,
                    "ema": source == EMA_FILE,
                    "checkpoint_digest": digests[source],
                }
                self.write(path, read_tensors(checkpoint, source), about)

    def write_card(self, step: int) -> None:
        """Write the model card for `step`, with the newest previews, if it has changed."""
        path, sheet = self.output_dir / CARD_FILE, newest_sheet(self.output_dir)
        card = self.card(steps=step, sheet=sheet)
        before = path.read_text(encoding="utf-8") if path.is_file() else None
        # a page that somebody else wrote there stays
        if before is None or (before != card and MADE_BY in before):
            write_text(path, card)

    @property
    def result(self) -> str:
        """Return the name of a result in its folder."""
        return LORA_FILE if self.base is None else FOLDER

    def write(self, path: Path, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Write `weights` as a result to `path`; its metadata hold `about` and what the run says.

        What was there is there until the new one is whole.
        """
        facts = {**self.about, **about}
        if self.base is not None:
            keep_transformer(path, weights, base=self.base, about=facts)
        else:
            write_bytes(path, self._adapter(weights, facts))

    def _adapter(self, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
        times = 1
        if (start := self.start()) is not None:
            weights, times = subtract_initial(weights, start), 2
        rank, alpha = times * self.rank, times * self.alpha
        write = lora_file if self.kind == "lora" else partial(adapter_file, self.kind)
        return write(weights, rank=rank, alpha=alpha, about=facts, style=self.style)


def publisher_of(plan: Plan) -> Publisher:
    """Return what publishes the checkpoints of the run `plan`."""
    settings, about = plan.settings, _about(plan)
    return Publisher(
        output_dir=settings.output_dir,
        rank=settings.lora_rank,
        alpha=float(settings.lora_alpha),
        style=settings.lora_format,
        about=about,
        card=partial(
            model_card,
            settings,
            plan.checkpoint.flavour,
            about,
            caption=plan.feed.order.samples[0].captions[0],
        ),
        kind=settings.lora_type,
        start=partial(read_initial_weights, settings.output_dir, run=plan.run),
        base=plan.checkpoint.transformer if settings.model_type == "full" else None,
    )


def _about(plan: Plan) -> dict[str, Any]:
    flavour, kind = plan.checkpoint.flavour, plan.settings.lora_type
    full = plan.settings.model_type == "full"
    architecture = flavour.repository.partition("/")[2]
    samples = sum(dataset["pairs"] for dataset in plan.run["datasets"].values())
    return {
        "qedit": version("qedit"),
        "base": plan.checkpoint.source,
        "base_digest": plan.run["model"]["transformer"],
        "flavour": flavour.name,
        "zero_cond_t": plan.checkpoint.zero_cond_t,
        "targets": plan.settings.lora_target_modules,
        "samples": samples,
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
    }


def result_of(settings: Settings) -> Path:
    """Return the path of a run's main result: a LoRA file, or the folder of a transformer."""
    return settings.output_dir / (FOLDER if settings.model_type == "full" else LORA_FILE)


def published(path: Path) -> tuple[str, str] | None:
    """Return digest of the checkpoint and style of the LoRA at `path`; None if unreadable."""
    metadata = metadata_in(path)
    known = metadata.get("checkpoint_digest"), metadata.get("lora_format")
    return (known[0], known[1]) if known[0] and known[1] else None

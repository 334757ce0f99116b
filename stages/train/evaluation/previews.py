"""previews: the model's own edits of a few samples, as latents, while it is trained.

`preview` makes pictures of them in a process of its own: no VAE in here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ....cache.files.fingerprint import fingerprint
from ....config.configuration import Configuration
from ....config.latent_geometry import latent_size
from ...models.device import is_out_of_memory
from ...models.transformer.denoise import denoise, load_scheduler
from ...run_output.data_history import as_of
from ...run_output.previews import (
    LATENTS,
    Part,
    stem_of,
    step_folder,
    store,
    store_failure,
    was_tried,
)
from ...samples.sample import Picture, Sample
from ...stage import Progress
from ...stores.previewed import preview_samples, preview_size
from ...stores.sample_rows import naming_damaged, read_embeds, read_latents
from ..objective.eval_mode import eval_mode
from ..plan.training_plan import Plan
from ..trainer import Trainer
from .preview_process import Decoding

VERSION = 1  # raised whenever the same weights and samples give other previews


@dataclass(frozen=True)
class Preview:
    """One picture to denoise, and where its latents go."""

    sample: Sample
    part: Part
    path: Path
    recipe: str
    about: dict[str, Any]


class Previews:
    """Makes the previews that a run wants and that are not there yet.

    A preview changes nothing of the training: weights, modes and generators are afterwards
    what they were. One that was made, or that failed for want of memory, is not made again.
    """

    def __init__(
        self,
        plan: Plan,
        samples: Sequence[Sample],
        *,
        progress: Progress,
        decoding: Decoding | None = None,
    ) -> None:
        self._plan, self._samples = plan, samples
        self._progress, self._decoding = progress, decoding
        self._settled: set[Path] = set()

    @classmethod
    def open(
        cls, configuration: Configuration, plan: Plan, progress: Progress, *, decodes: bool = True
    ) -> Previews | None:
        """Return the previews of the run `plan`; None where `validation_disable` is set.

        Args:
            decodes: whether pictures are made of them in the background.

        Raises:
            NotComplete: the pairs or rows of their samples are missing.
        """
        settings = plan.settings
        if settings.validation_disable:
            return None
        samples, held_out = preview_samples(plan.opened)
        negative = (settings.validation_negative_prompt,)
        plan.feed.stores.missing(samples, negative).refuse(len(samples), then="qedit train")
        if not held_out:
            progress.say(
                f"Previews show the first {len(samples)} samples of the training set: "
                "no `eval_dataset_id` is given."
            )
        decoding = Decoding(configuration, progress) if decodes else None
        return cls(plan, samples, progress=progress, decoding=decoding)

    def due(self, step: int) -> bool:
        """Return whether any preview of `step` (or of the base model) is still to be made."""
        return bool(self._missing(step))

    def make(
        self, trainer: Trainer, step: int, *, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        """Denoise what is due at `step`, and have pictures made of it.

        Args:
            stopping: asked before each preview; what is left then is made by the next start.
        """
        began, missing, failed = time.monotonic(), self._missing(step), 0
        with self._progress.bar(len(missing), "previews", unit="picture") as advance:
            for part in dict.fromkeys(preview.part for preview in missing):
                with weights_of(trainer, part), eval_mode(trainer.transformer):
                    for preview in (preview for preview in missing if preview.part == part):
                        if stopping():
                            return
                        failed += not self._make(trainer, preview)
                        advance(1)
        if made := len(missing) - failed:
            seconds = time.monotonic() - began
            self._progress.say(f"Previews of step {step}: {made} made in {seconds:.1f} s.")
        if self._decoding:
            self._decoding.start(beside=trainer.objective.device, trained=step > 0)

    def leave(self) -> None:
        """End the process that makes pictures; the next start makes those that are missing."""
        if self._decoding:
            self._decoding.end()

    def _missing(self, step: int) -> list[Preview]:
        """Return what is wanted at `step` and neither there nor known to fail."""
        settings = self._plan.settings
        parts: list[tuple[int, Part]] = []
        if step == 0 or settings.model_type == "lora":
            parts.append((0, "base"))  # a full model is its own base at the start alone
        if step and (step % settings.validation_step_interval == 0 or step == self._plan.steps):
            parts.append((step, "now"))
            if settings.use_ema:
                parts.append((step, "ema"))
        missing = []
        for (at, part), (place, sample) in product(parts, enumerate(self._samples)):
            name = f"{stem_of(place, sample.name)}.{part}{LATENTS}"
            path = step_folder(settings.output_dir, at) / name
            if path in self._settled:
                continue
            preview = self._preview(sample, part, at, path)
            if was_tried(path, recipe=preview.recipe):
                self._settled.add(path)
            else:
                missing.append(preview)
        return missing

    def _preview(self, sample: Sample, part: Part, step: int, path: Path) -> Preview:
        settings = self._plan.settings
        about = {
            "sample": sample.name,
            "dataset": sample.dataset,
            "caption": sample.captions[0],
            "negative_prompt": settings.validation_negative_prompt,
            "flavour": self._plan.checkpoint.flavour.name,
            "size": preview_size(sample, settings.validation_resolution),
            "seed": settings.validation_seed,
            "guidance": float(settings.validation_guidance),
            "steps": settings.validation_num_inference_steps,
            "target": _facts(sample.target),
            "references": [_facts(picture) for picture in sample.references],
        }
        run = as_of(self._plan.run, step)
        run.pop("tables", None)  # where they lie decides nothing
        model = run["model"] if part == "base" else run
        keys = [picture.latent_key for picture in sample.references]
        decided = {**about, "prefix": sample.prefix_key, "references": keys, "target": None}
        recipe = {"version": VERSION, "model": model, "part": part, "step": step, **decided}
        recipe["precision"] = settings.mixed_precision
        if sample.mask:  # says where drift is looked for; decides nothing of the preview
            about["mask"] = _facts(sample.mask)
        return Preview(sample, part, path, fingerprint(recipe), about)

    def _make(self, trainer: Trainer, preview: Preview) -> bool:
        """Denoise and store one; return False, after a warning, where memory does not suffice."""
        self._settled.add(preview.path)
        try:
            latents = edit_of(preview.sample, trainer, self._plan)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            why = str(error).splitlines()[0] if str(error) else "out of memory"
        else:
            store(preview.path, latents, recipe=preview.recipe, about=preview.about)
            return True
        # what the attempt held is given back before training goes on
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._progress.warn(
            f"No memory for the preview of {preview.sample.name} ({why}); training goes on. "
            "A smaller `validation_resolution` needs less."
        )
        store_failure(preview.path, recipe=preview.recipe, why=why)
        return False


def edit_of(sample: Sample, trainer: Trainer, plan: Plan) -> Float[Tensor, "1 channel _h _w"]:
    """Return the model's edit of `sample` from the settings' seed, as the pipelines make it."""
    settings, stores = plan.settings, plan.feed.stores
    device, dtype = trainer.objective.device, trainer.objective.dtype
    width, height = latent_size(preview_size(sample, settings.validation_resolution))
    with naming_damaged([sample]):
        references = [read_latents(stores, [picture]) for picture in sample.references]
        embeds, null_embeds = (
            read_embeds(stores, [sample], [caption])[0]
            for caption in (sample.captions[0], settings.validation_negative_prompt)
        )
    # drawn on the CPU in the dtype of the forward: what a pipeline draws from a CPU generator
    shape = (1, references[0].shape[1], height, width)
    generator = torch.Generator().manual_seed(settings.validation_seed)
    noise = torch.randn(shape, generator=generator, dtype=dtype)
    return denoise(
        trainer.transformer,
        load_scheduler(plan.checkpoint.scheduler),
        noise.to(device),
        [reference.to(device, dtype) for reference in references],
        embeds.to(device, dtype),
        null_embeds.to(device, dtype),
        steps=settings.validation_num_inference_steps,
        guidance=float(settings.validation_guidance),
    )


def weights_of(trainer: Trainer, part: Part) -> AbstractContextManager[None]:
    """Return a block in which the model is the base, the average, or what it is now."""
    if part == "base":
        return _without_adapters(trainer.transformer)
    return trainer.averaged() if part == "ema" else nullcontext()


@contextmanager
def _without_adapters(transformer: nn.Module) -> Iterator[None]:
    model: Any = transformer
    if not getattr(transformer, "_hf_peft_config_loaded", False):
        yield  # a full model before its first step is the base itself
        return
    asked = {name: weight.requires_grad for name, weight in transformer.named_parameters()}
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()
        for name, weight in transformer.named_parameters():
            weight.requires_grad_(asked[name])


def _facts(picture: Picture) -> dict[str, Any]:
    return {"dataset": picture.dataset, "path": picture.path, "digest": picture.digest}

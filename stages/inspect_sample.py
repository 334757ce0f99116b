"""inspect: one sample exactly as training sees it, or as previews show it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

import safetensors.torch
from torch import Tensor

from ..cache.errors import WrongUse
from ..cache.files.atomic import write_bytes
from ..config.configuration import Configuration
from ..config.latent_geometry import PATCH_LATENTS
from .models.checkpoint.checkpoint import ENCODERS
from .samples.sample import NULL_CAPTION, Picture, Sample
from .stores.previewed import as_at_inference, preview_samples
from .stores.run import Run
from .stores.sample_rows import read_embeds, read_latents


@dataclass(frozen=True)
class Inspected:
    """A sample's tensors (bfloat16, as stored) and facts (text), by name.

    target_latents and reference_latents.0..n are [channel, height, width], normalised;
    prompt_embeds and null_embeds are [token, channel], image prefix and text tail joined.
    `note` says what else there is to know of them; "" if nothing.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, str]
    note: str = ""

    def export(self, path: Path) -> None:
        """Write tensors and facts as one safetensors file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, safetensors.torch.save(self.tensors, metadata=self.facts))


def inspect_sample(
    configuration: Configuration, name: str, *, caption: int = 0, as_previewed: bool = False
) -> Inspected:
    """Read sample `name` with its caption number `caption` from the caches.

    Args:
        as_previewed: with whole references and the negative prompt of previews, which can
            be had of the samples that previews show; else as training sees it.

    Raises:
        WrongUse: there is no such sample or no such caption.
        NotComplete: its rows are not cached yet.
    """
    run = Run(configuration, spared=ENCODERS)
    if as_previewed:
        shown, _ = preview_samples(run)
        sample = find_sample(shown, name, among=f"the {len(shown)} that previews show")
        negative = configuration.settings.validation_negative_prompt
    else:
        sample = find_sample(list(run.samples()), name)
        negative = NULL_CAPTION
    if not 0 <= caption < len(sample.captions):
        raise WrongUse(
            f"Sample {sample.name} has {len(sample.captions)} captions, there is no number "
            f"{caption}.",
            f"Use --caption 0 to {len(sample.captions) - 1}.",
        )
    stores = run.stores
    again = "qedit inspect " + shlex.quote(name) + (" --as-previewed" if as_previewed else "")
    stores.missing([sample], [negative]).refuse(1, then=again)

    pictures = {"target_latents": sample.target}
    for number, reference in enumerate(sample.references):
        pictures[f"reference_latents.{number}"] = reference
    tensors = {name: read_latents(stores, [picture])[0] for name, picture in pictures.items()}
    shapes = [
        [1, rows.shape[1] // PATCH_LATENTS, rows.shape[2] // PATCH_LATENTS]
        for rows in tensors.values()
    ]
    for kind, text in (("prompt_embeds", sample.captions[caption]), ("null_embeds", negative)):
        tensors[kind] = read_embeds(stores, [sample], [text])[0][0]
    return Inspected(
        tensors,
        {
            "sample": sample.name,
            "caption": sample.captions[caption],
            "flavour": run.flavour.name,
            "img_shapes": json.dumps(shapes),
            "geometry": json.dumps(
                {
                    "target": geometry_of(sample.target),
                    "references": [geometry_of(picture) for picture in sample.references],
                },
                ensure_ascii=False,
            ),
        },
        note="" if as_previewed else _note(run, sample),
    )


def sample_names(configuration: Configuration) -> list[str]:
    """Return the names of the samples, dataset by dataset.

    Raises:
        NotComplete: the pairs of a dataset are not there.
    """
    return [sample.name for sample in Run(configuration, spared=ENCODERS).samples()]


def _note(run: Run, sample: Sample) -> str:
    (main,) = (main for main in run.main_datasets if main.id == sample.dataset)
    if as_at_inference(sample, run.configuration, main, flavour=run.flavour) is sample:
        return ""
    return "Its references are cropped for training; previews show them whole (`--as-previewed`)."


def geometry_of(picture: Picture) -> dict[str, object]:
    """Return path, source size, box and sizes of `picture`, for people and programs."""
    facts: dict[str, object] = {
        "dataset": picture.dataset,
        "path": picture.path,
        "source_size": [picture.width, picture.height],
        "box": list(picture.box),
        "size": list(picture.size),
    }
    if picture.vl_size is not None:
        facts["vl_size"] = list(picture.vl_size)
    return facts


def find_sample(samples: Iterable[Sample], name: str, *, among: str = "") -> Sample:
    """Return the sample called `name`: its target's path with or without extension, where two
    datasets hold the same path with "<dataset id>:" before it.

    Args:
        among: what `samples` are, in words; "": all of them.

    Raises:
        WrongUse: none or several samples are called so.
    """
    samples = list(samples)
    exact = [sample for sample in samples if name in (sample.name, _qualified(sample))]
    if len(exact) == 1:
        return exact[0]
    bare = exact or [
        sample
        for sample in samples
        if name in (_without_extension(sample.name), _without_extension(_qualified(sample)))
        or name in (sample.target.path, _without_extension(sample.target.path))
    ]
    if len(bare) == 1:
        return bare[0]
    if bare:
        names = ", ".join(_qualified(sample) for sample in bare[:4])
        raise WrongUse(f"Several samples are called '{name}': {names}.", "Use one of these names.")
    near = get_close_matches(name, [sample.name for sample in samples], n=3, cutoff=0.4)
    raise WrongUse(
        f"There is no sample called '{name}' among {among or len(samples)}.",
        f"Near it: {', '.join(near)}." if near else "`qedit inspect` without a name lists them.",
    )


def _qualified(sample: Sample) -> str:
    prefix = f"{sample.dataset}:"
    return sample.name if sample.name.startswith(prefix) else prefix + sample.name


def _without_extension(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))

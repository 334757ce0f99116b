"""export: the graph for ComfyUI's editor that shows the model what training showed it.

ComfyUI's own edit nodes size and encode references otherwise than the pipelines that the model
was trained with, so here each reference is sized and encoded by nodes of its own. Names of
nodes, slots and widgets are those of the editor's files (`nodes` and `links`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...cache.errors import NotComplete
from ...config.latent_geometry import image_tokens
from ..models.checkpoint.config_values import config_object
from ..models.flavours import Flavour
from ..models.lora.lora_file import LORA_FILE
from ..models.timesteps import shift_exponent
from ..samples.sample import Sample
from ..stores.previewed import preview_samples, preview_size
from ..stores.run import Run

# The files that Comfy-Org publishes in bfloat16, by the repository of the flavour.
_MODELS = {
    "Qwen/Qwen-Image-Edit": "qwen_image_edit_bf16.safetensors",
    "Qwen/Qwen-Image-Edit-2509": "qwen_image_edit_2509_bf16.safetensors",
    "Qwen/Qwen-Image-Edit-2511": "qwen_image_edit_2511_bf16.safetensors",
}
_TEXT_ENCODER, _VAE = "qwen_2.5_vl_7b.safetensors", "qwen_image_vae.safetensors"
_METHOD = "FluxKontextMultiReferenceLatentMethod"
_COLUMN, _ROW = 380, 50  # pixels of the editor's canvas
_NODE = (340, 150)

Slot = tuple[int, int, str]
"""An output of a node: the node's number, the output's place in it, and its type."""


def model_of(run: Run) -> str:
    """Return the file name that a graph gives to the result of `run` unless told another."""
    is_full = run.settings.model_type == "full"
    return f"{run.output_dir.name}.safetensors" if is_full else LORA_FILE


def workflow(run: Run, model: str) -> dict[str, Any]:
    """Return the graph in the form that ComfyUI's editor opens, for the run's first preview.

    Args:
        model: the file name of the run's LoRA in ComfyUI/models/loras, or of a full run's
            transformer in ComfyUI/models/diffusion_models.

    Raises:
        NotComplete: there are no pairs yet.
    """
    samples, _ = preview_samples(run)
    if not samples:
        raise NotComplete("The run has no sample to show.", "Type `qedit pair`.")
    return _drawn(run, samples[0], model).file(_note(run, model))


@dataclass
class _Graph:
    """Nodes and links of an editor's graph, in the order in which they are added."""

    nodes: list[dict[str, Any]] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)

    def add(
        self,
        kind: str,
        at: tuple[int, int],
        widgets: Sequence[Any] = (),
        *,
        gives: Sequence[str] = (),
        takes: Mapping[str, Slot] = MappingProxyType({}),
    ) -> Slot:
        """Add a node and return its first output.

        Args:
            at: its column and row.
            gives: the types of its outputs.
            takes: the outputs that its inputs are linked with, by the inputs' names.
        """
        number, inputs = len(self.nodes) + 1, list[dict[str, Any]]()
        for name, (node, place, slot) in takes.items():
            link = len(self.links) + 1
            self.links.append([link, node, place, number, len(inputs), slot])
            self.nodes[node - 1]["outputs"][place]["links"].append(link)
            inputs.append({"name": name, "type": slot, "link": link})
        self.nodes.append(
            {
                "id": number,
                "type": kind,
                "pos": [at[0] * _COLUMN, at[1] * _ROW],
                "size": list(_NODE),
                "flags": {},
                "order": number - 1,
                "mode": 0,
                "inputs": inputs,
                "outputs": [{"name": slot, "type": slot, "links": []} for slot in gives],
                "properties": {"Node name for S&R": kind},
                "widgets_values": list(widgets),
            }
        )
        return number, 0, gives[0] if gives else ""

    def file(self, note: str) -> dict[str, Any]:
        """Return the whole file, with `note` beside the graph."""
        self.add("MarkdownNote", (-1, 0), [note])
        return {
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": [],
            "config": {},
            "extra": {},
            "version": 0.4,
        }


def _drawn(run: Run, sample: Sample, model: str) -> _Graph:
    settings, graph = run.settings, _Graph()
    width, height = preview_size(sample, settings.validation_resolution)
    sampled, clip, vae = _loaded(graph, run, model, shift=_shift(run, width, height))
    references = []
    for row, reference in enumerate(sample.references):
        name = Path(reference.path).name
        picture = graph.add("LoadImage", (1, 4 * row), [name, "image"], gives=("IMAGE", "MASK"))
        sizes = ["lanczos", *reference.size, "disabled"]
        scaled = graph.add(
            "ImageScale", (2, 4 * row), sizes, gives=("IMAGE",), takes={"image": picture}
        )
        takes = {"pixels": scaled, "vae": vae}
        latent = graph.add("VAEEncode", (3, 4 * row), gives=("LATENT",), takes=takes)
        references.append((picture, latent))
    prompts = {"positive": sample.captions[0], "negative": settings.validation_negative_prompt}
    takes = {
        name: _conditioning(graph, run.flavour, text, row, clip=clip, references=references)
        for row, (name, text) in zip((12, 20), prompts.items(), strict=True)
    }
    takes["model"] = sampled
    takes["latent_image"] = graph.add(
        "EmptySD3LatentImage", (2, 16), [width, height, 1], gives=("LATENT",)
    )
    guidance, steps = float(settings.validation_guidance), settings.validation_num_inference_steps
    widgets = [settings.validation_seed, "fixed", steps, guidance, "euler", "simple", 1.0]
    latent = graph.add("KSampler", (6, 12), widgets, gives=("LATENT",), takes=takes)
    takes = {"samples": latent, "vae": vae}
    edited = graph.add("VAEDecode", (7, 12), gives=("IMAGE",), takes=takes)
    graph.add("SaveImage", (8, 12), [run.output_dir.name], takes={"images": edited})
    return graph


def _loaded(graph: _Graph, run: Run, model: str, *, shift: float) -> tuple[Slot, Slot, Slot]:
    """Add the loaders; return the model with its schedule, the text encoder and the VAE."""
    is_full = run.settings.model_type == "full"
    base = model if is_full else _MODELS[run.flavour.repository]
    loaded = graph.add("UNETLoader", (0, 0), [base, "default"], gives=("MODEL",))
    if not is_full:
        loaded = graph.add(
            *("LoraLoaderModelOnly", (0, 4), [model, 1.0]),
            gives=("MODEL",),
            takes={"model": loaded},
        )
    sampled = graph.add(
        "ModelSamplingAuraFlow", (0, 8), [shift], gives=("MODEL",), takes={"model": loaded}
    )
    encoder = [_TEXT_ENCODER, "qwen_image", "default"]
    clip = graph.add("CLIPLoader", (0, 12), encoder, gives=("CLIP",))
    return sampled, clip, graph.add("VAELoader", (0, 16), [_VAE], gives=("VAE",))


def _conditioning(
    graph: _Graph,
    flavour: Flavour,
    text: str,
    row: int,
    *,
    clip: Slot,
    references: Sequence[tuple[Slot, Slot]],
) -> Slot:
    """Add the nodes from a text and the references to what the model is conditioned on.

    The text node gets no VAE: with one it would add latents of a size of its own.

    Args:
        references: the picture and the latents of each.
    """
    kind, name = "TextEncodeQwenImageEdit", "image"
    takes = {"clip": clip}
    for number, (picture, _) in enumerate(references, start=1):
        takes[f"{name}{number}" if flavour.numbered_pictures else name] = picture
    if flavour.numbered_pictures:
        kind += "Plus"
    gives = ("CONDITIONING",)
    found = graph.add(kind, (4, row), [text], gives=gives, takes=takes)
    for column, (_, latent) in enumerate(references):
        takes = {"conditioning": found, "latent": latent}
        found = graph.add("ReferenceLatent", (5, row + column), gives=gives, takes=takes)
    if flavour.zero_cond_t:
        method = ["index_timestep_zero"]
        at, takes = (5, row + 4), {"conditioning": found}
        found = graph.add(_METHOD, at, method, gives=gives, takes=takes)
    return found


def _shift(run: Run, width: int, height: int) -> float:
    """Return the factor exp(mu) by which the checkpoint's scheduler shifts sigmas at this size."""
    scheduler = config_object(run.checkpoint.scheduler / "scheduler_config.json")
    if not scheduler.get("use_dynamic_shifting", True):
        return float(scheduler.get("shift", 1.0))
    return round(exp(shift_exponent(scheduler, image_tokens((width, height)))), 4)


def _note(run: Run, model: str) -> str:
    folder = "diffusion_models" if run.settings.model_type == "full" else "loras"
    return (
        f"Made by `qedit export --workflow` for the run **{run.output_dir.name}** "
        f"({run.flavour.name}).\n\n"
        f"- `{model}` belongs in `ComfyUI/models/{folder}/`.\n"
        "- Sizes are those of the first preview. Another picture of another ratio needs its own: "
        "write them into ImageScale and EmptySD3LatentImage.\n"
        "- Keep the VAE input of the text nodes empty: with it, references get another size.\n"
        "- ComfyUI newer than 0.18.1 is needed; older ones read pictures in another order."
    )

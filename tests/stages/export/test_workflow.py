"""The graph for ComfyUI's editor: whole, and with the run's own sizes, shift and prompts."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_run import make_run, qedit, said

from qedit.config.loading import load
from qedit.stages.stores.previewed import preview_samples, preview_size
from qedit.stages.stores.run import Run

# Inputs and outputs of ComfyUI's nodes, by type: names and types of what may be linked, types of
# what comes out, and how many widgets there are.
NODES: dict[str, tuple[dict[str, str], list[str], int]] = {
    "UNETLoader": ({}, ["MODEL"], 2),
    "CLIPLoader": ({}, ["CLIP"], 3),
    "VAELoader": ({}, ["VAE"], 1),
    "LoraLoaderModelOnly": ({"model": "MODEL"}, ["MODEL"], 2),
    "ModelSamplingAuraFlow": ({"model": "MODEL"}, ["MODEL"], 1),
    "LoadImage": ({}, ["IMAGE", "MASK"], 2),
    "ImageScale": ({"image": "IMAGE"}, ["IMAGE"], 4),
    "VAEEncode": ({"pixels": "IMAGE", "vae": "VAE"}, ["LATENT"], 0),
    "TextEncodeQwenImageEdit": ({"clip": "CLIP", "image": "IMAGE"}, ["CONDITIONING"], 1),
    "TextEncodeQwenImageEditPlus": (
        {"clip": "CLIP", "image1": "IMAGE", "image2": "IMAGE", "image3": "IMAGE"},
        ["CONDITIONING"],
        1,
    ),
    "ReferenceLatent": (
        {"conditioning": "CONDITIONING", "latent": "LATENT"},
        ["CONDITIONING"],
        0,
    ),
    "FluxKontextMultiReferenceLatentMethod": (
        {"conditioning": "CONDITIONING"},
        ["CONDITIONING"],
        1,
    ),
    "EmptySD3LatentImage": ({}, ["LATENT"], 3),
    "KSampler": (
        {
            "model": "MODEL",
            "positive": "CONDITIONING",
            "negative": "CONDITIONING",
            "latent_image": "LATENT",
        },
        ["LATENT"],
        7,
    ),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, ["IMAGE"], 0),
    "SaveImage": ({"images": "IMAGE"}, [], 1),
    "MarkdownNote": ({}, [], 1),
}
METHOD = "FluxKontextMultiReferenceLatentMethod"


def checked(graph: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The nodes by number, after a look at every link from both of its ends."""
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert len(nodes) == len(graph["nodes"]) == graph["last_node_id"]
    assert [link[0] for link in graph["links"]] == list(range(1, graph["last_link_id"] + 1))
    for number, source, place, target, slot, kind in graph["links"]:
        assert number in nodes[source]["outputs"][place]["links"]
        assert nodes[source]["outputs"][place]["type"] == kind
        assert nodes[target]["inputs"][slot]["link"] == number
        assert nodes[source]["order"] < nodes[target]["order"]
    for node in nodes.values():
        takes, gives, widgets = NODES[node["type"]]
        assert all(takes[taken["name"]] == taken["type"] for taken in node["inputs"])
        assert [given["type"] for given in node["outputs"]] == gives
        assert len(node["widgets_values"]) == widgets
        required = set(takes) - {"image1", "image2", "image3", "image"}
        assert required <= {taken["name"] for taken in node["inputs"]}
    return nodes


def before(graph: dict[str, Any], node: dict[str, Any], name: str) -> dict[str, Any]:
    """The node that the input `name` of `node` is linked with."""
    (link,) = (taken["link"] for taken in node["inputs"] if taken["name"] == name)
    source = graph["links"][link - 1][1]
    return next(other for other in graph["nodes"] if other["id"] == source)


def only(graph: dict[str, Any], kind: str) -> dict[str, Any]:
    (node,) = (node for node in graph["nodes"] if node["type"] == kind)
    return node


@pytest.mark.parametrize(
    ("flavour", "references"),
    [("edit-v1", 1), ("edit-v2", 1), ("edit-v2", 3), ("edit-v2+", 2), ("edit-v3", 2)],
)
def test_the_graph_shows_what_training_showed(
    flavour: str, references: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {
        "validation_resolution": "64x64",
        "validation_negative_prompt": "blurry",
        "validation_guidance": 3.5,
        "validation_num_inference_steps": 12,
        "validation_seed": 7,
    }
    make_run(tmp_path, flavour=flavour, references=references, **settings)
    qedit("pair", "--config", "config.json", "--data", "data.json")
    words = ("--config", "config.json", "--data", "data.json", "--json")
    result = said(qedit("export", "--workflow", "graph.json", *words))
    assert result["where"] == "graph.json"
    graph = json.loads(Path("graph.json").read_text())
    nodes = checked(graph)
    run = Run(load(Path("config.json"), Path("data.json")))
    sample = preview_samples(run)[0][0]
    width, height = preview_size(sample, run.settings.validation_resolution)

    assert only(graph, "EmptySD3LatentImage")["widgets_values"] == [width, height, 1]
    sampler = only(graph, "KSampler")
    assert sampler["widgets_values"] == [7, "fixed", 12, 3.5, "euler", "simple", 1.0]
    shift = before(graph, sampler, "model")
    assert shift["type"] == "ModelSamplingAuraFlow"
    lora = before(graph, shift, "model")
    assert lora["widgets_values"] == ["pytorch_lora_weights.safetensors", 1.0]
    assert before(graph, lora, "model")["type"] == "UNETLoader"

    for name, text in (("positive", sample.captions[0]), ("negative", "blurry")):
        node = before(graph, sampler, name)
        if flavour in ("edit-v2+", "edit-v3"):
            assert (node["type"], node["widgets_values"]) == (METHOD, ["index_timestep_zero"])
            node = before(graph, node, "conditioning")
        latents = []
        while node["type"] == "ReferenceLatent":
            latents.insert(0, before(graph, node, "latent"))
            node = before(graph, node, "conditioning")
        assert len(latents) == references
        for latent, reference in zip(latents, sample.references, strict=True):
            scaled = before(graph, latent, "pixels")
            assert scaled["widgets_values"] == ["lanczos", *reference.size, "disabled"]
            picture = before(graph, scaled, "image")
            assert picture["widgets_values"][0] == Path(reference.path).name
        single = flavour == "edit-v1"
        assert node["type"] == "TextEncodeQwenImageEdit" + ("" if single else "Plus")
        assert node["widgets_values"] == [text]
        taken = [link["name"] for link in node["inputs"]]
        numbered = [f"image{number}" for number in range(1, references + 1)]
        assert taken == ["clip", *(["image"] if single else numbered)], "and no VAE"
    assert (METHOD in {node["type"] for node in nodes.values()}) is (
        flavour in ("edit-v2+", "edit-v3")
    )


def test_the_shift_is_that_of_the_checkpoints_scheduler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen-Image-Edit: mu is 0.5 at 256 tokens and 0.9 at 8192, so 2.0 at 1024 x 1024."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path, flavour="edit-v3", validation_resolution="1024x1024")
    scheduler = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    values = json.loads(scheduler.read_text())
    own = {"base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256}
    scheduler.write_text(json.dumps(values | own | {"max_image_seq_len": 8192}))
    qedit("pair", "--config", "config.json", "--data", "data.json")
    qedit("export", "--workflow", "graph.json", "--config", "config.json", "--data", "data.json")
    graph = json.loads(Path("graph.json").read_text())
    (shift,) = only(graph, "ModelSamplingAuraFlow")["widgets_values"]
    assert shift == pytest.approx(math.exp(0.5 + 0.4 * (4096 - 256) / (8192 - 256)), abs=1e-3)
    assert shift == pytest.approx(2.0, abs=0.01)


def test_a_graph_takes_another_name_and_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path)
    words = ("--config", "config.json", "--data", "data.json")
    qedit("export", "--workflow", "graph.json", *words, expect=4)
    assert not Path("graph.json").exists()
    qedit("pair", *words)
    qedit("export", "loras/cats.safetensors", "--workflow", "graph.json", *words)
    graph = json.loads(Path("graph.json").read_text())
    assert only(graph, "LoraLoaderModelOnly")["widgets_values"][0] == "cats.safetensors"
    qedit("export", "--workflow", "graph.json", *words, expect=2)
    qedit("export", "--workflow", "graph", *words, expect=2)
    qedit("export", "--workflow", "other.json", "--to", "x.safetensors", *words, expect=2)
    full = {"model_type": "full", "validation_disable": True}
    shutil.rmtree(tmp_path / "model")
    make_run(tmp_path, **full)
    qedit("export", "--workflow", "full.json", *words)
    graph = json.loads(Path("full.json").read_text())
    assert only(graph, "UNETLoader")["widgets_values"][0] == "out.safetensors"
    assert "LoraLoaderModelOnly" not in {node["type"] for node in graph["nodes"]}

"""The keys of config.json, in groups: meaning, values, and why each default is what it is.

Those of training itself are in `training_settings`. A key stands after those that its default
follows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from .training_settings import LoRA, Memory, NoiseSchedule, Training
from .value_types import (
    IS_NUMBER,
    Count,
    Dtype,
    File,
    Folder,
    Seed,
    Size,
    Text,
    Written,
    only,
)

# How many references a sample of each flavour may have.
MAX_REFERENCES = {"edit-v1": 1, "edit-v2": 3, "edit-v2+": 3, "edit-v3": 3}
DEFAULT_INTERVAL = 500


class ModelKwargs(Written):
    """Arguments of the model."""

    match_target_res: bool = False
    """Gives references the area of their target for the VAE, in place of 1 megapixel (edit-v2 and
    later). Why: diffusers' pipelines give references 1 megapixel."""


class Model(Written):
    """These keys say which checkpoint is trained, and as which flavour."""

    model_type: Literal["lora", "full"] = "lora"
    """What is trained: an adapter beside the frozen model, or all weights of the model.
    Why: an adapter fits one GPU and learns from few pairs."""
    model_family: Annotated[
        Literal["qwen_image"],
        BeforeValidator(only("qwen_image", "qedit trains Qwen-Image-Edit alone")),
    ] = "qwen_image"
    """Family of the model, as in SimpleTuner. Why: qedit trains Qwen-Image-Edit alone."""
    model_flavour: Literal["edit-v1", "edit-v2", "edit-v2+", "edit-v3"]
    """Release of the model: the first (edit-v1, one reference), 2509 (edit-v2, up to three), 2509
    with references at timestep 0 (edit-v2+), or 2511 (edit-v3). Why: the checkpoint decides it."""
    model_kwargs: ModelKwargs = ModelKwargs()
    """Arguments of the model. Why: each has a default of its own."""
    pretrained_model_name_or_path: Text | None = None
    """The checkpoint: a folder in diffusers' layout, or a repository of the Hugging Face hub.
    Why: the repository of the flavour is used."""
    pretrained_transformer_model_name_or_path: Text | None = None
    """Another transformer, for example a fine-tuned one: its folder, or a folder or repository that
    contains it. Why: the parts of one checkpoint belong together."""
    pretrained_vae_model_name_or_path: Text | None = None
    """Another VAE. Why: the transformer was trained on latents of its own VAE."""
    pretrained_text_encoder_model_name_or_path: Text | None = None
    """Another text encoder. Why: the transformer was trained on embeds of its own text encoder."""
    revision: Text | None = None
    """Branch, tag or commit of the checkpoint on the hub. Why: the newest commit is used."""


class Data(Written):
    """These keys say what a sample shows; the data file says where the pictures are."""

    data_backend_config: File | None = None
    """The data file, multidatabackend.json. Why: it may be given as `--data`, which wins."""
    conditioning_multidataset_sampling: Literal["combined", "random"] = "combined"
    """What a sample shows of several reference datasets: a picture of each, or of one, drawn anew
    in every epoch. Why: an edit with several references needs all of them."""


class Encoding(Written):
    """These keys say how pictures and captions are encoded, and where the results are."""

    cache_dir: Folder = Path("cache")
    """Folder of everything that is computed once: pairs tables, latents, embeds, the base. Results
    of different settings are side by side. Why: a folder in the working directory."""
    vae_dtype: Dtype = "fp32"
    """Number format in which the VAE computes; latents are stored in bf16.
    Why: a VAE in bf16 is off by 1.2 %, storing in bf16 by 0.2 %, and it runs once a picture."""
    text_encoder_dtype: Dtype = "bf16"
    """Number format in which Qwen2.5-VL computes; embeds are stored in bf16.
    Why: the pipelines run it so, and fp32 takes twice the memory."""
    text_encoder_precision: Literal["no_change", "int8-quanto"] = "no_change"
    """Number format of Qwen2.5-VL; int8 halves its 16 GB. Why: exact embeds, as at inference."""
    cache_compression: Literal["none", "zstd"] = "none"
    """Compresses cached rows without loss. Why: it saves about a quarter of the disk, and reading
    a row takes 2 to 20 ms longer."""


class Previews(Written):
    """These keys say which pictures training makes; nothing that is learned depends on them."""

    validation_disable: bool = False
    """Makes no previews. Why: pictures tell more than losses."""
    validation_resolution: Size = Field("1024x1024", validate_default=True)
    """Size of previews: the area of "1024x1024" (or of the square of edge 1024) at the ratio of the
    target, or exactly "1024x768!". Unit: pixels. Why: the model's own size."""
    validation_guidance: Annotated[float, Field(ge=1), IS_NUMBER] = 4.0
    """Guidance of previews, the pipelines' `true_cfg_scale`; 1 is none, in half the time.
    Why: as in the pipelines; 3.5 to 4.5 is usual."""
    validation_num_inference_steps: Count = 30
    """Denoising steps of a preview. Unit: steps. Why: 3/5 of the time of the pipelines' 50."""
    validation_step_interval: Count = DEFAULT_INTERVAL
    """Distance of two sets of previews. The last step has one too. Unit: optimizer steps.
    Why: six sets in a run of 3000 steps."""
    validation_seed: Seed = 42
    """Seed of the noise of previews and of the held-out loss. Why: any number will do."""
    validation_negative_prompt: str = " "
    """Negative prompt of previews. Why: a blank, as in the pipelines' examples."""
    num_eval_images: Count = 4
    """Samples that previews show. Of held-out samples, 16 or this many are measured.
    Unit: samples. Why: enough to see a trend, and each takes its time."""


class Evaluation(Written):
    """These keys say what is held out, and how often its loss is measured."""

    eval_dataset_id: Text | None = None
    """The dataset that is not trained on: its loss is measured, and previews show it.
    Why: nothing is held out, and previews show the first training samples."""
    eval_steps_interval: Count = Field(
        default_factory=lambda data: data.get("validation_step_interval", DEFAULT_INTERVAL)
    )
    """Distance of two held-out losses. Unit: optimizer steps. Why: together with previews."""
    keep_best: bool = True
    """Keeps the weights of the lowest held-out loss in `best/`. Why: later may be worse."""


class Output(Written):
    """These keys say where results are, how many are kept, and which tracker shows the numbers."""

    output_dir: Folder = Path("output")
    """Folder of one run: checkpoints, LoRA files, metrics, previews, and a page of them.
    Why: a folder in the working directory."""
    checkpoint_step_interval: Count = DEFAULT_INTERVAL
    """Distance of two checkpoints. Unit: optimizer steps. Why: a crash costs no more than these."""
    checkpoints_total_limit: Count = 5
    """Checkpoints kept; the oldest goes first. Unit: checkpoints. Why: ways back, at some disk."""
    resume_from_checkpoint: Text | None = "latest"
    """Where a run continues: latest, none, or the name or path of a checkpoint.
    Why: after a stop, the same command continues the run."""
    on_changed_data: Literal["refuse", "continue"] = "refuse"
    """What a run does whose pairs have changed since: stop before anything is encoded, or continue
    from its newest checkpoint with the pairs of now. Why: it says first what has changed."""
    report_to: Annotated[
        Literal["none", "tensorboard", "wandb"],
        BeforeValidator(
            lambda name: "none" if name is None else name,
            json_schema_input_type=Literal["none", "tensorboard", "wandb"] | None,
        ),
    ] = "none"
    """Tracker of the numbers in metrics.jsonl. Why: a tracker is one more package to install."""
    tracker_project_name: Text = "qedit"
    """Project in Weights & Biases. Why: the name of the program."""


# pydantic takes the fields of the last base first
class Settings(
    Output, Evaluation, Previews, NoiseSchedule, LoRA, Memory, Training, Encoding, Data, Model
):
    """The keys of config.json. Defaults that depend on another key are resolved here alone.

    Paths are relative to the working directory; intervals and limits count optimizer steps.
    """

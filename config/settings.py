"""The keys of config.json, their defaults and what may be written for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from .spelling import did_you_mean
from .value_types import (
    AutoOrCount,
    AutoOrWhole,
    Count,
    CountFromZero,
    File,
    Folder,
    Limit,
    NotNegative,
    Number,
    Positive,
    PreviewSize,
    Probability,
    Share,
    Size,
    Text,
    Whole,
    Written,
    names_of,
    only,
)

# How many references a sample of each flavour may have.
MAX_REFERENCES = {"edit-v1": 1, "edit-v2": 3, "edit-v2+": 3, "edit-v3": 3}
LORA_PRESETS = (
    "attention",
    "joint-attention",
    "attention+mlp",
    "all-linear",
    "all-linear+modulation",
)
STEPS_WHEN_NOTHING_IS_SAID = 3000
RANK_WHEN_NOTHING_IS_SAID = 16
INTERVAL_WHEN_NOTHING_IS_SAID = 500

Dtype = Literal["fp32", "bf16"]
Device = Literal["cpu", "accelerator"]


def _preset_or_names(value: Any) -> Any:
    if not isinstance(value, str):
        names = names_of(value)
        if not names:
            raise ValueError("must not be an empty list")
        return names
    if value not in LORA_PRESETS:
        presets = ", ".join(LORA_PRESETS)
        hint = did_you_mean(value, LORA_PRESETS)
        raise ValueError(f'must be a list of names or one of {presets}, not "{value}"{hint}')
    return value


def _null_is_a_word(value: Any) -> Any:
    return "none" if value is None else value


class ModelKwargs(Written):
    """Arguments of the model. `match_target_res`: references get the target's area."""

    match_target_res: bool = False


class Settings(Written):
    """config.json, frozen. Defaults that depend on another key are resolved here alone.

    Paths are relative to the working directory; intervals and limits count optimizer steps.
    """

    model_type: Literal["lora", "full"] = "lora"
    model_family: Annotated[
        Literal["qwen_image"],
        BeforeValidator(only("qwen_image", "qedit trains Qwen-Image-Edit alone")),
    ] = "qwen_image"
    model_flavour: Literal["edit-v1", "edit-v2", "edit-v2+", "edit-v3"]
    model_kwargs: ModelKwargs = ModelKwargs()

    # A hub id or a local folder in diffusers' layout; None: the flavour's own.
    pretrained_model_name_or_path: Text | None = None
    pretrained_transformer_model_name_or_path: Text | None = None
    pretrained_vae_model_name_or_path: Text | None = None
    pretrained_text_encoder_model_name_or_path: Text | None = None
    revision: Text | None = None

    output_dir: Folder = Path("output")
    cache_dir: Folder = Path("cache")
    data_backend_config: File | None = None
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = 42

    train_batch_size: Count = 1
    gradient_accumulation_steps: Count = 1
    num_train_epochs: Limit = None
    max_train_steps: Limit = Field(
        default_factory=lambda data: (
            None if data.get("num_train_epochs") else STEPS_WHEN_NOTHING_IS_SAID
        )
    )
    mixed_precision: Literal["no", "bf16"] = "bf16"
    gradient_checkpointing: bool = True

    base_model_precision: Literal[
        "no_change", "int8-quanto", "int4-quanto", "int2-quanto", "fp8-quanto", "nf4-bnb"
    ] = "no_change"
    quantize_via: Device = "cpu"
    quantize_activations: bool = False
    vae_dtype: Dtype = "fp32"
    text_encoder_dtype: Dtype = "bf16"
    text_encoder_precision: Literal["no_change", "int8-quanto"] = "no_change"
    cache_compression: Literal["none", "zstd"] = "none"
    memory: AutoOrCount = "auto"  # GB of device memory to fit into
    blocks_to_stream: AutoOrWhole = "auto"
    compile_blocks: bool = False

    learning_rate: Positive = 1e-4
    optimizer: Literal["adamw", "adamw-8bit", "adafactor", "prodigy", "lion", "came", "muon"] = (
        "adamw"
    )
    optimizer_config: dict[str, Any] | None = None
    lr_scheduler: Literal[
        "constant",
        "constant_with_warmup",
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "piecewise_constant",
    ] = "constant"
    lr_scheduler_config: dict[str, Any] | None = None
    lr_warmup_steps: CountFromZero = 0
    max_grad_norm: NotNegative = 1.0  # 0: gradients are not clipped

    lora_type: Literal["lora", "dora", "lokr"] = "lora"
    lora_rank: Count = RANK_WHEN_NOTHING_IS_SAID
    lora_alpha: Positive = Field(
        default_factory=lambda data: float(data.get("lora_rank", RANK_WHEN_NOTHING_IS_SAID))
    )
    lora_dropout: Share = 0.0
    lora_target_modules: Annotated[str | tuple[str, ...], BeforeValidator(_preset_or_names)] = (
        "attention"
    )
    init_lora: Text | None = None
    lora_init_type: Literal["default", "gaussian", "pissa", "olora"] = "default"
    lora_format: Literal["diffusers", "comfyui", "kohya"] = "diffusers"

    flow_schedule_shift: Positive | None = None
    flow_schedule_auto_shift: bool = Field(
        default_factory=lambda data: data.get("flow_schedule_shift") is None
    )
    flow_sigmoid_scale: Positive = 1.0
    flow_use_uniform_schedule: bool = False
    flow_use_beta_schedule: bool = False
    flow_beta_schedule_alpha: Positive = 2.0
    flow_beta_schedule_beta: Positive = 2.0
    loss_type: Literal["l2", "huber", "smooth_l1"] = "l2"
    huber_c: Positive = 0.1
    caption_dropout_probability: Probability = 0.0
    conditioning_multidataset_sampling: Literal["combined", "random"] = "combined"

    use_ema: bool = Field(default_factory=lambda data: data.get("model_type") != "full")
    ema_decay: Share = 0.995
    ema_device: Device = "cpu"
    ema_update_interval: Count = 1

    scheduled_sampling_max_step_offset: Annotated[Whole, Field(ge=0, le=999)] = 0  # 0: off
    scheduled_sampling_strategy: Literal["uniform", "biased_early", "biased_late"] = "uniform"
    scheduled_sampling_probability: Probability = 0.0
    scheduled_sampling_prob_start: Probability = 0.0
    scheduled_sampling_prob_end: Probability = 0.5
    scheduled_sampling_ramp_steps: CountFromZero = 0  # 0: the probability is constant
    scheduled_sampling_start_step: CountFromZero = 0
    scheduled_sampling_ramp_shape: Literal["linear", "cosine"] = "linear"
    scheduled_sampling_sampler: Literal["unipc", "euler", "dpm"] = "unipc"
    scheduled_sampling_order: Annotated[Whole, Field(ge=1, le=3)] = 2
    scheduled_sampling_reflexflow: bool = False
    scheduled_sampling_reflexflow_alpha: NotNegative = 1.0
    scheduled_sampling_reflexflow_beta1: NotNegative = 10.0
    scheduled_sampling_reflexflow_beta2: NotNegative = 1.0

    validation_disable: bool = False
    validation_resolution: Size = PreviewSize(1024, 1024)
    validation_guidance: Annotated[Number, Field(ge=1)] = 4.0  # `true_cfg_scale`; 1: none
    validation_num_inference_steps: Count = 30
    validation_step_interval: Count = INTERVAL_WHEN_NOTHING_IS_SAID
    validation_seed: Annotated[Whole, Field(ge=0, lt=2**63)] = 42
    validation_negative_prompt: str = " "
    num_eval_images: Count = 4
    eval_dataset_id: Text | None = None
    eval_steps_interval: Count = Field(
        default_factory=lambda data: data.get(
            "validation_step_interval", INTERVAL_WHEN_NOTHING_IS_SAID
        )
    )
    keep_best: bool = True

    checkpoint_step_interval: Count = INTERVAL_WHEN_NOTHING_IS_SAID
    checkpoints_total_limit: Count = 5
    resume_from_checkpoint: Text | None = "latest"
    report_to: Annotated[
        Literal["none", "tensorboard", "wandb"], BeforeValidator(_null_is_a_word)
    ] = "none"
    tracker_project_name: Text = "qedit"

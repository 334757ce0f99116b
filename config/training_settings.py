"""The keys of config.json on training, memory, the LoRA and the noise schedule."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from .spelling import did_you_mean
from .value_types import (
    IS_NUMBER,
    AutoOrCount,
    AutoOrWhole,
    Count,
    CountFromZero,
    Device,
    Limit,
    NotNegative,
    Positive,
    Probability,
    Seed,
    Share,
    Text,
    Written,
    names_of,
)

LoraPreset = Literal[
    "attention", "joint-attention", "attention+mlp", "all-linear", "all-linear+modulation"
]
LORA_PRESETS: tuple[str, ...] = get_args(LoraPreset)
DEFAULT_STEPS = 3000
DEFAULT_RANK = 16


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


class Training(Written):
    """These keys say how long is trained, in which steps, and by which measure of the error."""

    seed: Seed = 42
    """Seed of everything that is drawn: order, noise, captions, dropout, first weights, crops.
    Why: any number will do; the same number repeats a run."""
    train_batch_size: Count = 1
    """Samples in one forward. Unit: samples. Why: it takes the least memory; for larger batches
    gradient_accumulation_steps takes less memory than this."""
    gradient_accumulation_steps: Count = 1
    """Batches that one optimizer step adds up, whatever the number of processes. Unit: batches.
    Why: the most steps in a time; 4 gives steadier steps."""
    num_train_epochs: Limit = None
    """Length of the run in passes over every dataset, in place of max_train_steps. Unit: epochs.
    Why: runs are measured in steps."""
    max_train_steps: Limit = Field(
        default_factory=lambda data: None if data.get("num_train_epochs") else DEFAULT_STEPS
    )
    """Length of the run; raise it to train on. Unit: optimizer steps.
    Why: a usual length for a LoRA; previews and the held-out loss show when to stop."""
    mixed_precision: Literal["no", "bf16"] = "bf16"
    """Number format of the forward, bf16 or ("no") float32. Weights of a LoRA are float32.
    Why: bf16 halves the memory, and allows the modulation table, which saves a third more."""
    disable_tf32: bool = True
    """Whether products of float32 numbers are exact; false allows TF32, which is faster, on NVIDIA
    GPUs. Encoding is exact in any case. Why: a LoRA is float32, and TF32 keeps 10 of 23 bits."""
    learning_rate: Positive = 1e-4
    """Highest step size of the optimizer. Why: usual for a LoRA whose alpha is its rank; begin
    with 1e-5 where model_type is full."""
    optimizer: Literal["adamw", "adamw-8bit", "adafactor", "prodigy", "lion", "came", "muon"] = (
        "adamw"
    )
    """The optimizer. adamw-8bit, prodigy, lion and came need `pip install 'qedit[optimizers]'`.
    Why: it needs no further package, and learning rates are mostly given for it."""
    optimizer_config: dict[str, Any] | None = None
    """Further arguments of its class, like `{"weight_decay": 0.01}`. Why: they have defaults."""
    lr_scheduler: Literal[
        "constant",
        "constant_with_warmup",
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "piecewise_constant",
    ] = "constant"
    """How the learning rate changes during the run, by diffusers' schedules.
    Why: a longer run then begins with the same steps."""
    lr_scheduler_config: dict[str, Any] | None = None
    """Options of the schedule: num_cycles of cosine_with_restarts, power and lr_end of polynomial,
    step_rules of piecewise_constant ("1:100,0.1"). Why: schedules have defaults."""
    lr_warmup_steps: CountFromZero = 0
    """Steps in which the learning rate rises from 0. Unit: optimizer steps.
    Why: a new LoRA changes nothing yet, so its first steps do little harm."""
    max_grad_norm: NotNegative = 1.0
    """Larger gradients are scaled to this norm; 0 scales none. Why: odd samples do less harm."""
    loss_type: Literal["l2", "huber", "smooth_l1"] = "l2"
    """Measure of the error of the predicted velocity: its square, or a pseudo-Huber loss, in which
    large errors count less. Why: the square is the loss of flow matching."""
    huber_c: Positive = 0.1
    """Error at which huber and smooth_l1 become linear. Why: as in diffusers' scripts."""
    caption_dropout_probability: Probability = 0.0
    """Share of samples that are trained with the null prompt in place of their caption.
    Why: no edit can be guessed without its instruction; 0.05 to 0.1 supports guidance."""
    use_ema: bool = Field(default_factory=lambda data: data.get("model_type") != "full")
    """Keeps a moving average of the trained weights, saved in `ema/` as a second result.
    Why: of a LoRA it costs little, of a full model 80 GB."""
    ema_decay: Share = 0.995
    """Share of the average that stays at an update; it is smaller in the first steps.
    Why: it averages over about the last 200 updates."""
    ema_device: Device = "cpu"
    """Where the average is. Why: it takes no device memory, and is updated beside the next step."""
    ema_update_interval: Count = 1
    """Distance of two updates of the average. Unit: optimizer steps. Why: updates cost little."""


class Memory(Written):
    """These keys say how a step is fitted into the memory of the device."""

    gradient_checkpointing: bool = True
    """Computes activations again in the backward; a LoRA on a GPU decides that by its memory alone.
    Why: at 1024 x 1024 with one reference all activations take 73 GB, the others 3 GB."""
    base_model_precision: Literal[
        "no_change", "int8-quanto", "int4-quanto", "int2-quanto", "fp8-quanto", "nf4-bnb"
    ] = "no_change"
    """Number format of the frozen base; the LoRA stays in float32. 8 bits halve it and move its
    outputs by 0.3 %, 4 bits quarter it at 0.6 to 0.8 %. Why: exact where memory allows it."""
    quantize_via: Device = "cpu"
    """Where the base is quantised. Why: it takes no device memory; an accelerator is faster."""
    quantize_activations: bool = False
    """Rounds inputs of quantised layers to 8 bits too: int8-quanto on a CPU or a CUDA device.
    Why: it adds an error to that of the weights."""
    memory: AutoOrCount = "auto"
    """Device memory that a run may take. Unit: GB, 10^9 bytes. Why: auto takes what is free."""
    blocks_to_stream: AutoOrWhole = "auto"
    """Blocks whose frozen weights are in host RAM and are copied for each use. Unit: blocks.
    Why: auto streams as few as possible."""
    compile_blocks: bool = False
    """Compiles the transformer's block with torch.compile, in about a minute, for faster steps.
    Why: no GPU has shown the gain yet."""


class LoRA(Written):
    """These keys describe the adapter; `model_type` full reads `lora_target_modules` alone."""

    lora_type: Literal["lora", "dora", "lokr"] = "lora"
    """Kind of adapter: LoRA, DoRA (with a trained norm of each output), or LoKr (a Kronecker
    product). Why: every tool loads a LoRA, and it fits a quantised base."""
    lora_rank: Count = DEFAULT_RANK
    """Rank of the matrices: how much the adapter can learn, and how large its file is.
    Why: enough for one kind of edit; with the preset attention, 24 million numbers."""
    lora_alpha: Positive = Field(
        default_factory=lambda data: float(data.get("lora_rank", DEFAULT_RANK))
    )
    """The adapter's output is scaled by lora_alpha / lora_rank. Why: a scale of 1 lets a learning
    rate keep its meaning at any rank. Some trainers have 1 here."""
    lora_dropout: Share = 0.0
    """Share of an adapter's inputs that are set to 0 in training.
    Why: a small rank seldom learns by heart; try 0.05 where it does."""
    lora_target_modules: Annotated[
        str | tuple[str, ...],
        BeforeValidator(_preset_or_names, json_schema_input_type=LoraPreset | list[Text]),
    ] = "attention"
    """Layers that get an adapter: a preset, or names (or ends of names) as diffusers has them.
    Why: the four attention layers of the image stream are enough for most edits."""
    init_lora: Text | None = None
    """LoRA file of any tool, or its folder, to begin with. Why: a LoRA begins without effect."""
    lora_init_type: Literal["default", "gaussian", "pissa", "olora"] = "default"
    """First weights: Kaiming uniform, Gaussian, or taken out of the base (pissa, olora).
    Why: it begins without effect and fits a quantised base."""
    lora_format: Literal["diffusers", "comfyui", "kohya"] = "diffusers"
    """Tool whose names tensors get. Why: diffusers loads them; `qedit export` writes others."""


class NoiseSchedule(Written):
    """These keys say how noise levels (sigma, 0 to 1) are drawn, and what is rolled out."""

    flow_schedule_shift: Positive | None = None
    """Moves sigma to s*sigma / (1 + (s-1)*sigma): above 1 to noise, below 1 to the picture.
    Why: the size of the target decides the shift."""
    flow_schedule_auto_shift: bool = Field(
        default_factory=lambda data: data.get("flow_schedule_shift") is None
    )
    """Takes the shift of inference: 1.7 at 512 x 512, 2.0 at 1024 x 1024. Why: training fits it."""
    flow_sigmoid_scale: Positive = 1.0
    """Spread of sigma, the sigmoid of this times a normal number; below 1 it gathers in the middle.
    Why: the usual logit-normal distribution."""
    flow_use_uniform_schedule: bool = False
    """Draws sigma evenly. Why: the sigmoid draws more from the middle, where most is learned."""
    flow_use_beta_schedule: bool = False
    """Draws sigma from a beta distribution. Why: the sigmoid is usual."""
    flow_beta_schedule_alpha: Positive = 2.0
    """First parameter of the beta distribution; more is noisier. Why: 2, 2 favour the middle."""
    flow_beta_schedule_beta: Positive = 2.0
    """Second parameter of the beta distribution; more is cleaner. Why: 2, 2 favour the middle."""
    scheduled_sampling_max_step_offset: Annotated[int, Field(ge=0, le=999), IS_NUMBER] = 0
    """Longest rollout: the model denoises a sample from so much more noise before it learns from
    it; 0 is off. Unit: 1/1000 of sigma. Why: each unit of a rollout is one more forward."""
    scheduled_sampling_strategy: Literal["uniform", "biased_early", "biased_late"] = "uniform"
    """How the length of a rollout is drawn: evenly, more often short (biased_early), or more often
    long (biased_late). Why: no length is preferred."""
    scheduled_sampling_probability: Probability = 0.0
    """Share of samples rolled out, where there is no ramp. Why: rollouts are off."""
    scheduled_sampling_prob_start: Probability = 0.0
    """Share of samples rolled out where the ramp begins. Why: plain samples come first."""
    scheduled_sampling_prob_end: Probability = 0.5
    """Share of samples rolled out where the ramp ends. Why: half of them stay plain."""
    scheduled_sampling_ramp_steps: CountFromZero = 0
    """Length of the ramp; 0 is none. Unit: optimizer steps. Why: the share stays the same."""
    scheduled_sampling_start_step: CountFromZero = 0
    """First step with rollouts. Unit: optimizer steps. Why: from the first step."""
    scheduled_sampling_ramp_shape: Literal["linear", "cosine"] = "linear"
    """Shape of the ramp; cosine begins and ends gently. Why: the simplest."""
    scheduled_sampling_sampler: Literal["unipc", "euler", "dpm"] = "unipc"
    """Solver of a rollout. Why: it corrects each state by what the model says there."""
    scheduled_sampling_order: Annotated[int, Field(ge=1, le=3), IS_NUMBER] = 2
    """Order of unipc and dpm. Why: diffusers advises 2 for guided sampling."""
    scheduled_sampling_reflexflow: bool = False
    """Adds the two ReflexFlow losses (arXiv 2512.04904) of samples that were rolled out.
    Why: it costs one more forward, and the paper is under revision."""
    scheduled_sampling_reflexflow_alpha: NotNegative = 1.0
    """How much more errors count that arise in the rollout. Why: as in SimpleTuner."""
    scheduled_sampling_reflexflow_beta1: NotNegative = 10.0
    """Weight of the loss that pulls back towards the picture. Why: as in SimpleTuner."""
    scheduled_sampling_reflexflow_beta2: NotNegative = 1.0
    """Weight of the usual loss of samples that were rolled out. Why: as in SimpleTuner."""

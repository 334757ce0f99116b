"""Runs one step of a random model of the real class, and counts the memory that it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from qedit.stages.models.lora.lora import add_lora, target_modules
from qedit.stages.models.memory_estimate.dimensions import Dimensions
from qedit.stages.models.memory_estimate.memory import Load, Way
from qedit.stages.models.memory_estimate.memory_plan import Fit
from qedit.stages.models.memory_saving.block_streaming import stream_blocks
from qedit.stages.models.memory_saving.recompute import recompute_blocks
from qedit.stages.models.quantization.quantize import precision_for
from qedit.stages.models.quantization.quantized_linear import quantize_layers, quantized_tensors
from qedit.stages.models.timesteps import row_shape
from qedit.stages.models.transformer.modulation import tabulate
from qedit.stages.models.transformer.transformer import predict_velocity
from qedit.stages.models.weights.streaming import fill

TEXT_WIDTH = 96


class Case:
    """A random model of the real class with a LoRA, and one forward's worth of input."""

    def __init__(
        self,
        *,
        blocks: int,
        load: Load,
        way: Way,
        heads: int = 2,
        head_width: int = 32,
        zero_cond_t: bool = False,
    ) -> None:
        from diffusers import QwenImageTransformer2DModel

        self.load, self.way, self.on_host = load, way, 0
        self.dtype = torch.bfloat16 if way.number_bytes == 2 else torch.float32
        half = head_width * 3 // 8
        with torch.device("cpu"):
            self.model: nn.Module = QwenImageTransformer2DModel(
                num_layers=blocks,
                attention_head_dim=head_width,
                num_attention_heads=heads,
                joint_attention_dim=TEXT_WIDTH,
                axes_dims_rope=(head_width - 2 * half, half, half),
                zero_cond_t=zero_cond_t,
            )
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(self.dtype)
        config: Any = self.model.config
        self.sizes = Dimensions.of_config(config, zero_cond_t=zero_cond_t)
        if way.table:
            shape = row_shape(blocks=blocks, width=self.sizes.width)
            tabulate(self.model, lambda bits: torch.zeros(shape, dtype=torch.bfloat16))
        if way.precision != "no_change":
            self._quantize()
        self.model.requires_grad_(False)
        self.base = self.frozen_bytes()
        targets = target_modules(self.model, way.targets)
        self.lora = add_lora(self.model, targets, rank=way.rank, alpha=float(way.rank))
        self.model.train()
        if way.checkpointing:
            self.model.enable_gradient_checkpointing()  # type: ignore[operator]

    def _quantize(self) -> None:
        form = precision_for(self.way.precision, device="cpu")
        tensors = [(name, one.data) for name, one in self.model.named_parameters()]
        layers = quantize_layers(self.model, form)
        made = quantized_tensors(tensors, layers, form, dtype=self.dtype, via="cpu")
        fill(self.model, made, dtype=self.dtype, device="cpu", source=Path("made"))

    def frozen_bytes(self) -> int:
        """What of the base lies in the model now; streamed weights do not."""
        own = (one for one in self.model.parameters() if not one.requires_grad)
        held = (one for one in self.model.buffers() if one.dtype != torch.int64)
        return sum(one.nbytes for one in (*own, *held))

    def be_fitted(self, fit: Fit) -> None:
        """As `train` does it on a device."""
        self.on_host = 0
        self.model.disable_gradient_checkpointing()  # type: ignore[operator]
        if fit.streamed:
            stream_blocks(self.model, fit.streamed, device=torch.device("cpu"))
        if fit.recomputation is not None:
            recompute_blocks(self.model, fit.recomputation)
            if fit.recomputation.inputs_to_host:  # which here is no other memory than the device's
                tokens = self.load.batch_size * (self.load.image_tokens + self.load.text_tokens)
                inputs = tokens * self.sizes.width * self.way.number_bytes
                self.on_host = self.sizes.blocks * inputs

    def loss(self) -> Tensor:
        def latents(size: tuple[int, int]) -> Tensor:
            return torch.randn(self.load.batch_size, 16, size[1] // 8, size[0] // 8)

        target, *references = (latents(size).to(self.dtype) for size in self.load.pictures)
        embeds = torch.randn(self.load.batch_size, self.load.text_tokens, TEXT_WIDTH).to(self.dtype)
        sigma = torch.full((self.load.batch_size,), 0.5)
        predicted = predict_velocity(self.model, target, references, embeds, mask=None, sigma=sigma)
        return predicted.float().square().mean()

    def saved(self) -> int:
        """Bytes that autograd holds between forward and backward, weights aside."""
        weights = {one.untyped_storage().data_ptr() for one in self.model.parameters()}
        held: dict[int, int] = {}
        kept = []

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                held[storage.data_ptr()] = storage.nbytes()
                kept.append(tensor)  # so that no address is used twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.loss()
        return sum(held.values())

    def peak(self) -> int:
        """The most bytes on the device at once in one forward and backward, beyond the weights."""
        self.loss().backward()
        self.model.zero_grad(set_to_none=True)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            self.loss().backward()
        kineto: Any = recorded.profiler
        events = [one for one in kineto.kineto_results.events() if one.name() == "[memory]"]
        now = most = 0
        for event in sorted(events, key=lambda one: one.start_ns()):
            now += event.nbytes()
            most = max(most, now)
        return most - self.on_host

"""The data of a step: its samples, their noise and their noise levels, as tensors; no model."""

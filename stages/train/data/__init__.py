"""Which samples a step sees, with which noise and sigma, as tensors; no model."""

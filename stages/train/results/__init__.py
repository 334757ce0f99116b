"""The results that a run publishes: LoRA files, the model card, the best checkpoint."""

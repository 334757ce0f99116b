"""train: cached tensors become a LoRA; no picture, no VAE and no text encoder in here."""

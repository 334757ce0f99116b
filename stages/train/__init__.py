"""train: cached tensors become a LoRA. No picture, no VAE and no text encoder in here."""

"""preview: stored latents become pictures; the VAE of a run is loaded here, not in train/."""

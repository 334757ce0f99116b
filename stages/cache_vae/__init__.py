"""cache-vae: each distinct (picture, geometry) of targets and references becomes one latent row."""

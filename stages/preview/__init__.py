"""preview: stored latents become pictures, sheets and strips; the VAE of a run lives here."""

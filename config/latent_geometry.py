"""Relates pixels, latents and image tokens of Qwen-Image-Edit; nothing else says it.

The VAE makes one latent pixel of 8 x 8 pixels, and the transformer packs 2 x 2 latent pixels
into one token.
"""

LATENT_PIXELS = 8  # pixels along the edge of one latent pixel
PATCH_LATENTS = 2  # latent pixels along the edge of one image token
TOKEN_PIXELS = LATENT_PIXELS * PATCH_LATENTS  # sides of pictures are multiples of it
LATENT_CHANNELS = 16


def latent_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the (width, height) in latent pixels of a picture of `size` pixels."""
    return size[0] // LATENT_PIXELS, size[1] // LATENT_PIXELS


def image_tokens(size: tuple[int, int]) -> int:
    """Return how many image tokens a picture of `size` = (width, height) pixels is."""
    return (size[0] // TOKEN_PIXELS) * (size[1] // TOKEN_PIXELS)

"""Captions and references turned into the prompt embeds that the transformer reads."""

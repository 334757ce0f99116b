"""Captions and references to the embeds that the transformer is shown."""

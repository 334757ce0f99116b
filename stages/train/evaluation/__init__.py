"""Measurements between steps that change nothing: held-out loss and previews."""

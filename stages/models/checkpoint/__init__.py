"""A checkpoint's parts, their configurations and digests; no weights are loaded."""

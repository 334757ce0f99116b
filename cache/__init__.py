"""Rows kept on disk, whole or not at all; nothing here knows pictures, models or settings."""

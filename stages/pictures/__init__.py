"""Pixels only: opening, resizing, laying side by side; no samples and no models."""

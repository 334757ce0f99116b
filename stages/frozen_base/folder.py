"""The folder in which tables and quantised bases of all models lie."""

from __future__ import annotations

from pathlib import Path

from ...config.settings import Settings


def base_folder(settings: Settings) -> Path:
    """Return the folder in which tables and quantised bases of all models lie."""
    return settings.cache_dir / "base"

"""Both configuration files as they were run, `--set` included, written beside what they made."""

from __future__ import annotations

from pathlib import Path

from ...cache.files.atomic import readable_json, write_text
from ...config.configuration import Configuration

AS_RUN = "as-run"
CONFIG_FILE = "config.json"
DATA_FILE = "multidatabackend.json"


def as_run_files(output_dir: Path) -> tuple[Path, Path]:
    """Return the paths of the two files in a run's folder."""
    return output_dir / AS_RUN / CONFIG_FILE, output_dir / AS_RUN / DATA_FILE


def write_as_run(configuration: Configuration) -> tuple[Path, Path]:
    """Write this configuration to both files, without defaults; return their paths."""
    settings = configuration.settings
    written = settings.model_dump(mode="json", exclude_unset=True)
    written.pop("data_backend_config", None)  # it lies beside it, and is named by --data
    datasets = [
        dataset.model_dump(mode="json", exclude_unset=True) for dataset in configuration.datasets
    ]
    files = as_run_files(settings.output_dir)
    for path, value in zip(files, (written, datasets), strict=True):
        text = readable_json(value)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
    return files

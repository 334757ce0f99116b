"""Pictures of previews, made beside the training by a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from ....cache.files.decides_nothing import make_way
from ....config.configuration import Configuration
from ...run_output.previews import PREVIEWS
from ...run_output.run_file import write_as_run
from ...stage import Progress

LOG_FILE = "preview.log"
NICE = 10  # of 19: training comes first
# What decoding takes: libraries and the VAE, and for each megapixel its widest layers in float32.
SMALLEST_BYTES = 2 << 30
BYTES_A_PIXEL = 4 << 10
MEMORY_FILE = Path("/proc/meminfo")


class Decoding:
    """Starts `qedit preview` in the background, at low priority, one at a time."""

    def __init__(self, configuration: Configuration, progress: Progress) -> None:
        self._configuration, self._progress = configuration, progress
        self._child: subprocess.Popen[bytes] | None = None
        self._complained = False
        area = configuration.settings.validation_resolution.area
        self._needed_bytes = SMALLEST_BYTES + BYTES_A_PIXEL * area

    def start(self, *, beside: torch.device, trained: bool) -> None:
        """Start making pictures of every preview that has none yet; return at once.

        Where memory does not suffice, or an earlier child has failed, a warning is shown once:
        `qedit preview` makes the pictures at any time.

        Args:
            beside: the device that training works on.
            trained: whether a step was made already, so that its memory is taken.
        """
        if self._child is not None and self._child.poll() is None:
            return
        if self._child is not None and self._child.returncode:
            self._complain(f"Making pictures of previews failed ({self._log()} says why)")
        device = self._device(beside, trained=trained)
        if device is None:
            self._complain("There is no memory to make pictures of previews beside the training")
            return
        config, data = write_as_run(self._configuration)
        command = [sys.executable, "-m", "qedit.pipeline", "preview", "--quiet"]
        command += ["--config", str(config), "--data", str(data), "--device", device]
        make_way(self._log())
        with self._log().open("wb") as log:
            # in a session of its own: Ctrl-C in the terminal is for the training
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        os.setpriority(os.PRIO_PROCESS, self._child.pid, NICE)

    def wait(self) -> None:
        """Wait for the running child, if there is one."""
        if self._child is not None:
            self._child.wait()

    def end(self) -> None:
        """End the running child, if there is one."""
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()

    def _device(self, beside: torch.device, *, trained: bool) -> str | None:
        """Return a device with room: the GPU once training has what it needs, else the CPU."""
        if beside.type == "cuda" and trained:
            free_bytes, _ = torch.cuda.mem_get_info(beside)
            if free_bytes > 2 * self._needed_bytes:
                return str(beside)
        return "cpu" if available_bytes() > self._needed_bytes else None

    def _complain(self, what: str) -> None:
        if not self._complained:
            self._progress.warn(f"{what}. `qedit preview` makes them at any time.")
        self._complained = True

    def _log(self) -> Path:
        return self._configuration.settings.output_dir / PREVIEWS / LOG_FILE


def available_bytes() -> int:
    """Return how many bytes a new process may take; where that is unknown (macOS), 1 TiB."""
    if not MEMORY_FILE.is_file():
        return 1 << 40
    for line in MEMORY_FILE.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return 1 << 40

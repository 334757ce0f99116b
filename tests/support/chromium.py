"""Draws a page in headless Chromium, and gives its DOM and its complaints."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def browser() -> str:
    """The distribution's Chromium; the test is skipped where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    return found


def drawn(page: Path, *, then: str = "", width: int = 1300) -> str:
    """The page's DOM after its scripts and the script `then` have run.

    Asserts that nothing was written to the console. The page is copied with `then` behind it.
    """
    page = page.resolve()
    copy = page.with_name("with-script.html")
    text = page.read_text(encoding="utf-8")
    copy.write_text(text.replace("</body>", f"<script>{then}</script></body>"), encoding="utf-8")
    done = subprocess.run(
        [
            browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--user-data-dir={page.parent / 'profile'}", f"--window-size={width},900",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0",
            "--virtual-time-budget=3000", "--dump-dom", f"file://{copy}",
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert not re.findall(r"CONSOLE.*", done.stderr), done.stderr
    return done.stdout

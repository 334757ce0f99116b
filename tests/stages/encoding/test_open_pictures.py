"""Recent pictures are made once, and no more of them are kept than were allowed."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from qedit.stages.encoding.open_pictures import RecentPictures


def test_recent_pictures_are_bounded_and_made_once() -> None:
    made: list[str] = []

    def making(name: str) -> Callable[[], Image.Image]:
        def make() -> Image.Image:
            made.append(name)
            time.sleep(0.01)
            return Image.new("RGB", (10, 10))

        return make

    recent = RecentPictures(most_bytes=2 * 300)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: recent.get("a", making("a")), range(8)))
    assert made == ["a"]
    for name in "bacab":  # "b" was the oldest when "c" came
        recent.get(name, making(name))
    assert "".join(made) == "abcb"
    with pytest.raises(ZeroDivisionError):
        recent.get("d", lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    recent.get("d", making("d"))
    assert made[-1] == "d"

"""The text of an HTML page that needs no other file and no network."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any


def page_text(room: str, data: Mapping[str, Any], *, title: str, mark: str) -> str:
    """Put a page together: the frame of this room, and style and script of both rooms.

    Args:
        room: the package whose page.css and page.js draw the page.
        data: what they draw, as JSON values.
        mark: an element of the head by which the page is known again.
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    rooms = [files(__package__), files(room)]
    parts = {
        "TITLE": title,
        "MARK": mark,
        "DATA": text.encode("utf-8", "backslashreplace").decode(),
        "STYLE": "".join((folder / "page.css").read_text("utf-8") for folder in rooms),
        "SCRIPT": "".join((folder / "page.js").read_text("utf-8") for folder in rooms),
    }
    frame = (rooms[0] / "page.html").read_text("utf-8")
    return re.sub("@([A-Z]+)@", lambda found: parts[found[1]], frame)


def picture_link(webp: bytes) -> str:
    """Return a link that holds a WebP picture itself."""
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"

"""All rows in the caches of a small run, by kind of store and key."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qedit.pipeline.upkeep.unused_rows import stores_in

# the stores of `make_run` with one reference
KINDS = {
    "cache-vae": ("vae/edited", "vae/reference-a"),
    "cache-embeds": ("conditioning_image_embeds/edited", "text_embeds/edited"),
}
Rows = dict[tuple[str, str], np.ndarray]


def rows_in(folder: Path, *stages: str) -> Rows:
    """Read the rows that these stages, or else both, have made for the run in `folder`."""
    return {
        (kind, key): store.read(key)
        for stage in stages or KINDS
        for kind in KINDS[stage]
        for store in stores_in(folder / "caches" / kind)
        for key in sorted(store.keys())
    }

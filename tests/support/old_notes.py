"""The notes that versions up to commit eb5e489 left in stores, where records of runs lie now."""

from __future__ import annotations

import json
from pathlib import Path

from qedit.cache.files.atomic import write_json
from qedit.cache.files.sealed import sealed
from qedit.stages.stores.pins import OLD_NOTES

__all__ = ["OLD_NOTES", "as_old_notes"]


def as_old_notes(record: Path) -> list[Path]:
    """Put a note into every store that a record names, remove the record, and give the stores."""
    fields = json.loads(record.read_bytes())
    stores = [record.parent.parent / name for name in fields["pins"]]
    for store, pin in zip(stores, fields["pins"].values(), strict=True):
        note = {
            "pairs": pin["pairs"],
            "output_dir": fields["output_dir"],
            "captions_beside": pin["captions_beside"],
            "tables": pin["tables"],
            "also": pin["extra_keys"],
            "store": str(store.resolve()),
            "inode": store.stat().st_ino,
        }
        write_json(store / OLD_NOTES / record.name, sealed(note))
    record.unlink()
    return stores

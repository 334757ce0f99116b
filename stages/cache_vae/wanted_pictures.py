"""The latents and mask weights that are wanted, and the pictures that the missing are made of."""

from __future__ import annotations

from collections.abc import Iterator

from ..encoding.wanted_rows import WantedRows, lacking
from ..samples.sample import Picture, Sample
from ..stores.row_kinds import RowKind
from ..stores.run import Run

KINDS = (RowKind.LATENTS, RowKind.WEIGHTS)


def find_pictures(run: Run) -> WantedRows[Picture]:
    """Return the pictures whose rows are missing, by kind, those of previews included."""
    rejected = {kind: run.stores.of(kind).rejected() for kind in KINDS}
    wanted = WantedRows[Picture](run.stores, work={kind: {} for kind in KINDS})
    for keys, samples in lacking(run, *KINDS):
        wanted.keys += keys
        for kind, key, picture in _pictures(samples):
            if key not in run.stores.of(kind) and key not in rejected[kind]:
                wanted.work[kind].setdefault(key, picture)
    return wanted


def _pictures(samples: list[Sample]) -> Iterator[tuple[RowKind, str, Picture]]:
    for sample in samples:
        for picture in (sample.target, *sample.references):
            yield RowKind.LATENTS, picture.latent_key, picture
        if sample.mask:
            yield RowKind.WEIGHTS, sample.mask.weight_key, sample.mask

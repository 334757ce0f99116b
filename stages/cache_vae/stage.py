"""cache-vae: bring the stores of latents and of mask weights to hold all that is wanted.

Nothing heavy is imported before something is found missing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from ...cache.store.store_set import StoreSet
from ..encoding.caching_stage import CachingStage
from ..encoding.device_options import BatchSize, DeviceOptions
from ..encoding.reference_sets import BYTES_A_TOKEN, ReferenceSet, find_sets
from ..encoding.run_on_device import Work
from ..encoding.wanted_rows import WantedRows
from ..samples.sample import Picture
from ..stores.row_kinds import RowKind
from ..stores.run import Run
from .one_file import files_of, latent_bytes, parts_of
from .wanted_pictures import KINDS, find_pictures


class CacheVae(CachingStage[WantedRows[Picture]]):
    """Encodes targets and references with the VAE, and makes loss weights of masks."""

    name = "cache-vae"
    unit = "latents"
    kinds = KINDS
    named = (RowKind.LATENTS,)

    def find(self, run: Run) -> WantedRows[Picture]:
        """Return the pictures whose rows are missing."""
        return find_pictures(run)

    def count_bytes(self, run: Run, wanted: WantedRows[Picture]) -> dict[Path, int]:
        """Return about how many bytes the missing latents take, by store."""
        sizes: dict[Path, int] = defaultdict(int)
        for picture in wanted.work[RowKind.LATENTS].values():
            sizes[run.stores.latents.of(picture.dataset).path] += latent_bytes(picture.size)
        return sizes

    def works(
        self, run: Run, wanted: WantedRows[Picture], options: DeviceOptions
    ) -> Iterator[Work]:
        """Yield the masks, which need no model, and then the pictures."""
        if wanted.work[RowKind.WEIGHTS]:
            yield self._masks(run, wanted.work[RowKind.WEIGHTS])
        if wanted.work[RowKind.LATENTS]:
            yield self._pictures(run, wanted, options)

    def _pictures(self, run: Run, wanted: WantedRows[Picture], options: DeviceOptions) -> Work:
        from ..encoding.spool import Spool
        from .encoding import MOST_PICTURES, PIXELS_WHERE_NOTHING_IS_KNOWN, PictureEncoding

        pictures = wanted.work[RowKind.LATENTS]
        store_sets, spool, shown = {RowKind.LATENTS: run.stores.latents}, None, {}
        if options.spool:
            sets = find_sets(run).sets
            latents = sum(self.count_bytes(run, wanted).values())
            spool = Spool(
                options.spool,
                [dataset.id for dataset in run.configuration.datasets],
                processes=max(1, len(options.devices)),
                spared_bytes=latents + sum(BYTES_A_TOKEN * found.tokens for found in sets.values()),
            )
            store_sets[RowKind.PICTURES] = spool.store_set
            shown = shown_next(sets)
        return Work(
            stage=self.name,
            unit="picture",
            rows=self.unit,
            count=len({picture.digest for picture in pictures.values()}),
            parts=parts_of(pictures),
            items_of=partial(files_of, pictures),
            claimed_in=run.stores.latents,
            store_sets=store_sets,
            still=still_missing(run.stores.latents),
            encoding=PictureEncoding(
                run.configuration, run.checkpoint, device=options.device, spool=spool, shown=shown
            ),
            batch_size=BatchSize(
                options.vae_batch_size, most=MOST_PICTURES, budget=PIXELS_WHERE_NOTHING_IS_KNOWN
            ),
        )

    def _masks(self, run: Run, masks: Mapping[str, Picture]) -> Work:
        from .masks import MaskReading

        return Work(
            stage=self.name,
            unit="mask",
            rows="rows of weights",
            count=len(masks),
            parts=parts_of(masks),
            items_of=lambda keys: [masks[key] for key in keys],
            claimed_in=run.stores.weights,
            store_sets={RowKind.WEIGHTS: run.stores.weights},
            still=still_missing(run.stores.weights),
            encoding=MaskReading(run.configuration),
            batch_size=BatchSize(1, most=1, budget=1),
        )


run = CacheVae()


def shown_next(sets: Mapping[str, ReferenceSet]) -> dict[str, list[Picture]]:
    """Return by latent key the references that `cache-embeds` will want, each picture once."""
    shown: dict[str, dict[tuple[object, ...], Picture]] = defaultdict(dict)
    for found in sets.values():
        for picture in found.sample.references:
            shown[picture.latent_key][picture.box, picture.vl_size] = picture
    return {key: list(pictures.values()) for key, pictures in shown.items()}


def still_missing(store_set: StoreSet) -> Callable[[Sequence[str]], list[str]]:
    """Return a function that returns the keys that now have no row and are not rejected."""

    def still(keys: Sequence[str]) -> list[str]:
        rejected = store_set.rejected()
        return [key for key in store_set.missing(keys) if key not in rejected]

    return still

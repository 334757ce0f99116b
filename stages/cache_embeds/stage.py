"""cache-embeds: bring the stores of image prefixes and text tails to hold all that is wanted.

Nothing heavy is imported before something is found missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..encoding.caching_stage import CachingStage
from ..encoding.device_options import BatchSize, DeviceOptions
from ..encoding.reference_sets import WantedSets, find_sets, parts_of, still_missing
from ..encoding.run_on_device import Work
from ..models.checkpoint.checkpoint import Checkpoint
from ..models.checkpoint.config_values import config_in
from ..stores.row_kinds import RowKind
from ..stores.run import Run


class CacheEmbeds(CachingStage[WantedSets]):
    """Encodes reference sets with Qwen2.5-VL: an image prefix each, and a tail a caption."""

    name = "cache-embeds"
    unit = "embeds"
    kinds = named = (RowKind.PREFIXES, RowKind.TAILS)

    def find(self, run: Run) -> WantedSets:
        """Return the reference sets that lack rows."""
        return find_sets(run)

    def count_bytes(self, run: Run, wanted: WantedSets) -> dict[Path, int]:
        """Return about how many bytes the missing rows take, by store."""
        return wanted.count_bytes(channels=_channels(run.checkpoint))

    def works(self, run: Run, wanted: WantedSets, options: DeviceOptions) -> Iterator[Work]:
        """Yield the work on the reference sets that lack rows."""
        from ..encoding.spool import Spool
        from .encoding import MOST_SETS, TOKENS_WHERE_NOTHING_IS_KNOWN, ReferenceEncoding

        sets, stores = wanted.sets, run.stores
        if not sets:
            return
        datasets = [dataset.id for dataset in run.configuration.datasets]
        spool = Spool(options.spool, datasets) if options.spool else None
        yield Work(
            stage=self.name,
            unit="reference set",
            rows=self.unit,
            count=len(sets),
            parts=parts_of(sets),
            items_of=lambda keys: [sets[key] for key in keys],
            claimed_in=stores.prefixes,
            store_sets={kind: stores.of(kind) for kind in self.kinds},
            still=partial(still_missing, stores, sets),
            encoding=ReferenceEncoding(run, device=options.device, spool=spool),
            batch_size=BatchSize(
                options.text_batch_size, most=MOST_SETS, budget=TOKENS_WHERE_NOTHING_IS_KNOWN
            ),
        )

    def facts(self, wanted: Counter[RowKind], computed: Counter[RowKind]) -> dict[str, object]:
        """Return the numbers of prefixes and of tails."""
        return {
            "prefixes": wanted[RowKind.PREFIXES],
            "prefixes_computed": computed[RowKind.PREFIXES],
            "tails": wanted[RowKind.TAILS],
            "tails_computed": computed[RowKind.TAILS],
        }


run = CacheEmbeds()


def _channels(checkpoint: Checkpoint) -> int:
    """Return the width of the language model's states, which the rows hold."""
    config = config_in(checkpoint.text_encoder)
    return int(config.get("hidden_size") or config["text_config"]["hidden_size"])

"""The common work of `cache-vae` and `cache-embeds`: find what is missing, encode it, report.

Nothing heavy is imported before something is found missing.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar, Generic

from ...cache.files.free_space import refuse_full_disk
from ...cache.store.dropping import pass_over_torn
from ...config.configuration import Configuration
from ..estimates.speed import Rate
from ..stage import Outcome, Progress
from ..stores.pins import pin_before_writing, pin_existing
from ..stores.row_kinds import RowKind
from ..stores.run import Run
from .acceptance import OnReject
from .device_options import DeviceOptions
from .devices import Encode, on_each_device
from .progress_messages import facts_of
from .run_on_device import Totals, Work, encode_missing
from .wanted_rows import Wanted, of_shard
from .work_split import Shard, shard_named


class CachingStage(ABC, Generic[Wanted]):
    """A caching stage: `cache-vae` or `cache-embeds`. A subclass holds what it alone knows.

    Attributes:
        name: the command.
        unit: its rows, in words.
        kinds: the kinds of its rows; its speed is remembered by the recipe of the first.
        named: those of them whose folders are shown at the end.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    kinds: ClassVar[tuple[RowKind, ...]]
    named: ClassVar[tuple[RowKind, ...]]

    @abstractmethod
    def find(self, run: Run) -> Wanted:
        """Return the rows that are wanted, and what is missing of them."""

    @abstractmethod
    def count_bytes(self, run: Run, wanted: Wanted) -> dict[Path, int]:
        """Return about how many bytes the missing rows take, by store."""

    @abstractmethod
    def works(self, run: Run, wanted: Wanted, options: DeviceOptions) -> Iterator[Work]:
        """Yield what is to be encoded on one device, one encoder after the other."""

    def facts(self, wanted: Counter[RowKind], computed: Counter[RowKind]) -> dict[str, object]:
        """Return what `--json` says besides the sums."""
        return {}

    def __call__(
        self,
        run: Run,
        progress: Progress,
        *,
        dry_run: bool = False,
        options: DeviceOptions | None = None,
        shard: str | None = None,
        on_reject: OnReject = "fail",
        max_rejected: int = 0,
        retry_rejected: bool = False,
    ) -> Outcome:
        """Bring the stores to hold every row that the pairs tables want of this stage.

        Args:
            shard: "i/n": compute this shard of what is missing and no more.
            on_reject, max_rejected: as in `pair`, for rows that are NaN.
            retry_rejected: encode again what was rejected, with `shard` that of this shard.

        Raises:
            NotComplete: there are no pairs for these settings, a picture has changed since, or
                rows were rejected and that is not accepted.
            QeditError: there is no room for what is missing.
        """
        started = time.monotonic()
        options, this_shard = options or DeviceOptions(), shard_named(shard) if shard else None
        stores = [store for kind in self.kinds for store in run.stores.of(kind).stores()]
        if not dry_run:
            pin_existing(run, stores)
        torn = pass_over_torn(stores, drops=not dry_run)
        # of this shard: another machine may be retrying those of its own
        retried = this_shard if retry_rejected else None
        wanted, elsewhere = self._find(run, retried, retry=retry_rejected, forget=not dry_run)
        unreadable = wanted.unreadable(retried)
        work = of_shard(wanted, this_shard)
        missing, sizes, totals = work.missing(), self.count_bytes(run, work), Totals()
        if not dry_run and (missing.total() or unreadable.total()):
            refuse_full_disk(sizes, what=f"{missing.total()} {self.unit}")
            pin_before_writing(run, stores)
            wanted.pass_on_rejections(retried)
            if missing.total():
                totals = self._encode(run, work, progress, options, shard=this_shard)
        rejections = wanted.rejections(retried)
        if not dry_run:
            rejections.settle(stage=self.name, on_reject=on_reject, max_rejected=max_rejected)
        failed = len(rejections.places) + (unreadable.total() if dry_run else 0)
        again = failed if dry_run and retry_rejected else 0
        count = wanted.count() - elsewhere - (wanted.missing() - missing)
        computed = Counter({kind: totals.rows[kind] for kind in self.kinds})
        bytes_missing, facts = sum(sizes.values()), facts_of(totals.seconds)
        rate = Rate(run.configuration, run.stores.of(self.kinds[0]), options.where)
        if dry_run:
            facts |= rate.foreseen(missing=missing.total() + again, count_bytes=bytes_missing)
        else:
            rate.remember(
                count_bytes=bytes_missing * computed.total() // max(1, missing.total()),
                seconds=sum(totals.seconds.values()) / max(1, len(options.devices)),
            )
        return Outcome(
            stage=self.name,
            wanted=count.total(),
            kept=count.total() - (missing if dry_run else computed).total() - failed,
            computed=computed.total(),
            failed=failed - again,
            seconds=time.monotonic() - started,
            where=", ".join(run.stores.of(kind).where() for kind in self.named),
            unit=self.unit,
            facts=self.facts(count, computed) | facts,
            lines=(*torn, *rejections.lines()),
        )

    def _find(
        self, run: Run, shard: Shard | None, *, retry: bool, forget: bool
    ) -> tuple[Wanted, Counter[RowKind]]:
        """Return what is wanted, and how many of its rows are left to the retries of other shards.

        Args:
            retry: what was rejected of `shard` is to be encoded again.
            forget: forget that it was rejected.
        """
        wanted, elsewhere = self.find(run), Counter[RowKind]()
        if retry:
            rejections = wanted.rejections(shard)
            elsewhere.update(rejections.other_shards.values())
            if forget:
                rejections.forget()
                wanted = self.find(run)
        return wanted, elsewhere + wanted.unreadable() - wanted.unreadable(shard)

    def encode_on(
        self,
        configuration: Configuration,
        progress: Progress,
        options: DeviceOptions,
        *,
        shard: Shard | None,
    ) -> Totals:
        """Encode what is missing on one device, in a process that has opened nothing yet."""
        run = Run(configuration)
        return self._encode_here(run, of_shard(self.find(run), shard), progress, options)

    def _encode(
        self,
        run: Run,
        wanted: Wanted,
        progress: Progress,
        options: DeviceOptions,
        *,
        shard: Shard | None,
    ) -> Totals:
        if len(options.devices) > 1:
            encode: Encode = partial(self.encode_on, shard=shard)
        else:

            def encode(_: Configuration, progress: Progress, options: DeviceOptions) -> Totals:
                return self._encode_here(run, wanted, progress, options)

        return on_each_device(options, encode, run.configuration, progress)

    def _encode_here(
        self, run: Run, wanted: Wanted, progress: Progress, options: DeviceOptions
    ) -> Totals:
        totals = Totals()
        for work in self.works(run, wanted, options):
            totals.add(encode_missing(work, progress, options))
        return totals

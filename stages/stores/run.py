"""One run as a command sees it: the configuration, and what is opened for it, each once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from ...cache.store.store import Store
from ...config.configuration import Configuration
from ...config.datasets import Dataset
from ...config.settings import Settings
from ..frozen_base.modulation_table import modulation_table, wants_table
from ..frozen_base.quantized import QuantizedBase, quantized_base, wants_quantized
from ..models.checkpoint.checkpoint import Checkpoint, flavour_of, open_checkpoint
from ..models.checkpoint.matching_sizes import refuse_other_sizes
from ..models.flavours import Flavour
from ..samples.sample import Sample
from ..samples.store_keys import PairsKeys, pairs_keys
from ..samples.table import captions_beside, read_pairs, used_main_datasets
from .moves import known_id
from .run_stores import RunStores, open_stores


class Run:
    """A configuration with its checkpoint, stores and pairs tables.

    Each of them is opened at first use, and the same object is given from then on. Nothing is
    written. A stage takes a Run of its own, because the stage before it may have changed what
    lies in the folders.

    Args:
        spared: parts of the checkpoint that need not be there, as in `open_checkpoint`.
    """

    def __init__(self, configuration: Configuration, *, spared: Collection[str] = ()) -> None:
        self._configuration, self._spared = configuration, spared
        self._tables: dict[str, PairsKeys] = {}

    @property
    def configuration(self) -> Configuration:
        """The checked configuration, as it was given."""
        return self._configuration

    @property
    def settings(self) -> Settings:
        """The settings of config.json."""
        return self._configuration.settings

    @property
    def output_dir(self) -> Path:
        """The folder of the run's results, as an absolute path without links: its identity."""
        return Path(self.settings.output_dir).resolve()

    @cached_property
    def id(self) -> str:
        """The random id of the run; "" where its output_dir has none of its own."""
        return known_id(self.output_dir)

    @cached_property
    def flavour(self) -> Flavour:
        """The flavour, known without opening the checkpoint."""
        return flavour_of(self.settings)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint; raises as `open_checkpoint` and `refuse_other_sizes` do."""
        checkpoint = open_checkpoint(self.settings, spared=self._spared)
        refuse_other_sizes(checkpoint, spared=self._spared)
        return checkpoint

    @cached_property
    def stores(self) -> RunStores:
        """The stores of these settings; raises as `open_checkpoint` does."""
        return open_stores(self._configuration, self.checkpoint)

    @cached_property
    def modulation_table(self) -> Store | None:
        """The modulation table of these settings, there or not; None where they use none."""
        settings = self.settings
        return modulation_table(self.checkpoint, settings) if wants_table(settings) else None

    @cached_property
    def quantized_base(self) -> QuantizedBase | None:
        """The quantised base of these settings, there or not; None where they use none."""
        settings = self.settings
        return quantized_base(self.checkpoint, settings) if wants_quantized(settings) else None

    @property
    def pairs_root(self) -> Path:
        """The folder of the datasets' folders of pairs tables, which `pair` locks."""
        return Path(self.settings.cache_dir) / "pairs"

    @cached_property
    def main_datasets(self) -> tuple[Dataset, ...]:
        """The datasets that have a pairs table: those trained on and those only evaluated."""
        return used_main_datasets(self._configuration)

    @cached_property
    def captions_beside(self) -> tuple[str, ...]:
        """The captions that every sample gets besides its own."""
        return captions_beside(self.settings)

    def pairs(self, main: Dataset) -> PairsKeys:
        """Return the pairs table of `main`; raises as `read_pairs` does."""
        if main.id not in self._tables:
            self._tables[main.id] = pairs_keys(self._configuration, main, self.flavour)
        return self._tables[main.id]

    def every_pairs(self) -> list[PairsKeys]:
        """Return the pairs tables of all main datasets, in their order; raises as `pairs` does."""
        return [self.pairs(main) for main in self.main_datasets]

    def samples(self) -> Iterator[Sample]:
        """Yield every sample that is cached, dataset by dataset, as `pair` left them."""
        for main in self.main_datasets:
            yield from read_pairs(self._configuration, main, self.flavour).samples

    def accepted_samples(self, main: Dataset) -> Sequence[Sample]:
        """Return the samples of `main` without those that the user accepted to do without.

        Raises:
            NotComplete: there are no pairs, or rejected rows were not accepted.
        """
        samples = read_pairs(self._configuration, main, self.flavour).samples
        return self.stores.without_rejected(samples, self.captions_beside)

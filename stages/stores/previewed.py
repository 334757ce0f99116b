"""The samples that are previewed, how inference sees them, and the size of their previews.

Inference crops nothing. Where training crops references, the samples that previews show want
rows of their own: latents, prefixes and tails of whole references.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, zip_longest
from typing import TypeVar

import numpy as np
import pyarrow as pa

from ...config.configuration import Configuration
from ...config.datasets import Dataset
from ...config.value_types import PreviewSize
from ..models.flavours import Flavour
from ..samples.recipe import match_target_res
from ..samples.sample import Picture, Sample
from ..samples.sizes import Amount, area_of, size_of_area, size_of_edge
from ..samples.store_keys import Keys, PairsKeys
from .row_kinds import SAMPLE_ROWS, RowKind, row_keys
from .run import Run
from .run_stores import RunStores

T = TypeVar("T")


@dataclass(frozen=True)
class Shown:
    """A sample that previews show.

    Attributes:
        table, row: where it stands.
        trained: as training sees it.
        sample: as inference does; the same object where that is the same.
    """

    table: PairsKeys
    row: int
    trained: Sample
    sample: Sample

    def keys(self, kind: RowKind, beside: Sequence[str]) -> Keys:
        """Return the keys of the rows of one kind that a preview reads: of no target or mask.

        Args:
            beside: captions that go with every sample.
        """
        found = [] if kind is RowKind.WEIGHTS else kind.keys_of(self.sample, beside)
        if kind is RowKind.LATENTS:
            found = found[1:]
        return Keys(pa.array(found, pa.string()), np.full(len(found), self.row, np.int64))


def preview_samples(run: Run) -> tuple[list[Sample], bool]:
    """Return the first `num_eval_images` samples of held-out datasets, and whether those exist.

    Without held-out datasets they are the first of those that are trained on. Datasets take
    turns. Of rows that share a target (`Sample.group`) the first is taken. Their references
    are whole, as at inference, whatever training crops.

    Raises:
        NotComplete: the pairs of a dataset are not there.
    """
    return [one.sample for one in shown_samples(run)], bool(run.configuration.eval_datasets())


def only_previewed(run: Run) -> list[Shown]:
    """Return the samples of which previews want rows that training does not: none without a crop.

    Raises:
        NotComplete: the pairs of a dataset are not there.
    """
    if not _may_show_more(run.configuration):
        return []
    return [one for one in shown_samples(run) if one.sample is not one.trained]


def _may_show_more(configuration: Configuration) -> bool:
    """Return whether previews may show whole what training crops; reads nothing."""
    if configuration.settings.validation_disable or configuration.eval_datasets():
        return False
    return any(main.crop for main in configuration.main_datasets())


def foreseen_previews(
    configuration: Configuration, samples: Mapping[str, Sequence[Sample]], flavour: Flavour
) -> list[Sample]:
    """Return what `only_previewed` will find in the `samples` of main datasets; reads nothing."""
    if not _may_show_more(configuration):
        return []
    mains, count = configuration.main_datasets(), configuration.settings.num_eval_images
    tables = [[(main, sample) for sample in samples[main.id]] for main in mains]
    shown = islice(in_turns(tables, lambda one: one[1].group), count)
    wholes = (
        (sample, as_at_inference(sample, configuration, main, flavour=flavour))
        for main, sample in shown
    )
    return [whole for sample, whole in wholes if whole is not sample]


def keys_only_previewed(run: Run) -> tuple[str, ...]:
    """Return the keys of every row of whole references, of all kinds."""
    found = {
        key
        for one in only_previewed(run)
        for kind in SAMPLE_ROWS
        for key in one.keys(kind, run.captions_beside).keys.to_pylist()
    }
    return tuple(sorted(found))


def shown_samples(run: Run) -> list[Shown]:
    """Return what `preview_samples` chooses; only the beginning of each table is read.

    A sample is passed over if a row of it was rejected and the user went on without it.
    """
    configuration, accepted = run.configuration, _accepted(run.stores)
    mains = configuration.eval_datasets() or configuration.main_datasets()
    tables = [_shown_of(run, main) for main in mains]
    fit = [
        (
            one
            for one in table
            if accepted.isdisjoint(row_keys(one.trained, run.captions_beside))
            and accepted.isdisjoint(row_keys(one.sample, run.captions_beside))
        )
        if accepted
        else table
        for table in tables
    ]
    shown = in_turns(fit, lambda one: one.trained.group)
    return list(islice(shown, configuration.settings.num_eval_images))


def as_at_inference(
    sample: Sample, configuration: Configuration, main: Dataset, *, flavour: Flavour
) -> Sample:
    """Return `sample` with whole references and its first caption; itself if nothing is cropped.

    Sizes are those that `pair` gives the sample when `main` is not cropped.
    """
    if sample.target.whole:
        return sample
    area: Amount = flavour.vae_area
    if match_target_res(configuration, flavour):
        area = _area_of_whole(sample.target, main)
    references = tuple(
        _whole(picture, vae_area=area, vl_area=flavour.vl_area) for picture in sample.references
    )
    if references == sample.references:
        return sample
    return replace(sample, references=references, captions=sample.captions[:1])


def preview_size(sample: Sample, wanted: PreviewSize) -> tuple[int, int]:
    """Return the (width, height) in pixels of the sample's previews.

    An exact size is taken as it is; of any other the area counts, at the ratio of the whole
    target, by the rule of size of the pipelines.
    """
    if wanted.exact:
        return wanted.width, wanted.height
    return size_of_area(wanted.area, sample.target.width / sample.target.height)


def _shown_of(run: Run, main: Dataset) -> Iterator[Shown]:
    table = run.pairs(main)
    for row, sample in enumerate(table.each()):
        whole = as_at_inference(sample, run.configuration, main, flavour=run.flavour)
        yield Shown(table, row, sample, whole)


def in_turns(tables: Sequence[Iterable[T]], group: Callable[[T], str]) -> Iterator[T]:
    """Yield one of each table, then the next of each; of those of one `group` the first alone."""
    seen: set[str] = set()
    for one in chain.from_iterable(zip_longest(*tables)):
        if one is None or (group(one) and group(one) in seen):
            continue
        seen.add(group(one))
        yield one


def _area_of_whole(target: Picture, main: Dataset) -> float:
    """Return the area that `match_target_res` gives to references when nothing is cropped."""
    if main.resolution_type != "pixel":
        return area_of(main.resolution, main.resolution_type)
    width, height = size_of_edge(main.resolution, target.width / target.height)
    return float(width * height)


def _whole(picture: Picture, *, vae_area: Amount, vl_area: Amount) -> Picture:
    ratio = picture.width / picture.height
    return replace(
        picture,
        box=(0.0, 0.0, float(picture.width), float(picture.height)),
        size=size_of_area(vae_area, ratio),
        vl_size=size_of_area(vl_area, ratio),
    )


def _accepted(stores: RunStores) -> set[str]:
    """Return the keys of rejected rows that the user goes on without."""
    return {
        key
        for store_set in stores.store_sets()
        for key, place in store_set.rejected().items()
        if (row := place.read(key)) is not None and row.accepted
    }

"""Which samples are previewed, and at which size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice, zip_longest

from ..config.configuration import Configuration
from ..config.kinds import PreviewSize
from .models.checkpoint import Checkpoint
from .rule_of_size import size_of_area
from .samples import Sample
from .stores import accepted_samples


def preview_samples(
    configuration: Configuration, checkpoint: Checkpoint
) -> tuple[list[Sample], bool]:
    """The first `num_eval_images` samples of the held-out datasets, and whether those exist.

    Without held-out datasets they are the first of those that are trained on. Datasets take
    turns. Of rows that share a target (`Sample.group`) the first is taken.

    Raises:
        NotComplete: the pairs of a dataset are not there.
    """
    held_out = configuration.eval_datasets()
    tables = [
        accepted_samples(configuration, main, checkpoint)
        for main in held_out or configuration.main_datasets()
    ]
    chosen = islice(_in_turns(tables), configuration.settings.num_eval_images)
    return list(chosen), bool(held_out)


def _in_turns(tables: Sequence[Sequence[Sample]]) -> Iterator[Sample]:
    seen: set[str] = set()
    for sample in chain.from_iterable(zip_longest(*tables)):
        group = getattr(sample, "group", "")
        if sample is None or (group and group in seen):
            continue
        seen.add(group)
        yield sample


def preview_size(sample: Sample, wanted: PreviewSize) -> tuple[int, int]:
    """The (width, height) in pixels of the sample's previews.

    An exact size is taken as it is; of any other the area counts, at the ratio of the whole
    target, by the rule of size of the pipelines.
    """
    if wanted.exact:
        return wanted.width, wanted.height
    return size_of_area(wanted.area, sample.target.width / sample.target.height)

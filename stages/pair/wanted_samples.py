"""The samples that a run wants, from the folders' listings and captions alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...cache.files.fingerprint import fingerprint
from ...config.configuration import Configuration
from ...config.datasets import Dataset
from ..models.flavours import Flavour
from ..models.text.caption_length import CaptionLength
from ..samples.recipe import match_target_res, pairs_recipe, picture_datasets
from ..samples.schema import Rejection
from ..samples.table import used_main_datasets
from .captions import Captions, NoCaption
from .checks import Terms
from .folders import Scans
from .geometry import Framing
from .match import Candidates, Matched, Places, extras, match, refuse_strangers, subset


@dataclass(frozen=True, slots=True)
class Wanted:
    """A sample whose pictures are still to be examined.

    Attributes:
        places: of its pictures, in the order of `terms.datasets`.
        group: as in `Sample`.
    """

    name: str
    places: Places
    terms: Terms
    captions: tuple[str, ...]
    group: str = ""

    def pictures(self) -> Iterator[tuple[str, int]]:
        """Yield the dataset id and the place of the target, each reference, the mask."""
        for dataset, place in zip(self.terms.datasets, self.places, strict=True):
            yield dataset.id, place


@dataclass
class Plan:
    """The plan for the table of one main dataset.

    Attributes:
        ambiguous: paths that need the dataset's id before them to name a sample.
        strange_captions: a sentence on captions that belong to no target; "" without them.
        rejections: those for which no picture has to be examined.
    """

    main: Dataset
    folder: Path
    recipe: dict[str, Any]
    scans: Scans
    ambiguous: Collection[str]
    strange_captions: str
    wanted: list[Wanted] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)

    def paths(self, wanted: Wanted) -> list[str]:
        """Return the paths of the target, of each reference, of the mask."""
        return [self.scans[name].pictures.paths[place] for name, place in wanted.pictures()]

    def fill(self, variants: Sequence[tuple[Terms, Matched]], captions: Captions) -> None:
        """Want every match that has captions, or those of a subset of the targets.

        Args:
            variants: the terms on which a target becomes a sample, and the matches of each.
        """
        targets, most = self.scans[self.main.id].pictures.paths, self.main.max_num_samples
        matches = [(terms, places) for terms, found in variants for places in found.matches]
        if most is not None:
            drawn = subset({targets[places[0]] for _, places in matches}, most)
            matches = [match for match in matches if targets[match[1][0]] in drawn]
        rejections = dict.fromkeys(  # each once, though several variants may have it
            replace(row, sample=self._name(row.sample))
            for _, found in variants
            for row in found.rejections
        )
        for terms, places in matches:
            target = targets[places[0]]
            name = self._name(target)
            try:
                texts = captions.of(target)
            except NoCaption as none:
                rejections[Rejection(name, self.main.id, target, none.reason, none.detail)] = None
                continue
            group = name if len(variants) > 1 else ""
            variant = f"{name}#{terms.references[0].id}" if group else name
            self.wanted.append(Wanted(variant, places, terms, texts, group))
        self.rejections += rejections

    def _name(self, path: str) -> str:
        return f"{self.main.id}:{path}" if path in self.ambiguous else path


def make_plans(configuration: Configuration, flavour: Flavour, scans: Scans) -> list[Plan]:
    """Plan the table of every main and held-out dataset.

    Raises:
        WrongUse: two folders without a name in common, or captions that cannot be read.
    """
    stems = {name: Candidates(found.pictures) for name, found in scans.items()}
    ambiguous = _ambiguous_paths(configuration, scans)
    plans, checked = [], set[str]()
    for main in used_main_datasets(configuration):
        _, *partners = picture_datasets(configuration, main)
        pools = {partner.id: stems[partner.id] for partner in partners}
        refuse_strangers(main.id, stems[main.id], pools)
        captions = Captions(main, scans[main.id], length=CaptionLength(configuration.settings))
        recipe = pairs_recipe(configuration, main, flavour)
        plan = Plan(
            main,
            configuration.pairs_folder(main) / fingerprint(recipe),
            recipe,
            scans,
            ambiguous[main.id],
            strange_captions=captions.strange(stems[main.id].stems),
        )
        variants = _variants(configuration, terms_of(configuration, flavour, main))
        plan.fill([(terms, _matched(terms, stems)) for terms in variants], captions)
        for partner in partners:
            if partner.id not in checked:
                checked.add(partner.id)
                asked = _asked_for(configuration, partner, stems)
                plan.rejections += extras(
                    partner.id, stems[partner.id], asked, is_mask=partner.is_mask
                )
                plan.rejections += _problems(partner, scans)
        plan.rejections += _problems(main, scans)
        plans.append(plan)
    return plans


def terms_of(configuration: Configuration, flavour: Flavour, main: Dataset) -> Terms:
    """Return what `main` asks of its samples; as in inference, held-out ones are not cropped."""
    framing = Framing(
        resolution=main.resolution,
        resolution_type=main.resolution_type,
        crop=main.crop and main not in configuration.eval_datasets(),
        crop_aspect=main.crop_aspect,
        crop_style=main.crop_style,
        crop_ratios=main.crop_aspect_buckets,
        maximum_image_size=main.maximum_image_size,
        target_downsample_size=main.target_downsample_size,
        seed=configuration.settings.seed,
    )
    return Terms(
        main=main,
        references=configuration.references_of(main),
        mask=configuration.mask_of(main),
        framing=framing,
        vae_area=None if match_target_res(configuration, flavour) else flavour.vae_area,
        vl_area=flavour.vl_area,
    )


def _matched(terms: Terms, stems: Mapping[str, Candidates]) -> Matched:
    pools = {reference.id: stems[reference.id] for reference in terms.references}
    masks = (terms.mask.id, stems[terms.mask.id]) if terms.mask else None
    return match(terms.main.id, stems[terms.main.id], pools, masks)


def _variants(configuration: Configuration, terms: Terms) -> Iterator[Terms]:
    """Yield one set of terms for all references together, or one for each of them alone.

    With `conditioning_multidataset_sampling: random` a target is a sample of its own with each
    single reference, so that the embeds are always those of the reference that is attached.
    """
    sampling = configuration.settings.conditioning_multidataset_sampling
    if sampling == "combined" or len(terms.references) < 2:
        yield terms
        return
    for reference in terms.references:
        yield replace(terms, references=(reference,))


def _ambiguous_paths(configuration: Configuration, scans: Scans) -> dict[str, set[str]]:
    """Return by dataset the paths that need its id before them to name one sample.

    A held-out dataset never changes the names of the samples that are trained on.
    """

    def repeated(datasets: Sequence[Dataset]) -> set[str]:
        if len(datasets) < 2:
            return set()
        paths = Counter(path for dataset in datasets for path in scans[dataset.id].pictures.paths)
        return {path for path, count in paths.items() if count > 1}

    mains, held_out = configuration.main_datasets(), configuration.eval_datasets()
    names = dict.fromkeys((main.id for main in mains), repeated(mains))
    return names | dict.fromkeys((main.id for main in held_out), repeated([*mains, *held_out]))


def _asked_for(
    configuration: Configuration, partner: Dataset, stems: Mapping[str, Candidates]
) -> Collection[str]:
    """Return the names for which any dataset of targets asks `partner`."""
    sides = [
        stems[main.id].stems
        for main in used_main_datasets(configuration)
        if partner in picture_datasets(configuration, main)
    ]
    return sides[0] if len(sides) == 1 else set[str]().union(*sides)


def _problems(dataset: Dataset, scans: Scans) -> Sequence[Rejection]:
    return [Rejection(problem.path, dataset.id, *problem) for problem in scans[dataset.id].problems]

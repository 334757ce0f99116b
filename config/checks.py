"""Checks what two keys or two datasets must agree on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from .datasets import Dataset
from .settings import MAX_REFERENCES, Settings
from .spelling import did_you_mean
from .training_checks import Finding, check_training

LARGEST_MEGAPIXELS = 64
SMALLEST_EDGE = 32  # pixels
# Whose names a file that is no plain LoRA can have: what others call a DoRA has another norm.
FORMATS_READ = {"dora": ("diffusers",), "lokr": ("diffusers", "comfyui")}


def check_settings(settings: Settings, *, wrong: Collection[str] = ()) -> Iterator[Finding]:
    """Yield what is wrong between the keys of config.json.

    Args:
        wrong: keys whose own values are wrong, with a default in their places.
    """
    given = settings.model_fields_set
    if settings.num_train_epochs and "max_train_steps" in given and settings.max_train_steps:
        yield "max_train_steps", "and `num_train_epochs` are both given; keep one of the two"
    if settings.max_train_steps is None and settings.num_train_epochs is None:
        yield "max_train_steps", "is 0 and `num_train_epochs` is not given; give one of the two"
    if settings.flow_use_uniform_schedule and settings.flow_use_beta_schedule:
        yield "flow_use_beta_schedule", "and `flow_use_uniform_schedule` are both on; keep one"
    if settings.model_kwargs.match_target_res and settings.model_flavour == "edit-v1":
        yield "model_kwargs.match_target_res", "is for edit-v2 and later, not for edit-v1"
    readers = FORMATS_READ.get(settings.lora_type)
    if readers and settings.model_type == "lora" and settings.lora_format not in readers:
        yield (
            "lora_format",
            f'is "{settings.lora_format}", and no such tool reads a file of `lora_type` '
            f'"{settings.lora_type}" as it is trained here; take it out, or set it to '
            f"{' or '.join(readers)}",
        )
    yield from check_training(settings, wrong=wrong)


def check_dataset(dataset: Dataset) -> Iterator[Finding]:
    """Yield what is wrong between the fields of one dataset."""
    if dataset.holds_pictures and dataset.instance_data_dir is None:
        yield "instance_data_dir", f"is required for a dataset of type {dataset.dataset_type}"
    if dataset.is_main:
        yield from _check_captions(dataset)
        if not dataset.conditioning_data:
            yield (
                "conditioning_data",
                "is required: the id, or a list of ids, of the datasets that hold its references",
            )
    yield from _check_sizes(dataset)
    if dataset.end_step is not None and dataset.end_step <= dataset.start_step:
        yield "end_step", f"must be later than `start_step` ({dataset.start_step})"


def _check_captions(dataset: Dataset) -> Iterator[Finding]:
    strategy = dataset.caption_strategy
    if strategy is None:
        yield "caption_strategy", "may be null for a conditioning dataset alone"
    if strategy in ("parquet", "csv", "jsonl") and getattr(dataset, strategy) is None:
        example = f'{{"path": "captions.{strategy}", "caption_column": "caption"}}'
        yield strategy, f'is required with `caption_strategy` "{strategy}", like {example}'
    needs_prompt = {
        '`caption_strategy` "instanceprompt"': strategy == "instanceprompt",
        "`prepend_instance_prompt`": dataset.prepend_instance_prompt,
        "`only_instance_prompt`": dataset.only_instance_prompt,
    }
    reasons = [reason for reason, holds in needs_prompt.items() if holds]
    if reasons and not dataset.instance_prompt:
        yield "instance_prompt", f"is required with {reasons[0]}"


def _check_sizes(dataset: Dataset) -> Iterator[Finding]:
    size = f"{dataset.resolution:g}"
    if dataset.resolution_type == "area" and dataset.resolution > LARGEST_MEGAPIXELS:
        yield (
            "resolution",
            f'is in megapixels with `resolution_type` "area": 1.0 is 1024x1024, {size} too much',
        )
    if dataset.resolution_type != "area" and dataset.resolution < SMALLEST_EDGE:
        yield (
            "resolution",
            f"is an edge in pixels, at least {SMALLEST_EDGE}, not {size}; "
            'for megapixels set `resolution_type` to "area"',
        )
    if (dataset.maximum_image_size is None) != (dataset.target_downsample_size is None):
        yield "target_downsample_size", "and `maximum_image_size` must be given together"
    elif (dataset.target_downsample_size or 0) > (dataset.maximum_image_size or 0):
        yield "target_downsample_size", "must not be more than `maximum_image_size`"
    if dataset.minimum_aspect_ratio > dataset.maximum_aspect_ratio:
        yield "minimum_aspect_ratio", "must not be more than `maximum_aspect_ratio`"
    if dataset.crop and dataset.crop_aspect == "closest" and not dataset.crop_aspect_buckets:
        yield "crop_aspect_buckets", 'is required with `crop_aspect` "closest", like [0.75, 1, 1.5]'


class Links:
    """Checks the datasets that datasets name.

    Args:
        datasets: those that could be read.
        disabled: ids of the disabled ones.
        unread: ids of those with a mistake that hides what they are; naming them is fine.
    """

    def __init__(
        self, datasets: Sequence[Dataset], *, disabled: Collection[str], unread: Collection[str]
    ) -> None:
        self.by_id = {dataset.id: dataset for dataset in datasets}
        self.disabled, self.unread = disabled, unread

    def fault(self, name: str, *kinds: str) -> str | None:
        """Return why `name` is no dataset of one of these types, or None if it is."""
        if name in self.unread:
            return None
        if name in self.disabled:
            return f'names "{name}", which is disabled'
        if name not in self.by_id:
            known = [*self.by_id, *self.disabled, *self.unread]
            return f'names "{name}", and there is no dataset of that id{did_you_mean(name, known)}'
        kind, wanted = self.by_id[name].dataset_type, '" or "'.join(kinds)
        if kind in kinds:
            return None
        return f'names "{name}", which has `dataset_type` "{kind}", not "{wanted}"'

    def check(self, main: Dataset, *, flavour: str | None, sampling: str) -> Iterator[Finding]:
        """Yield what is wrong with the datasets that `main` names; `flavour` None is not known."""
        references, embeds = main.conditioning_data, main.conditioning_image_embeds
        for name in references:
            if (why := self.fault(name, "conditioning")) is not None:
                yield "conditioning_data", why
        key = "conditioning_image_embeds"
        if embeds is not None and (why := self.fault(embeds, key)) is not None:
            yield key, why
        doubles = [name for name, times in Counter(references).items() if times > 1]
        if doubles:
            yield "conditioning_data", f'names "{doubles[0]}" more than once'
        yield from self._check_numbers(main, flavour=flavour, sampling=sampling)

    def _check_numbers(
        self, main: Dataset, *, flavour: str | None, sampling: str
    ) -> Iterator[Finding]:
        named = dict.fromkeys(main.conditioning_data)
        masks = [name for name in named if name in self.by_id and self.by_id[name].is_mask]
        references = len(named) - len(masks)
        if len(masks) > 1:
            yield "conditioning_data", f"names {len(masks)} mask datasets; one is possible"
        if masks and not references:
            yield "conditioning_data", "names a mask alone; at least one reference is needed"
        most = max(MAX_REFERENCES.values())
        if flavour in MAX_REFERENCES and sampling == "combined":
            most = MAX_REFERENCES[flavour]
        if references <= most:
            return
        if most == 1:
            yield (
                "conditioning_data",
                f"names {references} reference datasets, and {flavour} takes one reference: set "
                '`conditioning_multidataset_sampling` to "random" (one of them a step), '
                "or train edit-v2, which takes up to 3",
            )
        else:
            yield "conditioning_data", f"names {references} reference datasets; {most} are possible"

"""What a change of each key does: the pages of keys say what recipes and run.json really do.

Every key is changed in a run with small pictures and tiny checkpoints. Nothing is encoded: the rows
that a configuration wants are compared with those that the changed one wants, in either direction.
`pytest tests/promises/test_key_effects.py --renew` writes config/changes.json anew.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from paths import ROOT
from quiet import Quiet
from small_run import AREA, draw

from qedit.cache.files.atomic import readable_json
from qedit.config.key_table import FILES, every_key
from qedit.config.loading import load
from qedit.stages.frozen_base.modulation_table import lowest_sigma
from qedit.stages.models.checkpoint import checkpoint as checkpoint_module
from qedit.stages.models.checkpoint.digests import digests_file, model_digest
from qedit.stages.models.timesteps import every_timestep
from qedit.stages.models.tiny.tiny import make_tiny
from qedit.stages.pair.stage import run as pair
from qedit.stages.samples.table import manifest_in, table_folder
from qedit.stages.stores.previewed import only_previewed
from qedit.stages.stores.row_kinds import SAMPLE_ROWS, RowKind
from qedit.stages.stores.run import Run
from qedit.stages.train.data.batches import Source
from qedit.stages.train.plan import training_plan
from qedit.stages.train.state.initial_lora import initial_lora_digest
from qedit.stages.train.state.run_record import describe_run, is_same_run

FILE = ROOT / "config" / "changes.json"
Sets = tuple[str, ...]
# what a change may make anew, in the order of work
ANEW = ("pairs", "latents", "image prefixes", "text tails", "mask weights", "base")

SIZES = ((112, 112), (128, 72), (72, 128), (96, 96), (96, 96))
# folder -> the letters of its pictures: p of `edited`, q of `more`, h of `held`
PICTURES = {
    **{"edited": "p", "more": "q", "held": "h", "a": "pqh", "b": "pq", "masks": "p"},
    "others": "pqh",  # takes any place
}
CROP = ("data.edited.crop=true",)
# previews want rows of whole references where training crops them and nothing is held out
CROP_ALONE = (*CROP, "data.held.disabled=true")
WINDOW = (*CROP, "data.edited.maximum_image_size=80", "data.edited.target_downsample_size=70")
WIDE, MATCHING = ("data.edited.resolution=96",), ("model_kwargs.match_target_res=true",)
SHUFFLE = ("data.edited.caption_shuffle.enable=true",)
TABLE = ("data.edited.caption_strategy=parquet", "data.edited.parquet.path=captions.parquet")


def table_of(kind: str) -> Sets:
    return (f"data.edited.caption_strategy={kind}", f"data.edited.{kind}.path=captions.{kind}")


def elsewhere(kind: str) -> Sets:
    return (f"data.edited.{kind}.path=others.{kind}",)


# key -> where it has its effect, and what changes it, where that is not its plain default and
# the next value that may be written
SETTINGS: dict[str, tuple[Sets, Sets]] = {
    "model_family": ((), ()),  # there is one
    "model_flavour": (
        tuple(f'data.{name}.conditioning_data=["a"]' for name in ("edited", "more")),
        ("model_flavour=edit-v1", "pretrained_model_name_or_path=v1"),
    ),
    "model_kwargs": (WIDE, MATCHING),
    "model_kwargs.match_target_res": (WIDE, MATCHING),
    "pretrained_model_name_or_path": ((), ("pretrained_model_name_or_path=other",)),
    "pretrained_transformer_model_name_or_path": (
        (),
        ("pretrained_transformer_model_name_or_path=other",),
    ),
    "pretrained_vae_model_name_or_path": ((), ("pretrained_vae_model_name_or_path=other",)),
    "pretrained_text_encoder_model_name_or_path": (
        (),
        ("pretrained_text_encoder_model_name_or_path=other",),
    ),
    "revision": (("pretrained_model_name_or_path=on/the-hub",), ("revision=other",)),
    "data_backend_config": ((), ("data_backend_config=data.json",)),
    "conditioning_multidataset_sampling": (
        ("data.a.strict_ratio_tolerance=0.2",),  # no reference is rejected
        ("conditioning_multidataset_sampling=random",),
    ),
    "num_train_epochs": (("max_train_steps=null", "num_train_epochs=1"), ("num_train_epochs=2",)),
    "optimizer_config": ((), ("optimizer_config.eps=1e-6",)),
    "lr_scheduler": ((), ("lr_scheduler=linear",)),
    "lr_scheduler_config": (("lr_scheduler=polynomial",), ("lr_scheduler_config.power=2",)),
    "memory": ((), ("memory=20",)),
    "blocks_to_stream": ((), ("blocks_to_stream=1",)),
    "lora_target_modules": ((), ("lora_target_modules=all-linear+modulation",)),
    "init_lora": ((), ("init_lora=some.safetensors",)),
    "flow_schedule_shift": ((), ("flow_schedule_shift=0.1",)),
    "flow_schedule_auto_shift": (("flow_schedule_shift=0.1",), ("flow_schedule_auto_shift=true",)),
    "flow_sigmoid_scale": ((), ("flow_sigmoid_scale=3",)),
    "flow_beta_schedule_alpha": (
        ("flow_use_beta_schedule=true",),
        ("flow_beta_schedule_alpha=0.5",),
    ),
    "flow_beta_schedule_beta": (
        ("flow_use_beta_schedule=true", "flow_beta_schedule_alpha=1"),
        ("flow_beta_schedule_beta=9",),
    ),
    "validation_resolution": ((), ("validation_resolution=768",)),
    "validation_negative_prompt": ((), ("validation_negative_prompt=ugly",)),
    "eval_dataset_id": ((), ("eval_dataset_id=more",)),
    "resume_from_checkpoint": ((), ("resume_from_checkpoint=none",)),
    "tracker_project_name": ((), ("tracker_project_name=other",)),
    "scheduled_sampling_order": ((), ("scheduled_sampling_order=3",)),
}
FIELDS: dict[str, tuple[Sets, Sets]] = {
    "type": ((), ()),  # there is one
    "id": ((), ("data.edited.id=renamed",)),
    "dataset_type": ((), ("data.more.dataset_type=eval",)),
    "disabled": ((), ("data.more.disabled=true",)),
    "instance_data_dir": (
        (),
        tuple(f"data.{name}.instance_data_dir=others" for name in ("edited", "a", "masks")),
    ),
    "conditioning_data": ((), ('data.edited.conditioning_data=["a"]',)),
    "conditioning_type": (CROP, ("data.a.conditioning_type=reference_loose",)),
    "strict_ratio_tolerance": ((), ("data.a.strict_ratio_tolerance=0.2",)),
    "conditioning_image_embeds": ((), ("data.edited.conditioning_image_embeds=prefixes",)),
    "cache_dir_vae": ((), ("data.edited.cache_dir_vae=elsewhere",)),
    "cache_dir": (
        ("data.edited.conditioning_image_embeds=prefixes",),
        ("data.prefixes.cache_dir=elsewhere", "data.tails.cache_dir=elsewhere"),
    ),
    "caption_strategy": ((), ("data.edited.caption_strategy=filename",)),
    "missing_caption": ((), ("data.more.missing_caption=empty",)),
    "instance_prompt": (
        ("data.edited.prepend_instance_prompt=true", "data.edited.instance_prompt=now"),
        ("data.edited.instance_prompt=later",),
    ),
    "prepend_instance_prompt": (
        ("data.edited.instance_prompt=now",),
        ("data.edited.prepend_instance_prompt=true",),
    ),
    "only_instance_prompt": (
        ("data.edited.instance_prompt=now",),
        ("data.edited.only_instance_prompt=true",),
    ),
    "caption_shuffle": ((), SHUFFLE),
    "caption_shuffle.count": (SHUFFLE, ("data.edited.caption_shuffle.count=2",)),
    "caption_shuffle.seed": (SHUFFLE, ("data.edited.caption_shuffle.seed=4",)),
    "caption_shuffle.split_on": (SHUFFLE, ("data.edited.caption_shuffle.split_on=space",)),
    "caption_shuffle.position_start": (SHUFFLE, ("data.edited.caption_shuffle.position_start=1",)),
    "caption_shuffle.include_original": (
        SHUFFLE,
        ("data.edited.caption_shuffle.include_original=false",),
    ),
    "caption_filter_list": ((), ('data.edited.caption_filter_list=["number"]',)),
    **{kind: (table_of(kind), elsewhere(kind)) for kind in ("parquet", "csv", "jsonl")},
    "parquet.path": (TABLE, elsewhere("parquet")),
    "parquet.filename_column": (TABLE, ("data.edited.parquet.filename_column=moved",)),
    "parquet.caption_column": (TABLE, ("data.edited.parquet.caption_column=second",)),
    "parquet.fallback_caption_column": (
        (*TABLE, "data.edited.parquet.caption_column=sparse"),
        ("data.edited.parquet.fallback_caption_column=second",),
    ),
    "parquet.identifier_includes_extension": (
        TABLE,
        ("data.edited.parquet.identifier_includes_extension=false",),
    ),
    "resolution": ((), ("data.edited.resolution=96",)),
    "crop_aspect": (CROP, ("data.edited.crop_aspect=preserve",)),
    "crop_style": (CROP, ("data.edited.crop_style=corner",)),
    "crop_aspect_buckets": (
        (*CROP, "data.edited.crop_aspect=closest", "data.edited.crop_aspect_buckets=[1]"),
        ("data.edited.crop_aspect_buckets=[0.5, 2]",),
    ),
    "minimum_image_size": ((), ("data.edited.minimum_image_size=97",)),
    "maximum_image_size": (WINDOW, ("data.edited.maximum_image_size=500",)),
    "target_downsample_size": (WINDOW, ("data.edited.target_downsample_size=79",)),
    "minimum_aspect_ratio": ((), ("data.edited.minimum_aspect_ratio=0.7",)),
    "maximum_aspect_ratio": ((), ("data.edited.maximum_aspect_ratio=1.5",)),
    "max_num_samples": ((), ("data.edited.max_num_samples=2",)),
    "end_step": ((), ("data.edited.end_step=5",)),
}
# key -> what else is set where a change does more: as a reader names it, and as it is typed
MORE: dict[str, tuple[str, Sets]] = {
    "seed": ("a random crop", (*CROP, "data.edited.crop_aspect=random")),
    "validation_disable": ("crop", CROP_ALONE),
    "num_eval_images": ("crop", CROP_ALONE),
    "eval_dataset_id": ("crop", ("data.more.crop=true",)),
}


def next_value(file: str, name: str) -> str:
    """A value of the key other than its default."""
    top, _, inner = name.partition(".")
    if inner:
        return "true"
    node = FILES[file].model_json_schema()["properties"][top]
    field = FILES[file].model_fields[top]
    default: Any = field.get_default(call_default_factory=True, validated_data={})
    choices = [one for part in (node, *node.get("anyOf", ())) for one in part.get("enum", ())]
    if choices:
        return str(next(one for one in reversed(choices) if one != default))
    if isinstance(default, bool):
        return str(not default).lower()
    if isinstance(default, int | float):
        return str(default * 2 + 1 if isinstance(default, int) else default / 2 or 0.25)
    assert isinstance(default, Path), f"say above what {name} is to be changed to"
    return "elsewhere"


def cases(file: str, name: str) -> Iterator[tuple[str, Sets, Sets]]:
    """When a change is made, where, and the change itself."""
    settings = file == "config.json"
    typed = f"{name}=" if settings else f"data.edited.{name}="
    known = (SETTINGS if settings else FIELDS).get(name)
    context, change = known or ((), (typed + next_value(file, name),))
    yield "", context, change
    if settings and name in MORE:
        when, context = MORE[name]
        yield when, context, change


# -- a run with small pictures, and what it wants ------------------------------------------


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("effects")
    for name, flavour, seed, vl_area in (
        ("model", "edit-v2", 0, AREA),
        ("other", "edit-v2", 1, AREA),
        ("v1", "edit-v1", 2, 4 * AREA),
    ):
        make_tiny(folder / name, flavour, vae_area=AREA, vl_area=vl_area, seed=seed)
    shutil.rmtree(folder / "v1" / "vae")
    shutil.copytree(folder / "model" / "vae", folder / "v1" / "vae")  # releases have one VAE
    for place, (name, letters) in enumerate(PICTURES.items()):
        for letter, (number, size) in product(letters, enumerate(SIZES)):
            seed = 1000 * place + ord(letter) + 200 * number
            odd = (104, 96) if (name, letter, number) == ("a", "p", 3) else size
            draw(folder / name / f"{letter}{number}.png", odd, seed)
            caption = f"make {name} number {number}, red, and large\nturn it blue"
            if (letter, number) != ("q", 4):  # one has none
                (folder / name / f"{letter}{number}.txt").write_text(caption)
    (folder / "some.safetensors").write_bytes(b"a LoRA")
    for name in ("captions", "others"):
        write_tables(folder, name)
    common = {"resolution": 64, "caption_strategy": "textfile"}
    data: list[dict[str, Any]] = [
        {"id": "edited", "conditioning_data": ["a", "b", "masks"], **common},
        {"id": "more", "conditioning_data": ["a", "b"], **common},
        {"id": "held", "dataset_type": "eval", "conditioning_data": ["a"], **common},
        *({"id": one, "dataset_type": "conditioning"} for one in ("a", "b")),
        {"id": "masks", "dataset_type": "conditioning", "conditioning_type": "mask"},
        {"id": "prefixes", "dataset_type": "conditioning_image_embeds", "cache_dir": "prefixes"},
        {"id": "tails", "dataset_type": "text_embeds"},
    ]
    for dataset in data[:6]:
        dataset["instance_data_dir"] = dataset["id"]
    config = {"model_flavour": "edit-v2", "pretrained_model_name_or_path": "model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "data.json").write_text(json.dumps(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(
            checkpoint_module,
            "fetched",
            lambda source, *, revision, patterns: folder / (revision or "model"),
        )
        yield folder


def write_tables(folder: Path, name: str) -> None:
    """Captions of `edited` in the three kinds of tables."""
    rows = [
        {
            "filename": f"p{number}.png",
            "moved": f"p{(number + 1) % 5}.png",
            "caption": f"{name} {number}",
            "second": f"{name} again {number}",
            "sparse": f"{name} seldom {number}" if number else "",
        }
        for number in range(5)
    ]
    pa.parquet.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    (folder / f"{name}.csv").write_text("\n".join(lines))
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))


_wanted: dict[Sets, dict[str, Any]] = {}


def wanted(sets: Sets) -> dict[str, Any]:
    """All that the run with `sets` wants: rows of every kind, and what run.json is to say."""
    if sets not in _wanted:
        run = Run(load(Path("config.json"), Path("data.json"), sets=sets))
        if any(one.startswith("data.") for one in sets) or not tables(run):
            pair(run.configuration, Quiet(), on_reject="skip", no_report=True)
        _wanted[sets] = {**rows(run), "pairs": tables(run), "run": record(run)}
    return _wanted[sets]


def tables(run: Run) -> set[tuple[Path, str]]:
    """The pairs tables by their folders and contents; none where one is missing."""
    folders = [table_folder(run.configuration, main, run.flavour) for main in run.main_datasets]
    manifests = {folder: manifest_in(folder) for folder in folders}
    there = {(folder, found["pairs"]) for folder, found in manifests.items() if found}
    return there if len(there) == len(folders) else set()


def rows(run: Run) -> dict[str, set[Any]]:
    """The rows by what they are: each with the folder of its store."""
    found: dict[str, set[Any]] = {kind.words: set() for kind in SAMPLE_ROWS}
    for sample in (*run.samples(), *(shown.sample for shown in only_previewed(run))):
        places = {RowKind.PREFIXES: sample.dataset, RowKind.TAILS: sample.dataset}
        for kind, place in places.items():
            path = run.stores.of(kind).of(place).path
            found[kind.words] |= {(path, key) for key in kind.keys_of(sample, run.captions_beside)}
        for picture in (sample.target, *sample.references):
            path = run.stores.latents.of(picture.dataset).path
            found["latents"].add((path, picture.latent_key))
        if sample.mask:
            path = run.stores.weights.of(sample.mask.dataset).path
            found["mask weights"].add((path, sample.mask.weight_key))
    found["base"] = {run.quantized_base and run.quantized_base.folder}
    if run.modulation_table is not None:
        table = run.modulation_table.path
        found["base"] |= {(table, row) for row in timesteps(lowest_sigma(run.settings))}
    return found


@cache
def timesteps(lowest: float) -> frozenset[int]:
    """The rows of a modulation table down to this sigma."""
    return frozenset(every_timestep(lowest_sigma=lowest))


def record(run: Run) -> dict[str, Any]:
    """What run.json is to say, as `make_plan` describes it; nothing need be encoded for it."""
    digest = model_digest(run.checkpoint.transformer, remember=digests_file(run.settings))
    return describe_run(
        run.settings,
        [Source.of(main, run.accepted_samples(main)) for main in run.configuration.main_datasets()],
        transformer_digest=digest,
        zero_cond_t=run.checkpoint.zero_cond_t,
        recipes=training_plan._recipes(run.stores),
        start=initial_lora_digest(run.settings),
    )


def effect(context: Sets, change: Sets) -> str:
    """What is to be made anew because of the change, there or back, and whether the run is."""
    before, after = wanted(context), wanted((*context, *change))
    rows = [what for what in ANEW if before[what] != after[what]]
    listed = " and ".join(filter(None, [", ".join(rows[:-1]), *rows[-1:]]))
    same = is_same_run(before["run"], after["run"]) and is_same_run(after["run"], before["run"])
    same = same and before["run"]["datasets"] == after["run"]["datasets"]
    costs = [f"new {listed}" if rows else "", "" if same else "a new `output_dir`"]
    return "; ".join(filter(None, costs)) or "nothing"


def measured(file: str, name: str) -> str:
    """What a change of the key does, in words, always and where more is set."""
    always, *more = cases(file, name)
    found = [effect(*always[1:])]
    return "; with ".join([*found, *(f"{when}: {effect(*case)}" for when, *case in more)])


# -- the tests --------------------------------------------------------------------------------


def test_the_written_effects_are_those_of_recipes_and_run_records(
    here: Path, pytestconfig: pytest.Config
) -> None:
    found: dict[str, dict[str, str]] = {file: {} for file in FILES}
    for key in every_key():
        found[key.file][key.name] = measured(key.file, key.name)
    if pytestconfig.getoption("--renew"):
        FILE.write_text(readable_json(found), encoding="utf-8")
    assert found == json.loads(FILE.read_text(encoding="utf-8"))

"""Every mistake of both files, in one message that names file, dataset and key."""

from __future__ import annotations

from pathlib import Path

import pytest
from configurations import complaint, image, only_line, reference

from qedit.cache.errors import WrongUse
from qedit.config.loading import load


def test_a_dataset_of_pictures_needs_a_folder(tmp_path: Path) -> None:
    what = complaint(tmp_path, {}, image(), {"id": "ref", "dataset_type": "conditioning"})
    assert only_line(what) == (
        "data.json, dataset ref: `instance_data_dir` is required for a dataset of type conditioning"
    )


@pytest.mark.parametrize("bad", ["a/b", "..", "a:b", ".hidden", "a\\b"])
def test_an_id_must_be_able_to_name_a_folder(tmp_path: Path, bad: str) -> None:
    line = only_line(complaint(tmp_path, {}, image(id=bad), reference()))
    assert line.startswith(f"data.json, dataset {bad}: `id` must not begin with a dot")


def test_an_entry_without_an_id_is_named_by_its_place(tmp_path: Path) -> None:
    what = complaint(tmp_path, {}, image(), reference(), {"dataset_type": "text_embeds"}, 7)
    assert "data.json, dataset number 3: `id` is required" in what
    assert "data.json, dataset number 4: must be an object in braces" in what


def test_ids_are_unique(tmp_path: Path) -> None:
    line = only_line(complaint(tmp_path, {}, image(), reference(), reference()))
    assert line == "data.json, dataset ref: `id` is used by 2 datasets; every id must be unique"


def test_edit_v1_with_two_references_names_both_ways_out(tmp_path: Path) -> None:
    main = image(conditioning_data=["ref", "b"])
    settings = {"model_flavour": "edit-v1"}
    line = only_line(complaint(tmp_path, settings, main, reference(), reference(id="b")))
    assert "2 reference datasets, and edit-v1 takes one reference" in line
    assert '"random"' in line
    assert "edit-v2" in line


@pytest.mark.parametrize("sampling", ["combined", "random"])
def test_no_sample_has_more_than_three_references(tmp_path: Path, sampling: str) -> None:
    names = ["a", "b", "c", "d"]
    references = [reference(id=name) for name in names]
    settings = {"conditioning_multidataset_sampling": sampling}
    line = only_line(complaint(tmp_path, settings, image(conditioning_data=names), *references))
    assert line.endswith("`conditioning_data` names 4 reference datasets; 3 are possible")


def test_something_to_train_on_is_needed(tmp_path: Path) -> None:
    none = 'data.json: no dataset to train on: one of `dataset_type` "image" is needed'
    evaluated = image(dataset_type="eval")
    assert only_line(complaint(tmp_path, {}, evaluated, reference())) == none
    line = only_line(complaint(tmp_path, {"eval_dataset_id": "main"}))
    assert line == f'{none}, beside "main", the `eval_dataset_id`'


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("mian", 'names "mian", and there is no dataset of that id; did you mean `main`?'),
        ("ref", 'names "ref", which has `dataset_type` "conditioning", not "eval" or "image"'),
    ],
)
def test_the_eval_dataset_exists(tmp_path: Path, name: str, line: str) -> None:
    what = complaint(tmp_path, {"eval_dataset_id": name})
    assert only_line(what) == f"config.json: `eval_dataset_id` {line}"


def test_there_is_one_place_for_text_embeds(tmp_path: Path) -> None:
    tails = [{"id": name, "dataset_type": "text_embeds"} for name in ("one", "two")]
    line = only_line(complaint(tmp_path, {}, image(), reference(), *tails))
    assert line == 'data.json, dataset two: `dataset_type` "text_embeds" is already that of "one"'


def test_the_flavour_is_required(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "data.json").write_text("[]")
    with pytest.raises(WrongUse, match="`model_flavour` is required: one of edit-v1, edit-v2"):
        load(tmp_path / "config.json", tmp_path / "data.json")


def test_all_mistakes_of_both_files_and_of_set_come_together(tmp_path: Path) -> None:
    settings = {"model_flavour": "edit-v9", "lora_rnk": 4, "seed": "x", "eval_dataset_id": "none"}
    main = image(conditioning_data=["ref", "lost"], resolution="big", crop_style="middle")
    what = complaint(
        tmp_path,
        settings,
        main,
        reference(dataset_type="conditionning"),
        sets=("lora_alpha=-1", "data.main.probability=2", "data.nobody.repeats=1", "oops"),
    )
    wanted = [
        "--set oops: must be written as key=value",
        "config.json: `model_flavour`",
        "config.json: `lora_rnk`",
        "config.json: `seed`",
        "config.json: `eval_dataset_id`",
        "--set lora_alpha=-1: `lora_alpha` must be more than 0, not -1",
        "--set data.main.probability=2, dataset main: `probability` must be at most 1, not 2",
        '--set data.nobody.repeats=1: there is no dataset of the id "nobody"',
        "data.json, dataset main: `resolution`",
        "data.json, dataset main: `crop_style`",
        'data.json, dataset main: `conditioning_data` names "lost"',
        "data.json, dataset ref: `dataset_type`",
    ]
    heading, *lines = what.splitlines()
    assert heading == f"The configuration has {len(wanted)} mistakes:"
    for beginning in wanted:
        assert sum(line.strip().startswith(beginning) for line in lines) == 1, beginning


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("=4", "--set =4: must be written as key=value"),
        ("seed.x=4", "--set seed.x=4: is not possible: `seed` is not an object"),
        ("data.main=4", "--set data.main=4: must be written as data.<dataset id>.<key>=value"),
        (
            "data.mian.repeats=4",
            '--set data.mian.repeats=4: there is no dataset of the id "mian"; did you mean `main`?',
        ),
        ("sede=4", "--set sede=4: `sede` is not a known key; did you mean `seed`?"),
    ],
)
def test_a_mistake_in_set(tmp_path: Path, typed: str, line: str) -> None:
    assert only_line(complaint(tmp_path, {"seed": 1}, sets=(typed,))) == line


def test_a_syntax_error_in_one_file_does_not_hide_the_other(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_flavour": "edit-v1",\n "seed" 1}')
    (tmp_path / "data.json").write_text('// pictures\n[{"id": "main",, }]')
    with pytest.raises(WrongUse) as caught:
        load(tmp_path / "config.json", tmp_path / "data.json")
    assert "config.json: line 2, column 9: a colon" in caught.value.what
    assert "data.json: line 2, column 16: a key" in caught.value.what


@pytest.mark.parametrize(("config", "data"), [("[]", "[]"), ("{}", "{}"), ("3", "null")])
def test_each_file_has_its_form(tmp_path: Path, config: str, data: str) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "data.json").write_text(data)
    with pytest.raises(WrongUse) as caught:
        load(tmp_path / "config.json", tmp_path / "data.json")
    braces = "config.json: must hold one object in braces" in caught.value.what
    brackets = "data.json: must hold one list of datasets in brackets" in caught.value.what
    assert (braces, brackets) == (config != "{}", data != "[]")


def test_a_missing_file_names_one_like_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_flavour": "edit-v1"}')
    with pytest.raises(WrongUse) as caught:
        load(tmp_path / "confg.json", tmp_path / "multi.json")
    assert f"confg.json: there is no such file; did you mean {tmp_path}/config.json" in str(
        caught.value
    )
    assert caught.value.what.endswith("multi.json: there is no such file")


def test_a_missing_second_file_is_never_said_to_be_the_first(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_flavour": "edit-v1"}')
    (tmp_path / "multidatabackend.json").write_text("[] // by hand")
    for name in ("nope.json", "confg.json", "multidatabackends.json"):
        with pytest.raises(WrongUse) as caught:
            load(tmp_path / "config.json", tmp_path / name)
        assert only_line(caught.value.what).endswith(
            f"did you mean {tmp_path}/multidatabackend.json?"
        )


def test_a_missing_second_file_may_lie_beside_the_first(tmp_path: Path) -> None:
    settings = '{"model_flavour": "edit-v1", "data_backend_config": "nowhere/multi.json"}'
    (tmp_path / "config.json").write_text(settings)
    with pytest.raises(WrongUse) as caught:
        load(tmp_path / "config.json", None)
    assert only_line(caught.value.what) == "nowhere/multi.json: there is no such file"
    (tmp_path / "multi.json").write_text("[]")
    with pytest.raises(WrongUse) as caught:
        load(tmp_path / "config.json", None)
    assert caught.value.what.endswith(f"did you mean {tmp_path}/multi.json?")


def test_no_second_file_names_both_ways_to_give_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_flavour": "edit-v1"}')
    with pytest.raises(WrongUse, match=r"`data_backend_config` is not given.*--data FILE"):
        load(tmp_path / "config.json", None)


def test_a_folder_and_a_binary_file_are_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WrongUse) as caught:
        load(tmp_path, tmp_path / "data.json")
    assert f"{tmp_path}: is a folder; name the file in it" in caught.value.what
    assert "data.json: is not a text in UTF-8" in caught.value.what


def test_an_unknown_example_names_the_nearest() -> None:
    with pytest.raises(WrongUse, match=r"did you mean `qwen_image\.edit-v2-lora`"):
        load(None, None, example="qwen_image.edit-v2")


def test_an_example_stands_in_place_of_config(tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match="are both given"):
        load(tmp_path / "config.json", None, example="qwen_image.edit-v1-lora")

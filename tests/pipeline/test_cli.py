"""The commands as a user meets them: one chain on a small run, then all that can be wrong."""

from __future__ import annotations

import errno
import json
import logging
import re
import shlex
import shutil
from contextlib import chdir
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from paths import ROOT
from safetensors import safe_open
from small_run import AREA, cache_rows, draw, enter_copy, make_run, qedit, said, with_files

from qedit.pipeline.terminal.run_command import reporting, with_options
from qedit.stages.models.tiny.tiny import make_tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went through all stages once."""
    folder = make_run(tmp_path_factory.mktemp("finished"), flavour="edit-v2", references=2)
    with chdir(folder):
        with_files("run")
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run, somewhere else, as the working directory."""
    folder = enter_copy(finished, tmp_path / "elsewhere", monkeypatch)
    with_files("pair")  # the pictures are other files than those that were paired
    return folder


def stages(result_json: dict[str, object]) -> dict[str, dict[str, int]]:
    listed = result_json["stages"]
    assert isinstance(listed, list)
    return {one["stage"]: one for one in listed}


def test_a_second_run_elsewhere_finds_everything_done(copy: Path) -> None:
    found = stages(said(with_files("run", "--json")))
    assert list(found) == ["pair", "cache-vae", "cache-embeds", "train"]
    for name in ("cache-vae", "cache-embeds", "train"):
        assert found[name]["computed"] == 0, name
        assert found[name]["kept"] == found[name]["wanted"] > 0, name
    # 4 targets and 8 references; 4 reference sets, each with a caption and the null prompt
    assert found["cache-vae"]["wanted"] == 12
    assert found["cache-embeds"]["wanted"] == 4 + 8
    plain, verbose = with_files("cache-vae").stdout, with_files("cache-vae", "-v").stdout
    assert "nothing to do" in plain
    assert verbose.startswith(plain)
    assert verbose.removeprefix(plain).startswith("cache-vae     where: caches/vae/edited/")


def test_a_changed_caption_costs_one_tail(copy: Path) -> None:
    (copy / "edited" / "p1.txt").write_text("turn it blue")
    with_files("pair")
    assert said(with_files("cache-vae", "--json"))["computed"] == 0
    embeds = said(with_files("cache-embeds", "--json"))
    assert (embeds["prefixes_computed"], embeds["tails_computed"]) == (0, 1)


def test_a_replaced_reference_costs_its_latents_prefix_and_tails(copy: Path) -> None:
    draw(copy / "reference-b" / "p2.png", (72, 128), seed=999)
    with_files("pair")
    assert said(with_files("cache-vae", "--json"))["computed"] == 1
    embeds = said(with_files("cache-embeds", "--json"))
    assert (embeds["prefixes_computed"], embeds["tails_computed"]) == (1, 2)


def test_a_picture_changed_behind_the_pairs_is_never_cached_under_its_old_name(copy: Path) -> None:
    shutil.rmtree(copy / "caches" / "vae")
    draw(copy / "edited" / "p0.png", (96, 96), seed=999)
    error = with_files("cache-vae", expect=4).stderr
    assert "p0.png has changed" in error
    assert "qedit pair" in error


def test_a_reference_used_twice_is_encoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(tmp_path)
    monkeypatch.chdir(folder)
    shutil.copy(folder / "reference-a" / "p0.png", folder / "reference-a" / "p3.png")
    with_files("pair")
    # four targets and three distinct references
    assert said(with_files("cache-vae", "--json"))["computed"] == 4 + 3
    # three reference sets, four captions, and the null prompt after each set
    assert said(with_files("cache-embeds", "--json"))["computed"] == 3 + 4 + 3


def test_dry_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path)
    monkeypatch.chdir(folder)
    with_files("pair", "--dry-run")
    assert not (folder / "caches").exists()
    with_files("pair")
    before = sorted(folder.rglob("*"))
    planned = said(with_files("cache-vae", "--dry-run", "--json"))
    assert (planned["missing"], planned["computed"]) == (8, 0)
    with_files("cache-embeds", "--dry-run")
    new = set(folder.rglob("*")) - set(before)
    # what is remembered about large files is no result
    assert {path.name for path in new} <= {"model-digests.json"}


def test_every_line_that_names_a_command_can_be_typed(copy: Path) -> None:
    """Those that are said on the way as much as errors, with each option that was given."""
    given = ("--config", "config.json", "--data", "data.json", "--set", "seed=42")
    told = with_files("gc", "--set", "seed=42", "--set", "validation_disable=true").stdout
    assert "Nothing to remove" in told
    (copy / "edited" / "p1.txt").write_text("turn it blue")
    with_files("pair")
    line = with_files("gc", *given[4:]).stdout.splitlines()[-1]
    typed = re.search(r"`qedit (gc [^`]+)`", line)
    assert typed is not None, line
    assert shlex.split(typed[1]) == ["gc", "--yes", *given]
    assert said(qedit(*shlex.split(typed[1]), "--json"))["removed"]


def test_options_are_added_once() -> None:
    once = with_options("Run `qedit pair`.", config=Path("c.json"))
    assert with_options(once, config=Path("c.json")) == once == "Run `qedit pair --config c.json`."


def test_status_says_what_is_there_and_what_comes_next(copy: Path) -> None:
    done = said(with_files("status", "--json"))
    assert done["next"] == ""
    assert all(one["missing"] == 0 for one in done["results"])
    shutil.rmtree(copy / "caches" / "text_embeds")
    after = said(with_files("status", "--json"))
    assert after["next"] == "Run `qedit cache-embeds --config config.json --data data.json`."
    missing = {one["what"]: one["missing"] for one in after["results"]}
    assert (missing["text tails"], missing["image prefixes"]) == (8, 0)


def test_inspect_exports_what_training_sees(copy: Path) -> None:
    with_files("inspect", "p1", "--export", "p1.safetensors")
    with safe_open(copy / "p1.safetensors", "pt") as file:
        facts = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert set(tensors) == {
        "target_latents",
        "reference_latents.0",
        "reference_latents.1",
        "prompt_embeds",
        "null_embeds",
    }
    assert all(tensor.dtype == torch.bfloat16 for tensor in tensors.values())
    # 128x72 at an area of 64x64 is 96x64 by the rule of size
    assert tensors["target_latents"].shape == (16, 4 * 2, 12)
    assert facts["caption"] == "make it number 1"
    assert facts["flavour"] == "edit-v2"
    assert json.loads(facts["img_shapes"]) == [[1, 4, 6]] * 3
    geometry = json.loads(facts["geometry"])
    assert geometry["target"]["path"] == "p1.png"
    assert geometry["target"]["source_size"] == [128, 72]
    assert geometry["target"]["size"] == [96, 64]
    assert len(geometry["references"]) == 2
    # prefix and tail joined: both embeds share the prefix and differ after it
    prompt, null = tensors["prompt_embeds"], tensors["null_embeds"]
    shared = min(len(prompt), len(null)) - 8
    assert torch.equal(prompt[:shared], null[:shared])
    assert len(prompt) != len(null)


@pytest.mark.parametrize("name", ["p1", "p1.png", "edited:p1.png", "edited:p1"])
def test_a_sample_is_found_by_each_of_its_names(copy: Path, name: str) -> None:
    assert said(with_files("inspect", name, "--json"))["sample"] == "p1.png"


def test_an_unknown_sample_shows_names_near_it(copy: Path) -> None:
    assert "p1.png" in with_files("inspect", "p11.png", expect=2).stderr


def test_without_a_sample_inspect_lists_them(copy: Path) -> None:
    assert with_files("inspect").stdout.split() == ["p0.png", "p1.png", "p2.png", "p3.png"]
    assert said(with_files("inspect", "--json"))["samples"][1] == "p1.png"
    # the example's name is not taken for a sample's
    assert "edit-v1-lora" in qedit("inspect", "example=nothing", expect=2).stderr


def test_an_unknown_caption_number_says_how_many_there_are(copy: Path) -> None:
    assert "has 1 caption" in with_files("inspect", "p1", "--caption", "4", expect=2).stderr


def test_training_before_caching_names_the_command_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_run(tmp_path))
    assert "qedit pair" in with_files("train", expect=4).stderr
    with_files("pair")
    error = with_files("train", expect=4).stderr
    assert "4 of 4 samples have no latents for edit-v1 yet, the first is p0.png" in error
    typed = "--config config.json --data data.json"
    assert f"`qedit cache-vae {typed}`, then `qedit train {typed}` again" in error
    with_files("cache-vae")
    assert f"`qedit cache-embeds {typed}`" in with_files("train", expect=4).stderr


def test_errors_are_one_json_object_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_run(tmp_path))
    error = said(with_files("train", "--json", expect=4))
    assert error["exit_code"] == 4
    assert "qedit pair" in error["do"]


def test_the_source_folders_of_a_checkout_are_never_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_run(tmp_path))
    for key in ("cache_dir", "output_dir"):
        error = with_files("pair", "--set", f"{key}={ROOT / 'cache'}", expect=2).stderr
        assert "cache" in error
        assert "-C" in error
    assert not (ROOT / "cache" / "pairs").exists()


def test_wrong_words_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--set seed=3" in qedit("pair", "seed=3", expect=2).stderr
    assert "no folder" in qedit("pair", "-C", "nowhere", expect=2).stderr
    alone = qedit("pair", "--tiny", expect=2).stderr
    assert "example=" in alone
    assert "--tiny --tiny" not in alone
    assert "--config" in qedit("pair", expect=2).stderr
    assert "No such command" in qedit("cache", expect=2).stderr


def test_a_contradicting_checkpoint_is_refused_naming_both(copy: Path) -> None:
    one = "data.edited.conditioning_data=reference-a"
    new = ("--set", "output_dir=new")
    wrong = ("--set", "model_flavour=edit-v1", "--set", one, *new)
    for command in ("pair", "cache-vae", "train"):
        error = with_files(command, *wrong, expect=2).stderr
        assert "edit-v1" in error
        assert "QwenImageEditPlusPipeline" in error
    error = with_files("train", "--set", "model_flavour=edit-v3", *new, expect=2).stderr
    assert "zero_cond_t" in error


def test_another_run_in_the_output_folder_is_refused(copy: Path) -> None:
    error = with_files("train", "--set", "lora_rank=4", expect=3).stderr
    assert "lora_rank" in error
    assert "output_dir" in error


def test_rows_of_another_flavour_are_refused_naming_both(copy: Path) -> None:
    # the same pictures, captions and caches, but for edit-v1 with its own model and areas
    make_tiny(copy / "v1", "edit-v1", vae_area=AREA, vl_area=4 * AREA)
    wrong = ("--set", "model_flavour=edit-v1", "--set", "pretrained_model_name_or_path=v1")
    wrong += ("--set", "data.edited.conditioning_data=reference-a", "--set", "output_dir=new")
    error = with_files("train", *wrong, expect=4).stderr
    assert "for edit-v1" in error
    # one area bigger is neither flavour's own
    assert "qedit pair" in error
    make_tiny(copy / "same", "edit-v1", vae_area=AREA, vl_area=AREA)
    wrong = (*wrong, "--set", "pretrained_model_name_or_path=same")
    with_files("pair", *wrong)
    error = with_files("train", *wrong, expect=4).stderr
    assert "have no embeds for edit-v1 yet" in error
    assert "what is there was made for edit-v2 or edit-v2+ or edit-v3" in error


def test_other_areas_of_the_same_flavour_are_not_called_another(copy: Path) -> None:
    make_tiny(copy / "larger", "edit-v2", vae_area=4 * AREA, vl_area=AREA)
    wrong = ("--set", "pretrained_model_name_or_path=larger")
    error = with_files("train", *wrong, expect=4).stderr
    assert "no pairs table" in error
    assert "edit-v2" not in error.partition("what is there")[2]


def test_unlock_says_that_there_are_no_locks(copy: Path) -> None:
    assert with_files("unlock").stdout == "No locks.\n"


def test_help_shows_whole_sentences() -> None:
    listed = qedit("--help").stdout.partition("Commands:")[2]
    assert "..." not in listed
    assert "affected samples." in " ".join(listed.split())


def test_dry_runs_say_how_much_there_is_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(tmp_path)
    monkeypatch.chdir(folder)
    lines = with_files("run", "--dry-run").stdout
    assert "4 wanted, 0 kept, 4 to do" in lines
    assert "cannot be counted before the stages above" in lines
    assert not (folder / "caches" / "pairs").exists()
    cache_rows()
    assert "3 wanted, 0 kept, 3 to do" in with_files("train", "--dry-run").stdout


def test_a_file_where_a_folder_is_wanted_is_the_users_to_mend(copy: Path) -> None:
    (copy / "taken").write_text("a file")
    for key in ("cache_dir", "output_dir"):
        error = with_files("run", "--set", f"{key}=taken", expect=1).stderr
        assert "A file stands where a folder is wanted" in error
        assert "defect" not in error
    assert (copy / "taken").read_text() == "a file"
    assert "is a file" in with_files("pair", "-C", "taken", expect=2).stderr


def test_wrong_options_are_one_json_object_too(copy: Path) -> None:
    for wrong in (("--nope",), ("--on-reject", "perhaps")):
        error = said(with_files("pair", "--json", *wrong, expect=2))
        assert error["exit_code"] == 2
        assert wrong[0] in error["error"]


def test_schedules_that_cannot_be_made_are_the_users_to_mend(copy: Path) -> None:
    wrong = ("--set", "output_dir=other", "--set", "lr_scheduler=piecewise_constant")
    assert "step_rules" in with_files("train", *wrong, expect=2).stderr


def test_advice_of_a_package_that_is_imported_on_the_way_is_not_shown(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with_files("status")
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s", "why")
    logger.warning("something else")
    logger.error("an error")
    assert caplog.messages == ["something else", "an error"]


def test_variants_of_a_target_can_be_named(copy: Path) -> None:
    random = ("--set", "conditioning_multidataset_sampling=random")
    with_files("pair", *random)
    error = with_files("inspect", "p1", *random, expect=2).stderr
    assert "edited:p1.png#reference-a, edited:p1.png#reference-b" in error
    error = with_files("inspect", "edited:p1.png#reference-a", *random, expect=4).stderr
    assert "cache-embeds" in error


def test_status_sees_what_a_rerun_would_find(copy: Path) -> None:
    # folders that have changed since
    (copy / "edited" / "p1.txt").write_text("turn it blue")
    changed = said(with_files("status", "--json"))
    assert "`qedit pair" in changed["next"]
    assert any("have changed" in one["say"] for one in changed["results"])
    # samples turned away that nobody has accepted
    (copy / "edited" / "p1.txt").unlink()
    with_files("pair", expect=4)
    assert "--on-reject skip" in said(with_files("status", "--json"))["next"]


def test_status_shows_the_pairs_where_the_model_cannot_be_fetched(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(copy / "hub"))
    remote = ("--set", "pretrained_model_name_or_path=somebody/edit")
    with_files("pair", *remote)
    found = said(with_files("status", "--json", *remote))
    assert [(line["what"], line["kept"]) for line in found["results"]] == [
        ("pairs", 4),
        ("model", 0),
    ]
    assert "cannot be reached for somebody/edit" in found["results"][1]["say"]
    assert "hf download somebody/edit" in found["next"]


def test_status_counts_epochs_and_knows_another_run(copy: Path) -> None:
    epochs = ("--set", "max_train_steps=0", "--set", "num_train_epochs=5")
    steps = said(with_files("status", "--json", *epochs))["results"][-1]
    assert (steps["wanted"], steps["kept"]) == (20, 3)
    other = said(with_files("status", "--json", "--set", "seed=3"))["results"][-1]
    assert other["missing"] > 0
    assert "another run" in other["say"]


def test_a_reader_who_has_seen_enough_is_no_defect() -> None:
    @click.command()
    def shown_to_head() -> None:
        with reporting(folder=None, as_json=False, verbose=0, quiet=False, debug=False):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    done = CliRunner().invoke(shown_to_head)
    assert (done.exit_code, done.output) == (1, "")

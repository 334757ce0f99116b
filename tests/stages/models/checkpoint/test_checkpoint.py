"""Where a checkpoint's parts lie, whether it is the right one, and what names it."""

from __future__ import annotations

import io
import json
import os
import shutil
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from email.message import Message
from http.client import BadStatusLine
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request

import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import load_file, save_file

from qedit.cache.errors import Damaged, NotComplete, WrongUse
from qedit.stages.models.checkpoint import digests, hub
from qedit.stages.models.checkpoint.checkpoint import (
    files_digest,
    flavour_of,
    model_digest,
    open_checkpoint,
)
from qedit.stages.models.checkpoint.part_config import part_config
from qedit.stages.models.flavours import FLAVOURS
from qedit.stages.models.weights.streaming import tensors_in


@dataclass(frozen=True)
class Settings:
    model_flavour: str | None = "edit-v2"
    pretrained_model_name_or_path: str | None = None
    revision: str | None = None
    pretrained_transformer_model_name_or_path: str | None = None
    pretrained_vae_model_name_or_path: str | None = None
    pretrained_text_encoder_model_name_or_path: str | None = None


WEIGHTS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def make_checkpoint(folder: Path, *, flavour: str = "edit-v2") -> Path:
    """A checkpoint as far as names and configurations go; its weights are two numbers."""
    known = FLAVOURS[flavour]
    write_json(folder / "model_index.json", {"_class_name": known.pipeline})
    zero = {"zero_cond_t": True} if known.zero_cond_t else {}
    write_json(folder / "transformer/config.json", {"num_layers": 2} | zero)
    write_json(folder / "vae/config.json", {"z_dim": 16})
    write_json(folder / "text_encoder/config.json", {"hidden_size": 64})
    write_json(folder / "tokenizer/tokenizer_config.json", {})
    write_json(folder / "tokenizer/tokenizer.json", {})
    write_json(folder / "processor/preprocessor_config.json", {})
    write_json(folder / "scheduler/scheduler_config.json", {})
    for part, name in WEIGHTS.items():
        save_file({"weight": np.arange(2, dtype=np.float32)}, folder / part / name)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model")


def settings_for(folder: Path, flavour: str = "edit-v2", **others: str) -> Settings:
    return Settings(flavour, str(folder), **others)


# -- flavour and areas -----------------------------------------------------------------


@pytest.mark.parametrize("name", FLAVOURS)
def test_a_flavour_of_the_hub_needs_no_network(name: str) -> None:
    assert flavour_of(Settings(name)) == FLAVOURS[name]


@pytest.mark.parametrize("name", [None, "edit-v9"])
def test_an_unknown_flavour_is_refused_with_the_known_ones(name: str | None) -> None:
    with pytest.raises(WrongUse, match=r"edit-v1, edit-v2, edit-v2\+, edit-v3"):
        flavour_of(Settings(name))


def test_a_checkpoint_may_name_its_own_areas(folder: Path) -> None:
    write_json(folder / "qedit.json", {"vae_area": 16384})
    expected = replace(FLAVOURS["edit-v2"], vae_area=16384)
    assert flavour_of(settings_for(folder)) == expected
    assert open_checkpoint(settings_for(folder)).flavour == expected


@pytest.mark.parametrize("areas", [{"vae_arae": 1}, {"vae_area": "big"}, {"vl_area": 0}])
def test_areas_that_make_no_sense_are_refused(folder: Path, areas: dict[str, object]) -> None:
    write_json(folder / "qedit.json", areas)
    with pytest.raises(WrongUse, match=r"qedit\.json may hold vae_area and vl_area"):
        flavour_of(settings_for(folder))


# -- parts -----------------------------------------------------------------------------


def test_every_part_is_found(folder: Path) -> None:
    checkpoint = open_checkpoint(settings_for(folder))
    assert checkpoint.source == str(folder)
    for part in ("transformer", "vae", "text_encoder", "tokenizer", "processor", "scheduler"):
        assert getattr(checkpoint, part) == folder / part


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("whole", [True, False])
def test_a_part_may_come_from_elsewhere(
    folder: Path, tmp_path: Path, part: str, whole: bool
) -> None:
    other = make_checkpoint(tmp_path / "other")
    shutil.rmtree(folder / part)  # what is replaced need not be there
    named = other if whole else other / part
    settings = settings_for(folder, **{f"pretrained_{part}_model_name_or_path": str(named)})
    checkpoint = open_checkpoint(settings)
    assert getattr(checkpoint, part) == other / part
    assert checkpoint.scheduler == folder / "scheduler"


@pytest.mark.parametrize(
    "gone",
    [
        "model_index.json",
        "transformer/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "processor/preprocessor_config.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_a_missing_file_is_named(folder: Path, gone: str) -> None:
    (folder / gone).unlink()
    with pytest.raises(NotComplete, match=f"{folder / gone} is missing"):
        open_checkpoint(settings_for(folder))


def test_a_tokenizer_may_lie_as_vocabulary_and_merges(folder: Path) -> None:
    (folder / "tokenizer/tokenizer.json").rename(folder / "tokenizer/vocab.json")
    assert open_checkpoint(settings_for(folder)).tokenizer == folder / "tokenizer"


def test_every_shard_that_an_index_names_must_be_there(folder: Path) -> None:
    (folder / "transformer" / WEIGHTS["transformer"]).rename(folder / "transformer/a.safetensors")
    write_json(
        folder / "transformer/diffusion_pytorch_model.safetensors.index.json",
        {"weight_map": {"one": "a.safetensors", "two": "b.safetensors"}},
    )
    with pytest.raises(NotComplete, match=r"b\.safetensors is missing\."):
        open_checkpoint(settings_for(folder))


def test_a_configuration_cut_short_is_named(folder: Path) -> None:
    (folder / "model_index.json").write_text('{"_class')
    with pytest.raises(NotComplete, match=r"model_index\.json is not JSON"):
        open_checkpoint(settings_for(folder))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "models/of/mine", "nowhere"])
def test_a_path_that_is_not_there_is_a_missing_folder(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for ask in (flavour_of, open_checkpoint):
        with pytest.raises(WrongUse, match="does not exist"):
            ask(Settings("edit-v2", name))
    with pytest.raises(WrongUse, match="pretrained_vae_model_name_or_path is"):
        open_checkpoint(
            replace(
                Settings("edit-v2", str(make_checkpoint(tmp_path / "model"))),
                pretrained_vae_model_name_or_path=name,
            )
        )


def test_a_file_is_not_a_checkpoint(folder: Path) -> None:
    with pytest.raises(WrongUse, match="is not a folder"):
        open_checkpoint(settings_for(folder / "model_index.json"))


# -- contradictions --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("holds", "asked", "says", "fits"),
    [
        ("edit-v2", "edit-v1", "model_index.json says QwenImageEditPlusPipeline", "edit-v2 or"),
        ("edit-v1", "edit-v2", "model_index.json says QwenImageEditPipeline", "edit-v1,"),
        ("edit-v1", "edit-v3", "model_index.json says QwenImageEditPipeline", "edit-v1,"),
        ("edit-v2", "edit-v3", "zero_cond_t false", r"edit-v2 or edit-v2\+"),
        ("edit-v3", "edit-v2", "zero_cond_t true", "edit-v3,"),
        ("edit-v3", "edit-v2+", "zero_cond_t true", "edit-v3,"),
    ],
)
def test_a_checkpoint_that_contradicts_its_flavour_is_refused_in_one_line(
    tmp_path: Path, holds: str, asked: str, says: str, fits: str
) -> None:
    folder = make_checkpoint(tmp_path / "model", flavour=holds)
    started = time.monotonic()
    with pytest.raises(WrongUse, match=says) as refusal:
        open_checkpoint(settings_for(folder, asked))
    assert time.monotonic() - started < 5
    assert f"model_flavour is {asked}" in refusal.value.what
    assert "\n" not in refusal.value.what
    refusal.match(f"Set model_flavour to {fits}")


def test_a_pipeline_that_is_no_flavour_s_is_refused(folder: Path) -> None:
    write_json(folder / "model_index.json", {"_class_name": "QwenImagePipeline"})
    with pytest.raises(WrongUse, match="Name a checkpoint of edit-v2, such as Qwen/Qwen-Image"):
        open_checkpoint(settings_for(folder))


@pytest.mark.parametrize(
    ("holds", "asked", "effective"),
    [
        ("edit-v1", "edit-v1", False),
        ("edit-v2", "edit-v2", False),
        ("edit-v2", "edit-v2+", True),
        ("edit-v3", "edit-v3", True),
    ],
)
def test_what_fits_is_opened_with_its_zero_cond_t(
    tmp_path: Path, holds: str, asked: str, effective: bool
) -> None:
    folder = make_checkpoint(tmp_path / "model", flavour=holds)
    assert open_checkpoint(settings_for(folder, asked)).zero_cond_t is effective


def test_the_transformer_that_is_used_is_the_one_that_counts(folder: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", flavour="edit-v3")
    settings = settings_for(folder, "edit-v3", pretrained_transformer_model_name_or_path=str(other))
    assert open_checkpoint(settings).transformer == other / "transformer"


# -- the hub ---------------------------------------------------------------------------


def test_the_hub_is_asked_for_the_parts_that_are_needed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fnmatch import fnmatch

    asked = {}

    def snapshot_download(
        repository: str, *, revision: str, allow_patterns: list[str], local_files_only: bool
    ) -> str:
        asked.update(repository=repository, revision=revision, patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    other = make_checkpoint(tmp_path / "other")
    checkpoint = open_checkpoint(
        Settings("edit-v2", revision="main2", pretrained_vae_model_name_or_path=str(other))
    )
    assert (asked["repository"], asked["revision"]) == ("Qwen/Qwen-Image-Edit-2509", "main2")
    assert checkpoint.source == "Qwen/Qwen-Image-Edit-2509"

    def fetched(path: str) -> bool:
        return any(fnmatch(path, pattern) for pattern in asked["patterns"])

    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    left_out = {path for path in files if not fetched(path)}
    assert left_out == {path for path in files if path.startswith("vae/")}
    assert not fetched("transformer/pytorch_model.bin")
    assert not fetched("assets/picture.png")


def test_a_hub_out_of_reach_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WrongUse, match="hub cannot be reached for Qwen/Qwen-Image-Edit") as refusal:
        open_checkpoint(Settings("edit-v1"))
    refusal.match("Unset HF_HUB_OFFLINE, or fetch it")
    refusal.match("set pretrained_model_name_or_path to the folder")


@pytest.mark.parametrize(
    ("answer", "reachable"),
    [
        (None, True),
        (HTTPError("", 403, "no", Message(), None), True),
        (URLError(ssl.SSLError("a certificate of the house")), True),
        (URLError(OSError("Name or service not known")), False),
        (TimeoutError("no answer"), False),
        (BadStatusLine("SSH-2.0"), False),
    ],
)
def test_without_a_connection_nothing_is_tried_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: Exception | None, reachable: bool
) -> None:
    """One question, and then the hub's client is told not to ask."""
    import huggingface_hub.constants

    asked, told = [], []

    def urlopen(request: Request, timeout: float) -> io.BytesIO:
        asked.append(request.full_url)
        if answer:
            raise answer
        return io.BytesIO()

    def from_cache(*_: str, local_files_only: bool, **__: object) -> str:
        told.append(local_files_only)
        raise LocalEntryNotFoundError("not there")

    hub._answers.cache_clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "urlopen", urlopen)
    for name in ("snapshot_download", "hf_hub_download"):
        monkeypatch.setattr(f"huggingface_hub.{name}", from_cache)
    with pytest.raises(WrongUse, match="hub cannot be reached") as refusal:
        open_checkpoint(Settings("edit-v1"))
    refusal.match(r"Fetch it on any machine \(`hf download Qwen/Qwen-Image-Edit ")
    assert part_config(Settings("edit-v1"), "transformer") == {}  # the classes' own sizes
    assert told == [not reachable] * 2
    assert asked == [huggingface_hub.constants.ENDPOINT]
    hub._answers.cache_clear()


# -- digests ---------------------------------------------------------------------------


@pytest.fixture
def remember(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "digests.json"


def settle(folder: Path) -> None:
    """As if all files had been there for an hour."""
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - 3600,) * 2)


def test_a_moved_or_touched_model_is_the_same_model(
    folder: Path, tmp_path: Path, remember: Path
) -> None:
    before = model_digest(folder / "vae", remember=remember)
    copy = shutil.copytree(folder / "vae", tmp_path / "elsewhere")
    (copy / WEIGHTS["vae"]).touch()
    assert model_digest(copy, remember=remember) == before
    assert len(before) == 32


def test_how_tensors_are_spread_over_files_does_not_count(tmp_path: Path, remember: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        write_json(folder / "config.json", {"z_dim": 16})
    tensors = {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 2), np.float16)}
    save_file(tensors, one / "model.safetensors")
    save_file({"b": tensors["b"]}, two / "part-1.safetensors", metadata={"format": "pt"})
    save_file({"a": tensors["a"]}, two / "part-2.safetensors")
    assert model_digest(one, remember=remember) == model_digest(two, remember=remember)


def test_files_beside_the_models_own_are_not_the_model(folder: Path, remember: Path) -> None:
    """Else a model and its backup could change places without a change of the digest."""
    vae = folder / "vae"
    own, backup = vae / WEIGHTS["vae"], vae / "backup.safetensors"
    first = model_digest(vae, remember=remember)
    rewrite(backup, weight=np.arange(5, 7, dtype=np.float32))
    assert model_digest(vae, remember=remember) == first
    own.rename(vae / "mine.safetensors")
    backup.rename(own)
    assert model_digest(vae, remember=remember) != first


def test_an_index_says_which_shards_are_the_model(tmp_path: Path, remember: Path) -> None:
    write_json(tmp_path / "config.json", {})
    for version in (1, 2):
        rewrite(tmp_path / f"v{version}.safetensors", weight=np.full(2, version, np.float32))
    found = {}
    for version in (1, 2):
        index = tmp_path / "model.safetensors.index.json"
        write_json(index, {"weight_map": {"weight": f"v{version}.safetensors"}})
        ((name, read),) = tensors_in(tmp_path)
        assert (name, read.tolist()) == ("weight", [version, version])
        found[version] = model_digest(tmp_path, remember=remember)
    assert found[1] != found[2]
    (tmp_path / "v2.safetensors").unlink()
    with pytest.raises(NotComplete, match=r"v2\.safetensors is missing"):
        model_digest(tmp_path, remember=remember)


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def rewrite(path: Path, **tensors: np.ndarray) -> None:
    save_file(tensors, path)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: flip_last_byte(folder / WEIGHTS["vae"]),
        lambda folder: write_json(folder / "config.json", {"z_dim": 17}),
        lambda folder: write_json(folder / "config.json", {"z_dim": 16, "new": None}),
        lambda folder: rewrite(folder / WEIGHTS["vae"], wait=np.arange(2, dtype=np.float32)),
        lambda folder: rewrite(
            folder / WEIGHTS["vae"], weight=np.arange(2, dtype=np.float32).reshape(1, 2)
        ),
        lambda folder: rewrite(
            folder / WEIGHTS["vae"], weight=np.arange(2, dtype=np.float32).view(np.int32)
        ),
    ],
    ids=["byte", "value", "key", "name", "shape", "dtype"],
)
def test_whatever_decides_a_result_changes_the_digest(
    folder: Path, remember: Path, change: object
) -> None:
    before = model_digest(folder / "vae", remember=remember)
    change(folder / "vae")
    assert model_digest(folder / "vae", remember=remember) != before


def test_bookkeeping_does_not_count(folder: Path, remember: Path) -> None:
    before = model_digest(folder / "vae", remember=remember)
    kept = {"_class_name": "X", "transformers_version": "9", "dtype": "bfloat16", "z_dim": 16}
    write_json(folder / "vae/config.json", kept)
    assert model_digest(folder / "vae", remember=remember) == before


def test_weights_are_read_once(
    folder: Path, remember: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(folder)
    before = model_digest(folder / "vae", remember=remember)

    def never(_: object) -> int:
        raise AssertionError("read again")

    monkeypatch.setattr(digests._Tensor, "digest", never)
    assert model_digest(folder / "vae", remember=remember) == before
    os.utime(folder / "vae" / WEIGHTS["vae"], (1, 1))
    with pytest.raises(AssertionError, match="read again"):
        model_digest(folder / "vae", remember=remember)


def test_a_file_that_has_just_changed_is_not_remembered(folder: Path, remember: Path) -> None:
    """Its time stamp may not move when it changes once more at once."""
    weights = folder / "vae" / WEIGHTS["vae"]
    before = model_digest(folder / "vae", remember=remember)
    stamp = weights.stat().st_mtime_ns
    flip_last_byte(weights)
    os.utime(weights, ns=(stamp, stamp))
    assert model_digest(folder / "vae", remember=remember) != before


def test_weights_of_the_same_size_and_time_are_read_again(folder: Path, remember: Path) -> None:
    """As an archive leaves them, or a copy that keeps the time."""
    settle(folder)
    weights = folder / "vae" / WEIGHTS["vae"]
    before, facts = model_digest(folder / "vae", remember=remember), weights.stat()
    flip_last_byte(weights)
    os.utime(weights, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert model_digest(folder / "vae", remember=remember) != before


def test_what_others_remember_meanwhile_is_kept(
    folder: Path, remember: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(folder)
    read = digests._Tensor.digest

    def beside_another(tensor: digests._Tensor) -> int:
        digests._write(remember, {"another": {"model": "0" * 32}})
        return read(tensor)

    monkeypatch.setattr(digests._Tensor, "digest", beside_another)
    model_digest(folder / "vae", remember=remember)
    known = digests._recall(remember)
    assert known["another"] == {"model": "0" * 32}
    assert str((folder / "vae" / WEIGHTS["vae"]).resolve()) in known


def test_a_spoilt_memory_costs_only_time(folder: Path, remember: Path) -> None:
    settle(folder)
    before = model_digest(folder / "vae", remember=remember)
    remember.write_text("{")
    assert model_digest(folder / "vae", remember=remember) == before
    assert json.loads(remember.read_text())


@pytest.mark.parametrize("cut_bytes", [1, 100])
def test_weights_cut_short_are_damaged(folder: Path, remember: Path, cut_bytes: int) -> None:
    weights = folder / "vae" / WEIGHTS["vae"]
    data = weights.read_bytes()
    weights.write_bytes(data[: max(4, len(data) - cut_bytes)])
    with pytest.raises(Damaged, match=WEIGHTS["vae"]):
        model_digest(folder / "vae", remember=remember)


@pytest.mark.parametrize("gone", ["config.json", WEIGHTS["vae"]])
def test_half_a_model_has_no_digest(folder: Path, remember: Path, gone: str) -> None:
    (folder / "vae" / gone).unlink()
    with pytest.raises(NotComplete, match="is missing"):
        model_digest(folder / "vae", remember=remember)


def test_small_files_are_named_by_what_they_hold(folder: Path, tmp_path: Path) -> None:
    names = ["tokenizer.json", "tokenizer_config.json", "merges.txt"]
    before = files_digest(folder / "tokenizer", names)
    copy = shutil.copytree(folder / "tokenizer", tmp_path / "elsewhere")
    (copy / "README.md").write_text("not one of them")
    assert files_digest(copy, reversed(names)) == before
    (copy / "merges.txt").write_text("")
    assert files_digest(copy, names) != before


def test_opening_a_checkpoint_imports_no_torch() -> None:
    code = "import sys, qedit.stages.models.checkpoint.checkpoint; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_files_read_through_safetensors_are_what_was_digested(folder: Path) -> None:
    """The header is read by hand: the offsets must be those of the library."""
    path = folder / "vae" / WEIGHTS["vae"]
    (tensor,) = digests._tensors(path)
    data = path.read_bytes()[tensor.start : tensor.start + tensor.nbytes]
    assert data == load_file(path)["weight"].tobytes()

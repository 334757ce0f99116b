"""Captions that are too long for the encoder are found by `pair`, with the tokenizer alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from picture_pairs import configured, folder, go, pairs, rejected, table
from real_files import real_file
from tiny_checkpoints import model_settings

from qedit.cache.errors import NotComplete, WrongUse
from qedit.stages.models.templates import CAPTION_LIMIT_TOKENS
from qedit.stages.models.text.caption_length import CaptionLength, tokenizer_in
from qedit.stages.models.tiny.tiny_tokenizer import train_tokenizer
from qedit.stages.samples.table import read_rejections

pytestmark = pytest.mark.usefixtures("in_own_folder")

TEXTS = [
    "make the sky red, don't touch the 12 boats\r\n\n  please  ",
    "Ändere die Farbe — 把天空变成红色 🎈🎈",
    "cafe\u0301 \u0958 <|vision_start|><|im_end|> x",
    "".join(map(chr, range(1, 600))),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a checkpoint no more than its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    train_tokenizer().save_pretrained(folder / "processor")
    return folder


@pytest.fixture
def merges_alone(model: Path, tmp_path: Path) -> Path:
    """The same tokenizer in the two files that older checkpoints have."""
    written = json.loads((model / "processor/tokenizer.json").read_text(encoding="utf-8"))["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(written["vocab"]), encoding="utf-8")
    merges = [one if isinstance(one, str) else " ".join(one) for one in written["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    whole = json.loads((model / "processor/tokenizer.json").read_text(encoding="utf-8"))
    added = {str(token["id"]): {"content": token["content"]} for token in whole["added_tokens"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    return tmp_path


def test_tokens_are_those_of_the_encoders_own_tokenizer(model: Path, merges_alone: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(model / "processor")
    ours, plain = tokenizer_in(model / "processor"), tokenizer_in(merges_alone)
    for text in TEXTS:
        assert ours.encode(text, add_special_tokens=False).ids == theirs(text)["input_ids"]
        assert len(plain.encode(text, add_special_tokens=False)) == len(theirs(text)["input_ids"])


def test_special_tokens_of_the_real_tokenizer_count_as_one() -> None:
    """The genuine files have no tokenizer.json."""
    tokenizer = tokenizer_in(real_file("qwen2.5-vl-7b"))
    assert len(tokenizer.encode("<|im_end|>", add_special_tokens=False)) == 1
    assert len(tokenizer.encode("red<|vision_start|>red", add_special_tokens=False)) == 3


def test_the_limit_is_one_of_tokens_and_not_of_bytes(model: Path) -> None:
    length = CaptionLength(model_settings("edit-v2", str(model)))
    one_each = " red" * CAPTION_LIMIT_TOKENS  # the tiny vocabulary knows the word
    assert length.excess(one_each) == 0
    assert length.excess(one_each + " red") == CAPTION_LIMIT_TOKENS + 1
    byte_each = "\u0416" * (CAPTION_LIMIT_TOKENS // 2)  # letters of two bytes, unknown to it
    assert length.excess(byte_each) == 0
    assert length.excess(byte_each + "\u0416") == CAPTION_LIMIT_TOKENS + 2


def test_short_captions_need_no_tokenizer() -> None:
    nowhere = CaptionLength(model_settings("edit-v2", "not/there"))
    assert nowhere.excess("x" * CAPTION_LIMIT_TOKENS) == 0


def test_one_long_caption_is_rejected_and_the_others_are_used(model: Path) -> None:
    pairs(3)
    long = "red " * (CAPTION_LIMIT_TOKENS + 7)
    for number, text in enumerate(("make it red", f"short\n{long}", "sky " * 900)):
        Path(f"targets/{number}.txt").write_text(text, encoding="utf-8")
    settings = {"pretrained_model_name_or_path": str(model)}
    configuration = configured(caption_strategy="textfile", settings=settings)
    assert rejected(configuration) == {"1.png": "caption_too_long"}
    (row,) = read_rejections(folder(configuration))
    assert f"{CAPTION_LIMIT_TOKENS + 7} tokens" in row.detail
    assert len(row.detail) < 200
    assert [sample.name for sample in table(configuration).samples] == ["0.png", "2.png"]


def test_a_tokenizer_that_cannot_be_had_is_named(model: Path, tmp_path: Path) -> None:
    pairs(1)
    Path("targets/0.txt").write_text("x " * 2000, encoding="utf-8")
    copied = tmp_path / "copied"
    shutil.copytree(model, copied)
    settings = {"pretrained_model_name_or_path": str(copied)}
    configuration = configured(caption_strategy="textfile", settings=settings)
    (copied / "processor/tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(NotComplete, match=r"tokenizer in .* cannot be read"):
        go(configuration)
    shutil.rmtree(copied / "processor")
    with pytest.raises(NotComplete, match=r"no folder .*processor"):
        go(configuration)


def test_a_hub_that_cannot_be_reached_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    length = CaptionLength(model_settings("edit-v2", "some/model"))
    with pytest.raises(WrongUse, match=r"1024 bytes.*cannot be reached"):
        length.excess("x" * 2000)


def test_measuring_imports_no_model(model: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from qedit.stages.models.text.caption_length import tokenizer_in
print(len(tokenizer_in(Path({str(model / "processor")!r})).encode("make it red").ids))
assert not {{"torch", "transformers", "diffusers"}} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3"]

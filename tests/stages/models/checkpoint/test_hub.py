"""Checkpoints of the Hugging Face Hub: what is fetched, and what is said when nothing can be."""

from __future__ import annotations

import io
import ssl
from email.message import Message
from http.client import BadStatusLine
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request

import pytest
from bare_checkpoints import make_checkpoint
from huggingface_hub.errors import LocalEntryNotFoundError
from tiny_checkpoints import model_settings

from qedit.cache.errors import WrongUse
from qedit.stages.models.checkpoint import hub
from qedit.stages.models.checkpoint.checkpoint import (
    open_checkpoint,
    part_config,
)


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
        model_settings("edit-v2", revision="main2", pretrained_vae_model_name_or_path=str(other))
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
        open_checkpoint(model_settings("edit-v1"))
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
        open_checkpoint(model_settings("edit-v1"))
    refusal.match(r"Fetch it on any machine \(`hf download Qwen/Qwen-Image-Edit ")
    assert part_config(model_settings("edit-v1"), "transformer") == {}  # the classes' own sizes
    assert told == [not reachable] * 2
    assert asked == [huggingface_hub.constants.ENDPOINT]
    hub._answers.cache_clear()

"""Ctrl-C while rows are made: what was finished is said and kept, the rest is made by the rerun."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from quiet import Quiet
from small_run import make_run, said, with_files

from qedit.stages.cache_vae import one_file
from qedit.stages.models.vae import LatentEncoder
from qedit.stages.sharing import saying_what_is_kept


def test_ctrl_c_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_run(tmp_path))
    with_files("pair")
    really: Callable[..., Any] = LatentEncoder.encode
    batches = 0

    def interrupted(self: Any, pixels: Any) -> Any:
        nonlocal batches
        batches += 1
        if batches == 3:
            raise KeyboardInterrupt
        return really(self, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(one_file, "FILES_IN_PART", 1)
        patch.setattr(LatentEncoder, "encode", interrupted)
        told = with_files("cache-vae", expect=130).stderr
    assert "2 latents were made and are kept" in told
    assert list((tmp_path / "caches").rglob("claims/*.json")) == []
    assert said(with_files("cache-vae", "--json"))["computed"] == 8 - 2


def test_who_made_nothing_does_not_say_that_it_is_kept() -> None:
    quiet = Quiet()
    with pytest.raises(KeyboardInterrupt), saying_what_is_kept(quiet, lambda: 0, "latents"):
        raise KeyboardInterrupt
    assert quiet.warned == ["no latents were made yet; the part in work is given up."]

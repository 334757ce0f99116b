"""A training process opens no picture and holds no VAE, no encoder, none of our picture code:
the transformer, what is trained, and a few batches."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from filled_run import fill, made_configuration, made_samples_with_edits
from quiet import Quiet
from small_run import cache_rows, make_run
from torch._subclasses.fake_tensor import FakeTensor

from qedit.cache.errors import NotComplete
from qedit.stages.inspect_sample import inspect_sample
from qedit.stages.models.checkpoint.digests import model_digest
from qedit.stages.train import loop
from qedit.stages.train.data.feed import Batch, Feed
from qedit.stages.train.plan.training_plan import make_plan
from qedit.stages.train.trainer import Trainer

TRAINING = """
import json, os, sys
opened = []
def hook(event, details):
    if event in ("open", "os.open") and isinstance(details[0], (str, bytes)):
        opened.append(os.path.relpath(os.fsdecode(details[0])))
sys.addaudithook(hook)
from click.testing import CliRunner
from qedit.pipeline.cli import main
from qedit.stages.train.evaluation.preview_process import Decoding
Decoding.start = lambda self, **_: None  # a process of its own
arguments = ["train", "--config", "config.json", "--data", "data.json"]
result = CliRunner().invoke(main, arguments)
assert result.exit_code == 0, result.output
print(json.dumps({"opened": opened, "modules": sorted(sys.modules)}))
"""
FORBIDDEN = (
    "qedit.stages.pictures.images",
    "qedit.stages.encoding.pipeline",
    "qedit.stages.encoding.open_pictures",
    "qedit.stages.pair",
    "qedit.stages.cache_vae",
    "qedit.stages.cache_embeds",
    "qedit.stages.models.vae",
    "qedit.stages.models.text.prompt",
    "diffusers.models.autoencoders.autoencoder_kl_qwenimage",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.qwen2_vl",
)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    previews = {"validation_disable": False, "validation_resolution": 64, "num_eval_images": 1}
    folder = make_run(tmp_path_factory.mktemp("lean"), validation_num_inference_steps=2, **previews)
    for weights in (folder / "model").rglob("*.safetensors"):
        # digests of files that are this new are not remembered: they may still be changing
        os.utime(weights, (1_700_000_000, 1_700_000_000))
    with chdir(folder):
        cache_rows()
        done = subprocess.run(
            [sys.executable, "-c", TRAINING], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "pytorch_lora_weights.safetensors").is_file()
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def test_no_encoder_and_no_picture_code_is_loaded(seen: dict[str, list[str]]) -> None:
    loaded = [
        name
        for name in seen["modules"]
        for part in FORBIDDEN
        if (name + ".").startswith(part + ".")
    ]
    assert loaded == []
    assert "qedit.stages.train.loop" in seen["modules"]


def test_no_picture_caption_or_encoder_weight_is_opened(seen: dict[str, list[str]]) -> None:
    # paths relative to the run's folder
    touched = [path for path in seen["opened"] if path.startswith(("edited/", "reference-a/"))]
    assert touched == []
    weights = [path for path in seen["opened"] if path.endswith(".safetensors")]
    assert not any("vae" in path or "text_encoder" in path for path in weights)
    # the hook does see what is opened: the base's weights, at least
    assert any("transformer" in path for path in weights)


# -- what it holds in memory ---------------------------------------------------------------


def storages(tensors: Any) -> dict[int, int]:
    """Bytes of each distinct piece of memory that these tensors lie in."""
    found = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
    return found


def alive() -> Iterator[torch.Tensor]:
    for one in gc.get_objects():
        kind = type(one)
        # what a compiler was shown by another test of this process has no memory
        is_real = issubclass(kind, torch.Tensor) and not issubclass(kind, FakeTensor)
        if is_real and one.device.type == "cpu":
            yield one


def held_by(trainer: Trainer) -> Iterator[torch.Tensor]:
    yield from trainer.transformer.parameters()
    for module in trainer.transformer.modules():
        # buffers, and tables of rotary embeddings, which are none
        every = [*vars(module).values(), *module.buffers(recurse=False)]
        yield from (value for value in every if isinstance(value, torch.Tensor))
    yield from (one.grad for one in trainer.trained.weights.values() if one.grad is not None)
    for state in trainer.trained.optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))
    if trainer.trained.ema:
        yield from trainer.trained.ema.shadow.values()
        if aside := trainer.trained.ema._aside:  # where the weights wait for the average to move
            yield from aside._copies.values()


def in_batch(batch: Batch) -> Iterator[torch.Tensor]:
    for value in vars(batch).values():
        every = value if isinstance(value, tuple) else (value,)
        yield from (one for one in every if isinstance(one, torch.Tensor))


def test_memory_holds_the_model_what_is_trained_and_two_steps_of_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = made_configuration(tmp_path, max_train_steps=4, checkpoint_step_interval=100)
    fill(configuration, made_samples_with_edits(8, sizes=[(64, 64)]))
    before, trainers = storages(alive()), []
    load, read = Trainer.load, Feed.step
    steps_read: dict[int, int] = {}

    def loaded(plan: Any, **options: Any) -> Trainer:
        trainers.append(load(plan, **options))
        return trainers[-1]

    def counted(feed: Feed, step: int) -> list[Batch]:
        batches = read(feed, step)
        every = storages(one for batch in batches for one in in_batch(batch))
        steps_read[step] = sum(every.values())
        return batches

    class Counting(Quiet):
        unexplained: Mapping[int, int] | None = None

        def note(self, **values: str) -> None:
            if self.moved == 3:
                gc.collect()
                known = before | storages(held_by(trainers[0]))
                self.unexplained = {
                    at: size for at, size in storages(alive()).items() if at not in known
                }

    monkeypatch.setattr(Trainer, "load", loaded)
    monkeypatch.setattr(Feed, "step", counted)
    progress = Counting()
    loop.run(configuration, progress, device="cpu")
    assert progress.unexplained is not None
    two_steps = steps_read[3] + steps_read[4]
    # a batch's tensors are there; beside them a few numbers, but no copy of anything large
    assert sum(progress.unexplained.values()) < 1.1 * two_steps + 64 * 1024


def test_the_next_step_is_read_while_this_one_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = made_configuration(tmp_path, max_train_steps=3)
    fill(configuration, made_samples_with_edits(4, sizes=[(64, 64)]))
    read, make = Feed.step, Trainer.step
    began = {step: threading.Event() for step in range(1, 4)}

    def reading(feed: Feed, step: int) -> list[Batch]:
        began[step].set()
        return read(feed, step)

    def making(trainer: Trainer, step: int, *args: Any, **options: Any) -> Any:
        if step < 3:
            assert began[step + 1].wait(timeout=30)
        return make(trainer, step, *args, **options)

    monkeypatch.setattr(Feed, "step", reading)
    monkeypatch.setattr(Trainer, "step", making)
    loop.run(configuration, Quiet(), device="cpu")


# -- what it needs on disk -----------------------------------------------------------------


def test_training_and_inspect_do_without_the_encoders(tmp_path: Path) -> None:
    configuration = made_configuration(tmp_path, max_train_steps=1)
    samples = made_samples_with_edits(4, sizes=[(64, 64)])
    fill(configuration, samples)
    model = Path(configuration.settings.pretrained_model_name_or_path or "")
    run = make_plan(configuration).run
    whole = inspect_sample(configuration, samples[0].name).tensors
    for part in ("vae", "text_encoder"):
        shutil.rmtree(model / part)
    assert make_plan(configuration).run == run
    assert loop.run(configuration, Quiet(), device="cpu").computed == 1
    alone = inspect_sample(configuration, samples[0].name).tensors
    assert all(torch.equal(tensor, alone[name]) for name, tensor in whole.items())


def test_what_was_never_looked_at_is_not_made_up(tmp_path: Path) -> None:
    with pytest.raises(NotComplete, match="does not know what was in it"):
        model_digest(tmp_path / "gone", remember=tmp_path / "digests.json")
    # a part that is there but not whole is refused as before
    (tmp_path / "half").mkdir()
    with pytest.raises(NotComplete, match=r"config\.json is missing"):
        model_digest(tmp_path / "half", remember=tmp_path / "digests.json")


def test_a_model_that_was_replaced_is_remembered_as_it_was_last(tmp_path: Path) -> None:
    from qedit.stages.models.tiny.tiny import make_tiny

    remember = tmp_path / "digests.json"
    vae = make_tiny(tmp_path / "model", "edit-v2", vae_area=64 * 64, vl_area=56 * 56) / "vae"
    first = model_digest(vae, remember=remember)
    config = json.loads((vae / "config.json").read_text())
    (vae / "config.json").write_text(json.dumps({**config, "z_dim": 99}))
    second = model_digest(vae, remember=remember)
    shutil.rmtree(vae)
    assert first != second == model_digest(vae, remember=remember)

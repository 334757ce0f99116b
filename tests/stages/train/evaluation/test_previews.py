"""Previews in training: when and of what, at which size, and that training does not notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from configurations import configured, image, reference
from filled_run import fill, made_configuration, made_samples_with_edits
from quiet import Quiet
from samples import made_sample
from training import SAMPLES, lora, metrics

from qedit.cache.errors import NotComplete
from qedit.config.configuration import Configuration
from qedit.config.value_types import PreviewSize
from qedit.stages.models.checkpoint.checkpoint import open_checkpoint
from qedit.stages.models.transformer.denoise import denoise, load_scheduler
from qedit.stages.models.transformer.transformer import load_transformer
from qedit.stages.run_output.previews import stem_of, stored_previews
from qedit.stages.samples.sample import Sample
from qedit.stages.samples.store_keys import PairsKeys
from qedit.stages.stores.bfloat16 import tensor_of
from qedit.stages.stores.previewed import preview_size
from qedit.stages.stores.run import Run
from qedit.stages.stores.run_stores import open_stores
from qedit.stages.train import loop
from qedit.stages.train.evaluation import previews
from qedit.stages.train.objective.eval_mode import eval_mode
from qedit.stages.train.plan.training_plan import make_plan

SMALL: dict[str, Any] = {
    "validation_disable": False,
    "validation_resolution": 64,
    "validation_num_inference_steps": 2,
    "validation_step_interval": 3,
    "num_eval_images": 2,
    "max_train_steps": 5,
}


@pytest.fixture
def runs(made: Any) -> Callable[..., Configuration]:
    return lambda **settings: made(**{**SMALL, **settings})


def train(configuration: Configuration) -> Quiet:
    """Train without pictures in the background; what was said."""
    quiet = Quiet()
    loop.run(configuration, quiet, device="cpu", decodes=False)
    return quiet


def there(configuration: Configuration) -> list[tuple[int, str, str]]:
    found = stored_previews(configuration.settings.output_dir)
    return [(one.step, one.part, one.sample) for one in found]


def latents(configuration: Configuration) -> dict[str, torch.Tensor]:
    found = stored_previews(configuration.settings.output_dir)
    return {f"{one.step} {one.path.name}": one.latents() for one in found}


class Counting:
    """The real `denoise`, counted; it fails where it is told to."""

    def __init__(self, fails: Callable[[int], Exception | None] = lambda call: None) -> None:
        self.calls, self._fails = 0, fails

    def __call__(self, *given: Any, **options: Any) -> Any:
        self.calls += 1
        error = self._fails(self.calls)
        if error is not None:
            raise error
        return denoise(*given, **options)


# -- when, and of what -----------------------------------------------------------------


def test_the_base_then_the_weights_and_their_average(runs: Callable[..., Configuration]) -> None:
    configuration = runs()
    said = train(configuration).said
    names = ["000.png", "001.png"]
    assert sorted(there(configuration)) == sorted(
        [(0, "base", name) for name in names]
        + [(step, part, name) for step in (3, 5) for part in ("now", "ema") for name in names]
    )
    assert any("first 2 samples of the training set" in line for line in said)


def test_no_average_no_average_s_previews(runs: Callable[..., Configuration]) -> None:
    configuration = runs(use_ema=False, max_train_steps=3)
    train(configuration)
    assert {part for _, part, _ in there(configuration)} == {"base", "now"}


def test_disabled_means_none(runs: Callable[..., Configuration]) -> None:
    configuration = runs(validation_disable=True, max_train_steps=3)
    train(configuration)
    assert there(configuration) == []


class MadeTable(PairsKeys):
    """Three samples, named after the table."""

    def each(self) -> Iterator[Sample]:
        return (made_sample(f"{self.path.name}{place}") for place in range(3))


def test_held_out_pairs_are_shown_where_there_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = {name: MadeTable(tmp_path / name) for name in ("main", "held", "more")}
    monkeypatch.setattr(Run, "pairs", lambda self, main: tables[main.id])
    monkeypatch.setattr(Run, "stores", Run(made_configuration(tmp_path)).stores)
    held = [image(id=name, dataset_type="eval") for name in ("held", "more")]
    without = configured(tmp_path, {"num_eval_images": 2})
    chosen, held_out = previews.preview_samples(Run(without))
    assert ([one.name for one in chosen], held_out) == (["main0", "main1"], False)
    configuration = configured(tmp_path, {"num_eval_images": 3}, image(), reference(), *held)
    chosen, held_out = previews.preview_samples(Run(configuration))
    assert ([one.name for one in chosen], held_out) == (["held0", "more0", "held1"], True)


def test_the_base_is_the_model_without_the_lora(
    runs: Callable[..., Configuration], tmp_path: Path
) -> None:
    first = runs(output="first", max_train_steps=3, learning_rate=0.5)
    train(first)
    begun = str(first.settings.output_dir)
    configuration = runs(output="second", max_train_steps=3, init_lora=begun)
    train(configuration)
    mine = [one for one in stored_previews(configuration.settings.output_dir) if one.step == 0]
    checkpoint = open_checkpoint(configuration.settings)
    transformer = load_transformer(checkpoint, dtype=torch.float32, device="cpu")
    for weight in transformer.parameters():
        # as training has them: in a mapped file they lie at odd addresses, where some processors
        # add up products in another order
        weight.data = weight.data.clone()
    stores = open_stores(configuration, checkpoint)
    sample = SAMPLES[0]
    (reference,) = sample.references

    def embeds(caption: str) -> torch.Tensor:
        rows = (
            stores.prefixes.read(sample.prefix_key, dataset="edits"),
            stores.tails.read(sample.tail_key(caption), dataset="edits"),
        )
        return torch.cat([tensor_of(row) for row in rows])[None].float()

    plain = denoise(
        transformer,
        load_scheduler(checkpoint.scheduler),
        torch.randn((1, 16, 8, 8), generator=torch.Generator().manual_seed(42)),
        [tensor_of(stores.latents.read(reference.latent_key, dataset="edits"))[None].float()],
        embeds(sample.captions[0]),
        embeds(" "),
        steps=2,
        guidance=4.0,
    )
    assert torch.equal(mine[0].latents(), plain)
    # and the LoRA it began with makes a difference, or this would show nothing
    trained = next(iter(stored_previews(first.settings.output_dir, step=3)))
    assert not torch.allclose(trained.latents(), plain, atol=1e-3)


def test_a_mask_is_named_for_who_measures_drift_and_decides_nothing(
    runs: Callable[..., Configuration],
) -> None:
    plan, sample = make_plan(runs()), SAMPLES[0]
    masked = replace(sample, mask=replace(sample.target, dataset="masks"))
    about = [
        previews.Previews(plan, [one], progress=Quiet())._missing(0)[0] for one in (sample, masked)
    ]
    assert about[1].about["mask"]["dataset"] == "masks"
    assert "mask" not in about[0].about
    assert about[0].recipe == about[1].recipe


@pytest.mark.parametrize(
    ("wanted", "size"),
    [
        (PreviewSize(1024, 1024), (1376, 768)),
        (PreviewSize(512, 512), (672, 384)),
        (PreviewSize(640, 480, exact=True), (640, 480)),
    ],
)
def test_sizes_are_areas_at_the_sample_s_ratio_or_exact(
    wanted: PreviewSize, size: tuple[int, int]
) -> None:
    assert preview_size(made_sample("wide", size=(1920, 1080)), wanted) == size


def test_names_of_files_can_be_read() -> None:
    assert stem_of(3, "cats/Tom & Jerry.png") == "03-cats-Tom-Jerry"
    assert stem_of(0, "猫.png") == "00-sample"


# -- training does not notice ----------------------------------------------------------


def test_a_run_with_previews_is_bit_for_bit_the_one_without(
    runs: Callable[..., Configuration],
) -> None:
    settings = {
        "lora_dropout": 0.3,
        "gradient_checkpointing": True,
        "caption_dropout_probability": 0.5,
    }
    without = runs(output="without", validation_disable=True, **settings)
    with_them = runs(output="with", **settings)
    train(without)
    train(with_them)
    assert len(there(with_them)) == 10
    for name in ("", "ema"):
        one, other = lora(without, name), lora(with_them, name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    losses = [
        [line["loss"] for line in metrics(run) if "loss" in line] for run in (without, with_them)
    ]
    assert losses[0] == losses[1]


def test_modes_and_gradients_are_left_as_they_were() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
    model.train()
    model[0].eval()
    with eval_mode(model):
        assert not any(module.training for module in model.modules())
        assert not model(torch.ones(1, 2)).requires_grad
    assert model(torch.ones(1, 2)).requires_grad
    assert [module.training for module in model.modules()] == [True, False, True]


# -- out of memory ---------------------------------------------------------------------


def test_without_memory_training_goes_on(
    runs: Callable[..., Configuration], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")
    failing = Counting(lambda call: error if call == 4 else None)
    monkeypatch.setattr(previews, "denoise", failing)
    configuration = runs()
    quiet = train(configuration)
    assert len([line for line in metrics(configuration) if "loss" in line]) == 5
    assert len(there(configuration)) == 9
    assert sum("training goes on" in line for line in quiet.warned) == 1
    # the same command does not fail at it again, a smaller preview is another matter
    again = Counting()
    monkeypatch.setattr(previews, "denoise", again)
    train(configuration)
    assert again.calls == 0
    train(runs(validation_resolution=32))
    assert again.calls == 6  # the base and the last step, at the new size


def test_other_errors_are_not_hidden(
    runs: Callable[..., Configuration], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(previews, "denoise", Counting(lambda call: RuntimeError("shape mismatch")))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        train(runs())


# -- killed and begun again ------------------------------------------------------------


@pytest.mark.parametrize(
    "dies_at", [9, *(pytest.param(at, marks=pytest.mark.full) for at in (1, 4, 10))]
)
def test_what_was_not_made_is_made_once_by_the_next_start(
    dies_at: int, runs: Callable[..., Configuration], monkeypatch: pytest.MonkeyPatch
) -> None:
    # checkpoints lie at 2, 4 and 5; a death throws KeyboardInterrupt where a kill would come
    whole = runs(output="whole")
    train(whole)
    first = Counting(lambda call: KeyboardInterrupt() if call == dies_at else None)
    monkeypatch.setattr(previews, "denoise", first)
    configuration = runs(output="killed")
    with pytest.raises(KeyboardInterrupt):
        train(configuration)
    assert len(there(configuration)) == dies_at - 1
    second = Counting()
    monkeypatch.setattr(previews, "denoise", second)
    train(configuration)
    assert second.calls == 10 - (dies_at - 1)
    one, other = latents(whole), latents(configuration)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_finished_run_makes_what_its_end_lacks(
    runs: Callable[..., Configuration], monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = runs()
    train(configuration)
    before = latents(configuration)
    lost = next(iter(stored_previews(configuration.settings.output_dir, step=5)))
    lost.path.unlink()
    counting = Counting()
    monkeypatch.setattr(previews, "denoise", counting)
    train(configuration)
    assert counting.calls == 1
    after = latents(configuration)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_rows_that_a_preview_needs_are_asked_for_first(tmp_path: Path) -> None:
    configuration = made_configuration(
        tmp_path, **{**SMALL, "validation_negative_prompt": "blurry"}
    )
    fill(configuration, made_samples_with_edits(2, sizes=[(64, 64)]))
    with pytest.raises(NotComplete, match="cache-embeds"):
        train(configuration)
    assert not (configuration.settings.output_dir / "metrics.jsonl").exists()

"""A training run: what it makes, what it refuses, and one step against a plain computation."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_run import fill, made_configuration, made_samples_with_edits
from made_samples import made_sample
from quiet import Quiet
from safetensors import safe_open
from safetensors.torch import load_file

from qedit.cache.errors import AnotherRecipe, Damaged, Locked, NotComplete, QeditError, WrongUse
from qedit.cache.lock import writer_lock
from qedit.config.loading import Configuration
from qedit.stages.models.checkpoint import open_checkpoint
from qedit.stages.models.transformer import load_transformer
from qedit.stages.samples import NULL_CAPTION, Sample
from qedit.stages.stage import Outcome
from qedit.stages.tensors import tensor_of
from qedit.stages.train import loop
from qedit.stages.train.ema import Ema
from qedit.stages.train.feed import Batch, Feed, padded
from qedit.stages.train.plan import make_plan

SAMPLES = made_samples_with_edits(8, sizes=[(64, 64), (64, 96)])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder for each flavour whose caches are filled once; runs lie elsewhere."""
    folders: dict[str, Path] = {}

    def folder(flavour: str) -> Path:
        if flavour not in folders:
            folders[flavour] = tmp_path_factory.mktemp("shared")
            fill(made_configuration(folders[flavour], flavour=flavour), SAMPLES)
        return folders[flavour]

    return folder


@pytest.fixture
def made(tmp_path: Path, shared: Callable[[str], Path]) -> Callable[..., Configuration]:
    """A filled run; called again, the same run with other settings (and other samples)."""

    def make(
        samples: list[Sample] | None = None, *, output: str = "output", **settings: Any
    ) -> Configuration:
        flavour = settings.pop("flavour", "edit-v2")
        folder = shared(flavour) if samples is None else tmp_path
        configuration = made_configuration(
            folder, flavour=flavour, output_dir=str(tmp_path / output), **settings
        )
        if samples is not None:
            fill(configuration, samples)
        return configuration

    return make


def train(configuration: Configuration, **options: Any) -> Outcome:
    return loop.run(configuration, Quiet(), device="cpu", **options)


def metrics(configuration: Configuration) -> list[dict[str, Any]]:
    text = (configuration.settings.output_dir / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def lora(configuration: Configuration, name: str = "") -> dict[str, torch.Tensor]:
    return load_file(configuration.settings.output_dir / name / "pytorch_lora_weights.safetensors")


def checkpoint_names(configuration: Configuration) -> list[str]:
    return sorted(path.name for path in configuration.settings.output_dir.glob("checkpoint-*"))


# -- what a run makes --------------------------------------------------------------------


def test_a_run_leaves_checkpoints_lora_files_and_a_line_a_step(made: Any) -> None:
    configuration = made(max_train_steps=5, checkpoints_total_limit=2)
    outcome = train(configuration)
    assert (outcome.wanted, outcome.kept, outcome.computed) == (5, 0, 5)
    assert checkpoint_names(configuration) == ["checkpoint-4", "checkpoint-5"]
    lines = metrics(configuration)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert set(lines[0]) == {"step", "loss", "lr", "grad_norm", "sigma", "samples", "seconds"}
    assert lines[-1]["loss"] == outcome.facts["loss"]
    file = configuration.settings.output_dir / "pytorch_lora_weights.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert metadata["steps"] == "5"
    assert metadata["flavour"] == "edit-v2"
    assert {"base_digest", "zero_cond_t", "targets", "rank", "trained_scale", "qedit"} <= set(
        metadata
    )
    assert any(
        not torch.equal(weight, lora(configuration, "ema")[name])
        for name, weight in lora(configuration).items()
    )


def test_a_finished_run_has_nothing_to_do_and_writes_nothing(made: Any) -> None:
    configuration = made()
    train(configuration)
    where = configuration.settings.output_dir
    before = {path: path.stat().st_mtime_ns for path in where.rglob("*safetensors")}
    outcome = train(configuration)
    assert (outcome.wanted, outcome.kept, outcome.computed) == (6, 6, 0)
    assert {path: path.stat().st_mtime_ns for path in where.rglob("*safetensors")} == before


def test_a_dry_run_touches_nothing(made: Any) -> None:
    configuration = made()
    outcome = train(configuration, dry_run=True)
    assert (outcome.wanted, outcome.kept, outcome.computed) == (6, 0, 0)
    assert not configuration.settings.output_dir.exists()


def test_a_lora_file_that_is_gone_or_old_is_made_again_from_the_checkpoint(made: Any) -> None:
    configuration = made()
    train(configuration)
    file = configuration.settings.output_dir / "pytorch_lora_weights.safetensors"
    data = file.read_bytes()
    file.unlink()
    train(configuration)
    assert file.read_bytes() == data


def test_epochs_give_the_number_of_steps(made: Any) -> None:
    # two shapes of four samples each in batches of two
    configuration = made(num_train_epochs=3)
    assert train(configuration, dry_run=True).wanted == 12


@pytest.mark.parametrize("flavour", ["edit-v1", "edit-v3", "edit-v2+"])
def test_every_flavour_trains_in_bfloat16_too(made: Any, flavour: str) -> None:
    configuration = made(flavour=flavour, mixed_precision="bf16", max_train_steps=2)
    train(configuration)
    assert all(math.isfinite(line["loss"]) for line in metrics(configuration))
    assert all(weight.dtype == torch.float32 for weight in lora(configuration).values())


def test_the_learning_rate_follows_its_schedule_and_gradients_are_clipped(made: Any) -> None:
    configuration = made(lr_scheduler="linear", lr_warmup_steps=2, max_train_steps=6)
    train(configuration)
    rates = [line["lr"] for line in metrics(configuration)]
    assert rates == pytest.approx([0, 0.005, 0.01, 0.0075, 0.005, 0.0025])


def test_clipping_bounds_the_norm_of_what_the_optimizer_gets(made: Any) -> None:
    """One step of SGD-like size: with AdamW only the ratio eps/gradient shows the clipping."""
    config = {"eps": 1.0, "weight_decay": 0.0}
    moved = {}
    for limit in (0.0, 1e-3):
        configuration = made(
            max_grad_norm=limit,
            optimizer_config=config,
            max_train_steps=1,
            output=f"out-{limit}",
        )
        train(configuration)
        norm = metrics(configuration)[0]["grad_norm"]
        moved[limit] = lora(configuration)
    fresh = {
        name: torch.zeros_like(weight) for name, weight in moved[0.0].items() if "lora_B" in name
    }
    free = max(float(moved[0.0][name].abs().max()) for name in fresh)
    clipped = max(float(moved[1e-3][name].abs().max()) for name in fresh)
    assert norm > 1e-2
    assert clipped < 0.2 * free


# -- one step ----------------------------------------------------------------------------


def plain_loss(
    transformer: torch.nn.Module, batches: list[Batch], stores: Any, samples: dict[str, Sample]
) -> torch.Tensor:
    """The mean loss over the samples of a step, one by one, from first principles."""
    losses = []
    for batch in batches:
        for place, name in enumerate(batch.names):
            sample = samples[name]
            picture, before = sample.target, sample.references[0]
            x0 = tensor_of(stores.latents.read(picture.latent_key, dataset="edits")).float()
            reference = tensor_of(
                stores.latents.read(before.latent_key, dataset=before.dataset)
            ).float()
            text = torch.cat(
                [
                    tensor_of(stores.prefixes.read(sample.prefix_key, dataset="edits")),
                    tensor_of(
                        stores.tails.read(sample.tail_key(batch.captions[place]), dataset="edits")
                    ),
                ]
            ).float()
            sigma, eps = batch.sigma[place], batch.noise[place]
            channels, height, width = x0.shape
            tokens = []
            for latents in ((1 - sigma) * x0 + sigma * eps, reference):
                for row in range(0, latents.shape[1], 2):
                    for column in range(0, latents.shape[2], 2):
                        tokens.append(latents[:, row : row + 2, column : column + 2].reshape(-1))
            shape = (1, height // 2, width // 2)
            output = transformer(
                hidden_states=torch.stack(tokens)[None],
                encoder_hidden_states=text[None],
                timestep=sigma[None] * 1000 / 1000,
                img_shapes=[[shape, (1, *(edge // 2 for edge in reference.shape[1:]))]],
                return_dict=False,
            )[0][0]
            velocity = torch.empty_like(x0)
            for place_in_picture in range(height // 2 * (width // 2)):
                row, column = divmod(place_in_picture, width // 2)
                velocity[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = output[
                    place_in_picture
                ].view(channels, 2, 2)
            losses.append((velocity - (eps - x0)).square().mean())
    return torch.stack(losses).mean()


def gradients(weights: dict[str, torch.nn.Parameter]) -> torch.Tensor:
    return torch.cat(
        [weight.grad.flatten() for weight in weights.values() if weight.grad is not None]
    )


@pytest.mark.parametrize("flavour", ["edit-v2", "edit-v3"])
def test_a_steps_loss_and_gradient_are_those_of_a_plain_computation(
    made: Any, flavour: str
) -> None:
    """Short last batches and accumulation included: every sample weighs the same."""
    samples = made_samples_with_edits(7, sizes=[(64, 64), (64, 96)])
    configuration = made(
        samples, flavour=flavour, train_batch_size=3, gradient_accumulation_steps=4
    )
    plan = make_plan(configuration)
    batches = plan.feed.step(1)
    # four of one shape and three of the other, in batches of three; then the next epoch's first
    assert sorted(len(batch) for batch in batches[:3]) == [1, 3, 3]
    assert any(batch.mask is not None for batch in batches), "texts of two lengths in a batch"
    trainer = loop.Trainer.load(plan, device=torch.device("cpu"))
    weights = trainer.trained.weights
    generator = torch.Generator().manual_seed(1)
    for name, weight in weights.items():
        if "lora_B" in name:
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    loss = trainer.objective.backward(trainer.transformer, batches, step=1)
    ours = gradients(weights)
    for weight in weights.values():
        weight.grad = None
    plain = plain_loss(
        trainer.transformer, batches, plan.feed.stores, {sample.name: sample for sample in samples}
    )
    plain.backward()
    assert loss == pytest.approx(plain.item(), rel=1e-5)
    assert (ours - gradients(weights)).norm() < 1e-4 * ours.norm()


def test_the_transformer_is_conditioned_on_the_rounded_sigma(made: Any) -> None:
    plan = make_plan(made(mixed_precision="bf16"))
    trainer = loop.Trainer.load(plan, device=torch.device("cpu"))
    seen = []
    trainer.transformer.register_forward_pre_hook(
        lambda module, args, named: seen.append(named), with_kwargs=True
    )
    (batch,) = plan.feed.step(1)
    trainer.objective.losses(trainer.transformer, batch)
    expected = (batch.sigma * 1000).to(torch.bfloat16) / 1000
    assert torch.equal(seen[0]["timestep"], expected)
    exact = (1 - batch.sigma)[:, None, None, None] * batch.target.float() + batch.sigma[
        :, None, None, None
    ] * batch.noise
    tokens = batch.target.shape[-1] * batch.target.shape[-2] // 4
    first = exact.to(torch.bfloat16)[:, :, :2, :2].flatten(1)
    assert torch.equal(seen[0]["hidden_states"][:, 0], first)
    assert seen[0]["hidden_states"].shape[1] == 2 * tokens


def test_gradient_checkpointing_changes_no_bit(made: Any) -> None:
    found = []
    for on in (True, False):
        configuration = made(
            gradient_checkpointing=on, lora_dropout=0.3, max_train_steps=3, output=f"out-{on}"
        )
        train(configuration)
        found.append([line["loss"] for line in metrics(configuration)])
    assert found[0] == found[1]


# -- what is drawn -----------------------------------------------------------------------


def feed_of(configuration: Configuration) -> Feed:
    return make_plan(configuration).feed


def test_everything_drawn_belongs_to_seed_step_and_position(made: Any) -> None:
    one, same = feed_of(made(train_batch_size=1)), feed_of(made(train_batch_size=1))
    (first,), (again,) = one.step(5), same.step(5)
    assert first.names == again.names
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.sigma, again.sigma)
    (other,) = one.step(6)
    assert not torch.equal(first.noise.flatten()[:64], other.noise.flatten()[:64])
    batch = feed_of(made(train_batch_size=4)).step(1)[0]
    assert len({float(sigma) for sigma in batch.sigma}) == 4
    (reseeded,) = feed_of(made(train_batch_size=1, seed=43)).step(5)
    assert not torch.equal(first.noise.flatten()[:64], reseeded.noise.flatten()[:64])


def test_noise_is_standard_normal(made: Any) -> None:
    feed = feed_of(made(train_batch_size=1))
    noise = torch.cat([feed.step(step)[0].noise.flatten() for step in range(1, 41)])
    assert abs(float(noise.mean())) < 0.02
    assert float(noise.std()) == pytest.approx(1, abs=0.02)


def test_caption_dropout_shows_the_null_tail_of_the_same_references(made: Any) -> None:
    feed = feed_of(made(caption_dropout_probability=1.0))
    by_name = {sample.name: sample for sample in SAMPLES}
    (batch,) = feed.step(1)
    assert set(batch.captions) == {NULL_CAPTION}
    for name, embeds in zip(batch.names, batch.embeds, strict=True):
        sample = by_name[name]
        prefix = feed.stores.prefixes.read(sample.prefix_key, dataset="edits")
        null = feed.stores.tails.read(sample.tail_key(NULL_CAPTION), dataset="edits")
        assert torch.equal(embeds, tensor_of(np.concatenate([prefix, null])))


def test_captions_are_dropped_and_drawn_as_often_as_asked(made: Any) -> None:
    samples = [made_sample("a.png", captions=("keep it", "turn it over"))]
    feed = feed_of(made(samples, train_batch_size=1, caption_dropout_probability=0.25))
    shown = [feed.step(step)[0].captions[0] for step in range(1, 401)]
    assert shown.count(NULL_CAPTION) / 400 == pytest.approx(0.25, abs=0.07)
    assert shown.count("keep it") / 400 == pytest.approx(0.375, abs=0.08)
    assert shown.count("turn it over") / 400 == pytest.approx(0.375, abs=0.08)


def test_texts_of_one_length_need_no_mask() -> None:
    rows = [torch.ones(3, 2), torch.ones(3, 2)]
    assert padded(rows)[1] is None
    embeds, mask = padded([torch.ones(1, 2), torch.ones(3, 2)])
    assert mask is not None
    assert mask.tolist() == [[True, False, False], [True, True, True]]
    assert embeds[0, 1:].eq(0).all()


def test_the_sigma_settings_reach_the_feed(made: Any) -> None:
    def sigma(**settings: Any) -> float:
        return float(feed_of(made(train_batch_size=1, **settings)).step(1)[0].sigma)

    plain = sigma(flow_schedule_auto_shift=False)
    static = sigma(flow_schedule_shift=1.73)
    assert static == pytest.approx(1.73 * plain / (1 + 0.73 * plain), rel=1e-5)
    wide = sigma(flow_schedule_auto_shift=False, flow_sigmoid_scale=2.0)
    assert math.log(wide / (1 - wide)) == pytest.approx(2 * math.log(plain / (1 - plain)), rel=1e-4)
    feed = feed_of(made(train_batch_size=1))
    (batch,) = feed.step(1)
    tokens = batch.target.shape[-1] * batch.target.shape[-2] // 4
    shift = math.exp(0.5 + (tokens - 256) * 0.4 / (8192 - 256))
    assert float(batch.sigma) == pytest.approx(shift * plain / (1 + (shift - 1) * plain), rel=1e-5)
    assert sigma(flow_use_uniform_schedule=True) != sigma(flow_use_beta_schedule=True) != plain


def test_the_loss_settings_reach_the_loss(made: Any) -> None:
    found = set()
    for loss_type in ("l2", "huber", "smooth_l1"):
        configuration = made(loss_type=loss_type, max_train_steps=1, output=f"out-{loss_type}")
        train(configuration)
        found.add(metrics(configuration)[0]["loss"])
    assert len(found) == 3


# -- the average -------------------------------------------------------------------------


def test_the_average_follows_its_formula() -> None:
    weights = {"w": torch.tensor([1.0])}
    ema = Ema(weights, decay=0.2)
    expected = 1.0
    for step, value in enumerate((2.0, 4.0, 8.0, 16.0), start=1):
        k = step - 1
        decay = min(0.2, (1 + k) / (10 + k))
        expected -= (1 - decay) * (expected - value)
        ema.follow({"w": torch.tensor([value])}, step=step)
    assert ema.shadow["w"].item() == pytest.approx(expected)
    assert weights["w"].item() == 1.0


def test_a_bfloat16_weight_is_averaged_in_float32_at_its_interval() -> None:
    ema = Ema({"w": torch.ones(1, dtype=torch.bfloat16)}, decay=0.995, every_steps=2)
    assert ema.shadow["w"].dtype == torch.float32
    ema.follow({"w": torch.zeros(1)}, step=1)
    assert ema.shadow["w"].item() == 1.0
    ema.follow({"w": torch.zeros(1)}, step=2)
    assert ema.shadow["w"].item() < 1.0


def test_without_an_average_there_is_none(made: Any) -> None:
    configuration = made(use_ema=False, max_train_steps=1)
    train(configuration)
    assert not (configuration.settings.output_dir / "ema").exists()


# -- what is refused ---------------------------------------------------------------------


def test_missing_rows_are_counted_with_the_command_to_type(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(SAMPLES)
    monkeypatch.setattr("made_run.fill_stores", lambda configuration, samples: None)
    configuration = made(made_samples_with_edits(10, sizes=[(64, 64), (64, 96)]))
    with pytest.raises(NotComplete, match="2 of 10 samples have no latents yet") as refused:
        train(configuration)
    assert refused.value.do == "Run `qedit cache-vae`, then `qedit train` again."
    assert not configuration.settings.output_dir.exists()


def test_dropout_needs_the_null_tails_only_when_it_is_on(made: Any) -> None:
    configuration = made()
    stores = make_plan(configuration).feed.stores
    assert not stores.missing(SAMPLES, (NULL_CAPTION,)).embeds
    assert stores.missing(SAMPLES, ("another",)).embeds


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learning_rate": 2e-2}, "learning_rate: 0.01 there, 0.02 now"),
        ({"lora_rank": 8}, "lora_rank: 4 there, 8 now"),
        ({"seed": 1}, "seed: 42 there, 1 now"),
        ({"flavour": "edit-v2+"}, "model_flavour: edit-v2 there, edit-v2"),
    ],
)
def test_another_run_in_the_folder_is_refused_with_the_difference(
    made: Any, change: dict[str, Any], said: str
) -> None:
    train(made(max_train_steps=2))
    with pytest.raises(AnotherRecipe) as refused:
        train(made(max_train_steps=2, **change))
    assert said in refused.value.what
    assert "output_dir" in refused.value.do


def test_other_pairs_are_another_run(made: Any) -> None:
    train(made(SAMPLES, max_train_steps=2))
    grown = made_samples_with_edits(10, sizes=[(64, 64), (64, 96)])
    with pytest.raises(AnotherRecipe, match="dataset edits, pairs: 8 there, 10 now"):
        train(made(grown, max_train_steps=2))
    changed = [*SAMPLES[:-1], made_sample(SAMPLES[-1].name, captions=("keep it",))]
    with pytest.raises(AnotherRecipe, match="captions or sizes of its pairs have changed"):
        train(made(changed, max_train_steps=2))


def test_what_decides_nothing_may_change(made: Any) -> None:
    train(made(max_train_steps=2))
    outcome = train(made(max_train_steps=4, checkpoint_step_interval=3, checkpoints_total_limit=1))
    assert (outcome.kept, outcome.computed) == (2, 2)


def test_a_run_that_came_to_nothing_may_begin_again_with_other_settings(made: Any) -> None:
    with pytest.raises(WrongUse, match="betas"):
        train(made(optimizer_config={"betas": [2.0, 2.0]}))
    train(made(optimizer_config={"betas": [0.8, 0.9]}, max_train_steps=1))


def test_a_second_process_is_locked_out(made: Any) -> None:
    configuration = made()
    with (
        writer_lock(configuration.settings.output_dir, doing="train"),
        pytest.raises(Locked),
    ):
        train(configuration)


def test_resuming_from_nothing_never_overwrites(made: Any) -> None:
    train(made(max_train_steps=2))
    with pytest.raises(WrongUse, match="checkpoint-2"):
        train(made(max_train_steps=4, resume_from_checkpoint="none"))
    with pytest.raises(WrongUse, match="checkpoint-7"):
        train(made(max_train_steps=4, resume_from_checkpoint="checkpoint-7"))


def test_a_flipped_bit_in_a_checkpoint_is_found(made: Any) -> None:
    configuration = made(max_train_steps=2)
    train(configuration)
    file = configuration.settings.output_dir / "checkpoint-2" / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(Damaged, match=r"weights\.safetensors"):
        train(made(max_train_steps=4))


def test_a_loss_that_is_no_number_stops_with_the_samples_name(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Feed.step

    def poisoned(feed: Feed, step: int) -> list[Batch]:
        batches = read(feed, step)
        if step == 4:
            batches[0].target[1] = float("nan")
        return batches

    configuration = made(checkpoint_step_interval=1)
    name = feed_of(configuration).step(4)[0].names[1]
    monkeypatch.setattr(Feed, "step", poisoned)
    with pytest.raises(QeditError, match=f"{name}.*step 4 is nan"):
        train(configuration)
    assert checkpoint_names(configuration) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert all(bool(weight.isfinite().all()) for weight in lora(configuration).values())
    assert [line["step"] for line in metrics(configuration)] == [1, 2, 3]


# -- Ctrl-C ------------------------------------------------------------------------------


class Interrupting(Quiet):
    """Presses Ctrl-C while a given step is shown."""

    def __init__(self, *, at_step: int, times: int = 1) -> None:
        super().__init__()
        self.at_step, self.times, self.shown = at_step, times, 0

    def note(self, **values: str) -> None:
        self.shown += 1
        if self.shown == self.at_step:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_finishes_the_step_and_writes_a_checkpoint(made: Any) -> None:
    configuration = made(checkpoint_step_interval=100)
    progress = Interrupting(at_step=3)
    with pytest.raises(KeyboardInterrupt):
        loop.run(configuration, progress, device="cpu")
    assert checkpoint_names(configuration) == ["checkpoint-3"]
    assert "Run `qedit train` again" in progress.said[-1]
    assert train(configuration).kept == 3
    handler = signal.getsignal(signal.SIGINT)
    assert handler is signal.default_int_handler


def test_a_second_ctrl_c_leaves_at_once(made: Any) -> None:
    configuration = made(checkpoint_step_interval=100)
    with pytest.raises(KeyboardInterrupt):
        loop.run(configuration, Interrupting(at_step=3, times=2), device="cpu")
    assert checkpoint_names(configuration) == []


# -- the file in the stock pipeline --------------------------------------------------------


def test_the_published_file_predicts_what_training_predicts(made: Any) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageEditPlusPipeline

    configuration = made(lora_alpha=2.0, learning_rate=0.1)
    train(configuration)
    plan = make_plan(configuration)
    trainer = loop.Trainer.load(plan, device=torch.device("cpu"))
    where = configuration.settings.output_dir
    trainer.trained.restore(where / "checkpoint-6")
    (batch,) = plan.feed.step(9)
    stock = load_transformer(
        open_checkpoint(configuration.settings), dtype=torch.float32, device="cpu"
    )
    with torch.no_grad():
        ours = trainer.objective.losses(trainer.transformer, batch)
        base = trainer.objective.losses(stock, batch)
        parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "processor"))
        pipeline = QwenImageEditPlusPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(), transformer=stock, **parts
        )
        pipeline.load_lora_weights(where)
        loaded = trainer.objective.losses(stock, batch)
    torch.testing.assert_close(loaded, ours, rtol=1e-5, atol=1e-6)
    assert (base - ours).abs().max() > 1e-3

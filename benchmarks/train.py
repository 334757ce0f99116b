"""What the training adds to its model's own work, as ratios in the same run.

    python benchmarks/train.py [--steps 12] [--pixels 1024]
    python benchmarks/train.py --rows 1000000

A whole step (reading rows, noise, loss, clipping, optimizer, log line) against a bare loop of
forward, backward and optimizer step over tensors that lie in memory: wanted at most 1.03. The
average of the weights: wanted at most 1.02 of a step without. Both take turns, step by step, and
the fastest of each counts. With `--rows`: the seconds from the command to the first step, beside
the loading of the model, with a pairs table and stores of so many rows that training has met
before; wanted below 10.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from made_run import fill, made_configuration, made_samples_with_edits
from made_samples import made_sample

from qedit.stages.train.metrics import Metrics, padding_in, peak_memory_bytes
from qedit.stages.train.plan import Plan, make_plan
from qedit.stages.train.trainer import Trainer

CPU = torch.device("cpu")


def show(what: str, value: float, limit: float) -> None:
    verdict = "ok" if value <= limit else "ABOVE"
    print(f"{what:62} {value:7.3f}  (wanted at most {limit:.2f}) {verdict}", flush=True)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def planned(folder: Path, *, pixels: int, steps: int, **settings: Any) -> Plan:
    """A run of one shape over rows on disk."""
    configuration = made_configuration(
        folder,
        train_batch_size=1,
        max_train_steps=10_000,
        gradient_checkpointing=False,
        **settings,
    )
    fill(configuration, made_samples_with_edits(8, sizes=[(pixels, pixels)]))
    return make_plan(configuration)


class Whole:
    """Steps as `qedit train` makes them, the reading of rows ahead included."""

    def __init__(self, plan: Plan, folder: Path, *, steps: int) -> None:
        self.trainer = Trainer.load(plan, device=CPU)
        self.feed = plan.feed
        self.batches = plan.feed.ahead(range(1, steps + 2))
        self.log = Metrics(folder, after_step=None)

    def step(self) -> None:
        start = time.perf_counter()
        step, batches = next(self.batches)
        waited = time.perf_counter() - start
        facts = self.trainer.step(step, batches, of_samples=self.feed.samples_in(step))
        self.log.add(
            step=step,
            **facts,
            seconds=time.perf_counter() - start,
            data_wait_seconds=waited,
            padding=padding_in(batches),
            memory_bytes=peak_memory_bytes(CPU),
        )


class Bare:
    """Forward, backward, optimizer step, over tensors in memory; nothing else."""

    def __init__(self, plan: Plan) -> None:
        self.trainer = Trainer.load(plan, device=CPU)
        (batch,) = plan.feed.step(1)
        clean, noise, sigma = batch.target.float(), batch.noise, batch.sigma.view(-1, 1, 1, 1)
        self.target = noise - clean
        pictures = [(1 - sigma) * clean + sigma * noise, *(one.float() for one in batch.references)]
        self.height, self.width = clean.shape[-2:]
        from qedit.stages.models.transformer import pack, unpack

        self.unpack = unpack
        self.inputs = {
            "hidden_states": torch.cat([pack(picture) for picture in pictures], dim=1),
            "timestep": batch.sigma,
            "guidance": None,
            "encoder_hidden_states": batch.embeds.float(),
            "encoder_hidden_states_mask": None,
            "img_shapes": [[(1, one.shape[-2] // 2, one.shape[-1] // 2) for one in pictures]],
            "return_dict": False,
        }

    def step(self) -> None:
        tokens = self.trainer.transformer(**self.inputs)[0]
        predicted = self.unpack(tokens[:, : self.height * self.width // 4], self.height, self.width)
        loss = (predicted - self.target).square().mean()
        loss.backward()
        optimizer = self.trainer.trained.optimizer
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def compared(one: Callable[[], None], other: Callable[[], None], *, steps: int) -> float:
    """The fastest of `one` over the fastest of `other`, taking turns."""
    one(), other()  # the first of each is slower
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(steps):
        times[0].append(timed(one))
        times[1].append(timed(other))
    print(f"  {min(times[0]):.3f} s and {min(times[1]):.3f} s", flush=True)
    return min(times[0]) / min(times[1])


def step_ratios(folder: Path, *, pixels: int, steps: int) -> None:
    plain = planned(folder / "plain", pixels=pixels, steps=steps, use_ema=False)
    averaged = replace(plain, settings=plain.settings.model_copy(update={"use_ema": True}))
    whole = Whole(plain, folder, steps=steps)
    show("a step over a bare one", compared(whole.step, Bare(plain).step, steps=steps), 1.03)
    print(f"  data wait {data_wait(folder):.4f} s a step")
    with_average = Whole(averaged, folder, steps=steps)
    without = Whole(plain, folder, steps=steps)
    show(
        "with the average over without",
        compared(with_average.step, without.step, steps=steps),
        1.02,
    )


def data_wait(folder: Path) -> float:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return float(np.median([json.loads(line)["data_wait_seconds"] for line in lines]))


def start_up(folder: Path, *, rows: int) -> None:
    """Seconds of planning with a table and stores of so many rows, which hold a few bytes each."""
    configuration = made_configuration(folder)
    samples = [made_sample(f"{number:07}.png", captions=("keep it",)) for number in range(rows)]
    fill_with_nothing(configuration, samples)
    make_plan(made_configuration(folder, output_dir=str(folder / "warm")))
    before_bytes = peak_memory_bytes(CPU)
    seconds = timed(lambda: first_rows(make_plan(configuration)))
    show(f"from planning to the first rows of {rows} pairs, in seconds", seconds, 10.0)
    more_bytes = peak_memory_bytes(CPU) - before_bytes
    print(f"  at most {more_bytes / 1e9:.2f} GB more than what made the rows took")


def first_rows(plan: Plan) -> None:
    """Read what the first sample of the first step is shown."""
    stores = plan.feed.stores
    sample = plan.feed.order.step(1)[0][0]
    for picture in (sample.target, *sample.references):
        stores.latents.read(picture.latent_key, dataset=picture.dataset)
    stores.prefixes.read(sample.prefix_key, dataset=sample.dataset)
    stores.tails.read(sample.tail_key(sample.captions[0]), dataset=sample.dataset)


def fill_with_nothing(configuration: Any, samples: Any) -> None:
    """The pairs table, and stores whose rows are as small as rows can be."""
    import made_run

    small = np.zeros((1, 2, 2), np.uint16)
    embed = np.zeros((1, 2), np.uint16)
    made_run.fill_stores = lambda *_: None
    made_run.fill(configuration, samples)
    from qedit.stages.models.checkpoint import open_checkpoint
    from qedit.stages.stores import captions_beside, open_stores

    stores = open_stores(configuration, open_checkpoint(configuration.settings))
    beside = captions_beside(configuration.settings)
    wanted = (
        (stores.latents.of("edits"), small, [s.target.latent_key for s in samples]),
        (stores.latents.of("edits-before-0"), small, [s.references[0].latent_key for s in samples]),
        (stores.prefixes.of("edits"), embed, [s.prefix_key for s in samples]),
        (
            stores.tails.of("edits"),
            embed,
            [s.tail_key(caption) for s in samples for caption in (*s.captions, *beside)],
        ),
    )
    for store, row, keys in wanted:
        distinct = list(dict.fromkeys(keys))
        with store.writing():
            for start in range(0, len(distinct), 4096):
                part = distinct[start : start + 4096]
                store.add(part, [row] * len(part))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--pixels", type=int, default=1024, help="edge of target and reference")
    parser.add_argument("--rows", type=int, help="measure the start with so many pairs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "plain").mkdir()
        if arguments.rows:
            start_up(folder, rows=arguments.rows)
        else:
            step_ratios(folder, pixels=arguments.pixels, steps=arguments.steps)


if __name__ == "__main__":
    main()

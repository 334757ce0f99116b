"""What the training adds to its model's own work, as ratios in the same run.

    python benchmarks/train.py [--steps 12] [--pixels 1024]
    python benchmarks/train.py --rows 1000000

A whole step (reading rows, noise, loss, clipping, optimizer, log line) against a bare loop of
forward, backward and optimizer step over tensors that lie in memory: wanted at most 1.03. The
average of the weights: wanted at most 1.02 of a step without. Both take turns, step by step, and
the fastest of each counts. With `--rows`: what so many pairs, which training has met before, add
to the time of `qedit train` from the command to the end of its first step, against the same with
eight pairs (which is the loading of the model); wanted at most 15 seconds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/support"))

from filled_run import CHANNELS, fill, made_configuration, made_samples_with_edits, write_table
from samples import made_sample

from qedit.config.configuration import Configuration
from qedit.stages.models.checkpoint.checkpoint import open_checkpoint
from qedit.stages.models.tiny.tiny import TEXT_WIDTH
from qedit.stages.run_output.metrics_file import read_metrics
from qedit.stages.samples.sample import Sample
from qedit.stages.samples.table import captions_beside
from qedit.stages.stores.run_stores import open_stores
from qedit.stages.train.data.feed import padding_of
from qedit.stages.train.metrics import Metrics, peak_memory_bytes
from qedit.stages.train.plan.training_plan import Plan, make_plan
from qedit.stages.train.trainer import Trainer

CPU = torch.device("cpu")
FEW = 8  # pairs
ROWS_A_PART = 4096


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
            padding=round(padding_of(batches), 4),
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
        from qedit.stages.models.transformer.transformer import pack, unpack

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
    return float(np.median([line["data_wait_seconds"] for line in read_metrics(folder)]))


def start_up(folder: Path, *, rows: int) -> None:
    """Seconds of a whole command that makes one step, with many pairs and with a few."""
    few = started_with(folder / "few", rows=FEW)
    many = started_with(folder / "many", rows=rows)
    print(f"  {many:.1f} s and {few:.1f} s", flush=True)
    show(f"what {rows} pairs add to the start, in seconds", many - few, 15.0)


def started_with(folder: Path, *, rows: int) -> float:
    """Seconds of `qedit train` with one step; the rows of its pairs hold a few bytes each."""
    folder.mkdir()
    configuration = made_configuration(folder, max_train_steps=1)
    samples = [made_sample(f"{number:07}.png", captions=("keep it",)) for number in range(rows)]
    fill_with_little(configuration, samples)
    return min(timed(partial(train, folder, output=f"run-{turn}")) for turn in range(2))


def train(folder: Path, *, output: str) -> None:
    """The command as it is typed; the first one looks everything up for the ones after it."""
    config, data = folder / "config.json", folder / "data.json"
    setting = f"output_dir={folder / output}"
    command = ["train", "--config", config, "--data", data, "--set", setting, "--device", "cpu"]
    subprocess.run([sys.executable, "-m", "qedit.pipeline", *command, "-q"], check=True)
    if len(read_metrics(folder / output)) != 1:
        raise SystemExit(f"{folder / output} does not have its one step")


def fill_with_little(configuration: Configuration, samples: Sequence[Sample]) -> None:
    """The pairs table, and stores whose rows are as small as the model takes them."""
    write_table(configuration, samples)
    latent, embed = np.zeros((CHANNELS, 2, 4), np.uint16), np.zeros((1, TEXT_WIDTH), np.uint16)
    stores = open_stores(configuration, open_checkpoint(configuration.settings))
    beside = captions_beside(configuration.settings)
    wanted = (
        (stores.latents.of("edits"), latent, [one.target.latent_key for one in samples]),
        (
            stores.latents.of("edits-before-0"),
            latent,
            [one.references[0].latent_key for one in samples],
        ),
        (stores.prefixes.of("edits"), embed, [one.prefix_key for one in samples]),
        (
            stores.tails.of("edits"),
            embed,
            [one.tail_key(text) for one in samples for text in (*one.captions, *beside)],
        ),
    )
    for store, row, keys in wanted:
        distinct = list(dict.fromkeys(keys))
        with store.writing():
            for start in range(0, len(distinct), ROWS_A_PART):
                part = distinct[start : start + ROWS_A_PART]
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

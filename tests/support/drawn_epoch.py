"""The drawing in docs/epochs.md: the batches that `Order` makes of a small data set."""

from __future__ import annotations

from collections.abc import Iterator

from samples import made_sample

from qedit.stages.samples.sample import Sample
from qedit.stages.train.data.batches import Order, Source, shape_of

SQUARE, TALL, SMALL = (1024, 1024), (832, 1248), (512, 512)
CATS = {"a1": SQUARE, "a2": SQUARE, "a3": SQUARE, "a4": SQUARE, "a5": SQUARE, "b1": TALL}
HATS = {"h1": SMALL}
HATS_START = 5


def drawn_epochs() -> str:
    """Return a line for each batch of the first eight steps, and one where an epoch begins."""
    order = Order(
        [
            Source("cats", [made_sample(name, size=size) for name, size in CATS.items()]),
            Source(
                "hats",
                [made_sample(name, size=size) for name, size in HATS.items()],
                repeats=1,
                start_step=HATS_START,
            ),
        ],
        seed=42,
        batch_size=2,
        accumulation=2,
    )
    return "\n".join(_lines(order, steps=8)) + "\n"


def _lines(order: Order, *, steps: int) -> Iterator[str]:
    shown, phase, passes, epoch = 0, 1, len(CATS), 0
    for step in range(1, steps + 1):
        if step == HATS_START:
            shown, phase, passes, epoch = 0, 2, len(CATS) + 2 * len(HATS), 0
        for place, batch in enumerate(order.step(step)):
            if shown == 0:
                epoch += 1
                yield f"--- phase {phase}, epoch {epoch} " + "-" * 40
            label = f"step {step}" if place == 0 else ""
            names = " ".join(sample.name for sample in batch)
            yield f"{label:8}  [ {names:5} ]   {_shapes(batch)}"
            shown = (shown + len(batch)) % passes


def _shapes(batch: list[Sample]) -> str:
    sizes = dict.fromkeys(shape_of(sample)[0] for sample in batch)
    return " and ".join(f"{width} x {height}" for width, height in sizes)

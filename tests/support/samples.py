"""Makes up samples: names, sizes and captions, but no pictures."""

from __future__ import annotations

from qedit.cache.files.fingerprint import digest_bytes
from qedit.stages.samples.sample import Picture, Sample


def made_picture(
    path: str, *, dataset: str, size: tuple[int, int], vl_size: tuple[int, int] | None = None
) -> Picture:
    """A whole picture that needs no resizing."""
    width, height = size
    return Picture(
        dataset=dataset,
        path=path,
        digest=digest_bytes(f"{dataset}/{path}".encode()),
        width=width,
        height=height,
        box=(0.0, 0.0, float(width), float(height)),
        size=size,
        vl_size=vl_size,
    )


def made_sample(
    name: str,
    *,
    size: tuple[int, int] = (64, 64),
    references: int = 1,
    captions: tuple[str, ...] = ("make it so",),
    dataset: str = "edits",
) -> Sample:
    """A sample whose references have the target's size."""
    return Sample(
        name=name,
        dataset=dataset,
        target=made_picture(name, dataset=dataset, size=size),
        references=tuple(
            made_picture(name, dataset=f"{dataset}-before-{index}", size=size, vl_size=(28, 28))
            for index in range(references)
        ),
        captions=captions,
    )


def made_samples(count: int, *, prefix: str = "") -> list[Sample]:
    """Samples of one shape."""
    return [made_sample(f"{prefix}{place}") for place in range(count)]

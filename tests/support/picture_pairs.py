"""Makes small folders of pairs, and the table that `pair` makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from qedit.config.configuration import Configuration
from qedit.config.datasets import Dataset
from qedit.config.settings import Settings
from qedit.stages.models.flavours import FLAVOURS
from qedit.stages.pair.stage import run
from qedit.stages.samples.table import read_pairs, read_rejections, table_folder
from qedit.stages.stage import Outcome


class Silent:
    """A Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.bars: list[int] = []

    @contextmanager
    def bar(
        self, total: int, what: str, *, unit: str = "row", initial: int = 0
    ) -> Iterator[Callable[[int], None]]:
        moved = [initial]
        self.bars.append(total)
        yield lambda count: moved.append(count)
        assert sum(moved) == total, what

    def note(self, **values: str) -> None: ...

    def say(self, line: str) -> None:
        self.lines.append(line)

    warn = say


def draw(
    path: str | Path, size: tuple[int, int] = (48, 32), *, seed: int = 0, **options: object
) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path, **options)
    return path


def pairs(count: int = 3, *, size: tuple[int, int] = (48, 32)) -> None:
    for number in range(count):
        draw(f"targets/{number}.png", size, seed=number)
        draw(f"before/{number}.jpg", size, seed=100 + number)


def configured(
    *,
    flavour: str = "edit-v2",
    references: tuple[str, ...] = ("before",),
    settings: dict | None = None,
    strict: bool = True,
    reference: dict | None = None,
    more: tuple[Dataset, ...] = (),
    **target: object,
) -> Configuration:
    kind = "reference_strict" if strict else "reference_loose"
    main = Dataset(
        id="targets",
        **{"instance_data_dir": "targets", "conditioning_data": list(references), "resolution": 64}
        | target,
    )
    conditions = tuple(
        Dataset(
            id=name,
            dataset_type="conditioning",
            conditioning_type=kind,
            **{"instance_data_dir": name} | (reference or {}),
        )
        for name in references
    )
    written = {"model_flavour": flavour} | (settings or {})
    return Configuration(Settings(**written), (main, *conditions, *more))


def table(configuration: Configuration, main: int = 0):
    flavour = FLAVOURS[configuration.settings.model_flavour]
    return read_pairs(configuration, configuration.datasets[main], flavour)


def folder(configuration: Configuration) -> Path:
    flavour = FLAVOURS[configuration.settings.model_flavour]
    return table_folder(configuration, configuration.datasets[0], flavour)


def go(configuration: Configuration, **options: object) -> Outcome:
    return run(configuration, Silent(), **options)


def rejected(configuration: Configuration, **options: object) -> dict[str, str]:
    """Run, accepting everything; path -> reason."""
    go(configuration, on_reject="skip", **options)
    return {row.path: row.reason for row in read_rejections(folder(configuration))}


def written(root: Path = Path("cache")) -> dict[str, tuple[int, int]]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}


def damage(path: str, data: bytes | None = None) -> None:
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2] if data is None else data)

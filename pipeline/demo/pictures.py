"""A small data set of real edits, drawn with Pillow: what the demo trains on.

Every picture is a scene and every edit a change of that scene, so a target differs from its
reference in what the caption says and in nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from ...cache.errors import WrongUse
from ...cache.files.atomic import new_folder, remove, write_json
from ...cache.files.json_file import read_object
from .scenes import COLOURS, GROUNDS, Scene, Size, Thing, picture_of

# Raised whenever other pictures are drawn, so that old ones are drawn anew.
VERSION = 1
MARK_FILE = "made-by-qedit.json"

SIZES: tuple[Size, ...] = ((320, 240), (240, 320), (256, 256), (320, 180), (288, 192), (200, 300))
OBJECT_SIZE: Size = (192, 192)
EXIF_ORIENTATION = 0x0112
TURN_RIGHT_TO_SEE = 6
GROUPS = {1: "one-reference", 2: "two-references", 3: "three-references"}
LIVING_ON_LAND = ("house", "cat", "tree", "flower", "ball")


def folders_of(references: int) -> list[str]:
    """Return the folders of the pairs with so many references: the edited pictures come first.

    >>> folders_of(2)
    ['two-references/edited', 'two-references/reference-a', 'two-references/reference-b']
    """
    letters = [""] if references == 1 else [f"-{letter}" for letter in "abc"[:references]]
    names = ["edited", *(f"reference{letter}" for letter in letters)]
    return [f"{GROUPS[references]}/{name}" for name in names]


def draw_demo_pictures(folder: Path) -> Path:
    """Draw the demo's data set into `folder`, or find that it is there already.

    `one-reference` holds `edited` and `reference`; `two-references` and `three-references`
    hold `edited`, `reference-a`, `reference-b` (and `reference-c`). Captions lie as .txt files
    beside the edited pictures, some with several lines: alternatives. Sizes and ratios differ,
    longest side 180 to 320 pixels; JPEG and PNG; one picture needs its EXIF rotation, some
    have alpha. The same pictures every time.

    Raises:
        WrongUse: `folder` holds something else.
    """
    mark = {"version": VERSION}
    if _mark_in(folder) == mark:
        return folder
    if folder.exists():
        if _mark_in(folder) is None and (not folder.is_dir() or any(folder.iterdir())):
            raise WrongUse(
                f"{folder} exists and does not hold the demo's pictures.",
                "Name another folder, or take this one away.",
            )
        remove(folder)
    with new_folder(folder) as fresh:
        for pair in [*_one_reference(), *_two_references(), *_three_references()]:
            _write_pair(fresh, pair)
        write_json(fresh / MARK_FILE, mark)
    return folder


def _mark_in(folder: Path) -> object:
    path = folder / MARK_FILE
    return read_object(path) if path.is_file() else None


@dataclass(frozen=True)
class Shot:
    """A scene as a file: its size as people see it, and how it is stored."""

    scene: Scene
    size: Size
    ending: str = "png"
    lying: bool = False


@dataclass(frozen=True)
class Pair:
    """An edited picture, what it is made from, and what to say."""

    name: str
    edited: Shot
    references: tuple[Shot, ...]
    captions: tuple[str, ...]


# -- one reference ---------------------------------------------------------------------


@dataclass(frozen=True)
class Edit:
    """A change of a scene; captions may speak of {thing}, the first one in it."""

    name: str
    captions: tuple[str, ...]
    change: Callable[[Scene], Scene]


def _with_balloon(scene: Scene) -> Scene:
    balloon = Thing("balloon", "orange", x=0.5, y=0.46, size=0.4)
    return replace(scene, things=(*scene.things, balloon))


def _in_purple(scene: Scene) -> Scene:
    first, *others = scene.things
    return replace(scene, things=(replace(first, colour="purple"), *others))


EDITS = (
    Edit("night", ("Make it night.", "Turn the day into night."), lambda s: replace(s, night=True)),
    Edit("mirrored", ("Mirror the picture.",), lambda s: replace(s, mirrored=True)),
    Edit(
        "sketches/outline",
        ("Draw it as an outline.", "Turn the picture into a line drawing."),
        lambda s: replace(s, outline=True),
    ),
    Edit("balloon", ("Add an orange balloon in the sky.",), _with_balloon),
    Edit("purple", ("Make the {thing} purple.", "Paint the {thing} in purple."), _in_purple),
)


def _one_reference() -> Iterator[Pair]:
    count = 0
    for ground in GROUNDS:
        for edit in EDITS:
            scene = _scene(ground, draw=random.Random(count))
            size = SIZES[count % len(SIZES)]
            yield Pair(
                f"{edit.name}-{ground}",
                Shot(edit.change(scene), size, "jpg" if count % 2 else "png"),
                (Shot(scene, size, "png" if count % 3 else "jpg", lying=count == 3),),
                tuple(line.format(thing=scene.things[0].kind) for line in edit.captions),
            )
            count += 1
    cut_out = Scene(None, (Thing("cat", "orange", x=0.5, y=0.86, size=0.75),))
    yield Pair(
        "cut-out-cat",
        Shot(replace(cut_out, ground="meadow"), (256, 256), "png"),
        (Shot(cut_out, (256, 256), "png"),),
        ("Put the cat on a meadow.",),
    )


def _scene(ground: str, *, draw: random.Random) -> Scene:
    """Return a scene: a thing on the left, a smaller one on the right, and a sun or none."""
    kinds = ["boat"] if ground == "sea" else draw.sample(LIVING_ON_LAND, 2)
    colours = draw.sample([name for name in COLOURS if name not in ("purple", "orange")], 2)
    spots = ((0.3, draw.uniform(0.5, 0.6)), (0.76, draw.uniform(0.34, 0.42)))
    things = [
        Thing(kind, colour, x=x + draw.uniform(-0.03, 0.03), y=draw.uniform(0.84, 0.92), size=size)
        for kind, colour, (x, size) in zip(kinds, colours, spots, strict=False)
    ]
    if draw.random() < 0.6:
        things.append(Thing("sun", "yellow", x=0.85, y=0.3, size=0.22))
    return Scene(ground, tuple(things))


# -- several references ----------------------------------------------------------------


def _two_references() -> Iterator[Pair]:
    """Yield pairs that put the thing of the second picture into the scene of the first."""
    kinds = ("cat", "ball", "tree", "balloon", "flower", "house", "cat", "boat")
    for count, kind in enumerate(kinds):
        draw = random.Random(100 + count)
        ground = "sea" if kind == "boat" else list(GROUNDS)[count % 3]
        place = _place(ground, draw=draw)
        guest = Thing(kind, draw.choice(list(COLOURS)), x=0.68, size=0.5)
        guest = replace(guest, y=0.55 if kind == "balloon" else 0.9)
        size = SIZES[count % len(SIZES)]
        yield Pair(
            f"{kind}-{count + 1}",
            Shot(
                replace(place, things=(*place.things, guest)), size, "jpg" if count % 2 else "png"
            ),
            (Shot(place, size, "jpg"), _alone(guest, ending="png" if count % 2 else "jpg")),
            (
                f"Put the {kind} of picture 2 into picture 1.",
                f"Add the {guest.colour} {kind} to the scene.",
            )[: 1 + count % 2],
        )


def _three_references() -> Iterator[Pair]:
    """Yield pairs that put the second picture's thing on the left, the third's on the right."""
    for count in range(6):
        draw = random.Random(200 + count)
        left, right = draw.sample(LIVING_ON_LAND, 2)
        colours = draw.sample(list(COLOURS), 2)
        place = Scene(list(GROUNDS)[count % 3], (Thing("sun", "yellow", x=0.5, y=0.3, size=0.2),))
        guests = (
            Thing(left, colours[0], x=0.27, y=0.9, size=0.48),
            Thing(right, colours[1], x=0.73, y=0.9, size=0.48),
        )
        size = SIZES[(count + 2) % len(SIZES)]
        yield Pair(
            f"{left}-and-{right}-{count + 1}",
            Shot(replace(place, things=(*place.things, *guests)), size, "png"),
            (Shot(place, size, "jpg"), *(_alone(guest, ending="png") for guest in guests)),
            (
                f"Put the {left} of picture 2 on the left and the {right} of picture 3 "
                "on the right of picture 1.",
            ),
        )


def _place(ground: str, *, draw: random.Random) -> Scene:
    """Return a scene with room on the right."""
    kind = "boat" if ground == "sea" else draw.choice(("house", "tree", "flower"))
    colour = draw.choice(("red", "green", "blue"))
    return Scene(ground, (Thing(kind, colour, x=0.26, y=0.86, size=draw.uniform(0.45, 0.6)),))


def _alone(thing: Thing, *, ending: str) -> Shot:
    return Shot(Scene(None, (replace(thing, x=0.5, y=0.95, size=1.12),)), OBJECT_SIZE, ending)


# -- files -----------------------------------------------------------------------------


def _write_pair(root: Path, pair: Pair) -> None:
    folders = [root / folder for folder in folders_of(len(pair.references))]
    for folder, shot in zip(folders, (pair.edited, *pair.references), strict=True):
        _save(shot, folder / pair.name)
    (folders[0] / f"{pair.name}.txt").write_text(
        "".join(f"{line}\n" for line in pair.captions), encoding="utf-8"
    )


def _save(shot: Shot, stem: Path) -> None:
    path = stem.with_name(f"{stem.name}.{shot.ending}")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = picture_of(shot.scene, shot.size)
    exif = Image.Exif()
    if shot.lying:
        picture = picture.transpose(Image.Transpose.ROTATE_90)
        exif[EXIF_ORIENTATION] = TURN_RIGHT_TO_SEE
    if shot.ending == "jpg" and picture.mode == "RGBA":
        paper = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(paper, picture)
    if shot.ending == "jpg":
        picture.convert("RGB").save(path, quality=93, exif=exif)
    else:
        picture.save(path)

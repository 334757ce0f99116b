"""Scenes drawn with Pillow: a ground, a few things, and the ways in which they may be shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageOps

Colour = tuple[int, int, int]
Size = tuple[int, int]

FINE = 4  # drawn this much larger, then reduced: smooth edges
INK: Colour = (50, 50, 60)
PAPER: Colour = (252, 250, 245)
NIGHT: Colour = (14, 18, 58)
COLOURS: dict[str, Colour] = {
    "red": (205, 60, 50),
    "blue": (55, 95, 200),
    "yellow": (242, 198, 55),
    "green": (50, 140, 75),
    "purple": (135, 75, 165),
    "orange": (235, 135, 45),
}
# sky, ground
GROUNDS: dict[str, tuple[Colour, Colour]] = {
    "meadow": ((150, 200, 240), (115, 175, 90)),
    "beach": ((175, 215, 240), (235, 215, 160)),
    "snow": ((190, 210, 230), (240, 244, 250)),
    "sea": ((165, 205, 235), (60, 120, 175)),
}


# -- scenes ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Thing:
    """Something in a scene. `x` is a part of the width; `y` (its foot), `size` of the height
    (less where a picture is narrow)."""

    kind: str
    colour: str
    x: float
    y: float = 0.86
    size: float = 0.4


@dataclass(frozen=True)
class Scene:
    """What a picture shows. Without a `ground` things float on nothing (transparent)."""

    ground: str | None
    things: tuple[Thing, ...]
    night: bool = False
    outline: bool = False
    mirrored: bool = False


class Pen:
    """Draws on a canvas whose height is 1 and whose width is `ratio`."""

    def __init__(self, size: Size, *, outline: bool) -> None:
        self.outline = outline
        self.ratio = size[0] / size[1]
        self.scale = size[1] * FINE
        self.canvas = Image.new("RGBA", (size[0] * FINE, size[1] * FINE))
        self._draw = ImageDraw.Draw(self.canvas)

    def circle(self, x: float, y: float, radius: float, colour: Colour) -> None:
        self.oval(x - radius, y - radius, x + radius, y + radius, colour)

    def oval(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        corners = [edge * self.scale for edge in (left, top, right, bottom)]
        self._draw.ellipse(
            corners, fill=self._fill(colour), outline=self._line(), width=self._width()
        )

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self.shape([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def shape(self, corners: list[tuple[float, float]], colour: Colour) -> None:
        points = [(x * self.scale, y * self.scale) for x, y in corners]
        self._draw.polygon(points, fill=self._fill(colour))
        if self.outline:
            self._draw.line([*points, points[0]], fill=INK, width=self._width(), joint="curve")

    def _fill(self, colour: Colour) -> Colour:
        return PAPER if self.outline else colour

    def _line(self) -> Colour | None:
        return INK if self.outline else None

    def _width(self) -> int:
        return round(0.012 * self.scale) if self.outline else 0


def picture_of(scene: Scene, size: Size) -> Image.Image:
    """Draw `scene`: RGB, or RGBA where it has no ground."""
    pen = Pen(size, outline=scene.outline)
    if scene.ground:
        _draw_ground(pen, scene)
    narrow = min(1.0, 0.8 * pen.ratio)
    for thing in scene.things:
        if not (scene.night and thing.kind == "sun"):
            place = (thing.x * pen.ratio, thing.y, thing.size * narrow)
            DRAWN_BY[thing.kind](pen, *place, COLOURS[thing.colour])
    if scene.night:
        _fall_of_night(pen)
    picture = pen.canvas.resize(size, Image.Resampling.BOX)
    if scene.mirrored:
        picture = ImageOps.mirror(picture)
    return picture.convert("RGB") if scene.ground else picture


def _draw_ground(pen: Pen, scene: Scene) -> None:
    assert scene.ground
    sky, ground = GROUNDS[scene.ground]
    pen.box(-1.0, -1.0, pen.ratio + 1, 2.0, NIGHT if scene.night else sky)
    pen.box(-1.0, 0.7, pen.ratio + 1, 2.0, ground)


def _fall_of_night(pen: Pen) -> None:
    shade = Image.new("RGBA", pen.canvas.size, (*NIGHT, 255))
    pen.canvas.paste(Image.blend(pen.canvas, shade, 0.45))
    _moon(pen, 0.2 * pen.ratio, 0.3, 0.18, (245, 240, 205))
    for x, y in ((0.42, 0.1), (0.56, 0.22), (0.68, 0.08), (0.85, 0.18)):
        pen.circle(x * pen.ratio, y, 0.012, (250, 250, 230))


# -- things ----------------------------------------------------------------------------


def _house(pen: Pen, x: float, y: float, size: float, colour: Colour) -> None:
    half, top = 0.42 * size, y - 0.6 * size
    pen.box(x - half, top, x + half, y, (244, 232, 208))
    pen.shape([(x - half - 0.1 * size, top), (x, y - size), (x + half + 0.1 * size, top)], colour)
    pen.box(x - 0.26 * size, y - 0.36 * size, x - 0.04 * size, y, (120, 80, 55))
    pen.box(x + 0.08 * size, y - 0.44 * size, x + 0.3 * size, y - 0.2 * size, (140, 190, 225))


def _tree(pen: Pen, x: float, y: float, size: float, colour: Colour) -> None:
    pen.box(x - 0.07 * size, y - 0.45 * size, x + 0.07 * size, y, (125, 85, 60))
    for dx, dy in ((-0.18, 0.5), (0.18, 0.5), (0, 0.75)):
        pen.circle(x + dx * size, y - dy * size, 0.25 * size, colour)


def _ball(pen: Pen, x: float, y: float, size: float, colour: Colour) -> None:
    pen.circle(x, y - size / 2, size / 2, colour)
    pen.circle(x - 0.16 * size, y - 0.68 * size, 0.1 * size, (255, 245, 235))


def _boat(pen: Pen, x: float, y: float, size: float, colour: Colour) -> None:
    pen.box(x - 0.02 * size, y - size, x + 0.02 * size, y - 0.2 * size, (120, 85, 60))
    pen.shape(
        [
            (x + 0.04 * size, y - size),
            (x + 0.45 * size, y - 0.3 * size),
            (x + 0.04 * size, y - 0.3 * size),
        ],
        (238, 230, 212),
    )
    pen.shape(
        [
            (x - 0.5 * size, y - 0.24 * size),
            (x + 0.5 * size, y - 0.24 * size),
            (x + 0.32 * size, y),
            (x - 0.32 * size, y),
        ],
        colour,
    )


def _balloon(pen: Pen, x: float, y: float, size: float, colour: Colour) -> None:
    pen.shape(
        [
            (x - 0.24 * size, y - 0.5 * size),
            (x + 0.24 * size, y - 0.5 * size),
            (x + 0.08 * size, y - 0.18 * size),
            (x - 0.08 * size, y - 0.18 * size),
        ],
        colour,
    )
    pen.oval(x - 0.35 * size, y - size, x + 0.35 * size, y - 0.3 * size, colour)
    pen.oval(x - 0.13 * size, y - size, x + 0.13 * size, y - 0.3 * size, (252, 240, 214))
    pen.box(x - 0.1 * size, y - 0.14 * size, x + 0.1 * size, y, (140, 95, 60))


def _cat(pen: Pen, x: float, y: float, size: float, colour: Colour) -> None:
    head = y - 0.68 * size
    for side in (-1, 1):
        pen.shape(
            [
                (x + side * 0.27 * size, head - 0.02 * size),
                (x + side * 0.24 * size, y - size),
                (x + side * 0.04 * size, head - 0.18 * size),
            ],
            colour,
        )
    pen.oval(x - 0.3 * size, y - 0.56 * size, x + 0.3 * size, y, colour)
    pen.circle(x, head, 0.27 * size, colour)
    for side in (-1, 1):
        pen.circle(x + side * 0.1 * size, head, 0.055 * size, (250, 250, 240))
        pen.circle(x + side * 0.1 * size, head, 0.03 * size, INK)


def _flower(pen: Pen, x: float, y: float, size: float, colour: Colour) -> None:
    middle = y - 0.72 * size
    pen.box(x - 0.03 * size, middle, x + 0.03 * size, y, (70, 140, 70))
    for dx, dy in ((0, -1), (0.95, -0.31), (0.59, 0.81), (-0.59, 0.81), (-0.95, -0.31)):
        pen.circle(x + 0.16 * dx * size, middle + 0.16 * dy * size, 0.13 * size, colour)
    pen.circle(x, middle, 0.1 * size, (250, 220, 90))


def _moon(pen: Pen, x: float, y: float, size: float, colour: Colour) -> None:
    pen.circle(x, y - size / 2, size / 2, colour)


def _sun(pen: Pen, x: float, y: float, size: float, colour: Colour) -> None:
    pen.circle(x, y - size / 2, size / 2, (255, 244, 190))
    pen.circle(x, y - size / 2, 0.36 * size, colour)


DRAWN_BY: dict[str, Callable[[Pen, float, float, float, Colour], None]] = {
    "house": _house,
    "tree": _tree,
    "ball": _ball,
    "boat": _boat,
    "balloon": _balloon,
    "cat": _cat,
    "flower": _flower,
    "sun": _sun,
}

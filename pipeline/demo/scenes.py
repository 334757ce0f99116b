"""Scenes drawn with Pillow: a ground, a few things, and the ways in which they may be shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageOps

Colour = tuple[int, int, int]
Size = tuple[int, int]

FINE = 4  # drawn this much larger, then reduced: smooth edges
INK: Colour = (50, 50, 60)
PAPER: Colour = (252, 250, 245)
NIGHT: Colour = (14, 18, 58)
MOON: Colour = (245, 240, 205)
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


@dataclass(frozen=True)
class Thing:
    """Something in a scene.

    Attributes:
        x: its middle, as a share of the picture's width.
        y, size: its foot and its height, as shares of the picture's height (the height is less
            where a picture is narrow).
    """

    kind: str
    colour: str
    x: float
    y: float = 0.86
    size: float = 0.4


@dataclass(frozen=True)
class Scene:
    """The content of a picture. Without a `ground` it has a transparent background."""

    ground: str | None
    things: tuple[Thing, ...]
    night: bool = False
    outline: bool = False
    mirrored: bool = False


# -- shapes, measured from the middle of a thing's foot, upwards, in units of its height ------


@dataclass(frozen=True)
class Polygon:
    """A polygon by its corners; without a colour it gets the thing's own."""

    corners: tuple[tuple[float, float], ...]
    colour: Colour | None = None


@dataclass(frozen=True)
class Oval:
    """An ellipse by its centre and its two radii: across and up."""

    x: float
    y: float
    across: float
    up: float
    colour: Colour | None = None


Shape = Polygon | Oval


def _box(
    left: float, bottom: float, right: float, top: float, colour: Colour | None = None
) -> Polygon:
    return Polygon(((left, top), (right, top), (right, bottom), (left, bottom)), colour)


def _circle(x: float, y: float, radius: float, colour: Colour | None = None) -> Oval:
    return Oval(x, y, radius, radius, colour)


SHAPES: dict[str, tuple[Shape, ...]] = {
    "house": (
        _box(-0.42, 0.0, 0.42, 0.6, (244, 232, 208)),
        Polygon(((-0.52, 0.6), (0.0, 1.0), (0.52, 0.6))),
        _box(-0.26, 0.0, -0.04, 0.36, (120, 80, 55)),
        _box(0.08, 0.2, 0.3, 0.44, (140, 190, 225)),
    ),
    "tree": (
        _box(-0.07, 0.0, 0.07, 0.45, (125, 85, 60)),
        *(_circle(x, y, 0.25) for x, y in ((-0.18, 0.5), (0.18, 0.5), (0.0, 0.75))),
    ),
    "ball": (_circle(0.0, 0.5, 0.5), _circle(-0.16, 0.68, 0.1, (255, 245, 235))),
    "boat": (
        _box(-0.02, 0.2, 0.02, 1.0, (120, 85, 60)),
        Polygon(((0.04, 1.0), (0.45, 0.3), (0.04, 0.3)), (238, 230, 212)),
        Polygon(((-0.5, 0.24), (0.5, 0.24), (0.32, 0.0), (-0.32, 0.0))),
    ),
    "balloon": (
        Polygon(((-0.24, 0.5), (0.24, 0.5), (0.08, 0.18), (-0.08, 0.18))),
        _circle(0.0, 0.65, 0.35),
        Oval(0.0, 0.65, 0.13, 0.35, (252, 240, 214)),
        _box(-0.1, 0.0, 0.1, 0.14, (140, 95, 60)),
    ),
    "cat": (
        *(Polygon(((s * 0.27, 0.7), (s * 0.24, 1.0), (s * 0.04, 0.86))) for s in (-1.0, 1.0)),
        Oval(0.0, 0.28, 0.3, 0.28),
        _circle(0.0, 0.68, 0.27),
        *(_circle(x, 0.68, 0.055, (250, 250, 240)) for x in (-0.1, 0.1)),
        *(_circle(x, 0.68, 0.03, INK) for x in (-0.1, 0.1)),
    ),
    "flower": (
        _box(-0.03, 0.0, 0.03, 0.72, (70, 140, 70)),
        *(
            _circle(0.16 * x, 0.72 - 0.16 * y, 0.13)
            for x, y in ((0.0, -1.0), (0.95, -0.31), (0.59, 0.81), (-0.59, 0.81), (-0.95, -0.31))
        ),
        _circle(0.0, 0.72, 0.1, (250, 220, 90)),
    ),
    "sun": (_circle(0.0, 0.5, 0.5, (255, 244, 190)), _circle(0.0, 0.5, 0.36)),
    "moon": (_circle(0.0, 0.5, 0.5),),
}
STARS = ((0.42, 0.1), (0.56, 0.22), (0.68, 0.08), (0.85, 0.18))


class Canvas:
    """A picture in the making, `FINE` times as large as it will be.

    Args:
        size: (width, height) in pixels.
        outline: draw lines on paper instead of colours.
    """

    def __init__(self, size: Size, *, outline: bool) -> None:
        self.outline = outline
        self.width, self.height = (edge * FINE for edge in size)
        self.picture = Image.new("RGBA", (self.width, self.height))

    def draw(
        self, shapes: Iterable[Shape], x: float, y: float, size: float, *, colour: Colour
    ) -> None:
        """Draw the shapes of a thing.

        Args:
            x, y: the middle of its foot, as shares of the picture's width and height.
            size: its height, as a share of the picture's.
            colour: that of shapes without a colour of their own.
        """
        draw = ImageDraw.Draw(self.picture)
        line, width = (INK, round(0.012 * self.height)) if self.outline else (None, 0)
        x *= self.width / self.height
        for shape in shapes:
            fill = PAPER if self.outline else shape.colour or colour
            if isinstance(shape, Oval):
                middle, height = x + shape.x * size, y - shape.y * size
                across, up = shape.across * size, shape.up * size
                edges = (middle - across, height - up, middle + across, height + up)
                corners = [edge * self.height for edge in edges]
                draw.ellipse(corners, fill=fill, outline=line, width=width)
            else:
                points = [
                    ((x + across * size) * self.height, (y - up * size) * self.height)
                    for across, up in shape.corners
                ]
                draw.polygon(points, fill=fill)
                if self.outline:
                    draw.line([*points, points[0]], fill=line, width=width, joint="curve")


def picture_of(scene: Scene, size: Size) -> Image.Image:
    """Draw `scene` with this (width, height): RGB, or RGBA where it has no ground."""
    canvas = Canvas(size, outline=scene.outline)
    ratio = size[0] / size[1]
    if scene.ground:
        sky, ground = GROUNDS[scene.ground]
        canvas.draw(
            (_box(-1.0, -2.0, 3.0, 1.0),), 0.0, 0.0, 1.0, colour=NIGHT if scene.night else sky
        )
        canvas.draw((_box(-1.0, -2.0, 3.0, -0.7),), 0.0, 0.0, 1.0, colour=ground)
    for thing in scene.things:
        if not (scene.night and thing.kind == "sun"):
            height = thing.size * min(1.0, 0.8 * ratio)
            colour = COLOURS[thing.colour]
            canvas.draw(SHAPES[thing.kind], thing.x, thing.y, height, colour=colour)
    if scene.night:
        shade = Image.new("RGBA", canvas.picture.size, (*NIGHT, 255))
        canvas.picture.paste(Image.blend(canvas.picture, shade, 0.45))
        canvas.draw(SHAPES["moon"], 0.2, 0.3, 0.18, colour=MOON)
        for x, y in STARS:
            canvas.draw((_circle(0.0, 0.0, 0.012),), x, y, 1.0, colour=(250, 250, 230))
    picture = canvas.picture.resize(size, Image.Resampling.BOX)
    if scene.mirrored:
        picture = ImageOps.mirror(picture)
    return picture.convert("RGB") if scene.ground else picture

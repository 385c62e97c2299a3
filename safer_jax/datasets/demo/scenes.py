"""Draw the demo set's pictures: small scenes with one or two objects, and notes with written words (host code).

Every object is drawn in the unit square by a function of (pen, colour); the pen maps it to its place in the picture.
"""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 112  # pixels of a side: eight patches of 14
_SCALE = 2  # drawn larger, then averaged down: smooth edges

COLOURS = {
    "red": (205, 45, 45),
    "blue": (50, 90, 205),
    "green": (50, 150, 70),
    "yellow": (240, 205, 50),
    "orange": (240, 140, 40),
    "purple": (140, 75, 180),
    "brown": (135, 90, 50),
    "grey": (130, 135, 140),
    "white": (245, 245, 240),
    "black": (35, 35, 40),
}
# The colours an object comes in; the first words of a kind's drawing function say what else marks it.
KIND_COLOURS = {
    "cup": ("blue", "white", "green"),
    "ball": ("red", "blue", "purple"),
    "book": ("red", "green", "blue"),
    "plant": ("green",),
    "chair": ("brown", "red"),
    "cat": ("grey", "orange", "black"),
    "ladder": ("brown", "yellow"),
    "medicine": ("orange",),
    "pool": ("blue",),
    "stove": ("grey", "white"),
    "iron": ("purple", "green"),
    "flame": ("orange", "red"),
    "glass": ("blue", "green"),
    "cable": ("black", "red"),
    "bleach": ("white", "yellow"),
}
_WALLS = ((226, 214, 196), (206, 221, 229), (219, 226, 205), (230, 211, 214), (214, 211, 228))
_FLOORS = ((176, 150, 120), (150, 160, 150), (160, 140, 150), (140, 150, 170))
_INK = (30, 30, 35)
_PAPERS = ((252, 250, 240), (255, 244, 190), (225, 240, 250))
_INKS = ((25, 25, 30), (25, 40, 130), (130, 25, 30))


class Drawing(NamedTuple):
    """A finished picture as a PNG file, and the named colour of its main object ("" for a note)."""

    png: bytes
    colour: str


class Pen:
    """Draws in the unit square of one object; x to the right, y down."""

    def __init__(self, draw: ImageDraw.ImageDraw, left: float, top: float, side: float):
        self._draw, self._left, self._top, self._side = draw, left, top, side

    def _points(self, points: tuple[float, ...]) -> list[tuple[float, float]]:
        xs, ys = points[::2], points[1::2]
        return [(self._left + x * self._side, self._top + y * self._side) for x, y in zip(xs, ys, strict=True)]

    def _width(self, width: float) -> int:
        return max(1, round(width * self._side))

    def polygon(self, points: tuple[float, ...], fill: tuple[int, int, int], edge: float = 0.025) -> None:
        """A filled polygon with a dark edge, `edge` wide (0 = none)."""
        self._draw.polygon(self._points(points), fill=fill)
        if edge:
            self.line(points + points[:4], _INK, edge)

    def ellipse(self, box: tuple[float, ...], fill: tuple[int, int, int] | None, edge: float = 0.025) -> None:
        """A filled ellipse in the box (left, top, right, bottom)."""
        self._draw.ellipse(self._points(box), fill=fill, outline=_INK if edge else None, width=self._width(edge))

    def rectangle(self, box: tuple[float, ...], fill: tuple[int, int, int], edge: float = 0.025) -> None:
        """A filled rectangle in the box (left, top, right, bottom)."""
        self._draw.rectangle(self._points(box), fill=fill, outline=_INK if edge else None, width=self._width(edge))

    def line(self, points: tuple[float, ...], fill: tuple[int, int, int], width: float) -> None:
        """A polyline."""
        self._draw.line(self._points(points), fill=fill, width=self._width(width), joint="curve")

    def arc(self, box: tuple[float, ...], start: float, end: float, fill: tuple[int, int, int], width: float) -> None:
        """A part of an ellipse's edge, angles in degrees clockwise from the right."""
        self._draw.arc(self._points(box), start, end, fill=fill, width=self._width(width))


def _shade(colour: tuple[int, int, int], factor: float) -> tuple[int, int, int]:
    return tuple(int(min(255, max(0, value * factor))) for value in colour)


def _cup(pen: Pen, colour: tuple[int, int, int]) -> None:
    pen.arc((0.6, 0.35, 1.0, 0.8), -90, 90, _INK, 0.11)
    pen.arc((0.62, 0.37, 0.98, 0.78), -90, 90, colour, 0.06)
    pen.polygon((0.08, 0.22, 0.78, 0.22, 0.7, 0.95, 0.16, 0.95), colour)
    pen.ellipse((0.08, 0.12, 0.78, 0.32), (90, 55, 35))


def _ball(pen: Pen, colour: tuple[int, int, int]) -> None:
    pen.ellipse((0.05, 0.05, 0.95, 0.95), colour)
    pen.ellipse((0.32, 0.05, 0.68, 0.95), (250, 250, 245))
    pen.ellipse((0.42, 0.42, 0.58, 0.58), (240, 205, 50))


def _book(pen: Pen, colour: tuple[int, int, int]) -> None:
    pen.polygon((0.0, 0.22, 0.5, 0.32, 1.0, 0.22, 1.0, 0.85, 0.5, 0.95, 0.0, 0.85), colour)
    for left, right in ((0.06, 0.5), (0.94, 0.5)):
        pen.polygon((left, 0.14, right, 0.25, right, 0.86, left, 0.76), (252, 250, 240))
        for step in range(4):
            top = 0.27 + step * 0.13
            pen.line((left * 0.8 + right * 0.2, top, left * 0.25 + right * 0.75, top + 0.06), (120, 120, 125), 0.03)


def _plant(pen: Pen, colour: tuple[int, int, int]) -> None:
    pen.line((0.5, 0.7, 0.5, 0.2), _shade(colour, 0.6), 0.06)
    for leaf in ((0.05, 0.3, 0.48, 0.52), (0.52, 0.25, 0.95, 0.47), (0.12, 0.08, 0.5, 0.28), (0.5, 0.03, 0.86, 0.24)):
        pen.ellipse(leaf, colour)
    pen.polygon((0.22, 0.62, 0.78, 0.62, 0.68, 0.98, 0.32, 0.98), (196, 98, 56))
    pen.rectangle((0.18, 0.58, 0.82, 0.68), (212, 112, 66))


def _chair(pen: Pen, colour: tuple[int, int, int]) -> None:
    for x in (0.18, 0.74):
        pen.rectangle((x, 0.55, x + 0.09, 1.0), _shade(colour, 0.75))
    pen.rectangle((0.18, 0.02, 0.28, 0.6), colour)
    pen.rectangle((0.28, 0.08, 0.38, 0.5), _shade(colour, 1.25))
    pen.rectangle((0.14, 0.52, 0.88, 0.66), colour)


def _cat(pen: Pen, colour: tuple[int, int, int]) -> None:
    for points in ((0.1, 0.45, 0.12, 0.02, 0.45, 0.2), (0.9, 0.45, 0.88, 0.02, 0.55, 0.2)):
        pen.polygon(points, colour)
    pen.ellipse((0.06, 0.14, 0.94, 0.94), colour)
    for x in (0.26, 0.58):
        pen.ellipse((x, 0.36, x + 0.16, 0.56), (190, 230, 90))
        pen.ellipse((x + 0.05, 0.38, x + 0.11, 0.54), _INK, 0)
    pen.polygon((0.44, 0.62, 0.56, 0.62, 0.5, 0.7), (240, 150, 160))
    for side in (-1, 1):
        for tilt in (-0.06, 0.06):
            pen.line((0.5 + side * 0.12, 0.72, 0.5 + side * 0.48, 0.72 + tilt), (235, 235, 230), 0.02)


def _ladder(pen: Pen, colour: tuple[int, int, int]) -> None:
    for rung in range(6):
        y = 0.12 + rung * 0.16
        pen.line((0.32 - y * 0.12, y, 0.68 + y * 0.12, y), _INK, 0.1)
        pen.line((0.32 - y * 0.12, y, 0.68 + y * 0.12, y), _shade(colour, 1.15), 0.06)
    for top, bottom in ((0.32, 0.14), (0.68, 0.86)):
        pen.line((top, 0.0, bottom, 1.0), _INK, 0.13)
        pen.line((top, 0.01, bottom, 0.99), colour, 0.08)


def _medicine(pen: Pen, colour: tuple[int, int, int]) -> None:
    pen.rectangle((0.2, 0.26, 0.8, 0.98), colour)
    pen.rectangle((0.16, 0.04, 0.84, 0.26), (245, 245, 242))
    for x in (0.28, 0.4, 0.52, 0.64, 0.76):
        pen.line((x, 0.07, x, 0.24), (150, 150, 155), 0.025)
    pen.rectangle((0.26, 0.42, 0.74, 0.86), (250, 250, 248))
    pen.rectangle((0.45, 0.48, 0.55, 0.8), (205, 45, 45), 0)
    pen.rectangle((0.34, 0.59, 0.66, 0.69), (205, 45, 45), 0)


def _pool(pen: Pen, colour: tuple[int, int, int]) -> None:
    pen.ellipse((-0.08, 0.22, 1.08, 0.98), (236, 232, 222))
    pen.ellipse((0.02, 0.3, 0.98, 0.9), (70, 185, 230))
    for y in (0.48, 0.62, 0.76):
        for x in (0.24, 0.5):
            pen.arc((x, y - 0.06, x + 0.14, y + 0.04), 180, 360, (240, 250, 255), 0.035)
            pen.arc((x + 0.13, y - 0.06, x + 0.27, y + 0.04), 0, 180, (240, 250, 255), 0.035)
    for x in (0.74, 0.9):
        pen.line((x, 0.58, x, 0.12, x + 0.1, 0.12), _shade(colour, 0.6), 0.045)
    for y in (0.3, 0.44):
        pen.line((0.74, y, 0.9, y), _shade(colour, 0.6), 0.04)


def _stove(pen: Pen, colour: tuple[int, int, int]) -> None:
    pen.polygon((0.16, 0.06, 0.84, 0.06, 0.98, 0.34, 0.02, 0.34), _shade(colour, 0.55))
    for x, y in ((0.3, 0.09), (0.56, 0.09), (0.2, 0.2), (0.58, 0.2)):
        pen.ellipse((x, y, x + 0.22, y + 0.1), (235, 80, 40))
    pen.rectangle((0.02, 0.34, 0.98, 1.0), colour)
    for x in (0.12, 0.36, 0.58, 0.8):
        pen.ellipse((x - 0.05, 0.38, x + 0.07, 0.5), _INK, 0)
    pen.rectangle((0.14, 0.58, 0.86, 0.92), (50, 52, 62))
    pen.line((0.2, 0.64, 0.8, 0.64), (225, 225, 225), 0.05)


def _iron(pen: Pen, colour: tuple[int, int, int]) -> None:
    pen.line((0.3, 0.5, 0.34, 0.28, 0.86, 0.26, 0.94, 0.56), _INK, 0.16)
    pen.line((0.3, 0.5, 0.34, 0.28, 0.86, 0.26, 0.94, 0.56), _shade(colour, 0.8), 0.11)
    pen.polygon((0.0, 0.78, 0.22, 0.52, 0.98, 0.48, 1.0, 0.78), colour)
    pen.polygon((-0.04, 0.76, 1.02, 0.76, 1.02, 0.9, -0.04, 0.9), (200, 205, 212))
    pen.ellipse((0.52, 0.56, 0.68, 0.7), (240, 205, 50))


def _flame(pen: Pen, colour: tuple[int, int, int]) -> None:
    pen.line((0.1, 0.95, 0.9, 0.82), _INK, 0.15)
    pen.line((0.1, 0.82, 0.9, 0.95), (110, 70, 40), 0.13)
    outer = (0.5, -0.04, 0.72, 0.3, 0.86, 0.26, 0.9, 0.62, 0.7, 0.88, 0.3, 0.88, 0.1, 0.62, 0.2, 0.36, 0.36, 0.42)
    pen.polygon(outer, colour)
    pen.polygon((0.5, 0.28, 0.68, 0.6, 0.62, 0.86, 0.38, 0.86, 0.3, 0.62), (250, 215, 60), 0)
    pen.ellipse((0.42, 0.64, 0.58, 0.86), (255, 250, 225), 0)


def _glass(pen: Pen, colour: tuple[int, int, int]) -> None:
    light, pale = _shade(colour, 1.35), (222, 240, 245)
    shards = (
        ((0.22, 0.62, 0.18, 0.12, 0.34, 0.36, 0.46, 0.08, 0.58, 0.38, 0.78, 0.16, 0.74, 0.62), pale),
        ((0.22, 0.62, 0.74, 0.62, 0.66, 0.84, 0.3, 0.84), light),
        ((-0.04, 0.96, 0.08, 0.66, 0.2, 0.94), pale),
        ((0.8, 0.98, 0.86, 0.6, 1.04, 0.9), light),
        ((0.34, 1.04, 0.52, 0.88, 0.64, 1.02), pale),
    )
    for points, fill in shards:
        pen.polygon(points, fill, 0.03)
    pen.line((0.34, 0.36, 0.4, 0.6, 0.36, 0.82), (255, 255, 255), 0.03)


def _cable(pen: Pen, colour: tuple[int, int, int]) -> None:
    pen.line((0.0, 0.24, 0.14, 0.1, 0.3, 0.16, 0.34, 0.4, 0.2, 0.62, 0.3, 0.84, 0.5, 0.8, 0.56, 0.6), colour, 0.11)
    for x, y in ((0.5, 0.34), (0.6, 0.3), (0.7, 0.36), (0.76, 0.46)):
        pen.line((0.56, 0.6, (0.56 + x) / 2 + 0.03, (0.6 + y) / 2, x, y), (200, 110, 50), 0.045)
    pen.polygon((0.8, 0.02, 0.62, 0.2, 0.74, 0.2, 0.66, 0.4, 0.94, 0.14, 0.8, 0.14), (255, 225, 40))
    pen.rectangle((0.66, 0.72, 0.9, 0.98), colour)
    for y in (0.78, 0.9):
        pen.line((0.9, y, 1.04, y), (190, 190, 195), 0.05)


def _bleach(pen: Pen, colour: tuple[int, int, int]) -> None:
    pen.rectangle((0.3, 0.0, 0.52, 0.14), (45, 95, 200))
    pen.polygon((0.28, 0.14, 0.54, 0.14, 0.82, 0.34, 0.86, 0.98, 0.1, 0.98, 0.1, 0.36), colour)
    pen.ellipse((0.58, 0.32, 0.76, 0.56), (200, 200, 205))
    pen.polygon((0.46, 0.5, 0.72, 0.74, 0.46, 0.97, 0.2, 0.74), (240, 110, 30), 0.035)
    pen.line((0.37, 0.65, 0.55, 0.83), _INK, 0.05)
    pen.line((0.55, 0.65, 0.37, 0.83), _INK, 0.05)


DRAW = {
    "cup": _cup,
    "ball": _ball,
    "book": _book,
    "plant": _plant,
    "chair": _chair,
    "cat": _cat,
    "ladder": _ladder,
    "medicine": _medicine,
    "pool": _pool,
    "stove": _stove,
    "iron": _iron,
    "flame": _flame,
    "glass": _glass,
    "cable": _cable,
    "bleach": _bleach,
}


def scene(rng: np.random.Generator, kinds: tuple[str, ...]) -> Drawing:
    """Draw one or two objects before a wall, the first of `kinds` being the main one."""
    side = SIZE * _SCALE
    image = Image.new("RGB", (side, side), _jitter(rng, _WALLS[rng.integers(len(_WALLS))], 8))
    draw = ImageDraw.Draw(image)
    horizon = side * rng.uniform(0.6, 0.78)
    draw.rectangle((0, horizon, side, side), fill=_jitter(rng, _FLOORS[rng.integers(len(_FLOORS))], 8))
    names = []
    for kind, box in zip(kinds, _boxes(rng, len(kinds), side), strict=True):
        names.append(str(rng.choice(KIND_COLOURS[kind])))
        DRAW[kind](Pen(draw, *box), _jitter(rng, COLOURS[names[-1]], 12))
    return Drawing(_png(image), names[0])


def _boxes(rng: np.random.Generator, count: int, side: int) -> list[tuple[float, float, float]]:
    """(left, top, size) of one object near the middle, or of two side by side in random order."""
    boxes = []
    for slot in range(count):
        size = rng.uniform(0.62, 0.74) if count == 1 else rng.uniform(0.4, 0.44)
        room = (0.96 / count - size) / 2
        x = (slot + 0.5) / count + rng.uniform(-room, room) * 0.8
        y = 0.5 + rng.uniform(-0.1, 0.1)
        boxes.append(((x - size / 2) * side, (y - size / 2) * side, size * side))
    return boxes if rng.random() < 0.5 else boxes[::-1]


def note(rng: np.random.Generator, words: tuple[str, ...]) -> Drawing:
    """Draw words, one a line, on paper; lines hardly move, so that a small network can learn to read them."""
    side = SIZE * _SCALE
    image = Image.new("RGB", (side, side), _jitter(rng, _FLOORS[rng.integers(len(_FLOORS))], 8))
    draw = ImageDraw.Draw(image)
    inset = side * 0.03
    draw.rectangle((inset, inset, side - inset, side - inset), fill=_PAPERS[rng.integers(len(_PAPERS))])
    ink = _INKS[rng.integers(len(_INKS))]
    font = ImageFont.load_default(size=round(side * 0.225))
    for line, word in enumerate(words):
        x = side * (0.08 + rng.uniform(-0.012, 0.012))
        y = side * ((line + 0.5) / len(words) * 0.94 + 0.03 + rng.uniform(-0.012, 0.012))
        draw.text((x, y), word, font=font, fill=ink, anchor="lm", stroke_width=2, stroke_fill=ink)
    return Drawing(_png(image), "")


def _jitter(rng: np.random.Generator, colour: tuple[int, int, int], spread: int) -> tuple[int, int, int]:
    return tuple(int(np.clip(value + rng.integers(-spread, spread + 1), 0, 255)) for value in colour)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.reduce(_SCALE).save(buffer, "PNG")
    return buffer.getvalue()

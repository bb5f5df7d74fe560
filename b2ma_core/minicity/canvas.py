"""MiniCity's canvas: shapes given in metres, drawn on the image and on the labels alike.

x runs to the right, y up, z ahead of the camera.
"""

import numpy as np
from PIL import Image, ImageDraw

from b2ma_core.minicity.looks import SKY, Color, Domain


def value_noise(rng: np.random.Generator, rows: int, columns: int, height: int, width: int) -> np.ndarray:
    """``(height, width)`` float64 smooth noise, 0 .. 1: a coarse grid of random values, enlarged."""
    grid = Image.fromarray(rng.integers(0, 256, (rows, columns), dtype=np.uint8))
    return np.asarray(grid.resize((width, height), Image.Resampling.BILINEAR)) / 255.0


class Canvas:
    """A canvas, a camera and a palette; draws things at places in metres on the image and on the labels alike."""

    def __init__(self, rng: np.random.Generator, look: Domain, size: tuple[int, int], severity: float):
        self.rng, self.look = rng, look
        self.height, self.width = size
        self.focal = self.between(*look.focal) * self.width
        self.eye = self.between(*look.camera_height)
        self.horizon = self.between(*look.horizon) * self.height
        self.center = self.width * self.between(0.44, 0.56)
        self.road = self.between(*look.road_half_width)
        self.walk = self.road + self.between(2.5, 5.0)
        self.light = self.between(0.9, 1.08)
        self.fog_color = self.tint((205, 212, 220), 0.05)
        self.fog_range = self.between(30.0, 110.0) if self.chance(0.4 * severity) else self.between(250.0, 600.0)
        self.taken: list[tuple[float, float, float, float]] = []  # x0, x1, z0, z1 of what stands on the road
        self.image = Image.new("RGB", (self.width, self.height))
        self.label_image = Image.new("L", (self.width, self.height), SKY)
        self.paint, self.mark = ImageDraw.Draw(self.image), ImageDraw.Draw(self.label_image)

    # --- chance, colour, place
    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.rng.random())

    def chance(self, probability: float) -> bool:
        return float(self.rng.random()) < probability

    def side(self) -> int:
        return 1 if self.chance(0.5) else -1

    def tinted(self, choices: tuple[Color, ...]) -> Color:
        return self.tint(choices[int(self.rng.integers(len(choices)))])

    def tint(self, color: Color, spread: float | None = None) -> Color:
        spread = self.look.tint_spread if spread is None else spread
        bright = self.between(1 - 1.5 * spread, 1 + 1.5 * spread)
        return tuple(c * bright * self.between(1 - spread, 1 + spread) for c in color)

    def clear(self, z):
        """Share of light, 0 .. 1, that comes through the haze of ``z`` metres; a number or an array of them."""
        return 1 / (1 + (z / self.fog_range) * (1 + z / self.fog_range))

    def seen(self, color: Color, z: float, shade: float = 1.0) -> tuple[int, ...]:
        """A colour under this scene's light, through the haze of ``z`` metres."""
        clear = self.clear(z)
        lit = (c * shade * self.light * clear + f * (1 - clear) for c, f in zip(color, self.fog_color, strict=True))
        return tuple(int(min(max(c, 0), 255)) for c in lit)

    def at(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Metres to (column, row)."""
        return self.center + self.focal * x / z, self.horizon + self.focal * (self.eye - y) / z

    # --- shapes; a label of None paints a detail on what is labelled already
    def polygon(self, points: list, z: float, color: Color, label: int | None, shade: float = 1.0) -> None:
        self.paint.polygon(points, fill=self.seen(color, z, shade))
        if label is not None:
            self.mark.polygon(points, fill=label)

    def outline(self, x: float, z: float, points, color: Color, label: int | None, shade: float = 1.0) -> None:
        """A polygon that faces the camera, from (metres right of x, metres up)."""
        self.polygon([self.at(x + dx, y, z) for dx, y in points], z, color, label, shade)

    def face(self, x0, x1, y0, y1, z, color, label, shade=1.0) -> None:
        """A rectangle that faces the camera."""
        self.outline(0, z, ((x0, y0), (x0, y1), (x1, y1), (x1, y0)), color, label, shade)

    def flank(self, x, y0, y1, z0, z1, color, label, shade=0.8) -> None:
        """A rectangle along the street."""
        points = [self.at(x, y0, z0), self.at(x, y1, z0), self.at(x, y1, z1), self.at(x, y0, z1)]
        self.polygon(points, (z0 + z1) / 2, color, label, shade)

    def flat(self, x0, x1, z0, z1, color, label, y=0.0, shade=1.0) -> None:
        """A rectangle on the ground, or the top of a box."""
        points = [self.at(x0, y, z0), self.at(x1, y, z0), self.at(x1, y, z1), self.at(x0, y, z1)]
        self.polygon(points, z0, color, label, shade)

    def box(self, x, half, y0, y1, z0, z1, color, label) -> None:
        """A cuboid around ``x``: the side and top that the camera sees, then the front."""
        self.flank(self._inner(x, half), y0, y1, z0, z1, color, label, 0.72)
        if y1 < self.eye:
            self.flat(x - half, x + half, z0, z1, color, label, y1, 1.12)
        self.face(x - half, x + half, y0, y1, z0, color, label)

    def _inner(self, x: float, half: float) -> float:
        """The side of a box around ``x`` that looks to the middle of the street."""
        return x + half if x < 0 else x - half

    def pair(self, x, apart, half, y0, y1, z, color, label=None) -> None:
        """Two equal rectangles left and right of ``x``: lamps, wheels from behind."""
        for side in (-1, 1):
            self.face(x + side * apart - half, x + side * apart + half, y0, y1, z, color, label)

    def disc(self, x, y, z, rx, ry, color, label, shade=1.0, ring=False) -> None:
        """An ellipse that faces the camera. A ring is painted thin but labelled whole, as annotators do with wheels."""
        u, v = self.at(x, y, z)
        a, b = self.focal * rx / z, self.focal * ry / z
        bounds = (u - a, v - b, u + a, v + b)
        fill = self.seen(color, z, shade)
        if ring:
            self.paint.ellipse(bounds, outline=fill, width=max(1, round(0.28 * a)))
        else:
            self.paint.ellipse(bounds, fill=fill)
        if label is not None:
            self.mark.ellipse(bounds, fill=label)

    def bar(self, x, z, start, end, thickness, color, label, shade=1.0) -> None:
        """A straight bar between two (metres right of x, metres up), at least a pixel thick."""
        width = max(1, round(self.focal * thickness / z))
        points = [self.at(x + dx, y, z) for dx, y in (start, end)]
        self.paint.line(points, fill=self.seen(color, z, shade), width=width)
        if label is not None:
            self.mark.line(points, fill=label, width=width)

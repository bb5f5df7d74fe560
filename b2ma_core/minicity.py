"""MiniCity, version 1: procedural street scenes with the 19 Cityscapes classes, in two domains of one world.

"game" is a rendered look: saturated palette, clean light, a high camera. "camera" is a dashcam in the same world:
other materials and object statistics, a lower camera, and conditions that vary from clear to foggy, dark, badly
exposed, noisy or blurred. A scene is a pure function of (seed, domain, split, index); arithmetic on pixels keeps to
operations that every processor rounds alike, so that the frozen hashes hold.

A scene stands in metres: x to the right, y up, z ahead of the camera. ``python -m b2ma_core.minicity`` writes PNGs.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

VERSION = 1
DOMAINS = ("game", "camera")
SPLITS = ("train", "val", "test")
(ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN, SKY, PERSON, RIDER, CAR, TRUCK, BUS,
 TRAIN, MOTORCYCLE, BICYCLE) = range(19)  # fmt: skip

Color = tuple[float, float, float]


@dataclass(frozen=True)
class Domain:
    """What differs between the domains. Colours are RGB 0 .. 255, lengths metres, chances 0 .. 1."""

    camera_height: tuple[float, float]
    focal: tuple[float, float]  # in image widths
    horizon: tuple[float, float]  # in image heights, from the top
    road_half_width: tuple[float, float]
    road: Color
    sidewalk: Color
    marking: Color
    terrain: Color
    vegetation: Color
    sky: tuple[Color, Color]  # at the zenith, at the horizon
    buildings: tuple[Color, ...]
    vehicles: tuple[Color, ...]
    tint_spread: float  # how far a scene's materials stray from the palette
    texture: float  # amplitude of surface texture
    counts: dict[str, float]  # mean number of objects in a scene


GAME = Domain(
    camera_height=(1.5, 1.9), focal=(0.85, 1.0), horizon=(0.42, 0.48), road_half_width=(4.5, 7.0),
    road=(84, 84, 92), sidewalk=(158, 146, 140), marking=(236, 236, 225), terrain=(122, 158, 62),
    vegetation=(46, 116, 42), sky=((84, 144, 226), (190, 216, 240)),
    buildings=((168, 120, 96), (190, 170, 140), (140, 140, 152), (176, 92, 72), (112, 122, 140)),
    vehicles=((196, 36, 36), (36, 66, 170), (228, 228, 228), (34, 34, 40), (222, 180, 40), (60, 130, 80)),
    tint_spread=0.08, texture=9.0,
    counts={"car": 5.0, "parked": 4.5, "truck": 0.6, "bus": 0.55, "train": 0.4, "person": 3.0, "bicycle": 1.1,
            "motorcycle": 0.9, "standing_bicycle": 0.7, "tree": 5.5, "pole": 3.5, "light": 1.9, "sign": 2.4,
            "wall": 0.45, "fence": 0.55},
)  # fmt: skip
CAMERA = Domain(
    camera_height=(1.2, 1.5), focal=(0.95, 1.15), horizon=(0.40, 0.50), road_half_width=(3.5, 6.0),
    road=(104, 101, 98), sidewalk=(150, 144, 138), marking=(214, 212, 204), terrain=(116, 132, 78),
    vegetation=(62, 92, 52), sky=((150, 176, 208), (214, 220, 224)),
    buildings=((150, 132, 116), (178, 166, 150), (126, 124, 124), (150, 104, 88), (196, 188, 172)),
    vehicles=((140, 42, 40), (52, 70, 116), (206, 206, 204), (44, 44, 48), (128, 130, 134), (92, 104, 92)),
    tint_spread=0.15, texture=7.0,
    counts={"car": 4.0, "parked": 4.5, "truck": 0.6, "bus": 0.5, "train": 0.4, "person": 4.5, "bicycle": 1.6,
            "motorcycle": 0.8, "standing_bicycle": 1.0, "tree": 6.0, "pole": 4.0, "light": 1.9, "sign": 2.6,
            "wall": 0.45, "fence": 0.5},
)  # fmt: skip


def render(
    index: int, domain: str, split: str, seed: int = 0, size: tuple[int, int] = (128, 256)
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene.

    Args:
        index: number of the scene in its split, 0, 1, 2 .. without end.
        domain: "game" or "camera".
        split: "train", "val" or "test"; scenes of different splits have nothing in common.
        seed: which world.
        size: (height, width) in pixels, at least 32 each; the same scene at any size.

    Returns:
        ``(H, W, 3)`` uint8 RGB image and ``(H, W)`` uint8 train ids of Cityscapes.

    Raises:
        ValueError: naming the argument and what is allowed.
    """
    for name, value, allowed in (("domain", domain, DOMAINS), ("split", split, SPLITS)):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    for name, value in (("index", index), ("seed", seed)):
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 0:
            raise ValueError(f"{name} must be a whole number of at least 0, got {value!r}")
    if len(size) != 2 or not all(isinstance(v, (int, np.integer)) and v >= 32 for v in size):
        raise ValueError(f"size must be (height, width) of whole numbers of at least 32, got {size!r}")
    rng = np.random.default_rng([VERSION, int(seed), DOMAINS.index(domain), SPLITS.index(split), int(index)])
    look = GAME if domain == "game" else CAMERA
    # How bad the weather and the camera are: 0 in the game, from none to much in the camera's scenes.
    severity = float(rng.random()) if domain == "camera" else 0.0
    scene = Scene(rng, look, (int(size[0]), int(size[1])), severity)
    scene.draw_ground()
    scene.draw_objects()
    labels = np.array(scene.label_image)
    image = _surface(rng, np.array(scene.image), labels, look)
    if domain == "camera":
        image = _photograph(rng, image, severity)
    return image, labels


class Scene:
    """A canvas, a camera and a palette; draws things at places in metres on the image and on the labels alike."""

    def __init__(self, rng: np.random.Generator, look: Domain, size: tuple[int, int], severity: float):
        self.rng, self.look = rng, look
        self.height, self.width = size
        self.focal = self.between(look.focal) * self.width
        self.eye = self.between(look.camera_height)
        self.horizon = self.between(look.horizon) * self.height
        self.center = self.width * self.between((0.44, 0.56))
        self.road = self.between(look.road_half_width)
        self.walk = self.road + self.between((2.5, 5.0))
        self.light = self.between((0.9, 1.08))
        haze = self.tint((205, 212, 220), 0.05)
        self.fog_color = haze
        self.fog_range = 400.0 if self.chance(1 - 0.55 * severity) else self.between((20.0, 80.0))
        self.image = Image.new("RGB", (self.width, self.height))
        self.label_image = Image.new("L", (self.width, self.height), SKY)
        self.paint = ImageDraw.Draw(self.image)
        self.mark = ImageDraw.Draw(self.label_image)

    # --- chance, colour, place
    def between(self, limits: tuple[float, float]) -> float:
        return limits[0] + (limits[1] - limits[0]) * float(self.rng.random())

    def chance(self, probability: float) -> bool:
        return float(self.rng.random()) < probability

    def pick(self, choices: tuple):
        return choices[int(self.rng.integers(len(choices)))]

    def tint(self, color: Color, spread: float | None = None) -> Color:
        spread = self.look.tint_spread if spread is None else spread
        bright = self.between((1 - 1.5 * spread, 1 + 1.5 * spread))
        return tuple(c * bright * self.between((1 - spread, 1 + spread)) for c in color)

    def seen(self, color: Color, z: float, shade: float = 1.0) -> tuple[int, int, int]:
        """A colour under this scene's light, through the haze of ``z`` metres."""
        clear = 1 / (1 + (z / self.fog_range) * (1 + z / self.fog_range))
        lit = (c * shade * self.light for c in color)
        return tuple(int(min(max(c * clear + f * (1 - clear), 0), 255)) for c, f in zip(lit, self.fog_color, strict=True))

    def at(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Metres to (column, row)."""
        return self.center + self.focal * x / z, self.horizon + self.focal * (self.eye - y) / z

    # --- shapes
    def polygon(self, points: list, color: Color, z: float, label: int | None, shade: float = 1.0) -> None:
        self.paint.polygon(points, fill=self.seen(color, z, shade))
        if label is not None:
            self.mark.polygon(points, fill=label)

    def face(self, x0, x1, y0, y1, z, color, label, shade=1.0) -> None:
        """A rectangle that faces the camera."""
        (left, bottom), (right, top) = self.at(x0, y0, z), self.at(x1, y1, z)
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], color, z, label, shade)

    def flank(self, x, y0, y1, z0, z1, color, label, shade=0.8) -> None:
        """A rectangle along the street."""
        points = [self.at(x, y0, z0), self.at(x, y1, z0), self.at(x, y1, z1), self.at(x, y0, z1)]
        self.polygon(points, color, (z0 + z1) / 2, label, shade)

    def flat(self, x0, x1, z0, z1, color, label, y=0.0, shade=1.0) -> None:
        """A rectangle on the ground, or the top of a box."""
        points = [self.at(x0, y, z0), self.at(x1, y, z0), self.at(x1, y, z1), self.at(x0, y, z1)]
        self.polygon(points, color, z0, label, shade)

    def box(self, x0, x1, y0, y1, z0, z1, color, label) -> None:
        """A cuboid: the side and top that the camera sees, then the front."""
        self.flank(x1 if x1 < 0 else x0, y0, y1, z0, z1, color, label, 0.72)
        if y1 < self.eye:
            self.flat(x0, x1, z0, z1, color, label, y1, 1.12)
        self.face(x0, x1, y0, y1, z0, color, label)

    def disc(self, x, y, z, rx, ry, color, label, shade=1.0, hole=0.0) -> None:
        """An ellipse that faces the camera; with a hole, a ring whose inside shows what is behind."""
        u, v = self.at(x, y, z)
        a, b = self.focal * rx / z, self.focal * ry / z
        bounds = (u - a, v - b, u + a, v + b)
        if hole:
            width = max(1, round((1 - hole) * a))
            self.paint.ellipse(bounds, outline=self.seen(color, z, shade), width=width)
            self.mark.ellipse(bounds, outline=label, width=width)
        else:
            self.paint.ellipse(bounds, fill=self.seen(color, z, shade))
            if label is not None:
                self.mark.ellipse(bounds, fill=label)

    def bar(self, start, end, thickness, color, label, shade=1.0) -> None:
        """A straight bar between two places (x, y, z), at least a pixel thick."""
        z = start[2]
        width = max(1, round(self.focal * thickness / z))
        points = [self.at(*start), self.at(*end)]
        self.paint.line(points, fill=self.seen(color, z, shade), width=width)
        if label is not None:
            self.mark.line(points, fill=label, width=width)

    # --- the street
    def draw_ground(self) -> None:
        look, far, near = self.look, 600.0, 0.6
        self.image.paste(self._sky(), (0, 0))
        outside = self.pick((TERRAIN, SIDEWALK))
        ground, road, walk = self.tint(look.terrain), self.tint(look.road), self.tint(look.sidewalk)
        for z0, z1 in ((60, far), (30, 60), (16, 30), (9, 16), (5, 9), (3, 5), (near, 3)):
            color = ground if outside == TERRAIN else walk
            self.flat(-300, 300, z0, z1, color, outside)
            self.flat(-self.walk, self.walk, z0, z1, walk, SIDEWALK)
            self.flat(-self.road, self.road, z0, z1, road, ROAD)
            for side in (-1, 1):  # the kerb
                self.flat(side * self.road, side * (self.road + 0.18), z0, z1, walk, SIDEWALK, shade=0.8)
        mark = self.tint(look.marking)
        for k in range(12):
            z = 3.0 + 6 * k
            self.flat(-0.09, 0.09, z, z + 3, mark, None)
        if self.chance(0.3):
            z = self.between((7, 14))
            for k in range(int(self.road / 0.5)):
                x = -self.road + 0.25 + k
                self.flat(x, x + 0.5, z, z + 3, mark, None)

    def _sky(self) -> Image.Image:
        top, low = (self.seen(self.tint(c, 0.05), 0.01) for c in self.look.sky)
        rows = max(2, int(self.horizon) + 2)
        ramp = np.linspace(0, 1, rows)[:, None, None]
        column = np.array(top) * (1 - ramp) + np.array(low) * ramp
        cloud = _value_noise(self.rng, 4, 7, rows, self.width)[..., None]
        cover = np.clip((cloud - self.between((0.3, 0.9))) * 3, 0, 1)
        return Image.fromarray((column * (1 - cover) + 240 * self.light * cover).clip(0, 255).astype(np.uint8))

    def draw_objects(self) -> None:
        """Scatter everything over the street and draw it from far to near."""
        things = []  # (z, order, function, arguments)

        def add(z, draw, *args):
            things.append((-z, len(things), draw, args))

        for side in (-1, 1):
            self._line_street(side, add)
        count = {name: int(self.rng.poisson(mean)) for name, mean in self.look.counts.items()}
        lanes = (-0.5 * self.road, 0.5 * self.road)
        for kind, draw in (("car", self.car), ("truck", self.truck), ("bus", self.bus)):
            for _ in range(count[kind]):
                lane = self.pick(lanes) + self.between((-0.5, 0.5))
                add(self.between((7, 16) if self.chance(0.35) else (14, 60)), draw, lane)
        for _ in range(count["parked"]):
            add(self.between((5, 50)), self.car, self.pick((-1, 1)) * (self.road - 1.0))
        if count["train"]:
            side = self.pick((-1, 1))
            add(self.between((9, 28)), self.train, side * (self.road - 1.6))
        for _ in range(count["person"]):
            on_road = self.chance(0.15)
            x = self.between((-self.road, self.road)) if on_road else self._on_walk()
            add(self.between((5, 18) if self.chance(0.6) else (15, 40)), self.person, x)
        for _ in range(count["bicycle"]):
            add(self.between((5, 24)), self.bicycle, self.pick((-1, 1)) * self.between((1.0, self.road)), True)
        for _ in range(count["standing_bicycle"]):
            add(self.between((5, 16)), self.bicycle, self._on_walk(), False)
        for _ in range(count["motorcycle"]):
            add(self.between((5, 24)), self.motorcycle, self.between((-self.road, self.road)), self.chance(0.75))
        for kind, draw in (("pole", self.pole), ("light", self.traffic_light), ("sign", self.traffic_sign)):
            for _ in range(count[kind]):
                add(self.between((5, 35)), draw, self.pick((-1, 1)) * (self.road + 0.5))
        for _ in range(count["tree"]):
            beyond = self.walk - 0.8 if self.chance(0.6) else self.walk + 4
            add(self.between((7, 60)), self.tree, self.pick((-1, 1)) * beyond)
        for depth, _, draw, args in sorted(things, key=lambda thing: thing[:2]):
            draw(-depth, *args)

    def _on_walk(self) -> float:
        return self.pick((-1, 1)) * self.between((self.road + 0.4, self.walk - 0.2))

    def _line_street(self, side: int, add) -> None:
        """Buildings with gaps, walls, fences and hedges along one side."""
        z = self.between((2, 6))
        open_country = self.chance(0.15)
        while z < 110:
            length = self.between((8, 22))
            x = side * (self.walk + self.between((0.2, 2.5)))
            counts = self.look.counts
            draw = self.building
            roll = float(self.rng.random())
            if roll < 0.10 * counts["wall"] / 0.45:
                draw = self.wall
            elif roll < 0.10 * counts["wall"] / 0.45 + 0.12 * counts["fence"] / 0.55:
                draw = self.fence
            elif roll < 0.30 or (open_country and roll < 0.85):
                draw = self.hedge
            add(z + length, draw, x, z, side)  # sorted by the far end: what stands before it is drawn after it
            z += length + (self.between((1, 6)) if self.chance(0.4) else 0)

    # --- objects: each is drawn at depth z (its far end for long ones)
    def building(self, z1: float, x: float, z0: float, side: int) -> None:
        color, height = self.tint(self.pick(self.look.buildings)), self.between((6, 22))
        glass = self.tint((70, 84, 100) if self.chance(0.7) else (190, 180, 130), 0.1)
        self.face(x, x + side * 30, 0, height, z0, color, BUILDING, 0.95)
        self.flank(x, 0, height, z0, z1, color, BUILDING, 0.78)
        floors, bays = int(height / 3.2), max(2, int((z1 - z0) / 3))
        step = (z1 - z0) / bays
        if self.focal * 1.4 * step / (z0 + step) ** 2 < 0.35:  # windows under a pixel
            return
        for floor in range(floors):
            y = 1.2 + floor * 3.2
            for bay in range(bays):
                z = z0 + (bay + 0.25) * step
                self.flank(x, y, y + 1.6, z, z + step * 0.5, glass, None, 0.9)

    def wall(self, z1: float, x: float, z0: float, side: int) -> None:
        color, height = self.tint((164, 150, 132), 0.12), self.between((1.8, 2.8))
        if self.chance(0.5):
            self.hedge(z1, x + side * 2.5, z0, side, 4.0)
        self.flank(x, 0, height, z0, z1, color, WALL, 0.85)
        self.flank(x, height - 0.25, height, z0, z1, color, None, 1.1)
        for k in range(1, 5):
            self.flank(x, 0, height, z0 + (z1 - z0) * k / 5, z0 + (z1 - z0) * k / 5 + 0.25, color, None, 0.65)

    def fence(self, z1: float, x: float, z0: float, side: int) -> None:
        color, height = self.tint(self.pick(((120, 84, 56), (70, 74, 80), (200, 200, 200)))), self.between((1.3, 2.0))
        self.flank(x, 0, height, z0, z1, self.look.vegetation, FENCE, 0.75)
        posts = max(4, int((z1 - z0) / 0.8))
        for k in range(posts + 1):
            z = z0 + (z1 - z0) * k / posts
            self.bar((x, 0, z), (x, height, z), 0.16, color, None)
        for y in (0.25 * height, 0.9 * height):
            self.flank(x, y, y + 0.14, z0, z1, color, None, 0.95)

    def hedge(self, z1: float, x: float, z0: float, side: int, height: float | None = None) -> None:
        height = height or self.between((1.5, 7.0))
        self.flat(x, x + side * 40, z0, z1 + 20, self.tint(self.look.terrain), TERRAIN)
        color = self.tint(self.look.vegetation)
        for k in range(5, -1, -1):
            z = z0 + (z1 - z0) * k / 5
            r = height * self.between((0.35, 0.6))
            self.disc(x + side * r, height - r, z, r * 1.3, r, color, VEGETATION, self.between((0.8, 1.15)))
            self.face(x, x + side * 2.6 * r, 0, height - r, z, color, VEGETATION, 0.75)

    def tree(self, z: float, x: float) -> None:
        color, height = self.tint(self.look.vegetation), self.between((5, 9))
        self.bar((x, 0, z), (x, height * 0.6, z), 0.35, (88, 66, 48), VEGETATION)
        for dx, dy, r in ((0, 0, 0.30), (-0.2, -0.1, 0.2), (0.2, -0.08, 0.2), (0.04, 0.16, 0.2), (-0.1, 0.1, 0.15)):
            shade = self.between((0.8, 1.2))
            self.disc(x + dx * height, height * (0.72 + dy), z, r * height, r * height * 0.8, color, VEGETATION, shade)

    def car(self, z: float, x: float) -> None:
        color, w, h = self.tint(self.pick(self.look.vehicles)), self.between((0.82, 0.95)), self.between((1.35, 1.7))
        glass, dark = (58, 70, 84), (24, 24, 26)
        self.flat(x - w, x + w, z, z + 4.3, dark, None, 0.02)  # its shadow
        for side in (-1, 1):
            self.face(x + side * w * 0.65 - 0.13, x + side * w * 0.65 + 0.13, 0, 0.6, z, dark, CAR)
        self.box(x - w * 0.82, x + w * 0.82, 0.8, h, z + 0.7, z + 3.3, color, CAR)
        self.face(x - w * 0.72, x + w * 0.72, 0.9, h - 0.1, z + 0.7, glass, None)
        flank = x - w * 0.82 if x > 0 else x + w * 0.82
        self.flank(flank, 0.92, h - 0.12, z + 0.9, z + 3.0, glass, None, 0.8)
        self.box(x - w, x + w, 0.25, 0.9, z, z + 4.3, color, CAR)
        lamp = (220, 60, 50) if x > 0 else (240, 236, 210)
        for side in (-1, 1):
            self.face(x + side * w * 0.78 - 0.14, x + side * w * 0.78 + 0.14, 0.58, 0.76, z, lamp, None)
        self.face(x - 0.26, x + 0.26, 0.42, 0.54, z, (225, 225, 215), None)

    def truck(self, z: float, x: float) -> None:
        color, cargo = self.tint(self.pick(self.look.vehicles)), self.tint(self.pick(((214, 210, 200), (96, 120, 150), (178, 142, 96))))
        dark, h = (28, 28, 30), self.between((3.1, 3.9))
        for k in (0.3, 3.0, 6.5):
            self.box(x - 1.15, x + 1.15, 0, 0.95, z + k, z + k + 0.9, dark, TRUCK)
        self.box(x - 1.1, x + 1.1, 0.6, 2.6, z + 6.6, z + 8.4, color, TRUCK)
        self.box(x - 1.25, x + 1.25, 0.95, h, z, z + 6.4, cargo, TRUCK)
        self.bar((x, 1.0, z), (x, h, z), 0.06, dark, None)
        self.face(x - 1.25, x + 1.25, 0.85, 1.05, z, (190, 60, 40), None)
        if x < 0:  # oncoming: the cab is in front
            self.box(x - 1.15, x + 1.15, 0.5, 2.7, z - 1.6, z - 0.1, color, TRUCK)
            self.face(x - 1.0, x + 1.0, 1.6, 2.4, z - 1.6, (52, 62, 76), None)
            self.face(x - 1.15, x + 1.15, 0.3, 0.6, z - 1.6, dark, TRUCK)

    def bus(self, z: float, x: float) -> None:
        color, glass = self.tint(self.pick(((206, 168, 40), (186, 48, 44), (60, 110, 150)))), (48, 60, 72)
        for k in (1.5, 8.0):
            self.box(x - 1.2, x + 1.2, 0, 0.8, z + k, z + k + 1, (24, 24, 26), BUS)
        self.box(x - 1.28, x + 1.28, 0.35, 3.0, z, z + 11, color, BUS)
        flank = x - 1.28 if x > 0 else x + 1.28
        self.flank(flank, 1.4, 2.45, z + 0.4, z + 10.6, glass, None, 0.9)
        for k in range(1, 7):
            self.flank(flank, 1.4, 2.45, z + 0.4 + 1.6 * k, z + 0.6 + 1.6 * k, color, None, 0.72)
        self.face(x - 1.12, x + 1.12, 1.25, 2.5, z, glass, None)
        self.face(x - 0.8, x + 0.8, 2.6, 2.9, z, (250, 190, 60), None)
        for side in (-1, 1):
            self.face(x + side * 0.95 - 0.15, x + side * 0.95 + 0.15, 0.6, 0.85, z, (240, 230, 200), None)

    def train(self, z: float, x: float) -> None:
        color, glass = self.tint(self.pick(((222, 222, 214), (60, 130, 120), (190, 190, 200)))), (40, 50, 62)
        for side in (-1, 1):
            self.flat(x + side * 0.72 - 0.06, x + side * 0.72 + 0.06, 2, 90, (70, 66, 64), None)
        self.box(x - 1.3, x + 1.3, 0.25, 3.5, z, z + 30, color, TRAIN)
        flank = x - 1.3 if x > 0 else x + 1.3
        self.flank(flank, 1.5, 2.6, z + 1, z + 29, glass, None, 0.9)
        self.flank(flank, 0.6, 1.1, z, z + 30, (190, 40, 50), None, 0.8)
        self.face(x - 1.3, x + 1.3, 0.6, 1.1, z, (190, 40, 50), None)
        self.polygon([self.at(x - 1.1, 1.5, z), self.at(x - 0.8, 2.9, z), self.at(x + 0.8, 2.9, z), self.at(x + 1.1, 1.5, z)],
                     glass, z, None)  # fmt: skip
        self.disc(x, 3.15, z, 0.16, 0.16, (250, 245, 220), None)
        self.bar((x - 0.5, 3.5, z + 2), (x + 0.3, 4.6, z + 2), 0.07, (40, 40, 44), TRAIN)

    def person(self, z: float, x: float, label: int = PERSON, foot: float = 0.0, legs: bool = True) -> None:
        h = self.between((1.5, 1.9)) if legs else 1.45
        shirt = self.tint(self.pick(((176, 60, 52), (58, 82, 140), (214, 206, 190), (52, 60, 52), (186, 150, 60))), 0.1)
        trousers, skin = self.tint(self.pick(((44, 48, 70), (84, 74, 62), (30, 30, 32)))), self.tint((196, 150, 122), 0.15)
        if legs:
            stride = self.between((0.05, 0.25))
            for side in (-1, 1):
                self.bar((x + side * 0.06, 0.48 * h, z), (x + side * stride, 0, z), 0.17, trousers, label)
        self.polygon([self.at(x - 0.24, foot + 0.83 * h, z), self.at(x + 0.24, foot + 0.83 * h, z),
                      self.at(x + 0.17, foot + 0.45 * h, z), self.at(x - 0.17, foot + 0.45 * h, z)], shirt, z, label)  # fmt: skip
        for side in (-1, 1):
            self.bar((x + side * 0.25, foot + 0.8 * h, z), (x + side * 0.32, foot + 0.5 * h, z), 0.1, shirt, label, 0.85)
        self.disc(x, foot + 0.92 * h, z, 0.13, 0.15, skin, label)

    def bicycle(self, z: float, x: float, ridden: bool) -> None:
        color, across = self.tint((40, 40, 44) if self.chance(0.6) else (170, 50, 50)), self.chance(0.6)
        if across:
            for side in (-1, 1):
                self.disc(x + side * 0.55, 0.36, z, 0.36, 0.36, color, BICYCLE, hole=0.72)
            joints = ((-0.55, 0.36), (-0.15, 0.85), (0.4, 0.85), (0.55, 0.36), (0.0, 0.36), (-0.15, 0.85))
            for a, b in zip(joints, joints[1:], strict=False):
                self.bar((x + a[0], a[1], z), (x + b[0], b[1], z), 0.09, color, BICYCLE)
            self.bar((x + 0.4, 0.85, z), (x + 0.45, 1.1, z), 0.08, color, BICYCLE)
        else:
            self.disc(x, 0.36, z, 0.09, 0.36, color, BICYCLE)
            self.bar((x, 0.4, z), (x, 1.0, z), 0.12, color, BICYCLE)
            self.bar((x - 0.3, 1.02, z), (x + 0.3, 1.02, z), 0.08, color, BICYCLE)
        if ridden:
            self.rider(z, x - (0.1 if across else 0))

    def motorcycle(self, z: float, x: float, ridden: bool) -> None:
        color, across = self.tint(self.pick(self.look.vehicles)), self.chance(0.5)
        dark = (26, 26, 28)
        if across:
            for side in (-1, 1):
                self.disc(x + side * 0.68, 0.33, z, 0.33, 0.33, dark, MOTORCYCLE)
                self.disc(x + side * 0.68, 0.33, z, 0.14, 0.14, (150, 150, 150), None)
            self.polygon([self.at(x - 0.75, 0.8, z), self.at(x + 0.35, 1.0, z), self.at(x + 0.6, 0.6, z),
                          self.at(x + 0.2, 0.28, z), self.at(x - 0.45, 0.3, z)], color, z, MOTORCYCLE)  # fmt: skip
            self.bar((x + 0.66, 0.4, z), (x + 0.42, 1.1, z), 0.1, dark, MOTORCYCLE)
        else:
            self.face(x - 0.12, x + 0.12, 0, 0.62, z, dark, MOTORCYCLE)
            self.face(x - 0.3, x + 0.3, 0.5, 0.95, z, color, MOTORCYCLE)
            self.bar((x - 0.42, 1.08, z), (x + 0.42, 1.08, z), 0.1, dark, MOTORCYCLE)
            self.disc(x, 0.82, z, 0.1, 0.1, (250, 90, 70), None)
        if ridden:
            self.rider(z, x - (0.2 if across else 0))

    def rider(self, z: float, x: float) -> None:
        self.bar((x, 0.9, z), (x + 0.14, 0.35, z), 0.2, (44, 48, 66), RIDER)
        self.person(z, x, RIDER, 0.3, legs=False)
        self.disc(x, 0.3 + 1.38, z, 0.17, 0.12, self.tint(self.pick(((220, 60, 50), (230, 230, 230), (40, 40, 46)))), RIDER)

    def pole(self, z: float, x: float, height: float = 0.0) -> None:
        lamp = not height
        height = height or self.between((5.0, 8.0))
        color = self.tint((112, 114, 112), 0.12)
        self.bar((x, 0, z), (x, height, z), 0.16, color, POLE)
        if lamp and self.chance(0.6):
            self.bar((x, height, z), (x - (1.4 if x > 0 else -1.4), height + 0.2, z), 0.14, color, POLE)

    def traffic_light(self, z: float, x: float) -> None:
        height = self.between((3.0, 4.2))
        self.pole(z, x, height)
        self.face(x - 0.24, x + 0.24, height - 1.0, height + 0.25, z, (30, 34, 32), LIGHT)
        on = int(self.rng.integers(3))
        for k, lamp in enumerate(((240, 50, 40), (250, 190, 50), (60, 220, 110))):
            self.disc(x, height + 0.03 - 0.4 * k, z, 0.15, 0.15, lamp, LIGHT, 1.0 if k == on else 0.3)

    def traffic_sign(self, z: float, x: float) -> None:
        height, r = self.between((2.1, 3.0)), self.between((0.32, 0.5))
        self.pole(z, x, height)
        kind = int(self.rng.integers(4))
        if kind == 0:  # no entry, limits
            self.disc(x, height, z, r, r, (206, 36, 40), SIGN)
            self.disc(x, height, z, r * 0.65, r * 0.65, (240, 240, 236), None)
        elif kind == 1:  # warning
            for k, color in ((1.2, (206, 36, 40)), (0.7, (240, 240, 236))):
                points = [self.at(x - k * r, height - 0.6 * k * r, z), self.at(x + k * r, height - 0.6 * k * r, z),
                          self.at(x, height + 1.1 * k * r, z)]  # fmt: skip
                self.polygon(points, color, z, SIGN)
        elif kind == 2:  # directions
            self.face(x - 1.6 * r, x + 1.6 * r, height - 0.7 * r, height + 0.7 * r, z, (36, 84, 176), SIGN)
            self.face(x - 1.2 * r, x + 1.2 * r, height - 0.12 * r, height + 0.12 * r, z, (236, 236, 236), None)
        else:  # priority
            points = [self.at(x + dx * r * 1.1, height + dy * r * 1.1, z) for dx, dy in ((0, -1), (1, 0), (0, 1), (-1, 0))]
            self.polygon(points, (244, 200, 40), z, SIGN)


# How much each class's surface is textured, from road to bicycle.
_ROUGHNESS = np.array([0.7, 1.0, 0.9, 1.3, 1.2, 0.3, 0.2, 0.2, 2.6, 2.2, 0.15, 0.5, 0.5, 0.3, 0.4, 0.3, 0.3, 0.4, 0.4])


def _value_noise(rng: np.random.Generator, rows: int, columns: int, height: int, width: int) -> np.ndarray:
    """``(height, width)`` float64 smooth noise, 0 .. 1: a coarse grid of random values, enlarged."""
    grid = Image.fromarray(rng.integers(0, 256, (rows, columns), dtype=np.uint8))
    return np.asarray(grid.resize((width, height), Image.Resampling.BILINEAR)) / 255.0


def _surface(rng: np.random.Generator, image: np.ndarray, labels: np.ndarray, look: Domain) -> np.ndarray:
    height, width = labels.shape
    fine = _value_noise(rng, 64, 128, height, width) - 0.5
    coarse = _value_noise(rng, 8, 16, height, width) - 0.5
    texture = (fine * 1.6 + coarse) * _ROUGHNESS[labels] * look.texture
    return (image + texture[..., None]).clip(0, 255).astype(np.uint8)


def _photograph(rng: np.random.Generator, image: np.ndarray, severity: float) -> np.ndarray:
    """What the camera makes of a scene: optics, exposure, colour cast, vignette and noise, by severity."""

    def spread(most: float) -> float:
        return (2 * float(rng.random()) - 1) * most

    height, width = image.shape[:2]
    picture = Image.fromarray(image)
    sigma = (0.2 + 1.3 * severity * float(rng.random())) * height / 128
    picture = picture.filter(ImageFilter.GaussianBlur(sigma))
    pixels = np.asarray(picture, np.float64)
    gain = 1 + spread(0.1 + 0.5 * severity) - 0.15 * severity
    cast = np.array([1 + spread(0.03 + 0.17 * severity), 1.0, 1 + spread(0.03 + 0.17 * severity)])
    grey = pixels.mean(axis=2, keepdims=True)
    faded = float(rng.random()) * 0.5 * severity
    pixels = pixels * (1 - faded) + grey * faded
    rows = (np.arange(height) * 2 + 1 - height)[:, None] / height
    columns = (np.arange(width) * 2 + 1 - width)[None] / width
    vignette = 1 - (0.08 + 0.22 * severity) * (rows * rows + columns * columns) / 2
    pixels = pixels * vignette[..., None] * (gain * cast)
    # The sum of three uniform draws is close to a normal one, and exact on every machine.
    grain = rng.integers(-128, 128, (3, height, width, 3), dtype=np.int16).sum(axis=0) / 128.0
    return (pixels + grain * (1.5 + 11 * severity * float(rng.random()))).clip(0, 255).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write MiniCity scenes as PNG files.")
    parser.add_argument("--domain", choices=DOMAINS, required=True)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--count", type=int, default=20, help="number of scenes")
    parser.add_argument("--seed", type=int, default=0, help="which world")
    parser.add_argument("--size", type=int, nargs=2, default=(128, 256), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--images", type=Path, required=True, help="folder for the images")
    parser.add_argument("--labels", type=Path, help="folder for label maps of train ids")
    args = parser.parse_args()
    for folder in filter(None, (args.images, args.labels)):
        folder.mkdir(parents=True, exist_ok=True)
    for index in range(args.count):
        image, labels = render(index, args.domain, args.split, args.seed, tuple(args.size))
        Image.fromarray(image).save(args.images / f"{index:04d}.png")
        if args.labels:
            Image.fromarray(labels).save(args.labels / f"{index:04d}.png")


if __name__ == "__main__":
    main()

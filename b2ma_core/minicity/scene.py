"""MiniCity's streets: what stands where, and how each thing is drawn."""

import numpy as np
from PIL import Image

from b2ma_core.minicity.canvas import Canvas, value_noise
from b2ma_core.minicity.looks import (
    BICYCLE,
    BUILDING,
    BUS,
    CAR,
    FENCE,
    LIGHT,
    MOTORCYCLE,
    PERSON,
    POLE,
    RIDER,
    ROAD,
    SIDEWALK,
    SIGN,
    TERRAIN,
    TRAIN,
    TRUCK,
    VEGETATION,
    WALL,
)  # fmt: skip

DARK, GLASS = (26, 26, 28), (52, 64, 78)


class Scene(Canvas):
    """A street and all that stands on and along it."""

    # --- the street
    def draw_ground(self) -> None:
        look, near, far = self.look, 0.6, 600.0
        outside = TERRAIN if self.chance(0.5) else SIDEWALK
        road, walk, mark = self.tint(look.road), self.tint(look.sidewalk), self.tint(look.marking)
        self.flat(-300, 300, near, far, self.tint(look.terrain) if outside == TERRAIN else walk, outside)
        self.flat(-self.walk, self.walk, near, far, walk, SIDEWALK)
        self.flat(-self.road - 0.18, self.road + 0.18, near, far, walk, SIDEWALK, shade=0.75)  # the kerb
        self.flat(-self.road, self.road, near, far, road, ROAD)
        for _ in range(int(self.rng.integers(4))):  # patches of newer tar
            x, z, shade = self.between(-self.road, self.road - 1.5), self.between(3, 25), self.between(0.85, 1.12)
            self.flat(x, x + 1.5, z, z + self.between(2, 12), road, None, shade=shade)
        for k in range(12):
            self.flat(-0.09, 0.09, 3 + 6 * k, 6 + 6 * k, mark, None)
        if self.chance(0.3):  # a crossing
            z = self.between(7, 14)
            for k in range(int(self.road * 2)):
                self.flat(k - self.road + 0.25, k - self.road + 0.75, z, z + 3, mark, None)
        self._haze_and_sky()

    def _haze_and_sky(self) -> None:
        """Fade the ground by the depth of its rows, and put the sky above it."""
        top = int(self.horizon) + 1
        z = self.focal * self.eye / (np.arange(top, self.height) - self.horizon + 0.5)
        pixels = np.asarray(self.image, np.float64).copy()
        clear = self.clear(z)[:, None, None]
        pixels[top:] = pixels[top:] * clear + np.array(self.fog_color) * (1 - clear)
        zenith, low = (np.array(self.seen(self.tint(c, 0.05), 60)) for c in self.look.sky)
        ramp = (np.arange(top) / top)[:, None, None]
        cloud = value_noise(self.rng, 4, 7, top, self.width)[..., None]
        cover = np.clip((cloud - self.between(0.3, 0.9)) * 3, 0, 1) * self.clear(60)
        pixels[:top] = (zenith * (1 - ramp) + low * ramp) * (1 - cover) + 240 * self.light * cover
        self.image.paste(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))

    def draw_objects(self) -> None:
        """Scatter everything over the street and draw it from far to near."""
        things = []  # depth, function, arguments

        def put(draw, x, nearest, farthest, half=0.0, length=0.0):
            """Put a thing at a depth where no other stands on the road, or give up."""
            for _ in range(5):
                z = self.between(nearest, farthest)
                spot = (x - half, x + half, z, z + length)
                if not half or not any(_overlap(spot, other) for other in self.taken):
                    self.taken += [spot] if half else []
                    things.append((z, draw, (x,)))
                    return

        for side in (-1, 1):
            self._line_street(side, things)
        count = {name: int(self.rng.poisson(mean)) for name, mean in self.look.counts.items()}
        if count["train"]:
            put(self.train, self.side() * (self.road - 1.6), 9, 28, 1.4, 30)
        for draw, half, length in ((self.bus, 1.4, 13), (self.truck, 1.4, 11), (self.car, 1.0, 6)):
            for _ in range(count[draw.__name__]):
                limits = (7, 18) if self.chance(0.35) else (14, 60)
                put(draw, self.side() * (0.5 * self.road + self.between(-0.4, 0.4)), *limits, half, length)
        for _ in range(count["parked"]):
            put(self.car, self.side() * (self.road - 1.0), 5, 50, 1.0, 5)
        for _ in range(count["motorcycle"]):
            put(self.motorcycle, self.side() * self.between(0.8, self.road), 5, 24, 0.5, 2)
        for _ in range(count["bicycle"]):
            put(self.bicycle, self.side() * self.between(1.0, self.road), 5, 24, 0.5, 2)
        for _ in range(count["standing_bicycle"]):
            put(self.standing_bicycle, self._on_walk(), 5, 16)
        for _ in range(count["person"]):
            limits = (5, 18) if self.chance(0.65) else (15, 40)
            if self.chance(0.15):
                put(self.person, self.between(-self.road, self.road), *limits, 0.4, 1)
            else:
                put(self.person, self._on_walk(), *limits)
        for draw in (self.pole, self.traffic_light, self.traffic_sign):
            for _ in range(count[draw.__name__]):
                put(draw, self.side() * (self.road + 0.5), 5, 35)
        for _ in range(count["tree"]):
            put(self.tree, self.side() * (self.walk - 0.8 if self.chance(0.6) else self.walk + 4), 7, 60)
        for z, draw, args in sorted(things, key=lambda thing: -thing[0]):
            draw(z, *args)

    def _on_walk(self) -> float:
        return self.side() * self.between(self.road + 0.4, self.walk - 0.2)

    def _line_street(self, side: int, things: list) -> None:
        """Buildings with gaps, walls, fences and hedges along one side."""
        z, open_country, counts = self.between(2, 6), self.chance(0.15), self.look.counts
        while z < 110:
            length, x = self.between(8, 22), side * (self.walk + self.between(0.2, 2.5))
            roll, draw = float(self.rng.random()), self.building
            if roll < counts["wall"]:
                draw = self.wall
            elif roll < counts["wall"] + counts["fence"]:
                draw = self.fence
            elif roll < 0.32 or (open_country and roll < 0.85):
                draw = self.hedge
            # Sorted by the far end: what stands before it is drawn after it.
            things.append((z + length, draw, (x, z, side)))
            z += length + (self.between(1, 6) if self.chance(0.4) else 0)

    # --- along the street, from z0 to z1
    def building(self, z1: float, x: float, z0: float, side: int) -> None:
        color, height = self.tinted(self.look.buildings), self.between(6, 22)
        glass = self.tint((70, 84, 100) if self.chance(0.7) else (190, 180, 130), 0.1)
        self.face(x, x + side * 30, 0, height, z0, color, BUILDING, 0.95)
        self.flank(x, 0, height, z0, z1, color, BUILDING, 0.78)
        bays = max(2, int((z1 - z0) / 3))
        step = (z1 - z0) / bays
        if self.focal * 1.4 * step / (z0 + step) ** 2 < 0.35:  # windows under a pixel
            return
        for floor in range(int(height / 3.2)):
            y = 1.2 + floor * 3.2
            for bay in range(bays):
                z = z0 + (bay + 0.25) * step
                self.flank(x, y, y + 1.6, z, z + step * 0.5, glass, None, 0.9)

    def wall(self, z1: float, x: float, z0: float, side: int) -> None:
        color, height = self.tint(self.look.wall), self.between(1.8, 2.8)
        if self.chance(0.5):
            self.hedge(z1, x + side * 2.5, z0, side, 4.0)
        self.flank(x, 0, height, z0, z1, color, WALL, 0.85)
        self.flank(x, height - 0.25, height, z0, z1, color, None, 1.1)
        for k in range(1, 5):
            z = z0 + (z1 - z0) * k / 5
            self.flank(x, 0, height, z, z + 0.25, color, None, 0.65)

    def fence(self, z1: float, x: float, z0: float, side: int) -> None:
        color, height = self.tinted(self.look.fences), self.between(1.3, 2.0)
        self.flank(x, 0, height, z0, z1, self.look.vegetation, FENCE, 0.75)
        posts = max(4, int((z1 - z0) / 0.8))
        for k in range(posts + 1):
            self.bar(x, z0 + (z1 - z0) * k / posts, (0, 0), (0, height), 0.16, color, None)
        for y in (0.25 * height, 0.9 * height):
            self.flank(x, y, y + 0.14, z0, z1, color, None, 0.95)

    def hedge(self, z1: float, x: float, z0: float, side: int, height: float | None = None) -> None:
        height = height or self.between(1.5, 7.0)
        self.flat(x, x + side * 40, z0, z1 + 20, self.tint(self.look.terrain), TERRAIN)
        color = self.tint(self.look.vegetation)
        for k in range(5, -1, -1):
            z, r = z0 + (z1 - z0) * k / 5, height * self.between(0.35, 0.6)
            self.disc(x + side * r, height - r, z, r * 1.3, r, color, VEGETATION, self.between(0.8, 1.15))
            self.face(x, x + side * 2.6 * r, 0, height - r, z, color, VEGETATION, 0.75)

    # --- things at depth z
    def tree(self, z: float, x: float) -> None:
        color, h = self.tint(self.look.vegetation), self.between(5, 9)
        self.bar(x, z, (0, 0), (0, h * 0.6), 0.35, (88, 66, 48), VEGETATION)
        for dx, dy, r in ((0, 0, 0.30), (-0.2, -0.1, 0.2), (0.2, -0.08, 0.2), (0.04, 0.16, 0.2), (-0.1, 0.1, 0.15)):
            shade = self.between(0.8, 1.2)
            self.disc(x + dx * h, h * (0.72 + dy), z, r * h, r * h * 0.8, color, VEGETATION, shade)

    def car(self, z: float, x: float) -> None:
        color, w, h = self.tinted(self.look.vehicles), self.between(0.82, 0.95), self.between(1.35, 1.7)
        inner = self._inner(x, w * 0.82)
        self.flat(x - w, x + w, z, z + 4.3, DARK, None, 0.02)  # its shadow
        self.pair(x, w * 0.65, 0.13, 0, 0.6, z, DARK, CAR)
        self.box(x, w * 0.82, 0.8, h, z + 0.7, z + 3.3, color, CAR)
        self.face(x - w * 0.72, x + w * 0.72, 0.9, h - 0.1, z + 0.7, GLASS, None)
        self.flank(inner, 0.92, h - 0.12, z + 0.9, z + 3.0, GLASS, None)
        self.box(x, w, 0.25, 0.9, z, z + 4.3, color, CAR)
        self.pair(x, w * 0.78, 0.14, 0.58, 0.76, z, (220, 60, 50) if x > 0 else (240, 236, 210))
        self.face(x - 0.26, x + 0.26, 0.42, 0.54, z, (225, 225, 215), None)

    def truck(self, z: float, x: float) -> None:
        color, cargo, h = self.tinted(self.look.vehicles), self.tinted(self.look.cargos), self.between(3.1, 3.9)
        back = z if x > 0 else z + 1.8  # an oncoming one shows its cab
        for k in (0.3, 3.0, 6.5):
            self.box(x, 1.15, 0, 0.95, back + k, back + k + 0.9, DARK, TRUCK)
        if x > 0:
            self.box(x, 1.1, 0.6, 2.6, z + 6.6, z + 8.4, color, TRUCK)
        self.box(x, 1.25, 0.95, h, back, back + 6.4, cargo, TRUCK)
        self.bar(x, back, (0, 1.0), (0, h), 0.06, DARK, None)
        self.face(x - 1.25, x + 1.25, 0.85, 1.05, back, (190, 60, 40), None)
        if x < 0:
            self.box(x, 1.15, 0.5, 2.7, z, z + 1.6, color, TRUCK)
            self.face(x - 1.0, x + 1.0, 1.6, 2.4, z, GLASS, None)
            self.face(x - 1.15, x + 1.15, 0.3, 0.6, z, DARK, TRUCK)
            self.pair(x, 0.85, 0.15, 0.7, 0.9, z, (240, 236, 210))

    def bus(self, z: float, x: float) -> None:
        color, inner = self.tinted(self.look.buses), self._inner(x, 1.28)
        for k in (1.5, 8.0):
            self.box(x, 1.2, 0, 0.8, z + k, z + k + 1, DARK, BUS)
        self.box(x, 1.28, 0.35, 3.0, z, z + 11, color, BUS)
        self.flank(inner, 1.4, 2.45, z + 0.4, z + 10.6, GLASS, None, 0.9)
        for k in range(1, 7):
            self.flank(inner, 1.4, 2.45, z + 0.4 + 1.6 * k, z + 0.6 + 1.6 * k, color, None, 0.72)
        self.face(x - 1.12, x + 1.12, 1.25, 2.5, z, GLASS, None)
        self.face(x - 0.8, x + 0.8, 2.6, 2.9, z, (250, 190, 60), None)
        self.pair(x, 0.95, 0.15, 0.6, 0.85, z, (240, 230, 200))

    def train(self, z: float, x: float) -> None:
        color, stripe, inner = self.tinted(self.look.trains), (190, 40, 50), self._inner(x, 1.3)
        for rail in (x - 0.72, x + 0.72):
            self.flat(rail - 0.06, rail + 0.06, 2, 90, (70, 66, 64), None)
        self.box(x, 1.3, 0.25, 3.5, z, z + 30, color, TRAIN)
        self.flank(inner, 1.5, 2.6, z + 1, z + 29, GLASS, None, 0.9)
        self.flank(inner, 0.6, 1.1, z, z + 30, stripe, None)
        self.face(x - 1.3, x + 1.3, 0.6, 1.1, z, stripe, None)
        self.outline(x, z, ((-1.1, 1.5), (-0.8, 2.9), (0.8, 2.9), (1.1, 1.5)), GLASS, None)
        self.disc(x, 3.15, z, 0.16, 0.16, (250, 245, 220), None)
        self.bar(x, z + 2, (-0.5, 3.5), (0.3, 4.6), 0.07, DARK, TRAIN)

    def person(self, z: float, x: float) -> None:
        h, stride = self.between(1.5, 1.9), self.between(0.05, 0.25)
        trousers = self.tinted(((44, 48, 70), (84, 74, 62), (30, 30, 32)))
        for side in (-1, 1):
            self.bar(x, z, (side * 0.06, 0.48 * h), (side * stride, 0), 0.19, trousers, PERSON)
        self._upper_body(z, x, 0.0, h, PERSON)

    def _upper_body(self, z: float, x: float, foot: float, h: float, label: int) -> None:
        shirt, skin = self.tinted(self.look.shirts), self.tint((196, 150, 122), 0.15)
        shoulder, hip = foot + 0.83 * h, foot + 0.45 * h
        self.outline(x, z, ((-0.24, shoulder), (0.24, shoulder), (0.17, hip), (-0.17, hip)), shirt, label)
        for side in (-1, 1):
            self.bar(x, z, (side * 0.25, shoulder - 0.05), (side * 0.32, hip + 0.08), 0.11, shirt, label, 0.85)
        self.disc(x, foot + 0.92 * h, z, 0.14, 0.16, skin, label)

    def rider(self, z: float, x: float) -> None:
        """On a bicycle or a motorcycle: a bent leg, a trunk and a helmet."""
        self.bar(x, z, (0, 0.9), (0.14, 0.35), 0.2, (44, 48, 66), RIDER)
        self._upper_body(z, x, 0.3, 1.45, RIDER)
        helmet = self.tinted(((220, 60, 50), (230, 230, 230), (40, 40, 46)))
        self.disc(x, 1.68, z, 0.17, 0.12, helmet, RIDER)

    def standing_bicycle(self, z: float, x: float) -> None:
        self.bicycle(z, x, ridden=False)

    def bicycle(self, z: float, x: float, ridden: bool = True) -> None:
        color, across = self.tint((40, 40, 44) if self.chance(0.6) else (170, 50, 50)), self.chance(0.6)
        if across:
            for dx in (-0.55, 0.55):
                self.disc(x + dx, 0.36, z, 0.36, 0.36, color, BICYCLE, ring=True)
            joints = ((-0.55, 0.36), (-0.15, 0.85), (0.4, 0.85), (0.55, 0.36), (0.0, 0.36), (-0.15, 0.85))
            for a, b in zip(joints, joints[1:], strict=False):
                self.bar(x, z, a, b, 0.09, color, BICYCLE)
            self.bar(x, z, (0.4, 0.85), (0.45, 1.1), 0.08, color, BICYCLE)
        else:
            self.disc(x, 0.36, z, 0.09, 0.36, color, BICYCLE)
            self.bar(x, z, (0, 0.4), (0, 1.0), 0.12, color, BICYCLE)
            self.bar(x, z, (-0.3, 1.02), (0.3, 1.02), 0.08, color, BICYCLE)
        if ridden:
            self.rider(z, x - 0.1 * across)

    def motorcycle(self, z: float, x: float) -> None:
        color, across = self.tinted(self.look.vehicles), self.chance(0.5)
        if across:
            for dx in (-0.68, 0.68):
                self.disc(x + dx, 0.33, z, 0.33, 0.33, DARK, MOTORCYCLE)
                self.disc(x + dx, 0.33, z, 0.14, 0.14, (150, 150, 150), None)
            body = ((-0.75, 0.8), (0.35, 1.0), (0.6, 0.6), (0.2, 0.28), (-0.45, 0.3))
            self.outline(x, z, body, color, MOTORCYCLE)
            self.bar(x, z, (0.66, 0.4), (0.42, 1.1), 0.1, DARK, MOTORCYCLE)
        else:
            self.face(x - 0.13, x + 0.13, 0, 0.62, z, DARK, MOTORCYCLE)
            self.face(x - 0.32, x + 0.32, 0.45, 0.95, z, color, MOTORCYCLE)
            self.bar(x, z, (-0.42, 1.08), (0.42, 1.08), 0.1, DARK, MOTORCYCLE)
            self.disc(x, 0.82, z, 0.1, 0.1, (250, 90, 70), None)
        if self.chance(0.7):
            self.rider(z, x - 0.2 * across)

    def pole(self, z: float, x: float) -> None:
        height = self._post(z, x, self.between(5.0, 8.0))
        if self.chance(0.6):  # a street lamp
            self.bar(x, z, (0, height), (-1.4 if x > 0 else 1.4, height + 0.2), 0.14, self.look.metal, POLE)

    def _post(self, z: float, x: float, height: float) -> float:
        self.bar(x, z, (0, 0), (0, height), 0.18, self.tint(self.look.metal, 0.12), POLE)
        return height

    def traffic_light(self, z: float, x: float) -> None:
        height, on = self._post(z, x, self.between(3.0, 4.2)), int(self.rng.integers(3))
        self.face(x - 0.24, x + 0.24, height - 1.0, height + 0.25, z, DARK, LIGHT)
        for k, lamp in enumerate(((240, 50, 40), (250, 190, 50), (60, 220, 110))):
            self.disc(x, height + 0.03 - 0.4 * k, z, 0.15, 0.15, lamp, None, 1.0 if k == on else 0.3)

    def traffic_sign(self, z: float, x: float) -> None:
        y, r = self._post(z, x, self.between(2.1, 3.0)), self.between(0.32, 0.5)
        red, white = (206, 36, 40), (240, 240, 236)
        kind = int(self.rng.integers(4))
        if kind == 0:  # no entry, limits
            self.disc(x, y, z, r, r, red, SIGN)
            self.disc(x, y, z, r * 0.65, r * 0.65, white, None)
        elif kind == 1:  # warning
            for k, color in ((1.2 * r, red), (0.7 * r, white)):
                self.outline(x, z, ((-k, y - 0.6 * k), (k, y - 0.6 * k), (0, y + 1.1 * k)), color, SIGN)
        elif kind == 2:  # directions
            self.face(x - 1.6 * r, x + 1.6 * r, y - 0.7 * r, y + 0.7 * r, z, (36, 84, 176), SIGN)
            self.face(x - 1.2 * r, x + 1.2 * r, y - 0.12 * r, y + 0.12 * r, z, white, None)
        else:  # priority
            k = 1.1 * r
            self.outline(x, z, ((0, y - k), (k, y), (0, y + k), (-k, y)), (244, 200, 40), SIGN)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]

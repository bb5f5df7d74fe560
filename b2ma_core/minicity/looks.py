"""What MiniCity is painted with: the classes' ids and the looks of its two domains."""

from dataclasses import dataclass

(ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN, SKY, PERSON, RIDER, CAR, TRUCK, BUS,
 TRAIN, MOTORCYCLE, BICYCLE) = range(19)  # fmt: skip

Color = tuple[float, ...]


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
    buses: tuple[Color, ...]
    cargos: tuple[Color, ...]
    trains: tuple[Color, ...]
    shirts: tuple[Color, ...]
    fences: tuple[Color, ...]
    wall: Color
    metal: Color
    tint_spread: float  # how far a scene's materials stray from the palette
    texture: float  # amplitude of surface texture
    counts: dict[str, float]  # mean number of objects in a scene; of wall and fence the share of a street's side


GAME = Domain(
    camera_height=(1.5, 1.9), focal=(0.85, 1.0), horizon=(0.42, 0.48), road_half_width=(4.5, 7.0),
    road=(84, 84, 92), sidewalk=(158, 146, 140), marking=(236, 236, 225), terrain=(122, 158, 62),
    vegetation=(46, 116, 42), sky=((84, 144, 226), (190, 216, 240)),
    buildings=((168, 120, 96), (190, 170, 140), (140, 140, 152), (176, 92, 72), (112, 122, 140)),
    vehicles=((196, 36, 36), (36, 66, 170), (228, 228, 228), (34, 34, 40), (222, 180, 40), (60, 130, 80)),
    buses=((206, 168, 40), (186, 48, 44), (60, 110, 150)),
    cargos=((214, 210, 200), (96, 120, 150), (178, 142, 96)),
    trains=((222, 222, 214), (60, 130, 120), (190, 190, 200)),
    shirts=((176, 60, 52), (58, 82, 140), (214, 206, 190), (52, 60, 52), (186, 150, 60)),
    fences=((120, 84, 56), (70, 74, 80), (200, 200, 200)), wall=(164, 150, 132), metal=(112, 114, 112),
    tint_spread=0.08, texture=9.0,
    counts={"car": 5.0, "parked": 4.5, "truck": 0.6, "bus": 0.55, "train": 0.4, "person": 4.5, "bicycle": 1.1,
            "motorcycle": 1.0, "standing_bicycle": 0.8, "tree": 5.5, "pole": 3.5, "traffic_light": 1.9,
            "traffic_sign": 2.4, "wall": 0.12, "fence": 0.13},
)  # fmt: skip
CAMERA = Domain(
    camera_height=(1.2, 1.5), focal=(0.95, 1.15), horizon=(0.40, 0.50), road_half_width=(3.5, 6.0),
    road=(104, 101, 98), sidewalk=(150, 144, 138), marking=(214, 212, 204), terrain=(116, 132, 78),
    vegetation=(62, 92, 52), sky=((150, 176, 208), (214, 220, 224)),
    buildings=((150, 132, 116), (178, 166, 150), (126, 124, 124), (150, 104, 88), (196, 188, 172)),
    vehicles=((140, 42, 40), (52, 70, 116), (206, 206, 204), (44, 44, 48), (128, 130, 134), (92, 104, 92)),
    buses=((206, 168, 40), (196, 200, 204), (84, 124, 84), (70, 92, 140)),
    cargos=((206, 206, 202), (88, 98, 92), (150, 62, 50), (58, 76, 118)),
    trains=((216, 214, 206), (200, 176, 60), (70, 100, 150), (120, 44, 46)),
    shirts=((60, 60, 66), (52, 66, 96), (176, 170, 160), (110, 96, 80), (140, 56, 50)),
    fences=((104, 88, 74), (60, 66, 64), (168, 168, 166)), wall=(142, 134, 124), metal=(96, 100, 100),
    tint_spread=0.15, texture=7.0,
    counts={"car": 4.0, "parked": 4.5, "truck": 0.6, "bus": 0.5, "train": 0.4, "person": 4.5, "bicycle": 1.2,
            "motorcycle": 0.7, "standing_bicycle": 0.7, "tree": 6.0, "pole": 4.0, "traffic_light": 1.9,
            "traffic_sign": 2.6, "wall": 0.12, "fence": 0.12},
)  # fmt: skip

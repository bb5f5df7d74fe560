"""MiniCity, version 1: procedural street scenes with the 19 Cityscapes classes, in two domains of one world.

"game" is a rendered look: saturated palette, clean light, a high camera. "camera" is a dashcam in the same world:
other materials and object statistics, a lower camera, and conditions that vary from clear to foggy, dark, badly
exposed, noisy or blurred. A scene is a pure function of (seed, domain, split, index); arithmetic on pixels keeps to
operations that every processor rounds alike, so that the frozen hashes hold.

A scene stands in metres: x to the right, y up, z ahead of the camera. ``python -m b2ma_core.minicity`` writes PNGs.
"""

import numpy as np
from PIL import Image, ImageFilter

from b2ma_core.minicity.canvas import value_noise
from b2ma_core.minicity.looks import CAMERA, GAME, Domain
from b2ma_core.minicity.scene import Scene

VERSION = 1
DOMAINS = ("game", "camera")
SPLITS = ("train", "val", "test")


# How much each class's surface is textured, from road to bicycle.
_ROUGHNESS = np.array([0.7, 1.0, 0.9, 1.3, 1.2, 0.3, 0.2, 0.2, 2.6, 2.2, 0.15, 0.5, 0.5, 0.3, 0.4, 0.3, 0.3, 0.4, 0.4])


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
    sides = size if isinstance(size, (tuple, list)) and len(size) == 2 else (0, 0)
    if not all(isinstance(side, (int, np.integer)) and side >= 32 for side in sides):
        raise ValueError(f"size must be (height, width) of whole numbers of at least 32, got {size!r}")
    rng = np.random.default_rng([VERSION, int(seed), DOMAINS.index(domain), SPLITS.index(split), int(index)])
    look = GAME if domain == "game" else CAMERA
    # How bad the weather and the camera are: 0 in the game, from none to much in the camera's scenes.
    severity = max(0.0, 1.3 * float(rng.random()) - 0.3) if domain == "camera" else 0.0
    scene = Scene(rng, look, (int(size[0]), int(size[1])), severity)
    scene.draw_ground()
    scene.draw_objects()
    labels = np.array(scene.label_image)
    image = _surface(rng, np.array(scene.image), labels, look)
    if domain == "camera":
        image = _photograph(rng, image, severity)
    return image, labels


def _surface(rng: np.random.Generator, image: np.ndarray, labels: np.ndarray, look: Domain) -> np.ndarray:
    """The image with the textures of its materials; shapes and dtypes as in :func:`render`."""
    height, width = labels.shape
    fine = value_noise(rng, 64, 128, height, width) - 0.5
    coarse = value_noise(rng, 8, 16, height, width) - 0.5
    texture = (fine * 1.6 + coarse) * _ROUGHNESS[labels] * look.texture
    return (image + texture[..., None]).clip(0, 255).astype(np.uint8)


def _photograph(rng: np.random.Generator, image: np.ndarray, severity: float) -> np.ndarray:
    """What the camera makes of a scene: optics, exposure, colour cast, vignette and noise, by severity 0 .. 1.

    Every flaw draws its own strength, so that two bad photographs are seldom bad in the same way.
    """

    def amount(mild: float, most: float) -> float:
        return mild + most * severity * float(rng.random())

    def spread(most: float) -> float:
        return (2 * float(rng.random()) - 1) * most

    height, width = image.shape[:2]
    picture = Image.fromarray(image).filter(ImageFilter.GaussianBlur(amount(0.25, 1.4) * height / 128))
    if float(rng.random()) < 0.3:  # the car moves
        picture = picture.filter(ImageFilter.BoxBlur((amount(0.0, 2.5) * width / 256, 0)))
    pixels = np.asarray(picture, np.float64)
    grey = (pixels[..., :1] + pixels[..., 1:2] + pixels[..., 2:]) / 3
    faded = amount(0.0, 0.5)
    contrast, middle = 1 - amount(0.0, 0.3), 128 * (1 - severity)
    pixels = ((pixels * (1 - faded) + grey * faded) - middle) * contrast + middle
    gain = 1 + spread(0.1 + 0.5 * severity) - 0.1 * severity
    cast = np.array([1 + spread(0.03 + 0.18 * severity), 1.0, 1 + spread(0.03 + 0.18 * severity)])
    rows = (np.arange(height) * 2 + 1 - height)[:, None] / height
    columns = (np.arange(width) * 2 + 1 - width)[None] / width
    vignette = 1 - amount(0.08, 0.22) * (rows * rows + columns * columns) / 2
    # The sum of three uniform draws is close to a normal one, and exact on every machine.
    grain = rng.integers(-128, 128, (3, height, width, 3), dtype=np.int16).sum(axis=0) / 128.0
    return (pixels * vignette[..., None] * (gain * cast) + grain * amount(1.5, 13)).clip(0, 255).astype(np.uint8)

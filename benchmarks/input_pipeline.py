"""What the cache of resized images saves: reading it against decoding and resizing the PNGs at every step.

Run by hand: ``make benchmark``. Images and labels of Cityscapes' size, 1024 x 2048, drawn by MiniCity, brought to 512 x
1024 as published. Also what mining and mixing cost per image of that size.
"""

import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from b2ma_core import minicity
from b2ma_core.data.layouts import read_image
from b2ma_core.hard_patches import mine
from b2ma_core.spatial_mix import draw_cuts, spatial_mix

IMAGES, SIZE = 8, (512, 1024)


def milliseconds(work: Callable, repeats: int = 5) -> float:
    """Best time of ``work`` over all images, per image."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * min(times) / IMAGES


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for i in range(IMAGES):
            image, labels = minicity.render(i, "camera", "train", size=(1024, 2048))
            Image.fromarray(image).save(root / f"{i}.png")
            Image.fromarray(labels).save(root / f"{i}_labels.png")

        def decode() -> list:
            return [
                (
                    np.asarray(read_image(str(root / f"{i}.png")).resize(SIZE[::-1], Image.Resampling.BICUBIC)),
                    np.asarray(Image.open(root / f"{i}_labels.png").resize(SIZE[::-1], Image.Resampling.NEAREST)),
                )
                for i in range(IMAGES)
            ]

        images, labels = (np.stack(arrays) for arrays in zip(*decode(), strict=True))
        np.save(root / "images.npy", images)
        np.save(root / "labels.npy", labels)
        cached = [np.load(root / f"{name}.npy", mmap_mode="r") for name in ("images", "labels")]
        slow = milliseconds(decode)
        fast = milliseconds(lambda: [[np.array(part[i]) for part in cached] for i in range(IMAGES)])
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    cuts = draw_cuts(IMAGES, *SIZE, 0.25, torch.Generator().manual_seed(0))
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, per image of {SIZE}")
    print(f"decoding PNGs of 1024 x 2048 {slow:.1f} ms, reading the cache {fast:.2f} ms: {slow / fast:.0f} times")
    print(f"mining hard patches {milliseconds(lambda: mine(labels, [6, 7, 12, 16, 17, 18])):.2f} ms")
    print(f"SpatialMix of an image in float {milliseconds(lambda: spatial_mix(batch, cuts)):.2f} ms")


if __name__ == "__main__":
    main()

"""Write MiniCity scenes as PNG files: ``python -m b2ma_core.minicity``."""

import argparse
from pathlib import Path

from PIL import Image

from b2ma_core.minicity import DOMAINS, SPLITS, render


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

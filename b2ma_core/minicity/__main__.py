"""Write MiniCity scenes as PNG files: ``python -m b2ma_core.minicity``."""

import argparse
import sys
from pathlib import Path

from b2ma_core.files import write_png
from b2ma_core.minicity import DOMAINS, SPLITS, render
from b2ma_core.processes import run_command


def main() -> int:
    parser = argparse.ArgumentParser(description="Write MiniCity scenes as PNG files.")
    parser.add_argument("--domain", choices=DOMAINS, required=True)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--count", type=int, default=20, help="number of scenes")
    parser.add_argument("--seed", type=int, default=0, help="which world")
    parser.add_argument("--size", type=int, nargs=2, default=(128, 256), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--images", type=Path, required=True, help="folder for the images")
    parser.add_argument("--labels", type=Path, help="folder for label maps of train ids")
    args = parser.parse_args()
    return run_command("minicity", lambda: write(args))


def write(args: argparse.Namespace) -> None:
    """Draw and write the scenes; ValueError and OSError name what cannot be done."""
    if args.count < 1:
        raise ValueError(f"--count: must be at least 1, got {args.count}")
    if max(args.size) > 8192:
        raise ValueError(f"--size: must be at most 8192 pixels a side, got {args.size[0]} {args.size[1]}")
    if args.images == args.labels:
        raise ValueError(f"--labels: {args.labels} is the folder of the images; give the labels one of their own")
    for index in range(args.count):
        image, labels = render(index, args.domain, args.split, args.seed, tuple(args.size))
        write_png(args.images / f"{index:04d}.png", image)
        if args.labels:
            write_png(args.labels / f"{index:04d}.png", labels)


if __name__ == "__main__":
    sys.exit(main())

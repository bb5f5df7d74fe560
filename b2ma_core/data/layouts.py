"""Data sets as they lie on disk: which image goes with which labels, and what the numbers in a label file mean.

A study converts label ids to train ids as it reads. Whoever wants files of train ids:
``python -m b2ma_core.data.layouts --dataset gta5 --root GTA5 --split all --out FOLDER``.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.io import ImageReadMode, decode_image, read_file
from tqdm import tqdm

from b2ma_core.labels import CAMVID, CITYSCAPES, LabelSpace
from b2ma_core.files import write_png

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
LAYOUTS = {
    "camvid": "<root>/<split>/*.png with labels of the same names in <root>/<split>annot/, 11 is void",
    "folder": "<root>/<split>/*.png with labels of the same names in <root>/<split>annot/",
    "cityscapes": "<root>/leftImg8bit/<split>/<city>/*_leftImg8bit.png with labels in "
    "<root>/gtFine/<split>/<city>/*_gtFine_labelIds.png",
    "gta5": "<root>/images/*.png with label ids of the same names in <root>/labels/; a split is 'all' or the names "
    "listed in <root>/<split>.txt",
    "synthia": "<root>/RGB/*.png with 16-bit labels of the same names in <root>/GT/LABELS/; a split is 'all' or the "
    "names listed in <root>/<split>.txt",
}

# SYNTHIA-RAND-CITYSCAPES' own class ids -> train ids, as adaptation works map them (AdaptSegNet, ADVENT, DADA).
SYNTHIA_TRAIN_IDS = {
    3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 16: 9, 1: 10, 10: 11, 17: 12, 8: 13, 18: 14, 19: 15,
    20: 16, 12: 17, 11: 18,
}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One sample on disk, or one scene to draw."""

    name: str
    image: str | tuple
    labels: str | None
    split: str


def list_files(dataset: str, root: Path, split: str, sequences: Sequence[str] | None = None) -> list[Item]:
    """The samples of one split in the order of their names.

    Args:
        dataset: key of ``LAYOUTS``.
        root: the data set's folder.
        split: as the layout says.
        sequences: only images whose names begin so.

    Returns:
        Items without labels where the split has none (no folder, or an empty one).

    Raises:
        FileNotFoundError: if a folder or list is missing, or an image that a list names.
    """
    if dataset == "cityscapes":
        folder, annotated = root / "leftImg8bit" / split, root / "gtFine" / split
        images = sorted(_images(folder, dataset, "*/"))
        pairs = [(p, annotated / p.parent.name / f"{p.name.removesuffix('_leftImg8bit.png')}_gtFine_labelIds.png")
                 for p in images]  # fmt: skip
    else:
        folder, annotated = {
            "gta5": (root / "images", root / "labels"),
            "synthia": (root / "RGB", root / "GT" / "LABELS"),
        }.get(dataset, (root / split, root / f"{split}annot"))
        images = sorted(_images(folder, dataset))
        if dataset in ("gta5", "synthia") and split != "all":
            images = _listed(root / f"{split}.txt", images, dataset)
        pairs = [(p, annotated / f"{p.stem}.png") for p in images]
    chosen = [(p, labels) for p, labels in pairs if p.name.startswith(tuple(sequences or [""]))]
    labelled = annotated.is_dir()
    return [Item(p.stem, str(p), str(labels) if labelled else None, split) for p, labels in chosen]


def read_image(path: str) -> Image.Image:
    """An image as RGB; ValueError names a file that is missing or broken."""
    return _decode(path).convert("RGB")


def read_train_ids(path: str, dataset: str, space: LabelSpace) -> np.ndarray:
    """``(H, W)`` uint8 train ids of a label file.

    Raises:
        ValueError: naming the file that is missing, broken, has other channels, or ids that the layout does not know.
    """
    if dataset == "synthia":
        return _synthia(path)
    picture = _decode(path)
    if picture.mode not in ("L", "P"):
        raise ValueError(f"{path}: labels must be an 8-bit PNG with one channel, not {picture.mode!r}")
    labels = np.asarray(picture)
    if dataset in ("cityscapes", "gta5"):
        return _encode(labels, path)
    if dataset == "camvid":
        labels = np.where(labels == 11, space.ignore_index, labels)  # void on disk
    space.check(labels, path)
    return labels


def _encode(label_ids: np.ndarray, path: str) -> np.ndarray:
    """Label ids 0 .. 34 (34: GTA5's few license plates) to train ids."""
    strange = [v for v in np.unique(label_ids).tolist() if v > 34 and v != 255]
    if strange:
        raise ValueError(f"{path}: holds {strange[:8]}, but label ids are 0 .. 34")
    # Train ids read as label ids would be silently wrong: 0 .. 6 of them are no classes, so nearly all would vanish.
    if label_ids.size and (label_ids[label_ids != 255] < 19).all() and (label_ids == 255).any():
        raise ValueError(
            f"{path}: holds {np.unique(label_ids).tolist()[:8]}: these look like train ids where label ids belong; "
            "read such maps with the data set 'folder'"
        )
    return CITYSCAPES.encode(label_ids)


def _synthia(path: str) -> np.ndarray:
    try:
        planes = decode_image(read_file(path), ImageReadMode.UNCHANGED).numpy()  # Pillow cuts 16-bit RGB to 8
    except RuntimeError as error:
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such file; each image needs its labels, or none of them has any") from None
        raise ValueError(f"{path}: cannot be read as a picture ({str(error)[:100]}); fetch it again") from None
    ids = planes[0].astype(np.int64)
    if planes.dtype != np.uint16 or ids.max() > 22:
        raise ValueError(
            f"{path}: SYNTHIA's labels are 16-bit PNGs whose first channel holds ids 0 .. 22, this one is "
            f"{planes.dtype} and its first channel reaches {ids.max()}; take GT/LABELS as distributed"
        )
    table = np.full(23, CITYSCAPES.ignore_index, np.uint8)
    table[list(SYNTHIA_TRAIN_IDS)] = list(SYNTHIA_TRAIN_IDS.values())
    return table[ids]


def _images(folder: Path, dataset: str, below: str = "") -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}. Expected: {LAYOUTS[dataset]}")
    return [p for p in folder.glob(f"{below}*") if p.suffix.lower() in IMAGE_SUFFIXES]


def _listed(path: Path, images: list[Path], dataset: str) -> list[Path]:
    if not path.is_file():
        raise FileNotFoundError(f"no list {path}. Expected: {LAYOUTS[dataset]}")
    by_name = {p.stem: p for p in images}
    names = [Path(line.split()[0]).stem for line in path.read_text().splitlines() if line.strip()]
    missing = [name for name in names if name not in by_name]
    if missing:
        raise FileNotFoundError(f"{path}: {len(missing)} images that it lists are missing, {', '.join(missing[:5])}")
    return [by_name[name] for name in names]


def _decode(path: str) -> Image.Image:
    try:
        picture = Image.open(path)
        picture.load()
        return picture
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; each image needs its labels, or none of them has any") from None
    except (OSError, SyntaxError) as error:  # Pillow's errors for broken PNGs
        raise ValueError(f"{path}: cannot be read as a picture ({error}); fetch it again") from None


def convert(dataset: str, root: Path, split: str, out: Path) -> int:
    """Write ``<out>/<image name>.png`` of train ids for every labelled image of a split; those there already stay.

    Returns:
        How many there are.

    Raises:
        FileNotFoundError, ValueError: see :func:`list_files` and :func:`read_train_ids`.
    """
    items = list_files(dataset, root, split)
    if not items or items[0].labels is None:
        raise ValueError(f"{root}: the split {split!r} has no labels to convert. Expected: {LAYOUTS[dataset]}")
    space = CAMVID if dataset == "camvid" else CITYSCAPES
    todo = [item for item in items if not (out / f"{item.name}.png").is_file()]
    with ThreadPoolExecutor() as pool:  # decoding leaves Python alone
        for item, train_ids in zip(
            tqdm(todo, desc=split, unit="map", mininterval=5),
            pool.map(partial(read_train_ids, dataset=dataset, space=space), (item.labels for item in todo)),
            strict=True,
        ):
            write_png(out / f"{item.name}.png", train_ids)
    return len(items)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Convert a data set's label files to PNGs of train ids.")
    parser.add_argument("--dataset", choices=LAYOUTS, required=True)
    parser.add_argument("--root", type=Path, required=True, help="the data set's folder")
    parser.add_argument("--split", required=True, help="as the layout says; gta5 and synthia: 'all' or a list's name")
    parser.add_argument("--out", type=Path, required=True, help="folder for the PNGs")
    args = parser.parse_args(arguments)
    try:
        print(convert(args.dataset, args.root, args.split, args.out), "maps of train ids in", args.out)
    except (ValueError, OSError) as error:
        print(f"\nlayouts: {error}\n", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

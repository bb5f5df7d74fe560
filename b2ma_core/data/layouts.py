"""Data sets as they lie on disk: which image goes with which labels, and what the numbers in a label file mean.

A study converts label ids to train ids as it reads. Whoever wants files of train ids:
``python -m b2ma_core.data.layouts --dataset gta5 --root GTA5 --split all --out FOLDER``.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from b2ma_core.files import png_header, read_label_map, read_picture, write_png
from b2ma_core.labels import CAMVID, CITYSCAPES, LabelSpace
from b2ma_core.processes import run_command

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
LAYOUTS = {
    "camvid": "<root>/<split>/*.png or .jpg with labels <root>/<split>annot/<image name>.png, 11 is void",
    "folder": "<root>/<split>/*.png or .jpg with labels <root>/<split>annot/<image name>.png",
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
    """One sample on disk, or one scene to draw; ``labels`` is where they belong, None where the split has none."""

    name: str
    image: str | tuple
    labels: str | None
    split: str


def folders(dataset: str, root: Path, split: str) -> tuple[Path, Path]:
    """Where the images of a split lie, and where its labels belong."""
    return {
        "cityscapes": (root / "leftImg8bit" / split, root / "gtFine" / split),
        "gta5": (root / "images", root / "labels"),
        "synthia": (root / "RGB", root / "GT" / "LABELS"),
    }.get(dataset, (root / split, root / f"{split}annot"))


def list_files(dataset: str, root: Path, split: str, sequences: Sequence[str] | None = None) -> list[Item]:
    """The samples of one split in the order of their names. Hidden files are no data.

    Args:
        dataset: key of ``LAYOUTS``.
        root: the data set's folder.
        split: as the layout says.
        sequences: only images whose names begin so.

    Returns:
        Items without labels where the split has none for any of them.

    Raises:
        FileNotFoundError: if a folder or list is missing, or an image that a list names.
        ValueError: if a list is no text, is empty, or names an image twice.
    """
    folder, annotated = folders(dataset, root, split)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}. Expected: {LAYOUTS[dataset]}; {what_is_at(folder)}")
    images = _files(folder, dataset)
    if dataset in ("gta5", "synthia") and split != "all":
        images = _listed(root / f"{split}.txt", images, dataset)
    images = [p for p in images if p.name.startswith(tuple(sequences or [""]))]
    there = {p.relative_to(annotated).as_posix(): p for p in _files(annotated, dataset)}
    labels = []
    for p in images:
        name = f"{p.stem}.png"
        if dataset == "cityscapes":
            name = f"{p.parent.name}/{p.stem.removesuffix('_leftImg8bit')}_gtFine_labelIds.png"
        labels.append(there.get(name) or there.get(f"{name[:-4]}.PNG") or annotated / name)
    labelled = not set(labels).isdisjoint(there.values())
    pairs = zip(images, labels, strict=True)
    return [Item(image.stem, str(image), str(own) if labelled else None, split) for image, own in pairs]


def passed_over(dataset: str, root: Path, split: str) -> str:
    """What lies among the images of a split and is not read, by suffix: "3 .tif, 1 folder"; hidden files apart."""
    folder, _ = folders(dataset, root, split)
    others = [p for p in _entries(folder, dataset) if p.is_dir() or p.suffix.lower() not in IMAGE_SUFFIXES]
    kinds = Counter("folders" if p.is_dir() else p.suffix or "files without a suffix" for p in others)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


def what_is_at(folder: Path) -> str:
    """A folder and what it holds, or the nearest one above that exists, for a message."""
    while not folder.is_dir():
        folder = folder.parent
    names = [f"{p.name}/" if p.is_dir() else p.name for p in _visible(folder)]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{folder} holds {', '.join(names[:8]) or 'nothing'}{more}"


def read_image(path: str) -> Image.Image:
    """An image as 8-bit RGB, turned as its EXIF orientation says. Transparency is left out, of 16 bits the upper 8 are
    taken.

    Raises:
        FileNotFoundError, ValueError: naming a file that is missing, broken, or uses so few of its 16 bits that 8 would
            show nothing.
    """
    picture = read_picture(path)
    if picture.mode == "F" or (picture.mode == "I" and picture.getextrema()[1] > 65535):
        raise ValueError(f"{path}: is no 8-bit or 16-bit image ({picture.mode!r}): save it with 8 bits a channel")
    deep = picture.mode.startswith("I") or (picture.format == "PNG" and png_header(path)[0] == 16)
    if picture.mode.startswith("I"):  # Pillow would cut at 255; 16-bit colour it has reduced already, as here
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    picture.info.pop("transparency", None)
    picture = picture.convert("RGB")
    if deep and max(top for _, top in picture.getextrema()) < 16:
        raise ValueError(f"{path}: has 16 bits a channel and uses the darkest sixteenth of them alone (12-bit values?):"
                         " stretch the values to 0 .. 65535, or save it with 8 bits")  # fmt: skip
    return picture


def read_train_ids(path: str, dataset: str, space: LabelSpace) -> np.ndarray:
    """``(H, W)`` uint8 train ids of a label file.

    Args:
        path: the file.
        dataset: key of ``LAYOUTS``.
        space: what the ids in the files mean; Cityscapes, GTA5 and SYNTHIA have their own.

    Raises:
        ValueError: naming the file that is missing, broken, has other channels, or ids that the layout does not know.
    """
    try:
        if dataset == "synthia":
            return _synthia(path)
        labels = read_label_map(path)
    except FileNotFoundError as error:
        raise ValueError(f"{error}; each image needs its labels, or none of them has any") from None
    if dataset in ("cityscapes", "gta5"):
        return _encode(labels, path)
    return space.from_file(labels, path)


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
    # Not above: the processes that convert start in a tenth of the time without torch.
    from torchvision.io import ImageReadMode, decode_image, read_file

    try:
        planes = decode_image(read_file(path), ImageReadMode.UNCHANGED).numpy()  # Pillow cuts 16-bit RGB to 8
    except RuntimeError as error:
        read_picture(path)  # says what is wrong with the file
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


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []


def _entries(folder: Path, dataset: str) -> list[Path]:
    """What lies where a layout has files: in the folder, or in the folders of Cityscapes' cities."""
    if dataset == "cityscapes":
        return [p for city in _visible(folder) for p in (_visible(city) if city.is_dir() else [city])]
    return _visible(folder)


def _files(folder: Path, dataset: str) -> list[Path]:
    return [p for p in _entries(folder, dataset) if p.suffix.lower() in IMAGE_SUFFIXES and not p.is_dir()]


def _listed(path: Path, images: list[Path], dataset: str) -> list[Path]:
    if not path.is_file():
        raise FileNotFoundError(f"no list {path}. Expected: {LAYOUTS[dataset]}")
    try:
        lines = path.read_text("utf-8-sig").replace("\\", "/").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is no UTF-8 text; save the list as UTF-8") from None
    known = {name: p for p in images for name in (p.stem, p.name)}
    chosen, missing = [], []
    for line in filter(None, map(str.strip, lines)):
        names = [Path(n).name for n in (line, line.split("\t")[0].strip(), line.split()[0])]  # spaces; a second column
        names = [n for name in names for n in (name, Path(name).stem) if n in known]
        (chosen if names else missing).append(names[0] if names else line)
    if missing:
        raise FileNotFoundError(f"{path}: {len(missing)} images that it lists are missing, {', '.join(missing[:5])}")
    if not chosen:
        raise ValueError(f"{path}: lists no image")
    twice = [p.stem for p, times in Counter(known[name] for name in chosen).items() if times > 1]
    if twice:
        raise ValueError(f"{path}: lists {len(twice)} images twice, {', '.join(twice[:5])}: name each once")
    return [known[name] for name in chosen]


def convert(dataset: str, root: Path, split: str, out: Path) -> int:
    """Write ``<out>/<image name>.png`` of train ids for every labelled image of a split; those there already stay.

    Returns:
        How many there are.

    Raises:
        FileNotFoundError, ValueError: see :func:`list_files` and :func:`read_train_ids`.
    """
    items = list_files(dataset, root, split)
    if not items or items[0].labels is None:
        there = what_is_at(folders(dataset, root, split)[1])
        raise ValueError(
            f"{root}: the split {split!r} has no labels to convert ({there}). Expected: {LAYOUTS[dataset]}"
        )
    space = CAMVID if dataset == "camvid" else CITYSCAPES
    todo = [item for item in items if not (out / f"{item.name}.png").is_file()]

    def write(item: Item) -> None:
        write_png(out / f"{item.name}.png", read_train_ids(item.labels, dataset, space))

    with ThreadPoolExecutor() as pool:  # decoding leaves Python alone
        list(tqdm(pool.map(write, todo), total=len(todo), desc=split, unit="map", mininterval=5))
    return len(items)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Convert a data set's label files to PNGs of train ids.")
    parser.add_argument("--dataset", choices=LAYOUTS, required=True)
    parser.add_argument("--root", type=Path, required=True, help="the data set's folder")
    parser.add_argument("--split", required=True, help="as the layout says; gta5 and synthia: 'all' or a list's name")
    parser.add_argument("--out", type=Path, required=True, help="folder for the PNGs")
    args = parser.parse_args(arguments)
    work = (args.dataset, args.root, args.split, args.out)
    return run_command("layouts", lambda: print(convert(*work), "maps of train ids in", args.out))


if __name__ == "__main__":
    sys.exit(main())

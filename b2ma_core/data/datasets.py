"""Data sets behind one type: images and labels of one size in memory-mapped arrays.

A *part* is what one role of a study reads: source_train, source_val, target_train, target_val,
target_test. It is checked as a whole, brought to the study's image size once, and kept in
``data/<study>/<part>/`` as ``images.npy``, ``labels.npy`` and ``index.json``; training reads those.
"""

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from b2ma_core import minicity
from b2ma_core.labels import LABEL_SPACES, cityscapes_to_camvid
from b2ma_core.data.layouts import IMAGE_SUFFIXES, Item, list_files, read_image, read_train_ids
from b2ma_core.params import Params, base_study
from b2ma_core.files import PROJECT, only_one, whole_folder, write_bytes, write_json

PARTS = ("source_train", "source_val", "target_train", "target_val", "target_test")


@dataclass(frozen=True)
class Part:
    """Where one part's samples come from, and the size they are brought to."""

    name: str
    dataset: str
    root: str | None
    domain: str | None
    sequences: list[str] | None
    split: str
    count: int | None
    world_seed: int
    version: int
    label_space: str
    size: list[int]
    native_labels: bool  # scored parts keep their labels' own size


@dataclass(frozen=True)
class Data:
    """One part, ready to read.

    Attributes:
        name: the part.
        names: one per image, without suffix.
        images: ``(N, H, W, 3)`` uint8 RGB, memory-mapped.
        labels: ``(N, H', W')`` uint8 train ids, memory-mapped; None where there are none. H' x W' is H x W for
            training parts and the labels' own size for scored ones.
        splits: the split that each image comes from.
        sizes: (height, width) of each image before it was brought to the study's size.
        digests: 16 hex digits per image, of its pixels in ``images``.
    """

    name: str
    names: list[str]
    images: np.ndarray
    labels: np.ndarray | None
    splits: list[str]
    sizes: list[tuple[int, int]]
    digests: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def evenly(self, most: int) -> np.ndarray:
        """Indices of ``most`` images, or all if there are fewer, evenly from the first to the last."""
        return np.linspace(0, len(self) - 1, min(len(self), most)).astype(int)

    def of(self, chosen: np.ndarray | Sequence[int]) -> "Data":
        """Some of the images, by index."""
        labels = None if self.labels is None else self.labels[chosen]
        names, splits, sizes, digests = (
            [values[i] for i in chosen] if values else []
            for values in (self.names, self.splits, self.sizes, self.digests)
        )
        return Data(self.name, names, self.images[chosen], labels, splits, sizes, digests)

    def of_split(self, split: str) -> "Data":
        """The images of one split."""
        if set(self.splits) == {split}:
            return self  # stays memory-mapped
        return self.of([i for i, s in enumerate(self.splits) if s == split])


def parts(params: Params) -> dict[str, Part]:
    """The parts that a study has, by name."""
    found = {}
    for name in PARTS:
        side, role = name.split("_")
        dataset, split = getattr(params, f"{side}_dataset"), getattr(params, f"{name}_split", None)
        if dataset == "none" or split is None:
            continue
        drawn = dataset == "minicity"
        found[name] = Part(
            name=name,
            dataset=dataset,
            root=None if drawn else getattr(params, f"{side}_root"),
            domain=getattr(params, f"{side}_domain") if drawn else None,
            sequences=getattr(params, f"{side}_sequences"),
            split=split,
            count=getattr(params, f"{name}_images"),
            world_seed=params.world_seed if drawn else 0,
            version=minicity.VERSION if drawn else 0,
            label_space=params.label_space,
            size=(params.source_image_size if side == "source" else None) or params.image_size,
            native_labels=role == "val",
        )
    return found


def list_items(part: Part) -> list[Item]:
    """Name the samples of a part, in a fixed order.

    Raises:
        FileNotFoundError: if the folder is missing; the message shows the layout expected.
        ValueError: if no sample is left, or two have the same name.
    """
    if part.dataset == "minicity":
        return [
            Item(f"{part.split}_{i:05d}", (part.domain, part.split, i), "drawn", part.split) for i in range(part.count)
        ]
    root = PROJECT / part.root  # an absolute root stays as it is
    items = []
    for split in part.split.split("+"):
        try:
            items += list_files(part.dataset, root, split, part.sequences)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{part.name}: {error}. Set {part.name.split('_')[0]}_root in the study's parameters to the folder "
                "that you have"
            ) from None
    items = items[: part.count]
    if part.name.endswith("_test"):  # hidden truth: Cityscapes' files for it are dummies without a class
        items = [replace(item, labels=None) for item in items]
    twice = [name for name, times in Counter(item.name for item in items).items() if times > 1]
    if twice:
        raise ValueError(f"{part.name}: {len(twice)} names stand for two images, {', '.join(twice[:3])}: rename one of "
                         "each, labels and predictions go by name")  # fmt: skip
    if not items:
        of = f" of sequences {part.sequences}" if part.sequences else ""
        raise ValueError(f"{part.name}: {root / part.split} holds no images{of} ({', '.join(IMAGE_SUFFIXES)})")
    return items


def read_sample(item: Item, part: Part) -> tuple[np.ndarray, np.ndarray | None]:
    """Read one sample at the part's size.

    Returns:
        ``(H, W, 3)`` uint8 image and ``(H', W')`` uint8 train ids, or None without labels.

    Raises:
        ValueError: naming the file that is missing, unreadable, of another size than its image, or holds ids that
            are no train ids of the label space.
    """
    height, width = part.size
    if part.dataset == "minicity":
        domain, split, index = item.image
        image, labels = minicity.render(index, domain, split, part.world_seed, (height, width))
        return image, cityscapes_to_camvid(labels) if part.label_space == "camvid" else labels
    image = read_image(item.image)
    labels = None
    if item.labels is not None:
        labels = read_train_ids(item.labels, part.dataset, LABEL_SPACES[part.label_space])
        if labels.shape[::-1] != image.size:
            raise ValueError(f"{item.labels}: labels are {labels.shape[::-1]}, the image is {image.size} (W x H)")
        if not part.native_labels:
            labels = np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)), labels


def prepare(params: Params, workers: int | None = None, data: Path = PROJECT / "data") -> dict[str, Data]:
    """Check and convert every part of a study, unless that was done already.

    Args:
        params: the study.
        workers: processes that decode and draw; None: as many as the threads granted, or the cores.
        data: the folder of all prepared data.

    Returns:
        The parts by name.

    Raises:
        FileNotFoundError, ValueError: see :func:`list_items`; and ValueError listing everything wrong with the files
            of all parts, not only the first; ``data/<study>/problems.txt`` has the list. Parts without fault are kept.
        OSError: if the disk cannot hold them.
    """
    workers = workers or int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    folder = data / base_study(params.study)
    wanted = parts(params)
    items = {name: list_items(part) for name, part in wanted.items()}  # nothing is written if a folder is missing
    problems: list[str] = []
    with only_one(folder, patience=3600):  # seeds that start together share what the first one prepares
        for name, part in wanted.items():
            fingerprint = {**asdict(part), "form": 3, "files": [_stamp(item) for item in items[name]]}
            index = folder / name / "index.json"
            if not index.is_file() or json.loads(index.read_text())["fingerprint"] != _json(fingerprint):
                try:
                    with whole_folder(folder / name) as target:
                        digests = _convert(part, items[name], target, workers)
                        contents = {"fingerprint": fingerprint, "names": [item.name for item in items[name]],
                                    "splits": [item.split for item in items[name]],
                                    "sizes": [_size(item, part) for item in items[name]],
                                    "digests": digests}  # fmt: skip
                        write_json(target / "index.json", contents)
                except ValueError as error:
                    problems.append(str(error))
        report = folder / "problems.txt"
        report.unlink(missing_ok=True)
        if problems:
            write_bytes(report, ("\n".join(problems) + "\n").encode())
            lines = [line for problem in problems for line in problem.splitlines()]
            more = f"\n  and {len(lines) - 40} lines more" if len(lines) > 40 else ""
            raise ValueError("\n".join(lines[:40]) + f"{more}\nThe whole list: {report}")
    return {name: load(params, name, data) for name in wanted}


def load(params: Params, name: str, data: Path = PROJECT / "data") -> Data | None:
    """Open a prepared part; None if the study has no such part.

    Raises:
        FileNotFoundError: if it was not prepared yet; 00_data comes first.
    """
    if name not in parts(params):
        return None
    folder = data / base_study(params.study) / name
    if not (folder / "index.json").is_file():
        raise FileNotFoundError(
            f"{folder} is missing: run the notebook 00_data first (make study STUDY={params.study})"
        )
    index = json.loads((folder / "index.json").read_text())
    labels = folder / "labels.npy"
    return Data(
        name=name,
        names=index["names"],
        splits=index["splits"],
        sizes=[tuple(size) for size in index["sizes"]],
        digests=index["digests"],
        images=np.load(folder / "images.npy", mmap_mode="r"),
        labels=np.load(labels, mmap_mode="r") if labels.is_file() else None,
    )


def class_frequencies(labels: Iterable[np.ndarray], num_classes: int) -> np.ndarray:
    """``(C,)`` float64 share of the labelled pixels per class; 0 .. 1."""
    counts = sum(np.bincount(np.asarray(m).ravel(), minlength=256)[:num_classes] for m in labels)
    return counts / max(counts.sum(), 1)


def _convert(part: Part, items: list[Item], folder: Path, workers: int) -> list[str]:
    images, labels, problems, digests = None, None, [], []
    for i, sample in enumerate(_in_parallel(partial(_attempt, part=part), items, workers, part.name)):
        if isinstance(sample, str):
            problems.append(sample)
            continue
        image, label_map = sample
        if images is None:
            _room_for(len(items) * (image.size + (0 if label_map is None else label_map.size)), folder)
            images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (len(items), *image.shape))
            if label_map is not None:
                shape = (len(items), *label_map.shape)
                labels = np.lib.format.open_memmap(folder / "labels.npy", "w+", np.uint8, shape)
        if (label_map is None) != (labels is None) or (labels is not None and label_map.shape != labels.shape[1:]):
            problems.append(f"{items[i].labels or items[i].image}: labels missing or of another size than the others'")
            continue
        images[i] = image
        digests.append(hashlib.blake2b(np.ascontiguousarray(image), digest_size=8).hexdigest())
        if labels is not None:
            labels[i] = label_map
    ids_on_disk = part.dataset in ("cityscapes", "gta5") and labels is not None and not problems
    if ids_on_disk and class_frequencies(labels, 19)[6:].sum() == 0:
        problems = [
            f"{items[0].labels} and all others: no light, sign, plant, sky, person or vehicle anywhere; these look "
            "like train ids where label ids belong: read such maps with the data set 'folder'"
        ]
    if problems:
        listed = "\n  ".join(problems)
        raise ValueError(f"{part.name}: {len(problems)} of {len(items)} samples cannot be used:\n  {listed}")
    return digests


def _room_for(size: int, folder: Path) -> None:
    """Refuse what the disk cannot hold: a memory-mapped file on a full disk kills the process without a word."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(errno.ENOSPC, f"{folder.parent}: needs {size / 1e9:.3g} GB for the resized images and labels, "
                      f"{free / 1e9:.3g} GB are free. Nothing that was there is lost: free some space, make data/ a "
                      "link to another disk, or take a smaller image_size")  # fmt: skip


def _attempt(item: Item, part: Part) -> tuple | str:
    try:
        return read_sample(item, part)
    except (ValueError, OSError) as error:
        return str(error)


def _in_parallel(function: Callable, items: list, workers: int, title: str) -> Iterable:
    bar = partial(tqdm, total=len(items), desc=title, unit="image", mininterval=5)
    if workers < 2 or len(items) < 64:
        yield from bar(map(function, items))
        return
    # Fresh processes: a fork of a notebook's kernel would inherit its threads' locks.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from bar(pool.map(function, items, chunksize=16))


def _size(item: Item, part: Part) -> tuple[int, int]:
    if not isinstance(item.image, str):
        return tuple(part.size)
    with Image.open(item.image) as picture:
        return picture.height, picture.width


def _stamp(item: Item) -> list:
    """What changes when a file on disk does."""
    if not isinstance(item.image, str):
        return [item.name]
    files = [Path(p) for p in (item.image, item.labels) if p is not None]
    return [item.name, *[(f.stat().st_size, f.stat().st_mtime_ns) if f.is_file() else None for f in files]]


def _json(value):
    return json.loads(json.dumps(value))

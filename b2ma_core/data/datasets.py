"""Data sets behind one type: images and labels in memory-mapped arrays.

A *part* is what one role of a study reads: source_train, source_val, target_train, target_val,
target_test. It is checked as a whole, brought to the study's image size once, and kept in
``data/<study>/<part>/`` as ``images.npy``, ``index.json`` and ``labels.npy`` where it is trained on, or
``labels.bin`` where it is scored: label maps of any sizes, one after another.
"""

import errno
import json
import multiprocessing
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import accumulate, groupby
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from b2ma_core import minicity
from b2ma_core.digests import code_digests, digest_of, stamp
from b2ma_core.labels import LabelSpace
from b2ma_core.data.layouts import (
    IMAGE_SUFFIXES,
    LAYOUTS,
    Item,
    folders,
    in_order,
    list_files,
    passed_over,
    read_image,
    read_train_ids,
    what_is_at,
)
from b2ma_core.params import Params, base_study
from b2ma_core.files import PROJECT, only_one, whole_folder, write_bytes, write_json
from b2ma_core.processes import end_with_parent

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
    space: LabelSpace  # of its label maps
    label_map: tuple[int, ...] | None  # from the space's train ids to the study's; None: they are the same
    size: list[int]
    native_labels: bool  # scored parts keep their labels' own size


class LabelMaps(Sequence):
    """Label maps that have sizes of their own: ``maps[i]`` is ``(H', W')`` uint8, ``maps[chosen]`` those of a slice or
    of indices, as LabelMaps.

    Args:
        values: the pixels of all maps, one map after another; memory-mapped or not.
        shapes: (height, width) of each.
        starts: where each begins in ``values``; None: behind the one before.
    """

    def __init__(self, values: np.ndarray, shapes: Sequence, starts: Sequence[int] | None = None):
        self.values, self.shapes = values, [tuple(shape) for shape in shapes]
        ends = accumulate(height * width for height, width in self.shapes)
        self.starts = [0, *ends][: len(self.shapes)] if starts is None else list(starts)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, chosen):
        if isinstance(chosen, (int, np.integer)):
            (height, width), start = self.shapes[chosen], self.starts[chosen]
            return self.values[start : start + height * width].reshape(height, width)
        some = np.arange(len(self))[chosen].tolist()
        return LabelMaps(self.values, [self.shapes[i] for i in some], [self.starts[i] for i in some])

    def __reduce__(self):
        if isinstance(self.values, np.memmap):  # another process opens the file itself
            return _open_maps, (self.values.filename, self.shapes, self.starts)
        return LabelMaps, (self.values, self.shapes, self.starts)


def _open_maps(path: str, shapes: Sequence, starts: Sequence[int]) -> LabelMaps:
    return LabelMaps(np.memmap(path, np.uint8, "r"), shapes, starts)


def together(maps: Sequence[np.ndarray]) -> "np.ndarray | LabelMaps":
    """Maps as one ``(N, H, W)`` array, or as LabelMaps where their sizes differ."""
    if len({m.shape for m in maps}) == 1:
        return np.stack(maps)
    return LabelMaps(np.concatenate([m.ravel() for m in maps]), [m.shape for m in maps])


@dataclass(frozen=True)
class Data:
    """One part, ready to read.

    Attributes:
        name: the part.
        names: one per image, without suffix.
        images: ``(N, H, W, 3)`` uint8 RGB, memory-mapped.
        labels: ``(N, H', W')`` uint8 train ids, memory-mapped. H' x W' is H x W for training parts and the labels' own
            size for scored ones, as :class:`LabelMaps` if they have several. None where there are no labels, or not for
            all images, or all are void.
        splits: the split that each image comes from.
        sizes: (height, width) of each image before it was brought to the study's size.
        digests: 16 hex digits per image, of its pixels in ``images``.
        notes: what the reader should know: why there are no labels, what was passed over.
    """

    name: str
    names: list[str]
    images: np.ndarray
    labels: np.ndarray | LabelMaps | None
    splits: list[str]
    sizes: list[tuple[int, int]]
    digests: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def evenly(self, most: int) -> np.ndarray:
        """Indices of ``most`` images, or all if there are fewer, evenly from the first to the last."""
        return np.linspace(0, len(self) - 1, min(len(self), most)).astype(int)

    def batches(self, most: int, chosen: Iterable[int] | None = None) -> Iterator[list[int]]:
        """Indices of all images or the chosen ones, in order, at most ``most`` at once and with labels of one size."""
        chosen = range(len(self)) if chosen is None else chosen
        for _, run in groupby(chosen, lambda i: None if self.labels is None else self.labels[i].shape):
            indices = [int(i) for i in run]
            yield from (indices[start : start + most] for start in range(0, len(indices), most))

    def of(self, chosen: np.ndarray | Sequence[int]) -> "Data":
        """Some of the images, by index."""
        lists = {name: [getattr(self, name)[i] for i in chosen] for name in ("names", "splits", "sizes")}
        return replace(
            self, **lists, images=self.images[chosen], labels=None if self.labels is None else self.labels[chosen],
            digests=[self.digests[i] for i in chosen] if self.digests else [],
        )  # fmt: skip

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
            space=params.space_of(side),
            label_map=None if (table := params.label_map(side)) is None else tuple(table.tolist()),
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
        except ValueError as error:
            raise ValueError(f"{part.name}: {error}") from None
    items = items[: part.count]
    # The truth of a test part is hidden: Cityscapes' files for it are dummies without a class.
    if part.name.endswith("_test") or not any(map(_has_labels, items)):
        items = [replace(item, labels=None) for item in items]
    twice = [name for name, times in Counter(item.name for item in items).items() if times > 1]
    if twice:
        raise ValueError(f"{part.name}: {len(twice)} names stand for two images, {', '.join(twice[:3])}: rename one of "
                         "each, labels and predictions go by name")  # fmt: skip
    if not items:
        of = f" of sequences {part.sequences}" if part.sequences else ""
        others = "".join(f"; {sentence}" for sentence in _passed_over(part))
        raise ValueError(
            f"{part.name}: {root / part.split} holds no images{of} ({', '.join(IMAGE_SUFFIXES)}){others}"
        )
    return items


def read_sample(item: Item, part: Part) -> tuple[np.ndarray, np.ndarray | None]:
    """Read one sample at the part's size.

    Returns:
        ``(H, W, 3)`` uint8 image and ``(H', W')`` uint8 train ids, or None without labels.

    Raises:
        ValueError: naming the file that is missing, unreadable, of another size than its image, or holds ids that
            are no train ids of the label space.
    """
    return _read(item, part)[:2]


def _read(item: Item, part: Part) -> tuple[np.ndarray, np.ndarray | None, tuple[int, int]]:
    """What :func:`read_sample` says, and the image's (height, width) before."""
    height, width = part.size
    if part.dataset == "minicity":
        domain, split, index = item.image
        image, labels = minicity.render(index, domain, split, part.world_seed, (height, width))
        return image, _mapped(labels, part), (height, width)
    image = read_image(item.image)
    labels = None
    if item.labels is not None:
        labels = _mapped(read_train_ids(item.labels, part.dataset, part.space), part)
        if labels.shape[::-1] != image.size:
            turned = "; were they drawn before its EXIF orientation turned it?" if labels.shape == image.size else ""
            raise ValueError(f"{item.labels}: labels are {labels.shape[::-1]}, the image is {image.size} (W x H){turned}")
        if not part.native_labels:
            labels = np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))
    resized = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    return resized, labels, (image.height, image.width)


def _mapped(labels: np.ndarray, part: Part) -> np.ndarray:
    """Train ids of the part's space to the study's."""
    return labels if part.label_map is None else np.array(part.label_map, np.uint8)[labels]


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
    granted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # "4,2": of nested loops the outer one's
    workers = workers or (int(granted) if granted.isdigit() else os.cpu_count()) or 1
    folder = data / base_study(params.study)
    wanted = parts(params)
    items, problems, folder_errors = {}, [], []
    for name, part in wanted.items():
        try:
            items[name] = list_items(part)
        except (FileNotFoundError, ValueError) as error:
            folder_errors.append(error)
    if folder_errors:  # nothing is written then
        raise type(folder_errors[0])("\n".join(map(str, folder_errors)))
    code = code_digests("data.datasets.prepare", "minicity")
    with only_one(folder, patience=3600):  # seeds that start together share what the first one prepares
        for name, part in wanted.items():
            trained = name == "source_train" and params.box == "model" and params.source_steps > 0
            if trained and all(item.labels is None for item in items[name]):
                problems.append(f"{name}: the source model trains on it, and it has {_no_labels(part)}")
                continue
            fingerprint = _json({**asdict(part), "code": code, "files": [_stamp(item) for item in items[name]]})
            index = folder / name / "index.json"
            try:
                if not index.is_file() or json.loads(index.read_text())["fingerprint"] != fingerprint:
                    with whole_folder(folder / name) as target:
                        contents = _convert(part, items[name], target, workers, trained)
                        write_json(target / "index.json", {"fingerprint": fingerprint, **contents})
                if trained and load(params, name, data).labels is None:
                    raise ValueError(f"{name}: the source model trains on it, and {load(params, name, data).notes[0]}")
            except ValueError as error:
                problems.append(str(error))
        report = folder / "problems.txt"
        report.unlink(missing_ok=True)
        if problems:
            write_bytes(report, ("\n".join(problems) + "\n").encode())
            lines = [line for problem in problems for line in problem.splitlines()]
            more = f"\n  and {len(lines) - 40} lines more" if len(lines) > 40 else ""
            raise ValueError("\n".join(lines[:40]) + f"{more}\nThe whole list: {report}")
    ready = {name: load(params, name, data) for name in wanted}
    return {name: replace(d, notes=[*d.notes, *_passed_over(wanted[name])]) for name, d in ready.items()}


def load(params: Params, name: str, data: Path = PROJECT / "data") -> Data | None:
    """Open a prepared part; None if the study has no such part.

    Raises:
        FileNotFoundError: if it was not prepared yet; 00_data comes first.
    """
    if name not in parts(params):
        return None
    folder = data / base_study(params.study) / name
    index = json.loads((folder / "index.json").read_text()) if (folder / "index.json").is_file() else {}
    if "digests" not in index:
        raise FileNotFoundError(
            f"{folder} is missing or of an older version: run the notebook 00_data first (make study STUDY={params.study})"
        )
    labels = None
    if (folder / "labels.npy").is_file():
        labels = np.load(folder / "labels.npy", mmap_mode="r")
    elif (folder / "labels.bin").is_file():
        labels = LabelMaps(np.memmap(folder / "labels.bin", np.uint8, "r"), index["label_sizes"])
        if len(set(labels.shapes)) == 1:
            labels = labels.values.reshape(-1, *labels.shapes[0])
    return Data(
        name=name,
        names=index["names"],
        splits=index["splits"],
        sizes=[tuple(size) for size in index["sizes"]],
        digests=index["digests"],
        notes=index["notes"],
        images=np.load(folder / "images.npy", mmap_mode="r"),
        labels=labels,
    )


def class_frequencies(labels: Iterable[np.ndarray], num_classes: int) -> np.ndarray:
    """``(C,)`` float64 share of the labelled pixels per class; 0 .. 1."""
    counts = sum(np.bincount(np.asarray(m).ravel(), minlength=256)[:num_classes] for m in labels)
    return counts / max(counts.sum(), 1)


def _convert(part: Part, items: list[Item], folder: Path, workers: int, trained: bool) -> dict:
    """Fill a folder with a part; returns what its index holds beside the fingerprint."""
    absent = [] if all(item.labels is None for item in items) else [item for item in items if not _has_labels(item)]
    known = [item if _has_labels(item) else replace(item, labels=None) for item in items]
    images, labels, problems, told, void, pixels = None, None, [], [], 0, np.zeros(256, np.int64)
    with open(folder / "labels.bin", "wb") as one_after_another:
        for i, sample in enumerate(_in_parallel(partial(_attempt, part=part), known, workers, part.name)):
            if isinstance(sample, str):
                problems.append(sample)
                continue
            image, label_map, size, *digests = sample
            told.append((size, *digests, None if label_map is None else label_map.shape))
            if images is None:
                _room_for(len(items) * (image.size + (0 if label_map is None else label_map.size)), folder)
                images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (len(items), *image.shape))
            images[i] = image
            if label_map is None:
                continue
            counts = np.bincount(label_map.ravel(), minlength=256)
            void, pixels = void + (not counts[:255].any()), pixels + counts
            if part.native_labels:
                one_after_another.write(label_map)
                continue
            if labels is None:
                shape = (len(items), *label_map.shape)
                labels = np.lib.format.open_memmap(folder / "labels.npy", "w+", np.uint8, shape)
            labels[i] = label_map
    if absent and (problems or trained):
        problems += [f"{i.labels or i.image}: no such file; each image needs its labels, or none has any" for i in absent]
    if problems:
        listed = "\n  ".join(problems)
        raise ValueError(f"{part.name}: {len(problems)} of {len(items)} samples cannot be used:\n  {listed}")
    why = _why_unlabelled(part, items, absent, void)
    meant = list(part.label_map or range(256))
    late = sorted(set(meant[6:19]) - {*meant[:6], 255})  # what train ids that are read as label ids never become
    if why is None and part.dataset in ("cityscapes", "gta5") and late and pixels[late].sum() == 0:
        raise ValueError(
            f"{part.name}: {items[0].labels} and all others: no light, sign, plant, sky, person or vehicle anywhere; "
            "these look like train ids where label ids belong: read such maps with the data set 'folder'"
        )
    if why is not None:
        (folder / "labels.npy").unlink(missing_ok=True)
    flat = why is None and part.native_labels
    if not flat:
        (folder / "labels.bin").unlink()
    notes = [why] if why else [f"{void} of its {len(items)} label maps are void everywhere"] if void else []
    sizes, digests, label_digests, shapes = zip(*told, strict=True)
    return {"names": [i.name for i in items], "splits": [i.split for i in items], "sizes": sizes, "digests": digests,
            "label_digests": label_digests if why is None else None,
            "label_sizes": shapes if flat else None, "notes": notes}  # fmt: skip


def _why_unlabelled(part: Part, items: list[Item], absent: list[Item], void: int) -> str | None:
    """Why a part goes on as one without labels; None if its labels are good, "" where nobody expects any."""
    if absent:
        return f"{len(absent)} of its {len(items)} images have no labels, {absent[0].labels or absent[0].image} first"
    if all(item.labels is None for item in items):
        return "" if part.name.endswith("_test") else _no_labels(part)
    if void == len(items):
        return (f"the labels of all its {void} images are void, {items[0].labels} first: are these the files that hold "
                "the ids, in the first channel and under this data set's numbers?")  # fmt: skip
    return None


def _has_labels(item: Item) -> bool:
    return item.labels is not None and (not isinstance(item.image, str) or os.path.lexists(item.labels))


def _no_labels(part: Part) -> str:
    """Where the labels of a part without any were looked for, and what is there."""
    wanted = [folders(part.dataset, PROJECT / part.root, split)[1] for split in part.split.split("+")]
    looked = "; ".join(f"looked in {folder}, but {what_is_at(folder)}" for folder in wanted)
    return f"no labels: {looked}. Expected: {LAYOUTS[part.dataset]}"


def _passed_over(part: Part) -> list[str]:
    """What lies among a part's images and is not read, a sentence for each split that has such files."""
    if part.dataset == "minicity":
        return []
    others = {split: passed_over(part.dataset, PROJECT / part.root, split) for split in part.split.split("+")}
    read = ", ".join(IMAGE_SUFFIXES)
    return [f"{split}: {kinds} passed over, images are {read}" for split, kinds in others.items() if kinds]


def _room_for(size: int, folder: Path) -> None:
    """Refuse what the disk cannot hold: a memory-mapped file on a full disk kills the process without a word."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(errno.ENOSPC, f"{folder.parent}: needs {size / 1e9:.3g} GB for the resized images and labels, "
                      f"{free / 1e9:.3g} GB are free. Nothing that was there is lost: free some space, make data/ a "
                      "link to another disk, or take a smaller image_size")  # fmt: skip


def _attempt(item: Item, part: Part) -> tuple | str:
    """Image, labels, the image's size before and the digests of both; or what is wrong with the sample."""
    try:
        image, labels, size = _read(item, part)
    except (ValueError, OSError) as error:
        return str(error)
    except MemoryError:
        return f"{item.image}: too large for this machine's memory; cut it into tiles"
    image = np.ascontiguousarray(image)
    labels = None if labels is None else np.ascontiguousarray(labels)
    return image, labels, size, digest_of(image), None if labels is None else digest_of(labels)


def _in_parallel(function: Callable, items: list, workers: int, title: str) -> Iterable:
    bar = partial(tqdm, total=len(items), desc=title, unit="image", mininterval=5)
    if workers < 2 or len(items) < 64:
        yield from bar(map(function, items))
        return
    # Fresh processes: a fork of a notebook's kernel would inherit its threads' locks.
    context, ends = multiprocessing.get_context("spawn"), (signal.SIGKILL, os.getpid())
    with ProcessPoolExecutor(workers, context, end_with_parent, ends) as pool:
        try:
            yield from bar(in_order(pool, function, items, ahead=4 * workers))
        except BrokenProcessPool:
            raise OSError(f"{title}: a process that reads images was killed, perhaps for want of memory; take fewer of "
                          "them (OMP_NUM_THREADS=1)") from None  # fmt: skip


def _stamp(item: Item) -> list:
    """What changes when a file on disk does."""
    if not isinstance(item.image, str):
        return [item.name]
    files = [Path(p) for p in (item.image, item.labels) if p is not None]
    return [item.name, *[stamp(f) for f in files]]


def _json(value):
    return json.loads(json.dumps(value))

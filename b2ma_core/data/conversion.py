"""From the files of a data set to what a study reads: checked as a whole, brought to the study's size once.

Each part of a study gets a folder ``data/<study>/<part>/`` with ``images.npy``, ``index.json`` and ``labels.npy``
where it is trained on, or ``labels.bin`` where it is scored: label maps of any sizes, one after another. What is
there is opened by :mod:`datasets`.
"""

import errno
import os
import re
import shutil
from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from b2ma_core import minicity
from b2ma_core.data.datasets import FILES, Data, Part, load, parts
from b2ma_core.data.layouts import (
    IMAGE_SUFFIXES,
    LAYOUTS,
    Item,
    folders,
    list_files,
    passed_over,
    read_image,
    read_train_ids,
    what_is_at,
)
from b2ma_core.digests import code_digests, digest, digest_of, stamp
from b2ma_core.files import PROJECT, only_one, read_json, start_npy, whole_folder, write_bytes, write_json
from b2ma_core.params import Params, base_study
from b2ma_core.processes import in_parallel

LONGEST_NAME = 230  # bytes: file systems take 255, and names of files that are being written are longer


def prepare(params: Params, workers: int | None = None, data: Path = PROJECT / "data") -> dict[str, Data]:
    """Check and convert every part of a study, unless that was done already.

    Args:
        params: the study.
        workers: processes that decode and draw; None: as many as the threads granted, or the cores.
        data: the folder of all prepared data.

    Returns:
        The parts by name.

    Raises:
        FileNotFoundError, ValueError: see :func:`list_items`; ValueError if somebody else's files lie where a part is
            to be written, and listing everything wrong with the files of all parts, not only the first;
            ``data/<study>/problems.txt`` has the list. Parts without fault are kept.
        OSError: if the disk cannot hold them.
    """
    granted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # "4,2": of nested loops the outer one's
    workers = workers or (int(granted) if granted.isdigit() else os.cpu_count()) or 1
    folder, wanted = data / base_study(params.study), parts(params)
    items, errors, problems = {}, [], []
    for name, part in wanted.items():
        try:
            _refuse_others(folder / name)
            items[name] = list_items(part)
        except (FileNotFoundError, ValueError) as error:
            errors.append(error)
    if errors:  # nothing is written then
        raise type(errors[0])("\n".join(map(str, errors)))
    with only_one(folder, patience=6 * 3600):  # seeds that start together share what the first one prepares: 92 GB, say
        for name, part in wanted.items():
            trained = name == "source_train" and params.box == "model" and params.source_steps > 0
            try:
                _prepare(part, items[name], folder / name, workers, trained)
            except ValueError as error:
                problems.append(str(error))
        report = folder / "problems.txt"
        report.unlink(missing_ok=True)
        if problems:
            lines = "\n".join(problems).splitlines()
            write_bytes(report, ("\n".join(lines) + "\n").encode())
            more = f"\n  and {len(lines) - 40} lines more" if len(lines) > 40 else ""
            raise ValueError("\n".join(lines[:40]) + f"{more}\nThe whole list: {report}")
    ready = {name: load(params, name, data) for name in wanted}
    return {name: replace(d, notes=[*d.notes, *_passed_over(wanted[name])]) for name, d in ready.items()}


def list_items(part: Part) -> list[Item]:
    """Name the samples of a part, in a fixed order.

    Raises:
        FileNotFoundError: if the folder is missing; the message shows the layout expected.
        ValueError: if no sample is left, two have the same name, or a name is too long or no UTF-8.
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
            none = "" if part.name.endswith("_train") else f", or {part.name}_split to null where there is no such part"
            raise FileNotFoundError(
                f"{part.name}: {error}. Set {part.name.split('_')[0]}_root or {part.name}_split in the study's "
                f"parameters to the folder that you have{none}"
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
    # \udc80 .. \udcff: how Python says bytes of a name that are no UTF-8
    odd = [i.name for i in items if len(os.fsencode(i.name)) > LONGEST_NAME or re.search("[\udc80-\udcff]", i.name)]
    if odd:
        raise ValueError(f"{part.name}: {len(odd)} names are no UTF-8 or longer than {LONGEST_NAME} bytes, {odd[0]!r} "
                         "first: rename them (convmv mends names of old archives)")  # fmt: skip
    if not items:
        of = f" of sequences {part.sequences}" if part.sequences else ""
        others = "".join(f"; {sentence}" for sentence in _passed_over(part))
        looked = ", ".join(str(folders(part.dataset, root, split)[0]) for split in part.split.split("+"))
        raise ValueError(f"{part.name}: {looked} holds no images{of} ({', '.join(IMAGE_SUFFIXES)}){others}. Expected: "
                         f"{LAYOUTS[part.dataset]}")  # fmt: skip
    return items


def read_sample(item: Item, part: Part) -> tuple[np.ndarray, np.ndarray | None, tuple[int, int]]:
    """Read one sample at the part's size.

    Returns:
        ``(H, W, 3)`` uint8 image; ``(H', W')`` uint8 train ids of the study, or None without labels; the image's
        (height, width) before.

    Raises:
        ValueError: naming the file that is missing, unreadable, of another size than its image, or holds ids that
            are no train ids of the label space.
    """
    height, width = part.size
    if part.dataset == "minicity":
        domain, split, index = item.image
        image, labels = minicity.render(index, domain, split, part.world_seed, (height, width))
        return image, _mapped(labels, part), (height, width)
    image, labels = read_image(item.image), None
    if item.labels is not None:
        labels = _mapped(read_train_ids(item.labels, part.dataset, part.space), part)
        own = labels.shape[::-1]
        if own != image.size and not (part.dataset == "gta5" and _nearly(own, image.size)):
            turned = "; were they drawn before its EXIF orientation turned it?" if labels.shape == image.size else ""
            raise ValueError(f"{item.labels}: labels are {own}, the image is {image.size} (W x H){turned}")
        if not part.native_labels:
            labels = np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))
    resized = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    return resized, labels, (image.height, image.width)


def _nearly(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Some images of GTA5 are said to differ from their labels by a few pixels. Both are brought to one size anyway, so
    this is let pass, up to a fiftieth of a side."""
    return all(abs(a - b) <= b / 50 for a, b in zip(size, other, strict=True))


def _mapped(labels: np.ndarray, part: Part) -> np.ndarray:
    """Train ids of the part's space to the study's."""
    return labels if part.label_map is None else np.array(part.label_map, np.uint8)[labels]


def _refuse_others(folder: Path) -> None:
    """A part's folder is replaced whole: ValueError if it holds files that were put there by somebody else."""
    others = [p for p in folder.iterdir() if p.name not in FILES and p.name[0] != "."] if folder.is_dir() else []
    if others:
        raise ValueError(f"{folder}: prepared images are written here, and {len(others)} other files lie in it, "
                         f"{min(others).name} for one: move them to a folder of another name, and name that one in the "
                         "study's parameters")  # fmt: skip


def _prepare(part: Part, items: list[Item], folder: Path, workers: int, trained: bool) -> None:
    """Convert a part, unless its folder holds what would come of it now; ValueError lists what is wrong with it.
    ``trained``: the source model learns from it, which needs labels."""
    refused = f"{part.name}: the source model trains on it, and"
    if trained and all(item.labels is None for item in items):
        raise ValueError(f"{refused} it has {_no_labels(part)}")
    code = code_digests("data.conversion.prepare", "minicity")
    fingerprint = digest({**asdict(part), "code": code, "files": [_stamp(item) for item in items]})
    index = read_json(folder / "index.json", {})
    if index.get("fingerprint") != fingerprint:
        with whole_folder(folder) as target:
            index = {"fingerprint": fingerprint, **_convert(part, items, target, workers, trained)}
            write_json(target / "index.json", index)
    if trained and index["label_digests"] is None:
        raise ValueError(f"{refused} {index['notes'][0]}")


def _convert(part: Part, items: list[Item], folder: Path, workers: int, trained: bool) -> dict:
    """Fill a folder with a part; returns what its index holds beside the fingerprint."""
    absent = [] if all(item.labels is None for item in items) else [item for item in items if not _has_labels(item)]
    known = [item if _has_labels(item) else replace(item, labels=None) for item in items]
    maps = folder / ("labels.bin" if part.native_labels else "labels.npy")
    problems, told, void, pixels = [], [], 0, np.zeros(256, np.int64)
    with open(folder / "images.npy", "wb") as images, open(maps, "wb") as labels:
        start_npy(images, (len(items), *part.size, 3))
        if not part.native_labels:
            start_npy(labels, (len(items), *part.size))
        for sample in in_parallel(partial(_attempt, part=part), known, workers, part.name):
            if isinstance(sample, str):
                problems.append(sample)
                continue
            image, train_ids, size, *digests = sample
            if not told:
                _room_for(len(items) * (image.size + (0 if train_ids is None else train_ids.size)), folder)
            told.append((size, *digests, None if train_ids is None else train_ids.shape))
            images.write(image)
            if train_ids is not None:
                labels.write(train_ids)
                counts = np.bincount(train_ids.ravel(), minlength=256)
                void, pixels = void + (not counts[:255].any()), pixels + counts
    if absent and (problems or trained):
        problems += [
            f"{i.labels or i.image}: no such file; each image needs its labels, or none has any" for i in absent
        ]
    if problems:
        listed = "\n  ".join(problems)
        raise ValueError(f"{part.name}: {len(problems)} of {len(items)} samples cannot be used:\n  {listed}")
    why = _why_unlabelled(part, items, absent, void)
    if why is None:
        _refuse_train_ids(part, items, pixels)
    else:
        maps.unlink()
    notes = [why] if why else [f"{void} of its {len(items)} label maps are void everywhere"] if void else []
    sizes, digests, label_digests, shapes = zip(*told, strict=True)
    return {"names": [i.name for i in items], "splits": [i.split for i in items], "sizes": sizes, "digests": digests,
            "label_digests": label_digests if why is None else None,
            "label_sizes": shapes if why is None and part.native_labels else None, "notes": notes}  # fmt: skip


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


def _refuse_train_ids(part: Part, items: list[Item], pixels: np.ndarray) -> None:
    """Refuse maps of train ids in a layout of label ids: of the classes 6 .. 18 they leave nothing."""
    meant = list(part.label_map or range(256))
    late = sorted(set(meant[6:19]) - {*meant[:6], 255})
    if part.dataset in ("cityscapes", "gta5") and late and pixels[late].sum() == 0:
        raise ValueError(
            f"{part.name}: {items[0].labels} and all others: no light, sign, plant, sky, person or vehicle anywhere; "
            "these look like train ids where label ids belong: read such maps with the data set 'folder'"
        )


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
    """Refuse at once what the disk cannot hold."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(errno.ENOSPC, f"{folder.parent}: needs {size / 1e9:.3g} GB for the resized images and labels, "
                      f"{free / 1e9:.3g} GB are free. Nothing that was there is lost: free some space, make data/ a "
                      "link to another disk, or take a smaller image_size")  # fmt: skip


def _attempt(item: Item, part: Part) -> tuple | str:
    """Image, train ids, the image's size before and the digests of both; or what is wrong with the sample."""
    try:
        image, labels, size = read_sample(item, part)
    except (ValueError, OSError) as error:
        return str(error)
    except MemoryError:
        return f"{item.image}: too large for this machine's memory; cut it into tiles"
    return image, labels, size, digest_of(image), None if labels is None else digest_of(labels)


def _stamp(item: Item) -> list:
    """What changes when a file on disk does."""
    if not isinstance(item.image, str):
        return [item.name]
    return [item.name, *[stamp(Path(p)) for p in (item.image, item.labels) if p is not None]]

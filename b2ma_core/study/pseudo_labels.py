"""What has crossed the black-box boundary, read: the box's answers, the votes, and which of them are learnt from.

``labels/<part>/`` of a run holds a PNG for each target image, see :mod:`b2ma_core.study.asking`.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from b2ma_core.data.datasets import Data, LabelMaps
from b2ma_core.files import read_json, read_label_map, start_npy, whole_file
from b2ma_core.study.records import Run


def voted(run: Run, data: Data) -> bool:
    """Whether a part has the answers to several views."""
    return run.path("labels", f"{data.name}_votes").is_dir()


def answer_size(data: Data, i: int) -> tuple[int, int]:
    """(height, width) of the answer to an image: its labels' own where it has some, so that the owner's model is scored
    as the students are; else the image's."""
    return (data.images if data.labels is None else data.labels)[i].shape[:2]


def read_labels(run: Run, data: Data, votes: bool = False) -> np.ndarray | LabelMaps:
    """``(N, H, W)`` uint8 train ids that the box gave to a part, LabelMaps where their sizes differ: its plain answers,
    or the votes.

    Errors name the notebook that comes first, or the broken file.
    """
    space = run.params.space

    def check(labels: np.ndarray, path: str, i: int) -> np.ndarray:
        if labels.shape not in (data.images.shape[1:3], answer_size(data, i)):
            raise ValueError(f"{path}: labels are {labels.shape}, the images {data.images.shape[1:3]} (H x W)")
        space.check(labels, path)
        return labels

    return _read(run, data, f"{data.name}_votes" if votes else data.name, check)


def steadiness_file(run: Run, part: str) -> Path:
    """Where :func:`queries.steadiness` of a part's images is kept."""
    return run.path("labels", f"{part}_steadiness.json")


def read_steadiness(run: Run, part: str) -> dict[str, list[float]]:
    """Name -> :func:`queries.steadiness` of a part's images whose six views were answered."""
    return read_json(steadiness_file(run, part), {})


def part_steadiness(run: Run, part: str = "target_train") -> tuple[float, float] | None:
    """How steady the box's answers to a part are by exposure and by size, 0 .. 1: means of
    :func:`queries.steadiness` over its images; None where fewer than all views were answered."""
    told = read_steadiness(run, part)
    return tuple(np.mean([*told.values()], axis=0).tolist()) if told else None


def learns_from_votes(run: Run) -> bool:
    """Whether the votes are the pseudo labels, or the plain answers, by ``learn_from`` of the parameters and, where
    that is "auto", by the answers to all training images.

    A box that suits its images answers another exposure much as the images themselves; votes then only blur its
    answers. A box that is lost on them says something else to each view that suits it better. How much change is normal
    is measured by enlarging and shrinking the images: no truth and no threshold are needed.

    Raises:
        ValueError: if votes are wanted and each image has one answer.
    """
    if run.params.learn_from != "auto":
        if run.params.learn_from == "votes" and not run.path("labels", "target_train_votes").is_dir():
            raise ValueError("learn_from: 'votes' needs answers to several views, and the box has given one an "
                             "image; set it to auto or plain")  # fmt: skip
        return run.params.learn_from == "votes"
    steady = part_steadiness(run)
    return steady is not None and steady[0] < steady[1]


def read_pseudo_labels(run: Run, data: Data) -> np.ndarray | LabelMaps:
    """``(N, H, W)`` uint8: what the student learns from, the plain answers or the votes; LabelMaps of several sizes."""
    return read_labels(run, data, votes=learns_from_votes(run))


def read_confidences(run: Run, data: Data) -> np.ndarray | LabelMaps | None:
    """``(N, H, W)`` uint8 confidences, 0 .. 255: the vote agreement, that is the share of the votes for the class that
    won, or the owner's; None after a single query.

    Bytes as they are in the files: as floats, those of Cityscapes' training images would take four times the room.
    """
    if not run.path("labels", f"{data.name}_confidence").is_dir():
        return None
    return _read(run, data, f"{data.name}_confidence", lambda values, path, i: values)


def _read(run: Run, data: Data, folder: str, check: Callable) -> np.ndarray | LabelMaps:
    """The maps, memory-mapped: those of Cityscapes' training images are 1.5 GB, which no process has to hold.

    They are decoded into ``cache/`` of the run, and anew when a PNG has changed. Maps of several sizes are scored and
    never trained on; they are read into memory.
    """
    files = [run.path("labels", folder, f"{name}.png") for name in data.names]
    if len({_size(file) for file in files}) > 1:
        return LabelMaps(_decoded(files, check))
    stamps = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) if f.is_file() else None for f in files]
    kept = run.path("cache", f"{folder}-{hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]}.npy")
    if not kept.is_file():
        maps = _decoded(files, check)
        first = next(maps)
        with whole_file(kept) as file:
            start_npy(file, (len(files), *first.shape))
            for values in chain([first], maps):
                file.write(values.tobytes())
        for old in set(kept.parent.glob(f"{folder}-*.npy")) - {kept}:
            old.unlink(missing_ok=True)  # whoever has it open keeps it
    return np.load(kept, mmap_mode="r")


def _decoded(files: Sequence[Path], check: Callable) -> Iterator[np.ndarray]:
    for i, path in enumerate(files):
        try:
            yield check(read_label_map(path), str(path), i)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} is missing: run the notebook 02_pseudo_labels first") from None
        except ValueError as error:
            raise ValueError(f"{error}; remove it and run 02_pseudo_labels again") from None


def _size(path: Path) -> tuple[int, int] | None:
    """(width, height) by a picture's header; None for a file that :func:`_decoded` will complain of."""
    try:
        with Image.open(path) as picture:
            return picture.size
    except (OSError, SyntaxError):
        return None

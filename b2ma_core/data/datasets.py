"""Data sets behind one type: images and labels in memory-mapped arrays.

A *part* is what one role of a study reads: source_train, source_val, target_train, target_val,
target_test. :mod:`conversion` makes it, ``data/<study>/<part>/`` keeps it, and :func:`load` opens it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from b2ma_core.files import PROJECT, read_json
from b2ma_core.labels import LabelSpace
from b2ma_core.params import Params, base_study

FILES = ("images.npy", "labels.npy", "labels.bin", "index.json")  # what a prepared part consists of
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
    space: LabelSpace  # of its label maps
    label_map: tuple[int, ...] | None  # from the space's train ids to the study's; None: they are the same
    size: list[int]
    native_labels: bool  # scored parts keep their labels' own size


class LabelMaps(list):
    """Label maps of several sizes: ``maps[i]`` is ``(H', W')`` uint8, ``maps[chosen]`` those of a slice or of indices,
    as LabelMaps."""

    def __getitem__(self, chosen):
        if isinstance(chosen, (int, np.integer)):
            return super().__getitem__(chosen)
        return LabelMaps(self[i] for i in np.arange(len(self))[chosen])


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
        lists = {name: [getattr(self, name)[i] for i in chosen] for name in ("names", "splits", "sizes", "digests")}
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, **lists, images=self.images[chosen], labels=labels)

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
            space=params.space_of(side),
            label_map=None if (table := params.label_map(side)) is None else tuple(table.tolist()),
            size=(params.source_image_size if side == "source" else None) or params.image_size,
            native_labels=role == "val",
        )
    return found


def load(params: Params, name: str, data: Path = PROJECT / "data") -> Data | None:
    """Open a prepared part; None if the study has no such part.

    Raises:
        FileNotFoundError: if it was not prepared yet; 00_data comes first.
    """
    if name not in parts(params):
        return None
    folder = data / base_study(params.study) / name
    index = read_json(folder / "index.json", {})
    if "digests" not in index:
        raise FileNotFoundError(
            f"{folder} is missing or of an older version: run the notebook 00_data first "
            f"(make study STUDY={params.study})"
        )
    labels = None
    if (folder / "labels.npy").is_file():
        labels = np.load(folder / "labels.npy", mmap_mode="r")
    elif (folder / "labels.bin").is_file():
        pixels, shapes = np.memmap(folder / "labels.bin", np.uint8, "r"), index["label_sizes"]
        if all(shape == shapes[0] for shape in shapes):
            labels = pixels.reshape(-1, *shapes[0])
        else:
            each = np.split(pixels, np.cumsum(np.prod(shapes, axis=1))[:-1])
            labels = LabelMaps(flat.reshape(shape) for flat, shape in zip(each, shapes, strict=True))
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


def load_to_learn(params: Params) -> Data:
    """The target's training images that stages 1 and 2 learn from: all, or ``learn_images`` of them, evenly by number.
    Their labels, where there are any, are the oracle's."""
    data = load(params, "target_train")
    few = params.learn_images is not None and params.learn_images < len(data)
    return data.of(data.evenly(params.learn_images)) if few else data

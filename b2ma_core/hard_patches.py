"""Hard patches mining: where the rare classes of the pseudo labels lie, as an index of grid cells, and how those cells
are given back to the student: alone, or enlarged and pasted over its images."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torchvision.transforms.v2.functional as T
from torch import Tensor


class HardPatch(NamedTuple):
    """One cell of an image's grid that holds rare classes.

    Attributes:
        image: index of the image in the data set.
        row: row of the cell, 0 .. grid - 1.
        column: column of the cell, 0 .. grid - 1.
        classes: the rare classes in it, train ids in rising order.
    """

    image: int
    row: int
    column: int
    classes: tuple[int, ...]


def class_statistics(
    pseudo_labels: Iterable[np.ndarray], num_classes: int, confidences: Iterable[np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels per class, and mean confidence per class.

    Args:
        pseudo_labels: ``(H, W)`` integer maps of train ids, 0 or more; values from ``num_classes`` on are ignored.
        num_classes: number of classes C.
        confidences: ``(H, W)`` maps, one per label map, where the box gave them: float 0 .. 1, or uint8 0 .. 255 that
            stand for 0 .. 1.

    Returns:
        ``(C,)`` int64 counts and ``(C,)`` float64 means; a mean is NaN where a class has no pixel or no
        confidences were given.

    Raises:
        ValueError: if there are not as many confidence maps as label maps, or one is of another size.
    """
    counts, sums = np.zeros(num_classes, np.int64), np.zeros(num_classes)
    maps = ((labels, None) for labels in pseudo_labels)
    if confidences is not None:
        maps = zip(pseudo_labels, confidences, strict=True)
    for labels, confidence in maps:
        shape, labels = np.shape(labels), np.asarray(labels).ravel()
        known = labels < num_classes
        counts += np.bincount(labels[known], minlength=num_classes)
        if confidence is not None:
            if np.shape(confidence) != shape:
                raise ValueError(f"confidences: a map is {np.shape(confidence)}, its labels are {shape}")
            full = 255 if np.asarray(confidence).dtype == np.uint8 else 1
            sums += np.bincount(labels[known], np.asarray(confidence, np.float64).ravel()[known], num_classes) / full
    nothing = np.full(num_classes, np.nan)
    if confidences is None:
        return counts, nothing
    return counts, np.divide(sums, counts, out=nothing, where=counts > 0)


def rare_classes(
    pseudo_labels: Iterable[np.ndarray],
    num_classes: int,
    confidences: Iterable[np.ndarray] | None = None,
    k: int = 5,
) -> list[int]:
    """The k classes with the fewest predicted pixels, united with the k of the lowest mean confidence.

    A class that no pixel was given to has no patch to mine and is not counted among the k.

    Args:
        pseudo_labels: ``(H, W)`` integer maps of train ids; ``num_classes`` and above are ignored.
        num_classes: number of classes.
        confidences: ``(H, W)`` maps, see :func:`class_statistics`; None where the box gave labels alone.
        k: how many classes each of the two rankings names.

    Returns:
        Train ids in rising order. Ties go to the lower id.

    Source: Luo et al., CROTS (IJCV 2024), hard patches mining; the published lists for GTA5 are
    [6, 7, 12, 16, 17, 18], for SYNTHIA [6, 7, 12, 17, 18].
    """
    counts, means = class_statistics(pseudo_labels, num_classes, confidences)
    present = np.flatnonzero(counts)
    rare = set(present[np.argsort(counts[present], kind="stable")[:k]].tolist())
    if confidences is not None:
        means = means[present].round(9)  # equal ones are equal, however they were added up
        rare |= set(present[np.argsort(means, kind="stable")[:k]].tolist())
    return sorted(rare)


def rarely_seen(
    pseudo_labels: Iterable[np.ndarray], num_classes: int, most: float = 0.5, least: float = 1e-3
) -> list[int]:
    """The classes that few images hold.

    A thin class that is in every image, as poles are, needs no patches: every batch has it. One that is in few is what
    a network forgets.

    Args:
        pseudo_labels: ``(H, W)`` integer maps of train ids; ``num_classes`` and above are ignored.
        num_classes: number of classes.
        most: share of the images that may hold a rare class, 0 .. 1.
        least: share of an image's pixels from which on it holds a class: less is often a mistake of the box.

    Returns:
        Train ids in rising order; a class that no image holds is absent, not rare.
    """
    shares = image_shares(pseudo_labels, num_classes, least)
    return np.flatnonzero((shares > 0) & (shares <= most)).tolist()


def image_shares(pseudo_labels: Iterable[np.ndarray], num_classes: int, least: float = 1e-3) -> np.ndarray:
    """``(C,)`` float64 share of the images that hold each class, 0 .. 1; arguments as for :func:`rarely_seen`."""
    held, images = np.zeros(num_classes, np.int64), 0
    for labels in pseudo_labels:
        labels = np.asarray(labels).ravel()
        counts = np.bincount(labels[labels < num_classes], minlength=num_classes)
        held += counts >= max(least * labels.size, 1)
        images += 1
    return held / max(images, 1)


def cell(height: int, width: int, row: int, column: int, grid: int = 4) -> tuple[slice, slice]:
    """Rows and columns of a grid cell: ``height // grid`` x ``width // grid`` pixels, the same for every cell."""
    h, w = height // grid, width // grid
    return slice(row * h, (row + 1) * h), slice(column * w, (column + 1) * w)


def mine(
    pseudo_labels: Iterable[np.ndarray], rare_classes: Sequence[int], grid: int = 4, least: float = 0.0
) -> list[HardPatch]:
    """List the cells of a ``grid`` x ``grid`` partition whose pseudo labels hold a rare class.

    Args:
        pseudo_labels: ``(H, W)`` integer maps of train ids, one per image.
        rare_classes: train ids to look for.
        grid: cells per side.
        least: share of a cell's pixels that a class needs to count, 0 .. 1; 0: one pixel, as published.

    Returns:
        ``(image, row, column, classes)``, sorted. Pixels beyond ``grid * (H // grid)`` rows or
        ``grid * (W // grid)`` columns belong to no cell.

    Raises:
        ValueError: if an image has fewer pixels than cells along a side.

    Source: Luo et al., CROTS (IJCV 2024), hard patches mining.
    """
    wanted, patches = sorted(set(rare_classes)), []
    for image, labels in enumerate(pseudo_labels):
        labels = np.asarray(labels)
        height, width = labels.shape
        if grid < 1 or min(height, width) < grid:
            raise ValueError(f"grid is {grid}, but image {image} has {height} x {width} pixels")
        h, w = height // grid, width // grid
        cells = labels[: h * grid, : w * grid].reshape(grid, h, grid, w)
        needed = max(least * h * w - 1e-9, 1)  # 0.07 of 100 is a little more than 7
        present = np.stack([(cells == c).sum((1, 3)) >= needed for c in wanted] or [np.zeros((grid, grid), bool)])
        for row, column in np.argwhere(present.any(axis=0)).tolist():
            classes = tuple(c for c, here in zip(wanted, present[:, row, column], strict=False) if here)
            patches.append(HardPatch(image, row, column, classes))
    return patches


def holders(patches: Sequence[HardPatch]) -> dict[int, list[HardPatch]]:
    """The patches that hold each rare class, by train id in rising order."""
    return {c: [p for p in patches if c in p.classes] for c in sorted({c for p in patches for c in p.classes})}


def draw_patches(by_class: dict[int, list[HardPatch]], count: int, generator: torch.Generator) -> list[HardPatch]:
    """Draw ``count`` patches with replacement: first a class, each alike, then one of the patches that hold it.

    Drawing all patches alike would repeat the long tail inside the mined ones: most of them hold the commonest
    of the rare classes.

    Args:
        by_class: what :func:`holders` gives; not empty.
        count: number of patches.
        generator: source of all randomness, on the CPU.
    """

    def pick(choices: Sequence):
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    classes = list(by_class)
    return [pick(by_class[pick(classes)]) for _ in range(count)]


class Patches(NamedTuple):
    """Hard patches, cut out.

    Attributes:
        images: ``(M, 3, h, w)``.
        train_ids: ``(M, h, w)``, of the box.
        places: ``(M, 2)`` int64, row and column of each patch's upper left pixel where it is pasted.
    """

    images: Tensor
    train_ids: Tensor
    places: Tensor


def cut_patches(
    images: np.ndarray, labels: np.ndarray, patches: list[HardPatch], grid: int, frame: tuple[int, int] | None = None
) -> Patches:
    """Cut patches out of the data.

    Args:
        images: ``(N, H, W, 3)`` uint8.
        labels: ``(N, H, W)`` uint8 train ids.
        patches: which.
        grid: cells per side.
        frame: (height, width) of the images that they are to be pasted into: they get twice the size of a cell of the
            frame, so that a network sees what is in them, about their cell's middle and inside the frame. None: they
            stay as they are.

    Returns:
        uint8 patches of ``H // grid`` x ``W // grid`` pixels, or of twice the frame's cells.

    Raises:
        ValueError: if there are none, or one lies outside the grid.
    """
    if not patches or not all(0 <= min(p.row, p.column) <= max(p.row, p.column) < grid for p in patches):
        raise ValueError(f"patches: {len(patches)} given, needed is one at least, all inside a grid of {grid} x {grid}")
    size, pictures, maps, places = labels.shape[1:], [], [], []
    for image, row, column, _ in patches:
        rows, columns = cell(*size, row, column, grid)
        picture = torch.from_numpy(np.array(images[image, rows, columns])).permute(2, 0, 1)
        train_ids = torch.from_numpy(np.array(labels[image, rows, columns]))
        place = [rows.start, columns.start]
        if frame is not None:
            large = [min(2 * (side // grid), side) for side in frame]
            picture = T.resize(picture, large, antialias=True)
            train_ids = T.resize(train_ids[None], large, interpolation=T.InterpolationMode.NEAREST_EXACT)[0]
            middles = [(k + 0.5) * (side // grid) for k, side in zip((row, column), frame, strict=True)]
            corners = [int(m - n / 2) for m, n in zip(middles, large, strict=True)]
            place = [min(max(c, 0), side - n) for c, side, n in zip(corners, frame, large, strict=True)]
        places.append(place)
        pictures.append(picture)
        maps.append(train_ids)
    return Patches(torch.stack(pictures), torch.stack(maps), torch.tensor(places))


def paste(tensor: Tensor, patches: Tensor, places: Tensor) -> Tensor:
    """Lay the first patch over the first sample of a batch, and so on; samples without a patch stay.

    Args:
        tensor: ``(N, C, H, W)`` or ``(N, H, W)``.
        patches: ``(M, C, h, w)`` or ``(M, h, w)``, M at most N.
        places: ``(M, 2)``, see :class:`Patches`.

    Returns:
        A new tensor.

    Raises:
        ValueError: if the dtypes differ, as of float images and the uint8 of :func:`cut_patches`.
    """
    if patches.dtype != tensor.dtype:
        raise ValueError(f"patches are {patches.dtype}, the batch is {tensor.dtype}: bring them to the same")
    pasted, (h, w) = tensor.clone(), patches.shape[-2:]
    for i, (patch, (row, column)) in enumerate(zip(patches, places.tolist(), strict=True)):
        pasted[i, ..., row : row + h, column : column + w] = patch
    return pasted

"""One IoU for everything: a confusion matrix in int64, read as per-class IoU and its mean."""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

ALL = "all"  # in place of a split: all images together


class ConfusionMatrix:
    """Counts of (true class, predicted class) over pixels that are not ignored.

    Args:
        num_classes: number of classes ``C``.
        ignore_index: true value of pixels that are left out; as a *prediction* it means "no answer"
            and counts against its true class, as the official Cityscapes evaluation does.

    Attributes:
        matrix: ``(C, C)`` int64, rows are true classes, columns predicted ones.
        unanswered: ``(C,)`` int64, pixels of a true class that got ``ignore_index`` as an answer.

    Example:
        >>> scores = ConfusionMatrix(2, 255)
        >>> scores.update(torch.tensor([[0, 1]]), torch.tensor([[0, 0]]))
        >>> scores.iou().tolist()
        [0.5, 0.0]
    """

    def __init__(self, num_classes: int, ignore_index: int = 255):
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.unanswered = torch.zeros(num_classes, dtype=torch.int64)

    def update(self, prediction: Tensor | np.ndarray, target: Tensor | np.ndarray) -> None:
        """Add maps of train ids.

        Args:
            prediction: integer array of any shape, values in ``0 .. C - 1`` or ``ignore_index``.
            target: integer array of the same shape and range.

        Raises:
            ValueError: if the shapes differ, or a value is out of range; where the target is ``ignore_index``, the
                prediction is not looked at.
        """
        # torch warns of an array that it could not write into, as a memory-mapped one is: that is copied.
        prediction, target = (torch.as_tensor(np.require(m, requirements="CW") if isinstance(m, np.ndarray) else m)
                              for m in (prediction, target))  # fmt: skip
        if prediction.shape != target.shape:
            raise ValueError(f"prediction is {tuple(prediction.shape)}, target is {tuple(target.shape)}: sizes differ")
        keep = target != self.ignore_index
        true, predicted = target[keep].long(), prediction[keep].long()
        missed = predicted == self.ignore_index
        for name, values in (("target", true), ("prediction", predicted[~missed])):
            if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < self.num_classes:
                raise ValueError(
                    f"{name} holds {int(values.min())} .. {int(values.max())}, "
                    f"allowed are 0 .. {self.num_classes - 1} and {self.ignore_index}"
                )
        predicted, width = torch.where(missed, self.num_classes, predicted), self.num_classes + 1
        counts = torch.bincount(true * width + predicted, minlength=self.num_classes * width).view(-1, width).cpu()
        self.matrix += counts[:, :-1]
        self.unanswered += counts[:, -1]

    @classmethod
    def of(cls, counts: Tensor | list[list[int]]) -> "ConfusionMatrix":
        """The matrix whose :meth:`counts` these are.

        Raises:
            ValueError: if they are not ``(C, C + 1)``.
        """
        counts = torch.as_tensor(counts, dtype=torch.int64)
        if counts.ndim != 2 or counts.shape[1] != len(counts) + 1:
            raise ValueError(f"counts: must be (C, C + 1), got {tuple(counts.shape)}")
        scores = cls(len(counts))
        scores.matrix += counts[:, :-1]
        scores.unanswered += counts[:, -1]
        return scores

    def counts(self) -> Tensor:
        """``(C, C + 1)`` int64 pixels: rows are true classes, columns predicted ones and, last, no answer."""
        return torch.cat([self.matrix, self.unanswered[:, None]], 1)

    def iou(self) -> Tensor:
        """``(C,)`` float64 intersection over union, 0 .. 1; NaN for a class neither present nor predicted."""
        hits = self.matrix.diag().double()
        union = self.true_pixels() + self.answers() - self.matrix.diag()
        return hits / union.double()  # 0 / 0 is NaN

    def true_pixels(self) -> Tensor:
        """``(C,)`` int64 pixels that are of a class."""
        return self.matrix.sum(1) + self.unanswered

    def present(self) -> list[int]:
        """The classes that have a true pixel."""
        return self.true_pixels().nonzero().flatten().tolist()

    def answers(self) -> Tensor:
        """``(C,)`` int64 pixels that are predicted as a class."""
        return self.matrix.sum(0)

    def precision(self) -> Tensor:
        """``(C,)`` float64 share of a class's answers that are right, 0 .. 1; NaN for a class never predicted."""
        return self.matrix.diag().double() / self.answers().double()

    def miou(self, subset: Iterable[int] | None = None) -> float:
        """Mean IoU over ``subset`` of the classes (default all), classes with NaN left out; 0 .. 1."""
        iou = self.iou() if subset is None else self.iou()[list(subset)]
        return float(iou.nanmean())

    def accuracy(self) -> float:
        """Share of the scored pixels that are right, 0 .. 1; NaN without pixels."""
        return float(self.matrix.diag().sum().double() / self.true_pixels().sum().double())


def reliability(
    labels: Iterable[np.ndarray],
    target: Iterable[np.ndarray],
    confidences: Iterable[np.ndarray],
    ignore_index: int = 255,
    bins: int = 10,
) -> list[dict]:
    """How often labels are right, by their confidence.

    Args:
        labels: N maps ``(H, W)`` of train ids.
        target: as many maps of true train ids; ``ignore_index`` is left out.
        confidences: as many maps: float 0 .. 1, or uint8 0 .. 255 that stand for 0 .. 1.
        ignore_index: true value of pixels that are left out.
        bins: number of equal parts of 0 .. 1; 1 itself is in the last.

    Returns:
        One entry for each part that holds pixels: ``confidence``, its lower end; ``pixels``, its share of all known
        pixels; ``right``, the share of its pixels whose label is right.

    Example:
        >>> said, true = np.array([[[0, 1, 1, 2]]]), np.array([[[0, 1, 0, 255]]])
        >>> reliability(said, true, np.array([[[1.0, 0.5, 0.55, 0.9]]]), bins=2)
        [{'confidence': 0.5, 'pixels': 1.0, 'right': 0.6666666666666666}]
    """
    counts, hits = np.zeros(bins, np.int64), np.zeros(bins, np.int64)
    for label, truth, confidence in zip(labels, target, confidences, strict=True):  # one image at a time: memory
        if confidence.dtype == np.uint8:
            confidence = confidence / np.float32(255)
        known = truth != ignore_index
        part = np.minimum((confidence * bins + 1e-6).astype(np.int64), bins - 1)  # 0.29 of 100 is a little less than 29
        counts += np.bincount(part[known], minlength=bins)
        hits += np.bincount(part[known & (label == truth)], minlength=bins)
    return [
        {"confidence": int(i) / bins, "pixels": float(counts[i] / counts.sum()), "right": float(hits[i] / counts[i])}
        for i in np.flatnonzero(counts)
    ]


def miou_of_present(scores: ConfusionMatrix) -> float:
    """Mean IoU over the classes that have a true pixel, 0 .. 1, as in all tables and curves: another class would count
    in the rows that answer it, as 0, and not in the others."""
    return scores.miou(scores.present())


def scores_of(confusion: Mapping[str, list[list[int]]], split: str = ALL) -> ConfusionMatrix:
    """A row's confusion matrix on one of its splits, or on all of them together, from what the record keeps."""
    return ConfusionMatrix.of(np.sum(list(confusion.values()) if split == ALL else [confusion[split]], 0))


def gap_closed(source_only: float, value: float, oracle: float) -> float:
    """Share of the gap between source-only and oracle that a value closes; 1 is all of it, NaN: there is no gap."""
    return (value - source_only) / (oracle - source_only) if oracle > source_only else math.nan

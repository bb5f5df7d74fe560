"""Test-time augmentation of a black box: it answers several views of an image, and the answers vote.

A box that only gives labels may answer a well-exposed, quiet photograph better than a dark, pale or noisy one, and
where its answers to several views differ, it is less often right. Which views suit an image shows in the labels alone:
they agree with the others. So the votes are weighted by that agreement, and the share that a class wins with, its *vote
agreement*, serves as a confidence.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as T
from torch import Tensor

PHOTO_MEAN = 0.449  # mean of ImageNet's pixels over all channels, from torchvision's constants, in 0 .. 1
QUIET = 1.5  # noise, in 0 .. 255, at which the blurred image weighs as much as the image


def noise_level(images: Tensor) -> Tensor:
    """``(N,)`` float32 standard deviation of the noise in ``(N, 3, H, W)`` uint8 images' grey, in 0 .. 255.

    Source: the mask of Immerkaer, Fast noise variance estimation (1996), which flat areas and straight edges leave
    silent, and the median of Donoho and Johnstone (1994), which the rest of the scene moves little.
    """
    mask = torch.tensor([[1.0, -2, 1], [-2, 4, -2], [1, -2, 1]])[None, None]
    response = F.conv2d(images.float().mean(1, keepdim=True), mask).abs().flatten(1)
    return response.median(1).values / 6 / 0.6745  # 6: the mask's norm; 0.6745: the median of a normal one's size


def quieten(images: Tensor, sigma: float = 0.7) -> Tensor:
    """Gaussian blur against sensor noise, as much of it as there is noise.

    Args:
        images: ``(N, 3, H, W)`` uint8.
        sigma: of the blur, in pixels.

    Returns:
        The same shape and dtype: ``(1 - w) image + w blurred`` with ``w = n^2 / (n^2 + QUIET^2)`` for a noise level
        of n, the form of Wiener's filter, so that a clean photograph stays sharp.
    """
    side = 2 * math.ceil(4 * sigma) + 1
    weight = (1 / (1 + (QUIET / noise_level(images).clamp(min=1e-3)) ** 2)).view(-1, 1, 1, 1)
    pixels = images.float()
    return pixels.lerp(T.gaussian_blur(pixels, [side, side], [sigma, sigma]), weight).round().to(torch.uint8)


def expose(images: Tensor) -> Tensor:
    """Develop an image as a photographer would: white balance, full contrast, then the brightness of a photograph.

    The last is a gamma curve, which lights up the shadows of a dusk and keeps its sky, where a gain or an offset would
    burn the one out or veil the other.

    Args:
        images: ``(N, 3, H, W)`` uint8 RGB.

    Returns:
        The same shape and dtype. Each image's gamma, within 0.3 .. 1.5, would bring a pixel of its mean to ImageNet's.

    Source: Buchsbaum, A spatial processor model for object colour perception (1980), for the grey world; Babakhani and
    Zarei, Automatic gamma correction based on average of brightness (2015).
    """
    pixels = images.float()
    means = pixels.mean((2, 3), keepdim=True)
    balanced = (pixels * (means.mean(1, keepdim=True) / means.clamp(min=1))).clamp(0, 255).to(torch.uint8)
    pixels = T.autocontrast(balanced).float() / 255
    mean = pixels.mean((1, 2, 3), keepdim=True).clamp(0.02, 0.98)
    gamma = (math.log(PHOTO_MEAN) / mean.log()).clamp(0.3, 1.5)
    return (pixels**gamma * 255).round().to(torch.uint8)


VIEWS = (  # name, change of the pixels, enlargement
    ("as it is", lambda images: images, 1.0),
    ("quiet, exposed", lambda images: expose(quieten(images)), 1.0),
    ("quiet, full contrast", lambda images: T.autocontrast(quieten(images)), 1.0),
    ("quieter, exposed", lambda images: expose(quieten(images, 1.2)), 1.0),
    ("quiet, exposed, larger", lambda images: expose(quieten(images)), 1.25),
    ("quiet, exposed, smaller", lambda images: expose(quieten(images)), 0.75),
)


EXPOSED, LARGER, SMALLER = 1, 4, 5  # of VIEWS: the same but for their size


def view_name(view: int) -> str:
    """What a view's folder is called: ``0_as_it_is``, ``1_quiet_exposed`` .."""
    return f"{view}_" + VIEWS[view][0].replace(", ", "_").replace(" ", "_")


def view_size(size: tuple[int, int], view: int) -> tuple[int, int]:
    """(height, width) of a view of an image: sides of the larger and smaller are the nearest multiples of 8 pixels."""
    scale = VIEWS[view][2]
    return tuple(size) if scale == 1 else tuple(max(round(side * scale / 8), 1) * 8 for side in size)


def views(images: np.ndarray, count: int) -> list[np.ndarray]:
    """The first ``count`` views (1 .. 6) of ``(N, H, W, 3)`` uint8 RGB images; the first is the images themselves.

    All cut off nothing and mirror nothing, so that an answer, brought back to H and W, lies in the image's frame.
    """
    batch = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)
    seen = []
    for number, (_, change, scale) in enumerate(VIEWS[:count]):
        view = change(batch)
        if scale != 1:
            view = T.resize(view, list(view_size(batch.shape[2:], number)), antialias=True)
        seen.append(np.ascontiguousarray(view.permute(0, 2, 3, 1).numpy()))
    return seen


def majority_vote(
    answers: np.ndarray, num_classes: int, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Majority vote: the class with the most votes at each pixel, and its share of them (the vote agreement).

    Args:
        answers: ``(K, ...)`` uint8 train ids, one map or batch of maps per query; values from ``num_classes`` on are
            no vote.
        num_classes: number of classes.
        weights: ``(K, ...)``, what a vote counts, positive, of as many axes as the answers; each but the first is as
            theirs or 1. None: each vote one.

    Returns:
        ``(...)`` uint8 train ids, 255 where nobody voted; ties go to the lower id. ``(...)`` float32 shares of all
        weight, 0 .. 1.

    Raises:
        ValueError: if there are not as many weights as answers.
    """
    if weights is None:
        weights = np.ones((len(answers),) + (1,) * (answers.ndim - 1))
    if weights.ndim != answers.ndim or len(weights) != len(answers):
        raise ValueError(f"weights: {weights.shape}, the answers are {answers.shape}: needed is a weight an answer")
    weights = (weights / weights.sum(0)).astype(np.float32)
    labels = np.full(answers.shape[1:], 255, np.uint8)
    most = np.zeros(answers.shape[1:], np.float32)
    for c in range(num_classes):
        votes = np.zeros_like(most)
        for answer, weight in zip(answers, weights, strict=True):
            votes += (answer == c) * weight
        labels[votes > most] = c
        np.maximum(most, votes, out=most)
    return labels, most.clip(max=1)  # sums of thirds may be a little more


def agreement(answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """``(K, N, 1, 1)`` float, 0 .. 1: the share of each image's pixels on which each query says what ``labels`` say.

    A view that suits the box agrees more with the others than one that does not, image by image; no truth is needed.
    It is a step of Dawid and Skene's estimate of observers' errors (Applied Statistics, 1979), with one number an
    observer and image in place of a confusion matrix.

    Args:
        answers: ``(K, N, H, W)`` uint8 train ids.
        labels: ``(N, H, W)`` uint8 train ids, for example the majority vote.
    """
    return (answers == labels).mean((2, 3), keepdims=True)


def steadiness(answers: np.ndarray) -> np.ndarray:
    """How steady a box's answers to an image are when it is exposed anew (and its noise smoothed), and when resized.

    Any box says something else here and there when an image is shown a quarter larger or smaller: so much do answers
    vary anyway. Where a new exposure changes them more, the images as they are do not suit the box.

    Args:
        answers: ``(6, N, H, W)`` uint8 train ids, to all ``VIEWS``.

    Returns:
        ``(N, 2)`` float, 0 .. 1, shares of pixels: on which the answer to the image as it is says what the answer to
        the exposed one says; on which the latter says what it says when larger, or smaller, the mean of both.

    Raises:
        ValueError: if the answers are not to all views.
    """
    if len(answers) != len(VIEWS):
        raise ValueError(f"answers: to {len(answers)} views, and all {len(VIEWS)} are compared")
    as_it_is, *resized = agreement(answers[[0, LARGER, SMALLER]], answers[EXPOSED])[:, :, 0, 0]
    return np.stack([as_it_is, np.mean(resized, axis=0)], axis=1)


def weighted_majority_vote(answers: np.ndarray, num_classes: int, exponent: float) -> tuple[np.ndarray, np.ndarray]:
    """Weighted majority vote: a plain one first, then again with votes that count by their agreement with it.

    Args:
        answers: ``(K, N, H, W)`` uint8 train ids.
        num_classes: number of classes.
        exponent: a vote counts ``agreement ** exponent``; 0: all alike.

    Returns:
        ``(N, H, W)`` uint8 train ids and float32 shares of the weight, as :func:`majority_vote`.
    """
    labels, shares = majority_vote(answers, num_classes)
    if exponent == 0:
        return labels, shares
    return majority_vote(answers, num_classes, agreement(answers, labels).clip(1e-3) ** exponent)

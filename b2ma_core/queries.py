"""Asking a box more than once: views of an image, and what several answers agree on.

A box that only gives labels may answer a well-exposed, quiet photograph better than a dark, pale or noisy one (on
MiniCity it does; on CamVid at dusk the votes are worse than the plain answers), and where its answers to several views
differ, it is less often right. No view moves a pixel, so every answer lies in the image's own frame.
"""

import numpy as np
import torch
import torchvision.transforms.v2.functional as T
from torch import Tensor

# Mean and standard deviation of ImageNet's pixels over all channels, from torchvision's constants, in 0 .. 255.
PHOTO_MEAN, PHOTO_STD = 114.5, 57.6


def quieten(images: Tensor) -> Tensor:
    """Gaussian blur with sigma 0.7 pixels, against sensor noise; ``(N, 3, H, W)`` uint8 to the same."""
    return T.gaussian_blur(images, [7, 7], [0.7, 0.7])


def expose(images: Tensor) -> Tensor:
    """Grey-world white balance, then brightness and contrast of an average photograph.

    Args:
        images: ``(N, 3, H, W)`` uint8 RGB.

    Returns:
        The same shape and dtype; each image has equal channel means and, but for clipping, ImageNet's mean and
        standard deviation.

    Source: Buchsbaum, A spatial processor model for object colour perception (1980), for the grey world.
    """
    pixels = images.float()
    means = pixels.mean((2, 3), keepdim=True)
    pixels = pixels * (means.mean(1, keepdim=True) / means.clamp(min=1))
    mean, std = pixels.mean((1, 2, 3), keepdim=True), pixels.std((1, 2, 3), keepdim=True)
    return ((pixels - mean) / std.clamp(min=1) * PHOTO_STD + PHOTO_MEAN).clamp(0, 255).to(torch.uint8)


VIEWS = (
    ("as it is", lambda images: images),
    ("quiet, exposed", lambda images: expose(quieten(images))),
    ("quiet, full contrast", lambda images: T.autocontrast(quieten(images))),
    ("exposed", expose),
    ("full contrast", T.autocontrast),
    ("quiet", quieten),
)


def views(images: np.ndarray, count: int) -> list[np.ndarray]:
    """The first ``count`` views (1 .. 6) of ``(N, H, W, 3)`` uint8 RGB images; the first is the images themselves."""
    batch = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)
    return [np.ascontiguousarray(change(batch).permute(0, 2, 3, 1).numpy()) for _, change in VIEWS[:count]]


def plurality(answers: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The class with the most votes at each pixel, and its share of them.

    Args:
        answers: ``(K, ...)`` uint8 train ids, one map or batch of maps per query; values from ``num_classes`` on are
            no vote.
        num_classes: number of classes.

    Returns:
        ``(...)`` uint8 train ids, 255 where nobody voted; ties go to the lower id. ``(...)`` float32 shares of the K
        answers, 0 .. 1.
    """
    labels = np.full(answers.shape[1:], 255, np.uint8)
    most = np.zeros(answers.shape[1:], np.uint8)
    for c in range(num_classes):
        votes = (answers == c).sum(0, dtype=np.uint8)
        labels[votes > most] = c
        np.maximum(most, votes, out=most)
    return labels, most.astype(np.float32) / len(answers)

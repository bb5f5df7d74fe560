"""Changes of images that training sees: every draw comes from the generator that is passed in.

The pictures are torchvision's; its random transforms draw from global state, which a run that is stopped and
goes on could not repeat, so values are drawn here and given to the functional form. Drawing (:func:`draw_changes`) and
doing (:func:`jitter_and_blur`) are apart, so that a batch is drawn for once and changed in any parts.
"""

import math
from typing import NamedTuple

import torch
import torchvision.transforms.v2.functional as T
from torch import Tensor

# torchvision's truncated Gaussian at 9 pixels holds all but 1e-4 of the weight at the largest sigma, 1.15. The
# published kernel, 10% of the side, spends its time on zeros.
BLUR_KERNEL = 9
GREY = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """One value of U(low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def coin(probability: float, generator: torch.Generator) -> bool:
    """True with the probability given."""
    return float(torch.rand((), generator=generator)) < probability


def adjust_colors(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, turns: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue, of each image by its own factors.

    All four are linear in RGB, so an image's change is one matrix and one grey offset, and the batch one product. The
    hue is turned about the grey axis (Rodrigues' rotation about (1, 1, 1)) in place of torchvision's way through HSV,
    which takes most of the time of its jitter; a third of a turn is the same permutation of channels in both.

    Args:
        images: ``(N, 3, H, W)`` float RGB in [0, 1].
        brightness: ``(N,)`` factors; 1 changes nothing.
        contrast: ``(N,)`` factors of the distance to the image's mean grey.
        saturation: ``(N,)`` factors of the distance to each pixel's grey.
        turns: ``(N,)`` of the hue, in whole circles; 0 changes nothing.

    Returns:
        New images, same shape and range.

    Source: Haeberli, Matrix Operations for Image Processing (1993). Brightness, contrast and saturation are
    torchvision's, but for clipping once at the end.
    """
    grey = torch.tensor(GREY)
    saturate = saturation.view(-1, 1, 1) * torch.eye(3) + (1 - saturation).view(-1, 1, 1) * grey
    matrix = (brightness * contrast).view(-1, 1, 1) * (hue_rotation(turns) @ saturate)
    images = images.contiguous()
    offset = (images.mean((2, 3)) @ grey.to(images)) * ((1 - contrast) * brightness).to(images)
    pixels = torch.baddbmm(offset.view(-1, 1, 1), matrix.to(images), images.flatten(2))
    return pixels.clamp_(0, 1).view(images.shape)


def hue_rotation(turns: Tensor) -> Tensor:
    """``(N,)`` shares of a whole circle to ``(N, 3, 3)`` rotations of RGB about the grey axis; greys stay."""
    cosine, sine = torch.cos(2 * math.pi * turns), torch.sin(2 * math.pi * turns) / math.sqrt(3)
    same, before, after = (1 + 2 * cosine) / 3, (1 - cosine) / 3 - sine, (1 - cosine) / 3 + sine
    return torch.stack([same, before, after, after, same, before, before, after, same], dim=1).view(-1, 3, 3)


class Changes(NamedTuple):
    """What jitter and blur have drawn for ``N`` images, each ``(N,)`` float32; see :func:`adjust_colors`.

    Attributes:
        brightness, contrast, saturation: factors; 1 changes nothing.
        turns: of the hue, in whole circles.
        sigmas: of the Gaussian blur, in pixels; 0: none.
    """

    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    turns: Tensor
    sigmas: Tensor

    def of(self, part: slice) -> "Changes":
        """Those of some of the images."""
        return Changes(*(values[part] for values in self))


def draw_changes(
    count: int, strength: float, jitter_probability: float, blur_probability: float, generator: torch.Generator
) -> Changes:
    """Draw colour jitter and Gaussian blur for each of ``count`` images; the published code draws once a batch.

    Args:
        count: number of images.
        strength: brightness, contrast and saturation are scaled by U(1 - s, 1 + s) (published 0.25), the hue is turned
            by U(-s, s) of half a circle; the published code turns it by as much of a whole one.
        jitter_probability: of changing an image's colours (published 0.8).
        blur_probability: of blurring it with sigma ~ U(0.15, 1.15) pixels (published 0.5).
        generator: source of all randomness, on the CPU.
    """
    jittered = torch.rand(count, 1, generator=generator) < jitter_probability
    draws = strength * jittered * (2 * torch.rand(count, 4, generator=generator) - 1)
    brightness, contrast, saturation, turns = (draws + torch.tensor([1.0, 1.0, 1.0, 0.0])).unbind(1)
    blurred = torch.rand(count, generator=generator) < blur_probability
    sigmas = blurred * (0.15 + torch.rand(count, generator=generator))
    return Changes(brightness, contrast, saturation, turns / 2, sigmas)


def jitter_and_blur(images: Tensor, changes: Changes) -> Tensor:
    """Colour jitter and Gaussian blur.

    Args:
        images: ``(N, 3, H, W)`` float RGB in [0, 1], of 5 pixels a side or more.
        changes: of the N images, see :func:`draw_changes`.

    Returns:
        New images, same shape and range.
    """
    images = adjust_colors(images, *changes[:4])
    for i, sigma in enumerate(changes.sigmas.tolist()):
        if sigma > 0:
            images[i] = T.gaussian_blur(images[i], [BLUR_KERNEL, BLUR_KERNEL], [sigma, sigma])
    return images


def sensor_noise(images: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise, of each image with its own standard deviation ~ U(0, ``most``).

    Args:
        images: ``(N, 3, H, W)`` float RGB in [0, 1].
        most: largest standard deviation, in the same unit.
        generator: source of all randomness, on the CPU.

    Returns:
        New images, same shape and range.
    """
    deviation = most * torch.rand(len(images), 1, 1, 1, generator=generator)
    noise = torch.randn(images.shape, generator=generator) * deviation
    return (images + noise.to(images)).clamp_(0, 1)


def random_view(
    image: Tensor, labels: Tensor, size: tuple[int, int], scale: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Enlarge by a random factor, cut a random window, mirror by a coin: the same for image and labels.

    Args:
        image: ``(3, H, W)`` uint8.
        labels: ``(H, W)`` uint8 train ids.
        size: height and width of the window; at most H and W.
        scale: lowest and highest enlargement, at least 1.
        generator: source of all randomness, on the CPU.

    Returns:
        ``(3, h, w)`` uint8 and ``(h, w)`` uint8.
    """
    factor = uniform(*scale, generator)
    height, width = round(size[0] / factor), round(size[1] / factor)
    top = int(uniform(0, image.shape[1] - height + 1, generator))
    left = int(uniform(0, image.shape[2] - width + 1, generator))
    image = image[:, top : top + height, left : left + width]
    labels = labels[top : top + height, left : left + width]
    if (height, width) != tuple(size):
        image = T.resize(image, list(size), antialias=True)
        labels = T.resize(labels[None], list(size), interpolation=T.InterpolationMode.NEAREST_EXACT)[0]
    if coin(0.5, generator):
        image, labels = image.flip(-1), labels.flip(-1)
    return image, labels

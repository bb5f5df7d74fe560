"""Changes of images that training sees: every draw comes from the generator that is passed in.

The pictures are torchvision's; its random transforms draw from global state, which a run that is stopped and
goes on could not repeat, so values are drawn here and given to the functional form.
"""

import torch
import torchvision.transforms.v2.functional as T
from torch import Tensor

# torchvision's truncated Gaussian at 9 pixels holds all but 1e-4 of the weight at the largest sigma, 1.15. The
# published kernel, 10% of the side, spends its time on zeros.
BLUR_KERNEL = 9


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """One value of U(low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def coin(probability: float, generator: torch.Generator) -> bool:
    """True with the probability given."""
    return float(torch.rand((), generator=generator)) < probability


def jitter_and_blur(
    images: Tensor, strength: float, jitter_probability: float, blur_probability: float, generator: torch.Generator
) -> Tensor:
    """Colour jitter and Gaussian blur, drawn for each image.

    Args:
        images: ``(N, 3, H, W)`` float RGB in [0, 1].
        strength: brightness, contrast and saturation are scaled by U(1 - s, 1 + s), the hue is turned by U(-s, s) of
            half a circle (published 0.25).
        jitter_probability: of changing an image's colours (published 0.8).
        blur_probability: of blurring it with sigma ~ U(0.15, 1.15) pixels (published 0.5).
        generator: source of all randomness, on the CPU.

    Returns:
        New images, same shape and range.
    """
    changed = []
    for image in images:
        if coin(jitter_probability, generator) and strength > 0:
            factors = [uniform(1 - strength, 1 + strength, generator) for _ in range(3)]
            image = T.adjust_brightness(image, factors[0])
            image = T.adjust_contrast(image, factors[1])
            image = T.adjust_saturation(image, factors[2])
            image = T.adjust_hue(image, uniform(-strength, strength, generator) / 2)
        if coin(blur_probability, generator):
            sigma = uniform(0.15, 1.15, generator)
            image = T.gaussian_blur(image, [BLUR_KERNEL, BLUR_KERNEL], [sigma, sigma])
        changed.append(image)
    return torch.stack(changed)


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

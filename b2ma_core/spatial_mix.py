"""SpatialMix: join four images of a batch at one point, each part staying where it was."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Cuts(NamedTuple):
    """What one batch of mixes has drawn.

    Attributes:
        x: ``(N,)`` int64, column of each cut, 0 .. W.
        y: ``(N,)`` int64, row of each cut, 0 .. H.
        donors: ``(N, 4)`` int64, which sample of the batch fills the top-left (the image itself),
            top-right, bottom-left and bottom-right part.
    """

    x: Tensor
    y: Tensor
    donors: Tensor


def draw_cuts(batch: int, height: int, width: int, beta: float, generator: torch.Generator) -> Cuts:
    """Draw cut points and donors for a batch.

    ``x = int((0.2 + 0.6 b) W)``, ``y = int((0.2 + 0.6 b') H)`` with ``b, b' ~ Beta(beta, beta)``. The three
    donors of an image are drawn, with replacement, from the rest of the batch; a batch of one has no
    rest and mixes with itself.

    Args:
        batch: number of images, at least 1.
        height: image height in pixels.
        width: image width in pixels.
        beta: parameter of the Beta distribution (published 0.25: cuts near 20% or 80% of the side are
            the likeliest); ``beta <= 0`` always cuts at the centre.
        generator: source of all randomness, on the CPU.

    Returns:
        Cuts on the CPU.

    Raises:
        ValueError: if ``batch``, ``height`` or ``width`` is not positive.

    Source: Luo et al., CROTS (IJCV 2024), spatial-aware mixing; constants from its published code.
    """
    if min(batch, height, width) < 1:
        raise ValueError(f"batch, height and width must be positive, got {batch}, {height}, {width}")
    if beta > 0:
        # torch draws Beta values from its global generator only: let numpy draw them from one seeded by ours.
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        b = np.random.default_rng(seed).beta(beta, beta, size=(2, batch))
    else:
        b = np.full((2, batch), 0.5)
    share = torch.from_numpy(0.2 + 0.6 * b)
    itself = torch.arange(batch)[:, None]
    # Steps 1 .. N-1 around the batch reach every other image and never the image itself.
    steps = torch.randint(1, max(batch, 2), (batch, 3), generator=generator)
    donors = torch.cat([itself, (itself + steps) % batch], dim=1)
    return Cuts(x=(share[0] * width).long(), y=(share[1] * height).long(), donors=donors)


def spatial_mix(tensor: Tensor, cuts: Cuts) -> Tensor:
    """Join four samples of a batch at one point, each part staying where it was.

    Street scenes have a layout: sky above, road below. Cutting all four samples at the same point keeps
    every pixel at its own place, so the mixed sample still looks like a street. Images, labels and
    confidences mixed with the same cuts stay aligned.

    Args:
        tensor: ``(N, C, H, W)`` images or ``(N, H, W)`` maps, any dtype and device.
        cuts: N cut points and donors, see :func:`draw_cuts`.

    Returns:
        The mixed batch, same shape, dtype and device.

    Raises:
        ValueError: if the batch sizes differ, a donor does not exist, or a cut lies outside the image.

    Example:
        >>> labels = torch.arange(4).view(4, 1, 1).expand(4, 2, 2)
        >>> one = torch.ones(4, dtype=torch.int64)
        >>> spatial_mix(labels, Cuts(x=one, y=one, donors=torch.arange(4).expand(4, 4)))[0]
        tensor([[0, 1],
                [2, 3]])

    Source: Luo et al., CROTS (IJCV 2024), spatial-aware mixing.
    """
    if tensor.ndim not in (3, 4):
        raise ValueError(f"tensor must be (N, C, H, W) or (N, H, W), got {tuple(tensor.shape)}")
    n, height, width = len(tensor), *tensor.shape[-2:]
    if cuts.x.shape != (n,) or cuts.y.shape != (n,) or cuts.donors.shape != (n, 4):
        raise ValueError(
            f"cuts are for a batch of {len(cuts.x)} with donors {tuple(cuts.donors.shape)}, the batch has {n}"
        )
    for name, values, top in (("x", cuts.x, width), ("y", cuts.y, height), ("donors", cuts.donors, n - 1)):
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) <= top:
            raise ValueError(f"cuts.{name} must lie in 0 .. {top}, got {int(values.min())} .. {int(values.max())}")
    mixed = torch.empty_like(tensor)
    for i, (x, y, donors) in enumerate(zip(cuts.x.tolist(), cuts.y.tolist(), cuts.donors.tolist(), strict=True)):
        corners = ((slice(0, y), slice(0, x)), (slice(0, y), slice(x, None)),
                   (slice(y, None), slice(0, x)), (slice(y, None), slice(x, None)))  # fmt: skip
        for donor, (rows, columns) in zip(donors, corners, strict=True):
            mixed[i, ..., rows, columns] = tensor[donor, ..., rows, columns]
    return mixed

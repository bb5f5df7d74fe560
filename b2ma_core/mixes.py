"""Which mix a batch gets: SpatialMix, or the two that a reader will ask about, CutMix and ClassMix."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from b2ma_core.spatial_mix import draw_cuts, spatial_mix

MIXES = ("none", "spatial", "cutmix", "classmix")


def mix(
    tensors: Sequence[Tensor], train_ids: Tensor, kind: str, position_beta: float, generator: torch.Generator
) -> list[Tensor]:
    """Mix the samples of a batch: images, labels and confidences by one draw.

    Args:
        tensors: ``(N, C, H, W)`` or ``(N, H, W)`` each.
        train_ids: ``(N, H, W)`` int64, on the tensors' device, whose classes ClassMix cuts out.
        kind: one of ``MIXES``; "none" gives the tensors back.
        position_beta: of SpatialMix, see :func:`spatial_mix.draw_cuts`.
        generator: source of all randomness, on the CPU.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind == "none":
        return list(tensors)
    batch, height, width = train_ids.shape
    if kind == "spatial":
        cuts = draw_cuts(batch, height, width, position_beta, generator)
        return [spatial_mix(tensor, cuts) for tensor in tensors]
    partners = (torch.arange(batch) + torch.randint(1, max(batch, 2), (), generator=generator)) % batch
    if kind == "cutmix":
        masks = rectangles(batch, height, width, generator).to(train_ids.device)
    elif kind == "classmix":
        masks = half_of_the_classes(train_ids[partners], generator)
    else:
        raise ValueError(f"unknown mix {kind!r}, allowed are {', '.join(MIXES)}")
    return [torch.where(masks if t.ndim == 3 else masks[:, None], t[partners], t) for t in tensors]


def rectangles(batch: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """``(N, H, W)`` bool: half of each image's area, a rectangle of any place, its height drawn by the logarithm.

    Source: French et al., Semi-supervised semantic segmentation needs strong, varied perturbations (BMVC 2020), CutMix.
    """
    masks = torch.zeros(batch, height, width, dtype=torch.bool)
    for mask, (shape, above, beside) in zip(masks, torch.rand(batch, 3, generator=generator).tolist(), strict=True):
        share = math.exp(shape * math.log(0.5))  # of the height, 0.5 .. 1; the width's is 0.5 / share
        h, w = round(height * share), round(width * 0.5 / share)
        top, left = round((height - h) * above), round((width - w) * beside)
        mask[top : top + h, left : left + w] = True
    return masks


def half_of_the_classes(train_ids: Tensor, generator: torch.Generator) -> Tensor:
    """``(N, H, W)`` bool: the pixels of half of the classes that each map holds, rounded up; 255 is none.

    Args:
        train_ids: ``(N, H, W)`` int64.

    Source: Olsson et al., ClassMix (WACV 2021).
    """
    masks = []
    for labels in train_ids:
        classes = labels.unique()
        classes = classes[classes != 255]
        order = torch.randperm(len(classes), generator=generator)[: math.ceil(len(classes) / 2)]
        masks.append(torch.isin(labels, classes[order.to(labels.device)]))
    return torch.stack(masks)

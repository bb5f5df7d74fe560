"""The hard patches of a run: which classes are rare in its labels, the index in its folder, and a step's patches."""

import json
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from b2ma_core.files import read_json, write_bytes
from b2ma_core.hard_patches import HardPatch, Patches, cut_patches, draw_patches, holders, rare_classes, rarely_seen
from b2ma_core.params import Params
from b2ma_core.study.batches import to_device
from b2ma_core.study.records import Run


def rare_of(params: Params, pseudo_labels: np.ndarray, confidences: np.ndarray | None) -> tuple[list[int], float]:
    """The rare classes of a study, and the share of a cell's pixels that one needs to count."""
    by_images = params.rare_by == "images"
    if params.rare_classes is not None:
        rare = params.rare_classes
    elif by_images:
        rare = rarely_seen(pseudo_labels, params.space.num_classes)
    else:
        rare = rare_classes(pseudo_labels, params.space.num_classes, confidences)
    return rare, 0.01 if by_images else 0.0


def write_patches(run: Run, patches: Sequence[HardPatch]) -> None:
    """Keep the index as one file, ``patches/index.json``, one patch a line."""
    lines = ",\n".join(json.dumps(patch) for patch in patches)
    write_bytes(run.path("patches", "index.json"), f"[\n{lines}\n]\n".encode())


def read_patches(run: Run) -> list[HardPatch]:
    """Read the index; FileNotFoundError names the notebook that comes first."""
    run.require("04_hard_patches")
    entries = read_json(run.path("patches", "index.json"))
    return [HardPatch(image, row, column, tuple(classes)) for image, row, column, classes in entries]


def patch_groups(params: Params, patches: list[HardPatch]) -> dict[int, list[HardPatch]]:
    """What hard patches are drawn from: first a group, then one of it. By class, or all in one as published."""
    return {0: patches} if patches and params.hard_patch_draw == "patch" else holders(patches)


def hard_batch(
    params: Params, batch: Tensor, images: np.ndarray, labels: np.ndarray, groups: dict[int, list[HardPatch]],
    generator: torch.Generator,
) -> Patches | None:  # fmt: skip
    """A step's hard patches, float and int64, to be pasted into the batch or to stand alone; None where there are
    none."""
    if not groups:
        return None
    count, size = params.hard_patch_batch, None
    if params.paste_patches:
        count, size = min(count, len(batch)), tuple(batch.shape[-2:])
    patches = cut_patches(images, labels, draw_patches(groups, count, generator), params.grid, size)
    return Patches(to_device(patches.images, batch.device), patches.train_ids.to(batch.device).long(), patches.places)

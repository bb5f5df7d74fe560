"""Pictures to explore with sliders: a pure function each, and :func:`at_hand`, which asks who is there."""

from collections.abc import Callable
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython import get_ipython
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from b2ma_core import hard_patches
from b2ma_core.labels import LabelSpace
from b2ma_core.report.figures import PALETTE, cell_counts, draw_patches, error_picture, picture_grid
from b2ma_core.spatial_mix import draw_cuts, spatial_mix

CORNERS = ("top left", "top right", "bottom left", "bottom right")


def somebody_is_here() -> bool:
    """Whether a reader can move a slider. JupyterLab and its like say with each cell that somebody can be asked for
    input; papermill, nbconvert and nbval say that nobody can."""
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and kernel.get_parent("shell").get("content", {}).get("allow_stdin", False)


def at_hand(draw: Callable[..., Any], **ranges: Any) -> None:
    """Draw with sliders where somebody can move them, else once.

    Args:
        draw: draws a figure. Its defaults are the first picture's, and the only one's where nobody is there.
        ranges: what each argument may be, as :func:`ipywidgets.interact` takes it: ``(first, last)``, ``(first, last,
            step)`` or a list.
    """
    if somebody_is_here():
        for control in ipywidgets.interact(draw, **ranges).widget.children[:-1]:
            control.style.description_width, control.layout.width = "11em", "45em"
    else:
        draw()


def answer_to_view(
    seen: np.ndarray, answer: np.ndarray, pseudo_labels: np.ndarray, truth: np.ndarray | None, space: LabelSpace,
    name: str,
) -> Figure:  # fmt: skip
    """A view of an image as the box saw it, its answer, what is learnt from, and the answer's errors.

    Args:
        seen: ``(h, w, 3)`` uint8.
        answer, pseudo_labels: ``(H, W)`` train ids.
        truth: ``(H, W)`` train ids; None: the pseudo labels are compared with.
        name: of the view.
    """
    known = pseudo_labels if truth is None else truth
    share = (answer == known)[known != space.ignore_index].mean()
    errors = f"its answer is not the {'pseudo label' if truth is None else 'truth'}: {1 - share:.1%}"
    pictures = [seen, space.colorize(answer), space.colorize(pseudo_labels), error_picture(answer, known)]
    figure = picture_grid([pictures[:2], pictures[2:]], [f"what the box saw: {name}", "its answer"], width=5.5)
    for axis, title in zip(figure.axes[2:], ("pseudo labels", errors), strict=True):
        axis.set_title(title)
    figure.subplots_adjust(top=0.93, hspace=0.15)
    return figure


def patches_of_class(
    images: np.ndarray, labels: np.ndarray, c: int, grid: int, least: float, space: LabelSpace
) -> Figure:
    """Where the hard patches of one class lie under a grid, and some of them, spread evenly over the images; what is
    labelled so is outlined.

    Args:
        images, labels: ``(N, H, W, 3)`` uint8 and ``(N, H, W)`` train ids.
        c: the class.
        grid, least: see :func:`hard_patches.mine`.
    """
    patches = hard_patches.mine(labels, [c], grid, least)
    counts = cell_counts(patches, grid)
    figure, axes = plt.subplot_mosaic([["where", *range(4)], ["where", *range(4, 8)]], figsize=(7, 1.7),
                                      width_ratios=[2, 1, 1, 1, 1])  # fmt: skip
    axes["where"].imshow(counts, cmap="viridis", aspect=images.shape[1] / images.shape[2])
    axes["where"].set_title(f"bright: up to {counts.max()} in a cell")
    axes["where"].set_axis_off()
    draw_patches([axes[k] for k in range(8)], images, labels, patches, c, grid)
    held = len({p.image for p in patches})
    figure.suptitle(f"{space.names[c]}, {grid} x {grid} cells: {len(patches)} in {held} of {len(labels)} images", y=1)
    figure.subplots_adjust(0, 0, 1, 0.8, 0.05, 0.05)
    return figure


def mix_by_hand(
    images: np.ndarray, labels: np.ndarray, confidence: np.ndarray, position_beta: float, cut: float | None,
    seed: int, threshold: float, space: LabelSpace,
) -> Figure:  # fmt: skip
    """SpatialMix of the first image of a batch with the others: the mix, its labels, its sure pixels, where cuts fall
    under this ``position_beta``, and below what each of the four parts was taken from.

    Args:
        images, labels, confidence: ``(N, H, W, 3)`` uint8, ``(N, H, W)`` train ids and ``(N, H, W)`` float.
        position_beta, seed: of the draw, see :func:`spatial_mix.draw_cuts`.
        cut: the cut as a share of height and width, 0 .. 1; None: as drawn.
        threshold: confidence that counts as sure.
    """
    height, width = labels.shape[1:]
    cuts = draw_cuts(len(images), height, width, position_beta, torch.Generator().manual_seed(seed))
    if cut is not None:
        cuts.x[0], cuts.y[0] = int(cut * width), int(cut * height)
    x, y = int(cuts.x[0]), int(cuts.y[0])
    planes = (images.transpose(0, 3, 1, 2), labels, confidence)
    mixed = [spatial_mix(torch.from_numpy(plane), cuts)[0].numpy() for plane in planes]
    sure = (mixed[2] >= threshold).astype(float)
    donors = cuts.donors[0].tolist()
    top = [mixed[0].transpose(1, 2, 0), space.colorize(mixed[1]), sure, np.full((height, width), 0.9)]
    titles = ["mixed", "teacher's labels", f"sure: {sure.mean():.0%}", "1000 draws (blue), this one"]
    figure = picture_grid([top, [images[d] for d in donors]], titles)
    many = draw_cuts(1000, height, width, position_beta, torch.Generator().manual_seed(seed))
    figure.axes[3].images[0].set(cmap="gray")
    figure.axes[3].scatter(many.x, many.y, s=1, color=PALETTE[0])
    figure.axes[3].scatter(x, y, s=20, color=PALETTE[3])
    for axis in figure.axes[:3]:
        axis.axvline(x - 0.5, color="white", linewidth=1)
        axis.axhline(y - 0.5, color="white", linewidth=1)
    parts = ((0, 0, x, y), (x, 0, width - x, y), (0, y, x, height - y), (x, y, width - x, height - y))
    for axis, name, (left, up, w, h) in zip(figure.axes[4:], CORNERS, parts, strict=True):
        axis.set_title(f"{name} from")
        axis.add_patch(Rectangle((left - 0.5, up - 0.5), w, h, fill=False, color="white", linewidth=1.5))
    figure.set_figheight(figure.get_figheight() + 0.3)
    figure.subplots_adjust(top=0.9, hspace=0.1)
    return figure

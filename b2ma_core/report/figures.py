"""What the notebooks draw. Every function returns a matplotlib figure; class colours are Cityscapes' own."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Code
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from b2ma_core.hard_patches import HardPatch, cell
from b2ma_core.labels import LabelSpace

PALETTE = sns.color_palette("colorblind")
COLUMN, PAGE = 3.3, 7.0  # widths in inches
sns.set_palette(PALETTE)
plt.rcParams.update({
    "font.size": 8,
    "axes.titlesize": 8,
    "figure.dpi": 220,  # pictures in notebooks are to be looked at
    "savefig.bbox": "tight",
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
})  # fmt: skip


def picture_grid(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], width: float = 7.0) -> Figure:
    """Pictures in rows; ``titles`` head the columns. Pictures are ``(H, W, 3)`` uint8 or ``(H, W)`` float 0 .. 1."""
    columns = len(titles)
    height, breadth = rows[0][0].shape[:2]
    figure, axes = plt.subplots(
        len(rows), columns, squeeze=False, figsize=(width, width / columns * len(rows) * height / breadth + 0.3)
    )
    for line, row in zip(axes, rows, strict=True):
        for axis, picture in zip(line, row, strict=True):
            axis.imshow(picture, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
            axis.set_axis_off()
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    figure.subplots_adjust(0, 0, 1, 0.92, 0.02, 0.03)
    return figure


def code(function: Callable) -> Code:
    """A function of the core as it stands there, without its docstring."""
    source = re.sub(r'\n *""".*?"""', "", inspect.getsource(function), count=1, flags=re.DOTALL)
    return Code(source.rstrip(), language="python")


def class_patches(space: LabelSpace) -> list[Patch]:
    """The colours of the classes for a legend."""
    return [Patch(color=np.array(c) / 255, label=name) for c, name in zip(space.colors, space.names, strict=True)]


def class_legend(space: LabelSpace) -> Figure:
    """The colours of the classes, as a strip to put above pictures."""
    figure, axis = plt.subplots(figsize=(PAGE, 0.2 + 0.2 * -(-space.num_classes // 7)))
    axis.set_axis_off()
    axis.legend(handles=class_patches(space), ncols=7, loc="center", fontsize=7)
    return figure


def with_legend(figure: Figure, space: LabelSpace) -> Figure:
    """The figure with the colours of the classes below it."""
    figure.legend(handles=class_patches(space), ncols=10, loc="upper center", bbox_to_anchor=(0.5, 0), fontsize=5.5,
                  handlelength=1.2, columnspacing=1)  # fmt: skip
    return figure


def error_picture(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """``(H, W, 3)`` uint8: right pixels light grey, wrong ones vermilion, pixels without a class (255) black."""
    picture = np.full((*truth.shape, 3), 225, np.uint8)
    picture[prediction != truth] = (213, 94, 0)
    picture[truth == 255] = 0
    return picture


def answer_grid(
    space: LabelSpace,
    images: Sequence[np.ndarray],
    answers: Mapping[str, Sequence[np.ndarray]],
    truth: Sequence[np.ndarray] | None = None,
) -> Figure:
    """A row an image: the image, what is said of it, each followed by where it is wrong, and the truth; the classes'
    colours below.

    Args:
        space: of the train ids.
        images: ``(H, W, 3)`` uint8 each.
        answers: ``(h, w)`` uint8 train ids for each image, by what heads their column.
        truth: the same; None: neither errors nor truth are drawn.
    """
    columns = {"image": list(images)}
    for title, said in answers.items():
        columns[title] = [space.colorize(labels) for labels in said]
        if truth is not None:
            columns[f"errors, {title}"] = [error_picture(*pair) for pair in zip(said, truth, strict=True)]
    if truth is not None:
        columns["truth"] = [space.colorize(labels) for labels in truth]
    return with_legend(picture_grid(list(zip(*columns.values(), strict=True)), list(columns)), space)


def class_bars(data: pd.DataFrame, value: str, **axis) -> Figure:
    """Bars over classes, a series a row: means over seeds, with the standard deviation of several.

    Args:
        data: tidy, with the columns ``class``, ``row`` and
        value: the one to draw.
        axis: for ``Axes.set``.
    """
    figure, axes = plt.subplots(figsize=(PAGE, 2.5))
    sns.barplot(data, x="class", y=value, hue="row", errorbar="sd", err_kws={"linewidth": 0.6}, saturation=1, ax=axes)
    axes.set(**axis)
    finish_classes(axes)
    return figure


def finish_classes(axes: Axes) -> None:
    """Names of classes, slanted, and the legend above."""
    axes.set(xlabel="")
    plt.setp(axes.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
    sns.move_legend(axes, "lower center", ncols=6, fontsize=7, title=None, bbox_to_anchor=(0.5, 1))


def class_frequency_bars(frequencies: Mapping[str, np.ndarray], space: LabelSpace) -> Figure:
    """Share of pixels per class on a log scale, one series per name; classes in falling order of the first."""
    data = 100 * pd.DataFrame(frequencies, pd.Index(space.names, name="class"))
    data = data.sort_values(data.columns[0], ascending=False, kind="stable").reset_index()
    figure = class_bars(data.melt("class", var_name="row"), "value", yscale="log", ylabel="share of pixels (%)")
    figure.axes[0].axhline(1, color="0.4", linewidth=0.8, linestyle=":")
    return figure


def reliability_bars(entries: Sequence[Mapping[str, float]]) -> Figure:
    """How often pseudo labels are right, and how many there are, by confidence: entries of ``metrics.reliability``."""
    figure, axis = plt.subplots(figsize=(3.3, 2.0))
    left = np.array([entry["confidence"] for entry in entries])
    labels = (("right", "right, of the pixels with this confidence"), ("pixels", "pixels with it, of all"))
    for i, (key, label) in enumerate(labels):
        values = [100 * entry[key] for entry in entries]
        axis.bar(100 * left + 4.5 * i, values, 4.5, align="edge", label=label, color=PALETTE[i])
    axis.plot([0, 100], [0, 100], color="0.4", linewidth=0.8, linestyle=":", label="as often right as it says")
    axis.set(xlabel="confidence (%)", ylabel="share (%)", xlim=(0, 100), ylim=(0, 100))
    axis.legend(fontsize=6, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


def training_curves(histories: Mapping[str, Mapping], before: float | None = None) -> Figure:
    """The loss of each training, a running mean of 25 steps, and the mIoU over all their steps, one after another.

    Args:
        histories: name -> what :func:`training.fit` returns, in the order of the trainings.
        before: mIoU (0 .. 1) of what the first of them began with, if it is known.
    """
    figure, axes = plt.subplots(1, len(histories) + 1, figsize=(PAGE, 2.2), layout="constrained")
    start = 0
    for i, (name, history) in enumerate(histories.items()):
        loss = pd.Series(history["loss"], np.arange(len(history["loss"])) + 1, float)
        mark = "." if len(loss) <= 25 else ""  # of a mean that is a single point
        axes[i].plot(loss.rolling(min(25, max(len(loss), 1))).mean(), marker=mark, color=f"C{i}")
        axes[i].set(xlabel=f"step of {name}", ylabel="loss")
        points = [(0, before)] * (before is not None) + list(history["miou"])
        steps, values = np.reshape(points, (-1, 2)).T
        axes[-1].plot(start + steps, 100 * values, marker="o", markersize=3, color=f"C{i}", label=name)
        start, before = start + len(loss), values[-1] if len(values) else None
    axes[-1].set(xlabel="step", ylabel="mIoU (%)")
    axes[-1].legend(fontsize=7)
    return figure


def patch_gallery(
    images: np.ndarray, labels: np.ndarray, patches: Sequence[HardPatch], classes: Sequence[int], space: LabelSpace,
    grid: int,
) -> Figure:  # fmt: skip
    """For each class six patches that hold it, spread evenly over the index; what is labelled so is outlined."""
    each, (height, width) = 6, (side // grid for side in images.shape[1:3])
    size = (PAGE, 0.86 * PAGE / each * height / width * len(classes))
    figure, axes = plt.subplots(len(classes), each, squeeze=False, figsize=size)
    for line, c in zip(axes, classes, strict=True):
        draw_patches(line, images, labels, [patch for patch in patches if c in patch.classes], c, grid)
        line[0].text(-0.06, 0.5, space.names[c], transform=line[0].transAxes, ha="right", va="center")
    figure.subplots_adjust(0.14, 0.01, 1, 0.99, 0.03, 0.05)
    return figure


def draw_patches(
    axes: Sequence[Axes], images: np.ndarray, labels: np.ndarray, patches: Sequence[HardPatch], c: int, grid: int
) -> None:
    """As many patches as there are axes, spread evenly over all; a white line around what is labelled as class ``c``,
    also where it reaches the border."""
    for axis in axes:
        axis.set_axis_off()
    chosen = np.linspace(0, len(patches) - 1, min(len(axes), len(patches))).astype(int)
    for axis, i in zip(axes, chosen, strict=False):
        at = patches[i].image, *cell(*labels.shape[1:], patches[i].row, patches[i].column, grid)
        axis.imshow(images[at])
        inside = labels[at] == c
        height, width = inside.shape
        axis.contour(np.arange(-1, width + 1), np.arange(-1, height + 1), np.pad(inside, 1), [0.5], colors="white",
                     linewidths=0.7)  # fmt: skip
        axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def cell_counts(patches: Sequence[HardPatch], grid: int) -> np.ndarray:
    """``(grid, grid)`` patches in each cell of the image's grid."""
    counts = np.zeros((grid, grid), int)
    np.add.at(counts, ([patch.row for patch in patches], [patch.column for patch in patches]), 1)
    return counts


def patch_places(patches: Sequence[HardPatch], grid: int) -> Figure:
    """How many hard patches lie in each cell of the image's grid."""
    figure, axis = plt.subplots(figsize=(3.3, 1.9))
    sns.heatmap(cell_counts(patches, grid), annot=True, fmt="d", cmap="viridis", ax=axis,
                cbar_kws={"label": "hard patches"})  # fmt: skip
    axis.set(xlabel="column of the grid", ylabel="row of the grid")
    return figure


def rarity_bars(
    shares: np.ndarray, counts: np.ndarray, rare: Sequence[int], space: LabelSpace, means: np.ndarray | None = None
) -> Figure:
    """Classes by the share of images that hold them (0 .. 1), the rare ones marked; beside it their pseudo-labelled
    pixels, and the mean confidence where there is any."""
    data = pd.DataFrame({"images that hold it (%)": 100 * shares, "pseudo-labelled pixels": np.maximum(counts, 0.5),
                         "mean confidence": means}, space.names)  # fmt: skip
    data = data.sort_values("images that hold it (%)", ascending=False, kind="stable").dropna(axis="columns", how="all")
    kind = ["rare" if space.names.index(name) in rare else "not rare" for name in data.index]
    figure, axes = plt.subplots(1, data.shape[1], squeeze=False, figsize=(PAGE, 2.8), layout="constrained", sharey=True)
    for axis, column in zip(axes[0], data, strict=True):
        sns.barplot(data, x=column, y=data.index, hue=kind, palette={"rare": PALETTE[3], "not rare": PALETTE[0]},
                    saturation=1, legend=axis is axes[0, 0], ax=axis)  # fmt: skip
    axes[0, 0].set(ylabel="")
    axes[0, 0].axvline(50, color="0.4", linewidth=0.8, linestyle=":")
    axes[0, 1].set(xscale="log")
    sns.move_legend(axes[0, 0], "lower center", ncols=2, fontsize=7, title=None, bbox_to_anchor=(0.5, 1))
    return figure


def class_iou_bars(scores: pd.DataFrame) -> Figure:
    """IoU per class, one series per row: lines of :func:`results.class_scores`, of one seed or several."""
    return class_bars(scores.assign(iou=100 * scores["iou"]), "iou", ylabel="IoU (%)", ylim=(0, 100))


def confusion_picture(matrix: np.ndarray, space: LabelSpace) -> Figure:
    """Confusion matrix in percent of each true class."""
    share = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure, axis = plt.subplots(figsize=(5.6, 4.6))
    sns.heatmap(share, cmap="viridis", vmin=0, vmax=100, ax=axis, xticklabels=space.names, yticklabels=space.names,
                cbar_kws={"label": "% of the true class"})  # fmt: skip
    axis.set(xlabel="predicted", ylabel="true")
    axis.tick_params(labelsize=6)
    return figure


def miou_by_row(rows: Mapping[str, Sequence[float]]) -> Figure:
    """mIoU (0 .. 1) of source-only, the stages and the oracle; a dot a seed, a line through the means."""
    figure, axis = plt.subplots(figsize=(COLUMN, 2.3))
    values = 100 * pd.DataFrame(rows)
    shown = values.drop(columns="oracle", errors="ignore")
    sns.stripplot(shown, color="0.35", size=3, jitter=False, zorder=3, ax=axis)
    sns.pointplot(shown, errorbar=None, color=PALETTE[0], marker="D", markersize=4, linewidth=1.5, ax=axis)
    if "oracle" in values:
        axis.axhline(values["oracle"].mean(), color=PALETTE[2], linestyle="--", label="oracle")
        axis.legend(loc="lower right")
    plt.setp(axis.get_xticklabels(), rotation=25, ha="right", rotation_mode="anchor")
    axis.set(xlabel="", ylabel="mIoU (%)")
    return figure


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write PDF and PNG; the same figure gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
    figure.savefig(folder / f"{name}.png", dpi=200)

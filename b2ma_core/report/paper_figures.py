"""Figures over several studies and the ablation, for print; see figures.py for those of one run."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from b2ma_core.report.figures import COLUMN, PAGE, PALETTE, class_bars, finish_classes
from b2ma_core.report.results import gaps_closed, miou


def pipeline_overview(notebook: str | None = None) -> Figure:
    """The method as boxes and arrows: what stands on which side of the black-box boundary, and what crosses it.

    Args:
        notebook: 02_pseudo_labels .. 05_self_distill, whose part of it is drawn strong; None: all of it is.
    """
    parts = {
        "02_pseudo_labels": ("model", "images", "labels"), "03_cross_domain": ("labels", "stage1"),
        "04_hard_patches": ("labels", "patches"), "05_self_distill": ("stage1", "patches", "teacher", "student"),
    }  # fmt: skip
    figure, axis = plt.subplots(figsize=(PAGE, 2.2))
    axis.set(xlim=(0, 14), ylim=(0, 4))
    axis.set_axis_off()
    boxes = {
        "source": (0.1, 2.5, "labelled\nsource images"),
        "model": (0.1, 0.5, "source model\n(black box)"),
        "images": (3.5, 2.5, "target images\nin several views"),
        "labels": (3.5, 0.5, "labels, votes,\nvote agreement"),
        "stage1": (6.4, 0.5, "stage 1: student\nof the labels"),
        "patches": (6.4, 2.5, "hard patches\nmining"),
        "teacher": (9.3, 2.5, "teacher:\nthe average,\nclean images"),
        "student": (9.3, 0.5, "stage 2: student\nof the teacher,\npatches pasted"),
        "answer": (12.2, 2.5, "target\nnetwork"),
    }
    for name, (x, y, text) in boxes.items():
        color = PALETTE[1] if name in ("source", "model") else PALETTE[0]
        strong = notebook is None or name in parts[notebook]
        box = FancyBboxPatch((x, y), 1.7, 1.0, "round,pad=0.08", facecolor=(*color, 0.18 if strong else 0.03),
                             edgecolor=(*color, 1 if strong else 0.3))  # fmt: skip
        axis.add_patch(box)
        axis.text(x + 0.85, y + 0.5, text, ha="center", va="center", fontsize=5.8, color="0.0" if strong else "0.6")
    arrows = [
        ((0.95, 2.4), (0.95, 1.6)), ((3.4, 2.7), (1.9, 1.3)), ((1.9, 0.9), (3.4, 0.9)), ((5.3, 1.0), (6.3, 1.0)),
        ((5.3, 1.4), (6.3, 2.7)), ((8.2, 1.0), (9.2, 1.0)), ((8.2, 2.7), (9.2, 1.4)), ((10.0, 2.4), (10.0, 1.6)),
        ((10.5, 1.6), (10.5, 2.4)), ((11.1, 3.0), (12.1, 3.0)), ((5.3, 1.25), (9.2, 2.65)),
    ]  # fmt: skip
    for start, end in arrows:
        axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "0.3", "linewidth": 0.9})
    axis.axvline(2.65, color="0.2", linewidth=2, linestyle=(0, (4, 2)))
    axis.text(
        2.65, 3.85, "black-box boundary", ha="center", fontsize=7, bbox={"facecolor": "white", "linewidth": 0, "pad": 1}
    )
    axis.text(10.58, 2.0, "average", fontsize=6, va="center")
    axis.text(9.92, 2.0, "labels", fontsize=6, va="center", ha="right")
    axis.text(7.75, 1.68, "a share of its answers", fontsize=6, ha="center")
    axis.annotate("", (9.2, 0.35), (11.1, 0.35),
                  arrowprops={"arrowstyle": "->", "color": "0.3", "connectionstyle": "arc3,rad=-0.35"})  # fmt: skip
    axis.text(10.15, -0.15, "again for each further round; SpatialMix is a switch", fontsize=6, ha="center")
    return figure


def panels(count: int, most: int, height: float) -> tuple[Figure, np.ndarray]:
    """A figure with ``count`` panels, at most ``most`` a row of ``height`` inches, and their axes, row by row."""
    columns = min(count, most)
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, squeeze=False, figsize=(PAGE, height * rows), layout="constrained")
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, axes.flat[:count]


def gap_bars(results: pd.DataFrame) -> Figure:
    """mIoU of every row of several studies, a panel each: mean and standard deviation of seeds, share of the gap."""
    studies = list(results.groupby("study", sort=False))
    figure, axes = panels(len(studies), 3, 2.5)
    for axis, (study, part) in zip(axes, studies, strict=True):
        values, gaps = 100 * miou(part), 100 * gaps_closed(miou(part)).mean(axis=1, skipna=False)
        means, spread = values.mean(axis=1), values.std(axis=1).fillna(0)
        color = [{"source-only": "0.6", "oracle": PALETTE[2]}.get(name, PALETTE[0]) for name in values.index]
        axis.bar(values.index, means, yerr=spread, color=color, error_kw={"linewidth": 0.8})
        for i, row in enumerate(values.index):
            text = f"{means[row]:.1f}" + ("" if np.isnan(gaps[row]) else f"\n{gaps[row]:.0f}%")
            axis.text(i, means[row] + spread[row] + 0.5, text, ha="center", va="bottom", fontsize=6)
        axis.set_title(f"{study}\n{values.shape[1]} seed{'s' * (values.shape[1] > 1)}")
        plt.setp(axis.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")
        axis.margins(y=0.18)
    for axis in axes[::3]:
        axis.set(ylabel="mIoU (%), share of the gap")
    return figure


def ablation_dots(rows: Sequence[dict]) -> Figure:
    """Each row's mIoU, a dot a seed and a diamond for the mean, and its difference to what its heading says with a 95%
    interval, from three seeds on; :func:`ablation.ablation_rows`. The table's first row, far from the others, is told
    in the title."""
    origin, shown, names = rows[0], rows[1:] or rows, []
    figure, (left, right) = plt.subplots(1, 2, layout="constrained", sharey=True)
    for before, row in pairwise([shown[0], *shown]):
        if row["against"] != before["against"]:
            for axis in (left, right):
                axis.axhline(len(names) - 0.4, color="0.6", linewidth=0.6, linestyle=":")
            names.append(f"against {row['against']}:")
        y, values = len(names), 100 * np.array(row["miou"])
        names.append(row["name"])
        left.plot(values, [y] * len(values), "o", color="0.35", markersize=3, zorder=3)
        left.plot(values.mean(), y, "D", color=PALETTE[0], markersize=4)
        if row["difference"] and row is not rows[1]:  # stage 1 against source-only: labels, not parts; in the table
            mean, half = 100 * np.array(row["difference"])
            half = half if len(values) > 2 else np.nan  # that of two seeds would dwarf the others; it is in the table
            right.errorbar(mean, y, xerr=half, fmt="D", color=PALETTE[0], markersize=4, capsize=2)
    figure.set_size_inches(PAGE, 0.7 + 0.2 * len(names))
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    right.axvline(0, color="0.4", linewidth=0.8)
    right.tick_params(labelleft=False)
    left.set(xlabel="mIoU (%)", title=f"{origin['name']}: {100 * np.mean(origin['miou']):.1f}")
    right.set(xlabel="points of mIoU, 95% interval", title="against the row above")
    return figure


def class_differences(data: pd.DataFrame) -> Figure:
    """Points of IoU that a part is worth to each class, lines of :func:`ablation.class_differences`: means over seeds
    and standard deviations; the classes that hard patches were mined for, in most of the seeds, marked."""
    means = data.groupby("class")[["difference", "mined"]].mean().sort_values("difference", ascending=False)
    kind = np.where(data["class"].map(means["mined"]) > 0.5, "mined", "not mined")
    figure, axis = plt.subplots(figsize=(PAGE, 2.3))
    sns.barplot(data.assign(points=100 * data["difference"], kind=kind), x="class", y="points", hue="kind",
                order=means.index, palette={"mined": PALETTE[3], "not mined": PALETTE[0]}, dodge=False,
                errorbar="sd", err_kws={"linewidth": 0.6}, saturation=1, ax=axis)  # fmt: skip
    axis.axhline(0, color="0.4", linewidth=0.8)
    axis.set(ylabel="points of IoU")
    finish_classes(axis)
    return figure


def curve_panels(points: pd.DataFrame) -> Figure:
    """mIoU against what was varied, as :func:`ablation.curves` has it: a panel a study and parameter, the mean of
    seeds and their standard deviation."""
    varied = list(points.groupby(["study", "varied"], sort=False))
    figure, axes = panels(len(varied), 3, 2.2)
    for axis, ((study, name), part) in zip(axes, varied, strict=True):
        lines = part["line"].nunique()
        # Numbers by their size, "all" last; words as they come.
        order = part["to"].drop_duplicates().sort_values(key=partial(pd.to_numeric, errors="coerce"), kind="stable")
        sns.pointplot(part.assign(miou=100 * part["miou"]), x="to", y="miou", hue="line", errorbar="sd", markersize=4,
                      order=order, linewidth=1.5, palette=PALETTE[:lines],
                      markers=list("Dosv")[:lines], ax=axis)  # fmt: skip
        axis.set(title=study, xlabel=name, ylabel="mIoU (%)")
        axis.legend(fontsize=6).set_visible(lines > 1)
    return figure


def noise_by_class(scores: pd.DataFrame) -> Figure:
    """Share of a class's answers that are wrong (1 - precision): lines of :func:`results.class_scores`. A class that
    is answered on fewer than a fiftieth of its true pixels has no bar."""
    told = scores["answers"] >= 0.02 * scores["true_pixels"]
    wrong = scores.assign(wrong=100 * (1 - scores["precision"].where(told)))
    return class_bars(wrong, "wrong", ylabel="wrong answers (%)", ylim=(0, 100))


def answered_by_class(scores: pd.DataFrame, lowest: float = 0.02) -> Figure:
    """How often each class is answered, as a multiple of its true pixels: one series a row, a mean over seeds.

    Args:
        scores: lines of :func:`results.class_scores`.
        lowest: smaller ratios are drawn here, so that a class that is never answered shows on the logarithmic axis.
    """
    data = scores[scores["true_pixels"] > 0].assign(ratio=lambda known: known["answers"] / known["true_pixels"])
    series = data["row"].nunique()
    figure, axis = plt.subplots(figsize=(PAGE, 2.3))
    sns.pointplot(data, x="class", y="ratio", hue="row", estimator=lambda ratios: max(ratios.mean(), lowest),
                  dodge=0.4 * (series > 1), errorbar=None, linestyle="none", markers=list("ovsD")[:series],
                  markersize=4, ax=axis)  # fmt: skip
    axis.axhline(1, color="0.4", linewidth=0.8)
    axis.set(yscale="log", ylabel="answered / true pixels", ylim=(lowest * 0.8, None))
    axis.set_yticks([lowest, 0.1, 0.5, 1, 2, 5], [f"{lowest:g} or less", "0.1", "0.5", "1", "2", "5"])
    axis.minorticks_off()
    finish_classes(axis)
    return figure


def patches_by_class(counts: Mapping[str, int]) -> Figure:
    """How many hard patches hold each rare class."""
    figure, axis = plt.subplots(figsize=(COLUMN, 0.5 + 0.2 * len(counts)))
    sns.barplot(pd.Series(counts).sort_values(ascending=False), orient="h", color=PALETTE[3], saturation=1, ax=axis)
    axis.set(xlabel="hard patches that hold it")
    return figure

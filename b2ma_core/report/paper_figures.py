"""Figures over several studies and the ablation, for print; see figures.py for those of one run."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from b2ma_core.labels import LabelSpace
from b2ma_core.report.figures import PALETTE

COLUMN, PAGE = 3.3, 7.0  # widths in inches


def pipeline_overview(notebook: str | None = None) -> Figure:
    """The method as boxes and arrows: what stands on which side of the wall, and what crosses it.

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
        "labels": (3.5, 0.5, "labels, votes,\nshare of votes"),
        "stage1": (6.4, 0.5, "stage 1: student\nof the labels,\nSpatialMix"),
        "patches": (6.4, 2.5, "hard patches\nmining"),
        "teacher": (9.3, 2.5, "teacher:\nthe average,\nclean images"),
        "student": (9.3, 0.5, "stage 2: student\nof the teacher,\npatches pasted"),
        "answer": (12.2, 0.5, "target\nnetwork"),
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
        ((10.5, 1.6), (10.5, 2.4)), ((11.1, 1.0), (12.1, 1.0)),
    ]  # fmt: skip
    for start, end in arrows:
        axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "0.3", "linewidth": 0.9})
    axis.axvline(2.65, color="0.2", linewidth=2, linestyle=(0, (4, 2)))
    axis.text(2.65, 3.85, "the wall", ha="center", fontsize=7)
    axis.text(10.58, 2.0, "average", fontsize=6, va="center")
    axis.text(9.92, 2.0, "labels", fontsize=6, va="center", ha="right")
    axis.annotate("", (9.2, 0.35), (11.1, 0.35),
                  arrowprops={"arrowstyle": "->", "color": "0.3", "connectionstyle": "arc3,rad=-0.35"})  # fmt: skip
    axis.text(10.15, -0.15, "again, in rounds", fontsize=6, ha="center")
    return figure


def gap_bars(rows: Mapping[str, Sequence[dict]], titles: Mapping[str, str]) -> Figure:
    """mIoU of every row of several studies, a panel a study: mean and standard deviation over seeds.

    Args:
        rows: study -> rows of :func:`tables.result_rows`.
        titles: study -> title of its panel.
    """
    figure, axes = plt.subplots(1, len(rows), squeeze=False, figsize=(PAGE, 2.5), layout="constrained")
    for axis, (study, lines) in zip(axes[0], rows.items(), strict=True):
        names = [line["name"] for line in lines]
        values = [100 * np.array(line["miou"]) for line in lines]
        color = [{"source-only": "0.6", "oracle": PALETTE[2]}.get(name, PALETTE[0]) for name in names]
        spread = [v.std(ddof=1) if len(v) > 1 else 0 for v in values]
        axis.bar(names, [v.mean() for v in values], yerr=spread, color=color, error_kw={"linewidth": 0.8})
        for i, (line, v) in enumerate(zip(lines, values, strict=True)):
            closed = np.nan if line["gap"] is None else 100 * np.mean(line["gap"])
            text = f"{v.mean():.1f}" + ("" if np.isnan(closed) else f"\n{closed:.0f}%")
            axis.text(i, v.mean() + spread[i] + 0.5, text, ha="center", va="bottom", fontsize=6)
        axis.set_title(f"{titles[study]}\n{len(values[0])} seed{'s' * (len(values[0]) > 1)}")
        axis.tick_params(axis="x", rotation=40)
        plt.setp(axis.get_xticklabels(), ha="right", rotation_mode="anchor")
        axis.margins(y=0.18)
    axes[0, 0].set(ylabel="mIoU (%), share of the gap")
    return figure


def ablation_dots(rows: Sequence[dict]) -> Figure:
    """Each row's mIoU, one dot a seed, and its difference to the row above, or to the whole, with a 95% interval."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(PAGE, 0.5 + 0.24 * len(rows)), layout="constrained", sharey=True
    )
    places = np.array([-i - 0.5 * (row["against"] == "the whole") for i, row in enumerate(rows)])
    for place, row in zip(places, rows, strict=True):
        values = 100 * np.array(row["miou"])
        left.scatter(values, [place] * len(values), s=10, color="0.4")
        left.scatter(values.mean(), place, s=26, color=PALETTE[0], marker="D")
        if row["difference"]:
            mean, half = (100 * value for value in row["difference"])
            right.errorbar(mean, place, xerr=None if half != half else half, fmt="D", color=PALETTE[0], markersize=4,
                           capsize=2)  # fmt: skip
    right.axvline(0, color="0.4", linewidth=0.8)
    left.set_yticks(places, [row["name"] for row in rows])
    left.set(xlabel="mIoU (%)")
    parts = [place for place, row in zip(places, rows, strict=True) if row["against"] == "the whole"]
    if parts:
        for axis in (left, right):
            axis.axhline(parts[0] + 0.75, color="0.6", linewidth=0.6, linestyle=":")
        right.annotate("against the whole:", (0.98, parts[0] + 0.55), xycoords=("axes fraction", "data"), ha="right",
                       va="center", fontsize=6)  # fmt: skip
    right.set(xlabel="against the row above (95% interval)")
    return figure


def curve_panels(curves: Mapping[str, Mapping[float, Sequence[float]]]) -> Figure:
    """mIoU against what was varied: one panel each, one dot a seed, a line through the means."""
    figure, axes = plt.subplots(1, len(curves), squeeze=False, figsize=(PAGE, 2.0), layout="constrained")
    for axis, (name, points) in zip(axes[0], curves.items(), strict=True):
        places = np.arange(len(points))
        axis.plot(places, [100 * np.mean(v) for v in points.values()], color=PALETTE[0], marker="D", markersize=4)
        for place, values in zip(places, points.values(), strict=True):
            axis.scatter([place] * len(values), 100 * np.array(values), s=8, color="0.4", zorder=3)
        axis.set_xticks(places, [f"{value:g}" for value in points])
        axis.set(xlabel=name, ylabel="mIoU (%)")
    return figure


def noise_by_class(precision: Mapping[str, np.ndarray], space: LabelSpace) -> Figure:
    """Share of a class's answers that are wrong (1 - precision), one series a name, a mean over seeds.

    Args:
        precision: name -> ``(S, C)`` floats, 0 .. 1; NaN where a class was never answered.
        space: names.
    """
    figure, axis = plt.subplots(figsize=(PAGE, 2.3))
    width = 0.84 / len(precision)
    for i, (name, values) in enumerate(precision.items()):
        wrong = 100 * (1 - np.nanmean(np.atleast_2d(values), 0))
        axis.bar(np.arange(len(wrong)) + i * width, wrong, width, label=name, color=PALETTE[i])
    axis.set(ylabel="wrong answers (%)", ylim=(0, 100))
    axis.set_xticks(np.arange(space.num_classes) + 0.42, space.names, rotation=45, ha="right")
    axis.legend(ncols=4, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


def answered_by_class(ratios: Mapping[str, np.ndarray], space: LabelSpace, lowest: float = 0.02) -> Figure:
    """How often each class is answered, as a multiple of its true pixels: one series a name, a mean over seeds.

    Args:
        ratios: name -> ``(S, C)`` floats from 0; NaN where it is not known.
        space: names.
        lowest: smaller ratios are drawn here, so that a class that died shows on the logarithmic axis.
    """
    figure, axis = plt.subplots(figsize=(PAGE, 2.3))
    places = np.arange(space.num_classes)
    for i, (name, values) in enumerate(ratios.items()):
        means = np.ma.masked_invalid(np.atleast_2d(values)).mean(0).filled(np.nan)
        axis.plot(places + 0.2 * (i - 1), means.clip(lowest), "ovsD"[i], color=PALETTE[i], label=name, markersize=4)
    axis.axhline(1, color="0.4", linewidth=0.8)
    axis.set(yscale="log", ylabel="answered / true pixels", ylim=(lowest * 0.8, None))
    axis.set_yticks([lowest, 0.1, 0.5, 1, 2, 5], [f"{lowest:g} or less", "0.1", "0.5", "1", "2", "5"])
    axis.minorticks_off()
    axis.set_xticks(places, space.names, rotation=45, ha="right")
    axis.legend(ncols=4, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


def patches_by_class(counts: Mapping[str, int]) -> Figure:
    """How many hard patches hold each rare class."""
    figure, axis = plt.subplots(figsize=(COLUMN, 0.5 + 0.2 * len(counts)))
    names = sorted(counts, key=counts.get)
    axis.barh(names, [counts[name] for name in names], color=PALETTE[3])
    axis.set(xlabel="hard patches that hold it")
    return figure

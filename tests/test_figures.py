"""What figures and pages show, read back from their bars, lines and cells."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from b2ma_core.labels import CITYSCAPES
from b2ma_core.metrics import ConfusionMatrix
from b2ma_core.report import figures, results, site

NAMES = CITYSCAPES.names


def ticks(axis) -> list[str]:
    return [tick.get_text() for tick in axis.get_ticklabels()]


def test_bars_over_classes_are_means_of_seeds_with_their_standard_deviation():
    """IoU of road 20 and 40%, of sky 50 and 50%: means 30 and 50, standard deviations 14.1 and 0."""
    data = pd.DataFrame({"row": "stage 1", "class": ["road", "sky"] * 2, "iou": [0.2, 0.5, 0.4, 0.5]})
    (axis,) = figures.class_iou_bars(data).axes
    assert ticks(axis.xaxis) == ["road", "sky"] and axis.get_ylabel() == "IoU (%)"
    assert [bar.get_height() for bar in axis.patches[:2]] == pytest.approx([30, 50])
    assert np.ptp(axis.lines[0].get_ydata()) == pytest.approx(2 * 10 * np.sqrt(2))
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["stage 1"]


def test_class_scores_can_be_drawn_as_they_are():
    counts = {"box": [[3, 1, 0], [0, 4, 0]], "student": [[4, 0, 0], [0, 0, 4]]}
    scores = {row: ConfusionMatrix.of(each) for row, each in counts.items()}
    (axis,) = figures.class_iou_bars(results.class_scores(scores, ("road", "pole"))).axes
    assert [bar.get_height() for bar in axis.patches[:4]] == pytest.approx([75, 80, 100, 0])


def test_classes_stand_in_falling_order_of_the_first_part():
    first, second = np.arange(1, 20) / 190, np.full(19, 1 / 19)
    axis = figures.class_frequency_bars({"source": first, "target": second}, CITYSCAPES).axes[0]
    assert ticks(axis.xaxis) == list(NAMES[::-1]) and axis.get_yscale() == "log"
    assert [bar.get_height() for bar in axis.patches[:19]] == pytest.approx(100 * first[::-1])


def test_the_loss_is_a_running_mean_of_25_steps():
    history = {"loss": list(range(1, 31)), "miou": [[10, 0.2], [30, 0.4]]}
    short = {"loss": [3, 5], "miou": [[2, 0.5]]}
    *losses, right = figures.training_curves({"stage 1": history, "short": short}).axes
    first, second = [xy[np.isfinite(xy[:, 1])].tolist() for axis in losses for xy in [axis.lines[0].get_xydata()]]
    assert first == [[25 + i, 13 + i] for i in range(6)] and second == [[2, 4]]
    assert [line.get_xydata().tolist() for line in right.lines] == [[[10, 20], [30, 40]], [[30, 40], [32, 50]]]
    right = figures.training_curves({"round 1": short, "unscored": {"loss": [1], "miou": []}}, before=0.4).axes[-1]
    assert [line.get_xydata().tolist() for line in right.lines] == [[[0, 40], [2, 50]], [[2, 50]]]


def test_rows_are_joined_through_their_means_and_the_oracle_is_a_line():
    means = pd.DataFrame({0: [0.2, 0.5, 0.8], 1: [0.4, 0.5, 0.6]}, ["source-only", "stage 1", "oracle"])
    for rows in (means.T, {name: list(values) for name, values in means.iterrows()}):
        (axis,) = figures.miou_by_row(rows).axes
        drawn = [list(line.get_ydata()) for line in axis.lines]
        assert pytest.approx([30, 50]) in drawn and pytest.approx([70, 70]) in drawn
        dots = np.concatenate([dots.get_offsets() for dots in axis.collections])
        assert sorted(dots[:, 1]) == pytest.approx([20, 40, 50, 50])
        assert ticks(axis.xaxis) == ["source-only", "stage 1"]


def test_rare_classes_are_marked_from_the_largest_class_down():
    shares, counts, means = np.arange(1, 20) / 19, np.arange(19)[::-1] * 10, np.linspace(0, 0.9, 19)
    left, middle, right = figures.rarity_bars(shares, counts, [0, 2], CITYSCAPES, means).axes
    assert ticks(left.yaxis) == list(NAMES[::-1])
    colors = {NAMES[18 - round(bar.get_y() + bar.get_height() / 2)]: bar.get_facecolor()[:3]
              for bar in left.patches if bar.get_width()}  # fmt: skip
    assert {name for name, color in colors.items() if color == figures.PALETTE[3]} == {NAMES[0], NAMES[2]}
    assert max(bar.get_width() for bar in right.patches) == pytest.approx(0.9)
    for without in (None, np.full(19, np.nan)):
        assert len(figures.rarity_bars(shares, counts, [0], CITYSCAPES, without).axes) == 2


def test_patches_are_counted_by_cell():
    patches = [SimpleNamespace(row=row, column=column) for row, column in ((0, 1), (0, 1), (1, 0))]
    texts = [text.get_text() for text in figures.patch_places(patches, 2).axes[0].texts]
    assert texts == ["0", "2", "1", "0"]


def test_a_page_lists_notebooks_tables_and_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(site, "PROJECT", tmp_path)
    (tmp_path / "figures" / "mine").mkdir(parents=True)
    (tmp_path / "page").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "figures" / "mine" / "class_iou.png")
    text = results.table_text(pd.DataFrame({"": ["a < b"], "mIoU (%)": ["1.0 ± 0.5"]}))
    (tmp_path / "figures" / "mine" / "table.md").write_text(f"{text}\nof these, val:\n\n{text}", encoding="utf-8")
    page = site._index("mine", 0, ["00_data", "01_source_model"], tmp_path / "page")
    assert page.count("<table>") == 2 and page.count(">a &lt; b</td>") == 2 and page.count(">1.0 ± 0.5</td>") == 2
    assert '<a href="01_source_model.html">01_source_model</a>' in page and "<p>of these, val:</p>" in page
    assert "<h2" in page and 'src="class_iou.png"' in page and (tmp_path / "page" / "class_iou.png").is_file()


def test_answers_stand_beside_their_errors_and_the_truth():
    space = CITYSCAPES
    truth = np.array([[0, 1], [255, 2]], np.uint8)
    said = {"stage 1": [np.array([[0, 0], [5, 2]], np.uint8)], "round 1": [truth]}
    images = [np.zeros((2, 2, 3), np.uint8)]
    figure = figures.answer_grid(space, images, said, [truth])
    shown = {axis.get_title(): axis.images[0].get_array() for axis in figure.axes}
    assert list(shown) == ["image", "stage 1", "errors, stage 1", "round 1", "errors, round 1", "truth"]
    wrong = np.all(shown["errors, stage 1"] == (213, 94, 0), axis=-1)
    assert wrong.tolist() == [[False, True], [False, False]]  # what has no class cannot be wrong
    assert np.array_equal(shown["truth"], space.colorize(truth)) and np.array_equal(shown["round 1"], shown["truth"])
    assert [axis.get_title() for axis in figures.answer_grid(space, images, said).axes] == [
        "image",
        "stage 1",
        "round 1",
    ]

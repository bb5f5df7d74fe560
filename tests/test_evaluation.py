"""Evaluation of a run: splits that were joined are scored apart, predictions have each image's own size."""

import json

import numpy as np
import pytest
import torch
from conftest import photo
from PIL import Image

from b2ma_core.black_box import LabelFolder
from b2ma_core.data import conversion, datasets
from b2ma_core.metrics import ConfusionMatrix, miou_of_present
from b2ma_core.models import build_model, save_weights
from b2ma_core.params import check_params
from b2ma_core.report import evaluation, results
from b2ma_core.study.asking import ask_for_labels
from b2ma_core.study.records import Run
from b2ma_core.study.training import make_fabric, predict


@pytest.fixture
def finished(folder_params, street_folder, distinct_names, tmp_path, monkeypatch):
    """A run whose student has random weights, on six images of two splits, seen at half their size."""
    values = {
        **folder_params.model_dump(), "target_val_split": "train+val", "image_size": [32, 64], "rounds": 0, "grid": 2,
        "box": "folder", "box_root": str(street_folder / "trainannot"),
    }  # fmt: skip
    run = Run(check_params(values, "x"), 0, tmp_path / "runs")
    conversion.prepare(run.params, 1, tmp_path / "data")
    monkeypatch.setattr(evaluation, "load", lambda params, name: datasets.load(params, name, tmp_path / "data"))
    run.model = build_model("deeplab_small", 19).eval()
    save_weights(run.model.state_dict(), run.path("stage1", "student.safetensors"))
    run.val = datasets.load(run.params, "target_val", tmp_path / "data")
    return run


def test_joined_splits_are_scored_apart_and_together(finished):
    metrics = evaluation.evaluate_run(finished, False)
    scale = finished.params.predict_scale
    answers = predict(finished.model, make_fabric(finished.params), finished.val.images, (64, 128), scale)
    confusion = metrics["rows"]["stage 1"]["confusion"]
    kept = json.loads(json.dumps(metrics["rows"]["stage 1"]))  # integers, as the record keeps them
    for at, split in ((slice(0, 4), "train"), (slice(4, 6), "val"), (slice(0, 6), results.ALL)):
        expected = ConfusionMatrix(19)
        expected.update(answers[at], np.array(finished.val.labels[at]))
        found = results.scores_of(confusion, split)
        assert found.miou() == pytest.approx(expected.miou(), abs=1e-3)
        assert torch.equal(found.true_pixels(), expected.true_pixels())
    assert miou_of_present(results.scores_of(kept["confusion"])) == kept["miou"]
    assert np.array(kept["confusion"]["val"]).shape == (19, 20)
    assert int(results.scores_of(confusion).matrix.sum()) == (np.array(finished.val.labels) != 255).sum()
    found = results.tidy([{"study": "mine", "seed": 0, "metrics": metrics}], finished.params.space.names)
    assert found["split"].unique().tolist() == [results.ALL, "train", "val"]
    miou = miou_of_present(results.scores_of(confusion, "val"))  # a random network may answer other classes too
    assert results.table(found, "val").values.tolist() == [["stage 1", f"{100 * miou:.1f}", "-"]]


def test_each_image_is_scored_at_its_labels_own_size(finished, street_folder, tmp_path):
    annotated, images = street_folder / "valannot", street_folder / "val"
    portrait = (0, 0, 48, 64)
    for folder in (annotated, images):
        Image.open(folder / "seq_5.png").crop(portrait).save(folder / "seq_5.png")
    val = conversion.prepare(finished.params, 1, tmp_path / "data")["target_val"]
    assert [labels.shape for labels in val.labels] == [(64, 128)] * 5 + [(64, 48)]
    row = evaluation.evaluate_run(finished, False)["rows"]["stage 1"]
    expected, fabric = ConfusionMatrix(19), make_fabric(finished.params)
    for i, name in enumerate(val.names):
        labels = np.array(photo(street_folder / ("valannot" if i > 3 else "trainannot") / f"{name}.png"))
        scale = finished.params.predict_scale
        expected.update(predict(finished.model, fabric, val.images[i : i + 1], labels.shape, scale)[0], labels)
    assert torch.equal(results.scores_of(row["confusion"]).matrix.sum(1), expected.matrix.sum(1))
    assert row["miou"] == pytest.approx(miou_of_present(expected), abs=1e-3)
    (said,) = evaluation.predict_part(finished, val, [5])
    assert said.shape == val.labels[5].shape  # so that its errors can be drawn
    assert photo(finished.path("predictions", "target_val", "seq_5.png")).shape == (64, 48)


def test_predictions_are_written_at_each_images_own_size(finished):
    shown = evaluation.predict_part(finished, finished.val, [4, 1])
    written = [photo(finished.path("predictions", "target_val", f"{name}.png")) for name in finished.val.names]
    assert len(written) == 6 and all(labels.shape == (64, 128) for labels in written)
    assert np.array_equal(shown[0], written[4]) and np.array_equal(shown[1], written[1])


def test_a_delivered_folder_is_scored_as_source_only_and_its_views_as_votes(finished, tmp_path):
    """Three answers an image: the truth moved by 4, by 8, by 8 columns; two of three say the same."""
    for view, shift in enumerate((4, 8, 8)):
        (tmp_path / "box" / f"{view}_x").mkdir(parents=True)
        for name, truth in zip(finished.val.names, finished.val.labels, strict=True):
            Image.fromarray(np.roll(truth, shift, 1)).save(tmp_path / "box" / f"{view}_x" / f"{name}.png")
    run = Run(finished.params.model_copy(update={"box_queries": 3, "vote_exponent": 0.0}), 1, tmp_path / "runs")
    save_weights(finished.model.state_dict(), run.path("stage1", "student.safetensors"))
    assert list(evaluation.evaluate_run(run, False)["rows"]) == ["stage 1"]  # nothing was delivered for these images
    ask_for_labels(run, LabelFolder(tmp_path / "box"), finished.val)
    rows = evaluation.evaluate_run(run, False)["rows"]
    assert list(rows) == ["source-only", "votes", "stage 1"]
    for row, shift in (("source-only", 4), ("votes", 8)):
        expected = ConfusionMatrix(19)
        for truth in finished.val.labels:
            expected.update(np.roll(truth, shift, 1), np.array(truth))
        assert rows[row]["miou"] == pytest.approx(expected.miou(), abs=1e-12)

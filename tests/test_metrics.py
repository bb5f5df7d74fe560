import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_jaccard_index

from b2ma_core.labels import CITYSCAPES
from b2ma_core.metrics import ConfusionMatrix, reliability


def maps(classes, seed=0, shape=(4, 32, 64)):
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, shape).astype(np.uint8)
    target[rng.random(shape) < 0.1] = 255
    prediction = np.where(rng.random(shape) < 0.6, np.minimum(target, classes - 1), rng.integers(0, classes, shape))
    return prediction.astype(np.uint8), target


def test_a_hand_worked_map():
    scores = ConfusionMatrix(3)
    scores.update(torch.tensor([[0, 0, 1], [1, 1, 255]]), torch.tensor([[0, 1, 1], [1, 255, 0]]))
    assert scores.matrix.tolist() == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert scores.unanswered.tolist() == [1, 0, 0]
    iou = scores.iou()
    assert iou[:2].tolist() == [1 / 3, 2 / 3] and iou[2].isnan()
    assert scores.miou() == pytest.approx(0.5) and scores.miou([1]) == pytest.approx(2 / 3)
    assert scores.matrix.dtype == torch.int64 and iou.dtype == torch.float64
    assert scores.true_pixels().tolist() == [2, 3, 0] and scores.answers().tolist() == [2, 2, 0]
    precision = scores.precision()
    assert precision[:2].tolist() == [1 / 2, 1] and precision[2].isnan() and scores.accuracy() == 3 / 5


@pytest.mark.filterwarnings("error")
def test_maps_may_be_memory_mapped_and_lie_in_any_order(tmp_path):
    prediction, target = maps(5)
    np.save(tmp_path / "maps.npy", np.stack([prediction, target]))
    expected, scores = ConfusionMatrix(5), ConfusionMatrix(5)
    expected.update(prediction.copy(), target.copy())
    kept = np.load(tmp_path / "maps.npy", mmap_mode="r")
    for i in range(len(target)):
        order = (1, -1)[i % 2]  # rows from below
        scores.update(kept[0, i][::order], kept[1, i][::order])
    assert torch.equal(scores.counts(), expected.counts())
    scores.update(kept[0, 0].T, kept[1, 0].T)
    expected.update(prediction[0], target[0])
    assert torch.equal(scores.counts(), expected.counts())


def test_counts_hold_all_of_a_matrix():
    scores = ConfusionMatrix(3)
    scores.update(torch.tensor([[0, 0, 1], [1, 1, 255]]), torch.tensor([[0, 1, 1], [1, 255, 0]]))
    assert scores.counts().tolist() == [[1, 0, 0, 1], [1, 2, 0, 0], [0, 0, 0, 0]]
    again = ConfusionMatrix.of(scores.counts().tolist())
    assert torch.equal(again.counts(), scores.counts()) and again.miou() == scores.miou()
    with pytest.raises(ValueError, match=r"counts: must be \(C, C \+ 1\), got \(3, 3\)"):
        ConfusionMatrix.of(scores.matrix)


def test_iou_agrees_with_torchmetrics():
    prediction, target = maps(19)
    scores = ConfusionMatrix(19)
    for p, t in zip(prediction, target, strict=True):
        scores.update(p, t)
    p, t = torch.from_numpy(prediction).long(), torch.from_numpy(target).long()
    theirs = multiclass_jaccard_index(p, t, 19, average="none", ignore_index=255)
    torch.testing.assert_close(scores.iou().float(), theirs, rtol=1e-5, atol=1e-6)


def test_iou_agrees_with_the_official_cityscapes_evaluation(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setenv("CITYSCAPES_RESULTS", str(tmp_path))
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official

    prediction, target = maps(19, seed=1)
    prediction[0, :4] = 255  # no answer counts against the class
    to_ids = np.zeros(256, np.uint8)
    to_ids[:19] = CITYSCAPES.label_ids
    files = []
    for kind, arrays in (("p", prediction), ("t", target)):
        for i, array in enumerate(arrays):
            Image.fromarray(to_ids[array]).save(tmp_path / f"{kind}{i}_gtFine_labelIds.png")
    files = [[str(tmp_path / f"{k}{i}_gtFine_labelIds.png") for i in range(len(target))] for k in "pt"]
    official.args.evalInstLevelScore = official.args.JSONOutput = official.args.evalPixelAccuracy = False
    official.args.quiet = True
    result = official.evaluateImgLists(*files, official.args)
    scores = ConfusionMatrix(19)
    scores.update(prediction, target)
    theirs = [result["classScores"][name] for name in CITYSCAPES.names]
    np.testing.assert_allclose(scores.iou().numpy(), theirs, rtol=1e-9)
    assert scores.miou() == pytest.approx(result["averageScoreClasses"], rel=1e-9)


@pytest.mark.parametrize(
    "bad, said",
    [
        (torch.full((2, 2), 7), "prediction holds 7"),
        (torch.full((2, 2), 3), "prediction holds 3 .. 3, allowed are 0 .. 2"),
        (torch.zeros(2, 3), "sizes differ"),
    ],
)
def test_bad_maps_are_refused(bad, said):
    with pytest.raises(ValueError, match=said):
        ConfusionMatrix(3).update(bad, torch.zeros(2, 2, dtype=torch.int64))


def test_label_ids_as_target_are_refused():
    with pytest.raises(ValueError, match="target holds"):
        ConfusionMatrix(19).update(torch.zeros(1, 1), torch.tensor([[33]]))


def test_reliability_against_a_plain_loop():
    draw = np.random.default_rng(0)
    labels, target = draw.integers(0, 3, (2, 5, 7)), draw.choice([0, 1, 2, 255], (2, 5, 7))
    confidences = draw.choice([0.0, 0.31, 0.55, 0.99, 1.0], (2, 5, 7)).astype(np.float32)
    entries = {}
    for said, true, sure in zip(labels.flat, target.flat, confidences.flat, strict=True):
        if true != 255:
            entries.setdefault(min(int(sure * 10), 9), []).append(said == true)
    found = reliability(labels, target, confidences)
    assert [e["confidence"] for e in found] == [0.0, 0.3, 0.5, 0.9]
    assert [e["right"] for e in found] == [np.mean(entries[part]) for part in sorted(entries)]
    assert sum(e["pixels"] for e in found) == pytest.approx(1)
    as_bytes = (confidences * 255).round().astype(np.uint8)
    assert reliability(iter(labels), iter(target), iter(as_bytes)) == found


def test_mirrored_views_are_counted_and_bins_are_exact():
    scores, flipped = ConfusionMatrix(2), np.array([[0, 1]])[:, ::-1]
    scores.update(flipped, flipped.copy())
    assert scores.miou() == 1
    told = reliability(np.zeros((1, 1, 1), int), np.zeros((1, 1, 1), int), np.full((1, 1, 1), 0.29), bins=100)
    assert told[0]["confidence"] == 0.29

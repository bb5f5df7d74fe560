import numpy as np
import torch

from b2ma_core import datasets, minicity
from b2ma_core.pseudo_labels import ask_for_labels, read_confidences, read_labels, read_pseudo_labels
from b2ma_core.queries import PHOTO_MEAN, PHOTO_STD, VIEWS, expose, plurality, views
from b2ma_core.records import Run


def test_the_plurality_equals_a_plain_count():
    answers = np.random.default_rng(0).choice([0, 1, 2, 255], (5, 2, 6, 7)).astype(np.uint8)
    labels, shares = plurality(answers, 3)
    for place in np.ndindex(labels.shape):
        counts = [int((answers[(slice(None), *place)] == c).sum()) for c in range(3)]
        best = max(counts)
        assert labels[place] == (counts.index(best) if best else 255)
        assert shares[place] == np.float32(best / 5)


def test_one_answer_wins_by_itself():
    answer = np.array([[[0, 1], [255, 1]]], np.uint8)
    labels, shares = plurality(answer, 2)
    assert (labels == answer[0]).all() and shares.tolist() == [[1, 1], [0, 1]]


def test_views_keep_shape_type_and_place_and_the_first_is_the_image():
    images = np.stack([minicity.render(i, "camera", "val")[0] for i in range(3)])
    seen = views(images, len(VIEWS))
    assert all(view.shape == images.shape and view.dtype == np.uint8 for view in seen)
    assert (seen[0] == images).all() and not any((view == images).all() for view in seen[1:])
    # A view may be darker or quieter, but what is bright at a place stays the brighter: nothing moved.
    for view in seen:
        assert all(
            np.corrcoef(a.mean(2).ravel(), b.mean(2).ravel())[0, 1] > 0.9 for a, b in zip(view, images, strict=True)
        )


def test_an_exposed_image_has_the_mean_and_spread_of_a_photograph():
    dark = (60 * torch.rand(2, 3, 40, 50, generator=torch.Generator().manual_seed(0))).to(torch.uint8)
    dark[:, 0] //= 2  # a colour cast
    exposed = expose(dark).float()
    means = exposed.mean((2, 3))
    assert (means - PHOTO_MEAN).abs().max() < 3
    assert (exposed.std((1, 2, 3)) - PHOTO_STD).abs().max() < 3
    black = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    assert expose(black).float().std() == 0  # nothing to divide by is no error


class Moody:
    """Answers class 0, but class 1 to the first view of a batch, as a box does that is unsure."""

    def __init__(self):
        self.calls = 0

    def predict(self, images, names=None):
        self.calls += 1
        return np.full(images.shape[:3], int(self.calls % len(VIEWS) == 1), np.uint8)


def test_several_answers_are_kept_as_votes_with_their_share(smoke_params, tmp_path):
    params = smoke_params.model_copy(update={"target_val_images": 8, "box_queries": len(VIEWS)})
    datasets.prepare(params, 1, tmp_path / "data")
    data, run, box = datasets.load(params, "target_val", tmp_path / "data"), Run(params, 0, tmp_path), Moody()
    plain = ask_for_labels(run, box, data)
    assert box.calls == len(VIEWS) and (plain == 1).all() and (read_labels(run, data) == 1).all()
    assert (read_pseudo_labels(run, data) == 0).all()
    np.testing.assert_allclose(read_confidences(run, data), 5 / 6, atol=1 / 255)
    once = Run(params.model_copy(update={"box_queries": 1}), 1, tmp_path)
    ask_for_labels(once, Moody(), data)
    assert (read_pseudo_labels(once, data) == 1).all() and read_confidences(once, data) is None

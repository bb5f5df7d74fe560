import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import photo
from PIL import Image

from b2ma_core import minicity
from b2ma_core.black_box import LabelFolder, LocalModel
from b2ma_core.data import conversion, datasets
from b2ma_core.files import write_json, write_png
from b2ma_core.labels import CAMVID, CITYSCAPES, label_map
from b2ma_core.models import build_model
from b2ma_core.params import check_params
from b2ma_core.queries import (
    LARGER,
    PHOTO_MEAN,
    SMALLER,
    VIEWS,
    agreement,
    expose,
    majority_vote,
    noise_level,
    quieten,
    steadiness,
    view_name,
    views,
    weighted_majority_vote,
)
from b2ma_core.study.asking import ask_for_labels, forget_all_but, in_frame
from b2ma_core.study.deliveries import deliveries
from b2ma_core.study.pseudo_labels import (
    learns_from_votes,
    part_steadiness,
    read_confidences,
    read_labels,
    read_pseudo_labels,
)
from b2ma_core.study.records import Run


def test_the_majority_vote_equals_a_plain_count():
    answers = np.random.default_rng(0).choice([0, 1, 2, 255], (5, 2, 6, 7)).astype(np.uint8)
    labels, shares = majority_vote(answers, 3)
    for place in np.ndindex(labels.shape):
        counts = [int((answers[(slice(None), *place)] == c).sum()) for c in range(3)]
        best = max(counts)
        assert labels[place] == (counts.index(best) if best else 255)
        assert shares[place] == np.float32(best / 5)


def test_one_answer_wins_by_itself():
    answer = np.array([[[0, 1], [255, 1]]], np.uint8)
    labels, shares = majority_vote(answer, 2)
    assert (labels == answer[0]).all() and shares.tolist() == [[1, 1], [0, 1]]


def test_weighted_votes_equal_a_plain_sum():
    random = np.random.default_rng(1)
    answers = random.choice([0, 1, 2, 255], (4, 3, 5, 6)).astype(np.uint8)
    weights = random.uniform(0.1, 1, (4, 3, 1, 1))
    labels, shares = majority_vote(answers, 3, weights)
    for image, row, column in np.ndindex(labels.shape):
        at = answers[:, image, row, column]
        sums = [sum(weights[k, image, 0, 0] for k in range(4) if at[k] == c) for c in range(3)]
        assert labels[image, row, column] == (int(np.argmax(sums)) if max(sums) else 255)
        assert np.isclose(shares[image, row, column], max(sums) / weights[:, image].sum())


def test_an_answer_that_agrees_with_no_other_loses_its_vote():
    # Worked by hand. A, B and C agree on eight pixels, D with nobody; the last two are in dispute.
    a = np.array([0, 0, 0, 0, 0, 0, 0, 0, 1, 1])
    b = np.array([0, 0, 0, 0, 0, 0, 0, 0, 1, 0])
    c = np.array([0, 0, 0, 0, 0, 0, 0, 0, 2, 1])
    d = np.array([3, 3, 3, 3, 3, 3, 3, 3, 2, 0])
    answers = np.stack([a, b, c, d]).astype(np.uint8).reshape(4, 1, 2, 5)
    plain, _ = majority_vote(answers, 4)
    assert plain.ravel().tolist() == [0] * 8 + [1, 0]  # both ties go to the lower id
    assert agreement(answers, plain).ravel().tolist() == [0.9, 1.0, 0.8, 0.1]
    labels, shares = weighted_majority_vote(answers, 4, 1.0)
    assert labels.ravel().tolist() == [0] * 8 + [1, 1]  # A and C, 1.7, against B and D, 1.1
    np.testing.assert_allclose(shares.ravel()[-2:], [1.9 / 2.8, 1.7 / 2.8], rtol=1e-6)
    for ours, theirs in zip(weighted_majority_vote(answers, 4, 0.0), majority_vote(answers, 4), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_views_keep_type_and_place_and_the_first_is_the_image():
    images = np.stack([minicity.render(i, "camera", "val")[0] for i in range(3)])
    seen = views(images, len(VIEWS))
    assert (seen[0] == images).all()
    assert not any(np.array_equal(a, b) for i, a in enumerate(seen) for b in seen[:i])
    # A view may be darker, quieter or smaller, but what is bright at a place stays the brighter: nothing moved.
    for view, (_, _, scale) in zip(seen, VIEWS, strict=True):
        assert view.dtype == np.uint8 and view.shape == (3, 128 * scale, 256 * scale, 3)
        back = torch.from_numpy(view.astype(np.float32)).permute(0, 3, 1, 2)
        back = torch.nn.functional.interpolate(back, (128, 256), mode="bilinear").permute(0, 2, 3, 1).numpy()
        assert all(
            np.corrcoef(a.mean(2).ravel(), b.mean(2).ravel())[0, 1] > 0.9 for a, b in zip(back, images, strict=True)
        )


def test_labels_of_an_enlarged_view_come_back_to_their_place():
    labels = np.arange(24, dtype=np.uint8).reshape(1, 4, 6)
    for scale in (1, 2, 3):
        np.testing.assert_array_equal(in_frame(labels.repeat(scale, 1).repeat(scale, 2), (4, 6)), labels)


def test_only_a_noisy_image_is_blurred():
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(60, 180, 200).expand(3, 150, 200)
    noisy = torch.stack([ramp + sd * torch.randn(150, 200, generator=generator) for sd in (0.5, 4.0, 12.0)])
    noisy = noisy.round().to(torch.uint8)
    assert torch.allclose(noise_level(noisy), torch.tensor([0.5, 4.0, 12.0]), rtol=0.15)
    before, after = ((x.float() - ramp).std((1, 2, 3)) for x in (noisy, quieten(noisy)))
    assert after[0] > 0.8 * before[0] and (after[1:] < 0.6 * before[1:]).all()
    flat = torch.full((1, 3, 9, 9), 7, dtype=torch.uint8)
    assert noise_level(flat) == 0 and torch.equal(quieten(flat), flat)


def test_an_exposed_image_has_the_brightness_of_a_photograph():
    dark = (60 * torch.rand(2, 3, 40, 50, generator=torch.Generator().manual_seed(0))).to(torch.uint8)
    dark[:, 0] //= 2  # a colour cast
    dark[1] //= 3
    exposed = expose(dark).float() / 255
    assert (exposed.mean((2, 3)) - PHOTO_MEAN).abs().max() < 0.03 and exposed.amax() > 0.99
    # A dusk: bright sky over dark ground. The shadows are lit, the sky keeps its steps.
    dusk = torch.cat([torch.arange(200, 240).repeat(20, 1), torch.arange(10, 50).repeat(60, 1)])
    seen = expose(dusk.to(torch.uint8).expand(1, 3, 80, 40))[0, 0].float()
    assert (
        seen[20:].mean() > 1.5 * dusk[20:].float().mean()
        and seen[0].diff().min() >= 0
        and seen[0, -1] - seen[0, 0] > 20
    )
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
    params = smoke_params.model_copy(update={"target_train_images": 8, "box_queries": len(VIEWS)})
    conversion.prepare(params, 1, tmp_path / "data")
    data, run, box = datasets.load(params, "target_train", tmp_path / "data"), Run(params, 0, tmp_path), Moody()
    plain = ask_for_labels(run, box, data)
    assert box.calls == len(VIEWS) and (plain == 1).all() and (read_labels(run, data) == 1).all()
    assert part_steadiness(run) == (0, 1)  # another exposure is answered otherwise, another size is not
    for told, label in (("auto", 0), ("plain", 1), ("votes", 0)):
        kept = Run(params.model_copy(update={"learn_from": told}), 0, tmp_path)
        assert (read_pseudo_labels(kept, data) == label).all()
    agreeing = len(VIEWS) - 1  # with weight 1; the first view's answer agrees with no other
    np.testing.assert_allclose(read_confidences(run, data) / 255, agreeing / (agreeing + 1e-3**4), atol=1 / 255)
    once = Run(params.model_copy(update={"box_queries": 1, "learn_from": "auto"}), 1, tmp_path)
    ask_for_labels(once, Moody(), data)
    assert (read_pseudo_labels(once, data) == 1).all() and read_confidences(once, data) is None


class Steady:
    """Answers by an image's brightness; moved by another size as well, on the first ``rows`` of rows."""

    def __init__(self, rows: int, by_exposure: int):
        self.rows, self.by_exposure, self.calls = rows, by_exposure, 0

    def predict(self, images, names=None):
        labels = np.zeros(images.shape[:3], np.uint8)
        view = self.calls % len(VIEWS)
        self.calls += 1
        if view == 0:
            labels[:, : self.by_exposure] = 1
        elif view in (LARGER, SMALLER):
            labels[:, : round(self.rows * VIEWS[view][2])] = 2
        return labels


@pytest.mark.parametrize(("by_exposure", "by_size", "votes"), [(8, 16, False), (16, 8, True), (16, 16, False)])
def test_votes_are_learnt_from_where_exposure_moves_the_answers_more_than_size(
    smoke_params, tmp_path, by_exposure, by_size, votes
):
    params = smoke_params.model_copy(update={"target_train_images": 8, "box_queries": len(VIEWS), "learn_from": "auto"})
    conversion.prepare(params, 1, tmp_path / "data")
    data, run = datasets.load(params, "target_train", tmp_path / "data"), Run(params, 0, tmp_path)
    ask_for_labels(run, Steady(by_size, by_exposure), data)
    assert part_steadiness(run) == pytest.approx((1 - by_exposure / 64, 1 - by_size / 64))
    assert learns_from_votes(run) == votes
    assert np.array_equal(read_pseudo_labels(run, data), read_labels(run, data, votes=votes))
    told = run.path("labels", "target_train_steadiness.json")
    half = replace(data, name="half", labels=data.labels[:, ::2, ::2])
    ask_for_labels(run, None, half, asked=[data])  # taken over, with what is known of it
    assert part_steadiness(run, "half") == part_steadiness(run)
    few = data.of([0, 3])  # what is learnt from is decided by all images, whichever are learnt from
    assert np.array_equal(read_pseudo_labels(run, few), read_pseudo_labels(run, data)[[0, 3]])
    whole = json.loads(told.read_text())
    write_json(told, {name: values for name, values in whole.items() if name != data.names[3]})
    box = Steady(by_size, by_exposure)
    ask_for_labels(run, box, data)  # as after a kill: what nothing is known of is asked about again
    assert box.calls == len(VIEWS) and json.loads(told.read_text()) == whole
    fewer = Run(params.model_copy(update={"box_queries": 3}), 0, tmp_path)
    ask_for_labels(fewer, Steady(by_size, by_exposure), data)
    assert part_steadiness(fewer) is None and not learns_from_votes(fewer)  # nothing to judge by
    once = Run(params.model_copy(update={"box_queries": 1, "learn_from": "votes"}), 1, tmp_path)
    ask_for_labels(once, Steady(by_size, by_exposure), data)
    with pytest.raises(ValueError, match="'votes' needs answers to several views"):
        learns_from_votes(once)


def test_steadiness_is_the_agreement_of_two_answers_pixel_by_pixel():
    answers = np.random.default_rng(0).integers(0, 3, (6, 2, 5, 7)).astype(np.uint8)
    for image, told in enumerate(steadiness(answers)):
        same = [sum(answers[a, image].flat[i] == answers[b, image].flat[i] for i in range(35)) / 35
                for a, b in ((0, 1), (1, 4), (1, 5))]  # fmt: skip
        assert told == pytest.approx((same[0], (same[1] + same[2]) / 2))
    with pytest.raises(ValueError, match="to 5 views, and all 6"):
        steadiness(answers[:5])


def test_labels_are_memory_mapped_and_read_anew_when_a_file_changes(smoke_params, tmp_path):
    conversion.prepare(smoke_params, 1, tmp_path / "data")
    data, run = datasets.load(smoke_params, "target_val", tmp_path / "data"), Run(smoke_params, 0, tmp_path)
    ask_for_labels(run, Moody(), data)
    before = read_labels(run, data)
    assert isinstance(before, np.memmap) and (before == 1).all()
    write_png(run.path("labels", "target_val", f"{data.names[2]}.png"), np.full((64, 128), 7, np.uint8))
    after = read_labels(run, data)
    assert (after[2] == 7).all() and (np.delete(after, 2, 0) == 1).all()
    assert (before == 1).all()  # whoever reads goes on reading
    assert len(list(run.path("cache").glob("target_val-*.npy"))) == 1
    run.path("labels", "target_val", f"{data.names[2]}.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=f"{data.names[2]}.png"):
        read_labels(run, data)


def test_images_that_two_parts_share_are_asked_about_once(smoke_params, tmp_path):
    params = smoke_params.model_copy(update={"target_val_images": 8})
    conversion.prepare(params, 1, tmp_path / "data")
    data, run, box = datasets.load(params, "target_val", tmp_path / "data"), Run(params, 0, tmp_path), Moody()
    plain, asked = ask_for_labels(run, box, data), box.calls
    half = replace(data, name="half", labels=data.labels[:, ::2, ::2])
    assert np.array_equal(ask_for_labels(run, box, half, asked=[data]), plain[:, ::2, ::2])
    assert box.calls == asked and read_confidences(run, half).shape == half.labels.shape
    changed = np.array(data.images)
    changed[3] = 0  # another image of the same name
    ask_for_labels(run, box, replace(data, name="changed", images=changed), asked=[data])
    assert box.calls == 2 * asked
    ask_for_labels(run, box, replace(data, name="whole"), asked=[half])  # never from smaller answers
    assert box.calls == 3 * asked


def test_answers_have_the_size_of_each_images_labels(folder_params, street_folder, tmp_path):
    for folder in ("val", "valannot"):
        Image.open(street_folder / folder / "seq_1.png").crop((0, 0, 48, 64)).save(street_folder / folder / "seq_1.png")
    params = folder_params.model_copy(update={"image_size": [32, 64], "box_queries": 3})
    data, run = conversion.prepare(params, 1, tmp_path / "data")["target_val"], Run(params, 0, tmp_path)
    box = LocalModel(build_model("deeplab_small", 19), flip=False)
    answers = ask_for_labels(run, box, data)
    for i, size in enumerate([(64, 128), (64, 48)]):
        assert np.array_equal(answers[i], box.predict(data.images[i : i + 1], None, size)[0])
        assert read_pseudo_labels(run, data)[i].shape == read_confidences(run, data)[i].shape == size


def test_answers_that_are_all_void_are_refused(smoke_params, tmp_path):
    class Mute:
        def predict(self, images, names=None):
            return np.full(images.shape[:3], 255, np.uint8)

    conversion.prepare(smoke_params, 1, tmp_path / "data")
    data = datasets.load(smoke_params, "target_val", tmp_path / "data")
    with pytest.raises(ValueError, match="answers to all 8 images of target_val are void"):
        ask_for_labels(Run(smoke_params, 0, tmp_path), Mute(), data)


@pytest.fixture
def vendor(folder_params, street_folder, distinct_names, tmp_path):
    """A study of CamVid's classes whose box, of Cityscapes', is an empty folder; images at half their size."""
    values = {
        **folder_params.model_dump(), "label_space": "camvid", "target_label_space": "cityscapes", "box": "folder",
        "box_root": str(tmp_path / "box"), "box_label_space": "cityscapes", "box_queries": 5, "image_size": [32, 64],
        "grid": 2, "source_dataset": "none",
    }  # fmt: skip
    (tmp_path / "box").mkdir()
    run = Run(check_params(values, "x"), 0, tmp_path / "runs")
    parts = conversion.prepare(run.params, 1, tmp_path / "data")
    run.parts = [parts["target_val"], parts["target_train"]]
    run.outbox = tmp_path / "data" / "folder" / "outbox"
    run.box = lambda: LabelFolder(tmp_path / "box", CITYSCAPES)
    run.deliveries = lambda: deliveries(run.params, run.box(), run.parts, 3, tmp_path / "data")
    return run


def answer(outbox, box, chosen="*/*.png") -> dict:
    """A vendor who answers what lies in the outbox: by the brightness of a pixel, at the view's own size."""
    answers = {}
    for path in sorted(outbox.glob(chosen)):
        labels = (photo(path).mean(2) // 14).astype(np.uint8)
        target = box / path.relative_to(outbox)
        target.parent.mkdir(exist_ok=True)
        Image.fromarray(labels).save(target)
        answers[path.parent.name, path.stem] = labels
    return answers


def test_what_a_folder_lacks_lies_in_the_outbox_until_it_is_there(vendor, tmp_path):
    val, train = vendor.parts
    with pytest.raises(
        FileNotFoundError, match="0 of 20 label maps of target_train are there, the next is .*0_as_it_is/seq_0.png"
    ):
        vendor.deliveries()
    for part in vendor.parts:
        for k, view in enumerate(views(part.images, 5)):
            for name, image in zip(part.names, view, strict=True):
                assert np.array_equal(photo(vendor.outbox / view_name(k) / f"{name}.png"), image)
    assert len(list(vendor.outbox.glob("*/*.png"))) == 30
    assert photo(vendor.outbox / "4_quiet_exposed_larger" / "seq_0.png").shape == (40, 80, 3)

    first = answer(vendor.outbox, tmp_path / "box", "[01]_*/seq_[0-3].png")
    before = {path: path.stat().st_mtime_ns for path in vendor.outbox.glob("*/*.png")}
    with pytest.raises(
        FileNotFoundError, match="8 of 20 .*22 images .10 of them for scores alone.*or set box_queries to 2"
    ):
        vendor.deliveries()
    left = {path: path.stat().st_mtime_ns for path in vendor.outbox.glob("*/*.png")}
    assert len(left) == 22 and all(before[path] == stamp for path, stamp in left.items())  # nothing is asked for twice
    assert not {(path.parent.name, path.stem) for path in left} & set(first)

    said = {**first, **answer(vendor.outbox, tmp_path / "box", "*/seq_[0-3].png")}
    parts, notes = vendor.deliveries()
    assert [part.name for part in parts] == ["target_train"]
    assert notes == ["target_val: the box is not scored on it, 10 of 10 answers are missing"]
    said |= answer(vendor.outbox, tmp_path / "box")
    parts, notes = vendor.deliveries()
    assert [part.name for part in parts] == ["target_val", "target_train"] and not notes
    assert not list(vendor.outbox.glob("*/*.png"))

    table = label_map(CITYSCAPES, CAMVID)
    for part, size in ((val, (64, 128)), (train, (32, 64))):
        plain = ask_for_labels(vendor, vendor.box(), part, asked=vendor.parts)
        for i, name in enumerate(part.names):
            answers = [np.asarray(Image.fromarray(table[said[view_name(k), name]]).resize(size[::-1], Image.Resampling.NEAREST))
                       for k in range(5)]  # fmt: skip
            assert np.array_equal(plain[i], answers[0])
            votes, shares = weighted_majority_vote(np.stack(answers)[:, None], 11, vendor.params.vote_exponent)
            assert np.array_equal(read_labels(vendor, part, votes=True)[i], votes[0])
            assert np.abs(read_confidences(vendor, part)[i] - 255 * shares[0]).max() <= 0.5
    forget_all_but(vendor, [train])  # as when an answer to val has been taken away again
    assert {path.name.partition(".")[0] for path in vendor.path("labels").iterdir()} == {
        f"target_train{kind}" for kind in ("", "_color", "_votes", "_confidence")
    }


def test_a_vendor_hears_of_the_wrong_files_of_all_batches(vendor, tmp_path):
    val, train = vendor.parts
    for i, name in enumerate(train.names):
        Image.fromarray(np.full((64, 128), (3, 40, 7, 50)[i], np.uint8)).save(tmp_path / "box" / f"{name}.png")
    with pytest.raises(ValueError, match=r"(?s)seq_1.png: holds \[40\].*seq_3.png: holds \[50\]"):
        ask_for_labels(vendor, vendor.box(), train, batch=2)
    assert sorted(p.stem for p in vendor.path("labels", "target_train").glob("*")) == []


def test_a_flat_folder_is_one_answer_an_image(vendor, tmp_path):
    val, train = vendor.parts
    for i, name in enumerate(train.names[:3]):
        Image.fromarray(np.full((64, 128), i, np.uint8)).save(tmp_path / "box" / f"{name}.png")
    with pytest.raises(FileNotFoundError, match="3 of 4 .*the next is .*box/seq_3.png.*under the name of its image"):
        vendor.deliveries()
    assert {path.parent.name for path in vendor.outbox.glob("*/*.png")} == {"0_as_it_is"}
    Image.fromarray(np.full((64, 128), 10, np.uint8)).save(tmp_path / "box" / "seq_3.png")
    parts, notes = vendor.deliveries()
    assert [part.name for part in parts] == ["target_train"] and "2 of 2 answers are missing" in notes[0]
    plain = ask_for_labels(vendor, vendor.box(), train)
    assert plain[:, 0, 0].tolist() == [3, 4, 1, 0] and (read_pseudo_labels(vendor, train) == plain).all()
    assert read_confidences(vendor, train) is None


def test_other_images_under_the_same_names_are_not_taken_for_the_training_images(
    folder_params, street_folder, tmp_path
):
    params = check_params(
        {**folder_params.model_dump(), "box": "folder", "box_root": str(street_folder / "trainannot")}, "x"
    )
    parts = conversion.prepare(params, 1, tmp_path / "data")
    chosen, notes = deliveries(params, LabelFolder(street_folder / "trainannot"), [parts["target_val"], parts["target_train"]],
                               data=tmp_path / "data")  # fmt: skip
    assert [part.name for part in chosen] == ["target_train"] and "other images under names of target_train" in notes[0]


def test_a_weight_belongs_to_an_answer_and_no_share_is_more_than_all():
    answers = np.zeros((10, 1, 1), np.uint8)
    assert majority_vote(answers, 2)[1].max() == 1  # ten tenths as float32 are a little more
    for weights in (np.array(2.0), np.ones((1, 1, 1)), np.ones(10)):
        with pytest.raises(ValueError, match="weights: .* needed is a weight an answer"):
            majority_vote(answers, 2, weights)


def test_files_of_other_names_are_told(vendor, tmp_path):
    (tmp_path / "box" / "all").mkdir()
    (tmp_path / "box" / "all" / "seq_0.jpg").touch()
    with pytest.raises(FileNotFoundError, match="None of the 1 files there has such a name, .*all/seq_0.jpg for one"):
        vendor.deliveries()


def test_answers_in_the_outbox_are_refused_and_stay(vendor, tmp_path):
    with pytest.raises(FileNotFoundError):
        vendor.deliveries()
    answer(vendor.outbox, vendor.outbox, "0_*/seq_0.png")  # in its image's own place
    before = {path: path.read_bytes() for path in vendor.outbox.glob("*/*.png")}
    with pytest.raises(ValueError, match="seq_0.png: is no image to be sent; 1 such files .*Move them to .*box"):
        vendor.deliveries()
    for root in (vendor.outbox, vendor.outbox / "0_as_it_is"):
        with pytest.raises(ValueError, match="box_root: .* name another folder"):
            deliveries(vendor.params, LabelFolder(root), vendor.parts, 3, tmp_path / "data")
    assert before == {path: path.read_bytes() for path in vendor.outbox.glob("*/*.png")}

    place = vendor.outbox / "0_as_it_is" / "seq_0.png"
    Image.fromarray(photo(place)[..., None].repeat(3, 2)).save(place)  # ids in three channels, as OpenCV writes them
    painted = place.read_bytes()
    with pytest.raises(ValueError, match="seq_0.png: is no image to be sent"):
        vendor.deliveries()
    assert place.read_bytes() == painted
    place.rename(place.with_name("._seq_0.png"))  # what a Mac leaves behind is nobody's answer
    with pytest.raises(FileNotFoundError, match="0 of 20 label maps"):
        vendor.deliveries()

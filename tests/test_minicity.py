"""MiniCity: scenes are pure functions of their arguments, hold all classes and stay frozen."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from b2ma_core import minicity
from b2ma_core.minicity import looks

PROJECT = Path(__file__).resolve().parents[1]
FROZEN = {
    (0, "game", "train", 0, (128, 256)): "8ae60eb34ddcb162fe7884b5d8cf1e14530b573a85c1db1ce680831deeeb39e1",
    (7, "camera", "train", 0, (128, 256)): "9a7ba48c9d9bb7606f6836d190e7b1b7303afd634558edd7f52485cfb65af2dc",
    (3, "camera", "val", 5, (128, 256)): "6a5a3aae21e06675de0249effd8724f7c602978ba53f1185b98a6194601edd07",
    (2, "game", "test", 0, (96, 160)): "5560e1e05d3dde00ddbefebbba6961923e7349cd1b5c5eeb6c4b8df2c17a4cc9",
}


def digest(*arguments, **options) -> str:
    image, labels = minicity.render(*arguments, **options)
    return hashlib.sha256(image.tobytes() + labels.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def pixels_of_classes() -> dict[str, np.ndarray]:
    """Domain -> (256,) pixel counts over 120 scenes."""
    return {
        domain: sum(np.bincount(minicity.render(i, domain, "train")[1].ravel(), minlength=256) for i in range(120))
        for domain in minicity.DOMAINS
    }


@pytest.mark.parametrize("domain", minicity.DOMAINS)
def test_a_scene_is_the_same_whatever_was_drawn_before_and_whatever_numpys_global_seed(domain):
    np.random.seed(1)
    first = digest(5, domain, "train")
    minicity.render(6, domain, "val", seed=3)
    np.random.seed(2)
    before = np.random.get_state()[1].copy()
    assert digest(5, domain, "train") == first
    assert np.array_equal(before, np.random.get_state()[1]), "rendering must leave numpy's global state alone"


def test_every_index_seed_split_and_domain_has_its_own_scene():
    variants = [(0, "camera", "train", 0), (1, "camera", "train", 0), (0, "camera", "train", 1),
                (0, "camera", "val", 0), (0, "camera", "test", 0), (0, "game", "train", 0)]  # fmt: skip
    assert len({digest(*variant) for variant in variants}) == len(variants)
    maps = {minicity.render(*variant)[1].tobytes() for variant in variants}
    assert len(maps) == len(variants), "the layouts differ, not only the pictures"


@pytest.mark.parametrize("domain", minicity.DOMAINS)
def test_all_19_classes_occur_within_120_scenes_and_nothing_else(pixels_of_classes, domain):
    assert np.flatnonzero(pixels_of_classes[domain]).tolist() == list(range(19))


@pytest.mark.parametrize("domain", minicity.DOMAINS)
def test_the_tail_is_long_and_the_street_dominates(pixels_of_classes, domain):
    share = pixels_of_classes[domain] / pixels_of_classes[domain].sum()
    assert (share[:19] < 0.01).sum() >= 6
    street = [
        looks.ROAD,
        looks.BUILDING,
        looks.VEGETATION,
        looks.SKY,
        looks.CAR,
    ]
    assert set(np.argsort(share)[-5:].tolist()) == set(street)


@pytest.mark.parametrize("domain", minicity.DOMAINS)
@pytest.mark.parametrize("size", [(128, 256), (64, 128), (256, 512), (360, 480), (32, 32)])
def test_any_size_gives_a_uint8_picture_and_a_map_of_train_ids(domain, size):
    image, labels = minicity.render(2, domain, "val", size=size)
    assert (image.shape, image.dtype) == ((*size, 3), np.uint8)
    assert (labels.shape, labels.dtype) == (size, np.uint8)
    assert labels.max() < 19
    assert image.std() > 5, "not a blank picture"


@pytest.mark.parametrize("domain", minicity.DOMAINS)
def test_another_size_shows_the_same_scene(domain):
    for index in range(5):
        small = minicity.render(index, domain, "train", size=(128, 256))[1]
        large = minicity.render(index, domain, "train", size=(256, 512))[1][::2, ::2]
        assert (small == large).mean() > 0.9


def test_the_sky_is_above_and_the_road_below():
    for domain in minicity.DOMAINS:
        maps = np.stack([minicity.render(i, domain, "test")[1] for i in range(20)])
        assert (maps[:, 96:] == looks.SKY).mean() == 0
        assert (maps[:, :32] == looks.ROAD).mean() == 0
        assert (maps[:, 112:] == looks.ROAD).mean() > 0.6


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"domain": "film"}, "domain must be one of game, camera"),
        ({"split": "trainval"}, "split must be one of train, val, test"),
        ({"index": -1}, "index must be a whole number"),
        ({"index": 1.5}, "index must be a whole number"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"size": (16, 256)}, "size must be"),
        ({"size": (128.0, 256)}, "size must be"),
        ({"size": (128,)}, "size must be"),
        ({"size": 128}, "size must be"),
    ],
)
def test_a_bad_argument_is_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=named):
        minicity.render(**{"index": 0, "domain": "game", "split": "train", **arguments})


@pytest.mark.parametrize("scene", FROZEN, ids=str)
def test_version_1_is_frozen(scene):
    """A change of any pixel is a new VERSION: results of old studies would no longer repeat."""
    assert minicity.VERSION == 1
    index, domain, split, seed, size = scene
    assert digest(index, domain, split, seed=seed, size=size) == FROZEN[scene]


def test_the_command_line_writes_what_render_returns(tmp_path):
    command = [sys.executable, "-m", "b2ma_core.minicity", "--domain", "camera", "--split", "val", "--count", "2",
               "--seed", "4", "--size", "64", "128", "--images", tmp_path / "images", "--labels", tmp_path / "labels"]  # fmt: skip
    subprocess.run(command, cwd=PROJECT, check=True)
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == ["0000.png", "0001.png"]
    for index in range(2):
        image, labels = minicity.render(index, "camera", "val", seed=4, size=(64, 128))
        assert np.array_equal(np.asarray(Image.open(tmp_path / "images" / f"{index:04d}.png")), image)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "labels" / f"{index:04d}.png")), labels)

import numpy as np
import pytest
import torch

from b2ma_core.hard_patches import (
    HardPatch,
    cell,
    class_statistics,
    cut_patches,
    draw_patches,
    holders,
    mine,
    rare_classes,
    rarely_seen,
)


def test_mining_a_hand_worked_map():
    labels = np.zeros((4, 4), np.uint8)
    labels[0, 0], labels[3, 2], labels[3, 3] = 6, 7, 6
    assert mine([np.zeros((4, 4)), labels], [6, 7], grid=2) == [(1, 0, 0, (6,)), (1, 1, 1, (6, 7))]


def test_mining_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    maps = [np.where(rng.random((16, 32)) < 0.02, rng.integers(0, 19, (16, 32)), 0) for _ in range(5)]
    rare, expected = [6, 12, 18], []
    for i, m in enumerate(maps):
        for r in range(4):
            for c in range(4):
                inside = m[r * 4 : r * 4 + 4, c * 8 : c * 8 + 8]
                classes = tuple(k for k in rare if (inside == k).any())
                if classes:
                    expected.append((i, r, c, classes))
    assert mine(maps, rare) == expected and len(expected) > 10


def test_patches_outside_the_grid_are_refused():
    images, labels = np.zeros((1, 16, 32, 3), np.uint8), np.zeros((1, 16, 32), np.uint8)
    with pytest.raises(ValueError, match="0 given"):
        cut_patches(images, labels, [], 4)
    with pytest.raises(ValueError, match="1 given, .* inside a grid of 2 x 2"):
        cut_patches(images, labels, [HardPatch(0, 1, 3, (6,))], 2)


def test_rare_classes_by_pixels_and_by_confidence():
    labels = np.repeat([0, 1, 2, 3, 255], [50, 30, 15, 4, 1]).reshape(10, 10)
    assert rare_classes([labels], 5, k=1) == [3]
    assert rare_classes([labels], 5, k=2) == [2, 3]
    confidence = np.where(labels == 1, 0.3, 0.9)
    assert rare_classes([labels], 5, [confidence], k=1) == [1, 3]
    as_bytes = np.random.default_rng(0).integers(0, 256, (10, 10), dtype=np.uint8)
    for classes in class_statistics([labels], 4, [as_bytes]), class_statistics([labels], 4, [as_bytes / 255]):
        assert classes[1] == pytest.approx([as_bytes[labels == c].mean() / 255 for c in range(4)])


def test_a_class_without_pixels_is_not_rare_but_absent():
    assert rare_classes([np.array([[0, 0, 1]])], 19, k=1) == [1]


def test_generators_are_read_once():
    assert rare_classes((np.array([[0, 0, 1]]) for _ in range(3)), 2, k=1) == [1]


def test_cells_tile_the_image():
    covered = np.zeros((128, 256), int)
    for r in range(4):
        for c in range(4):
            covered[cell(128, 256, r, c)] += 1
    assert (covered == 1).all()


def test_too_fine_a_grid_is_refused():
    with pytest.raises(ValueError, match="grid is 4"):
        mine([np.zeros((2, 8))], [1])


def test_drawing_gives_rare_classes_alike_and_repeats_with_its_generator():
    labels = np.zeros((8, 8), np.uint8)
    labels[:, :6] = 1
    labels[7, 7] = 2
    by_class = holders(mine([labels] * 20, [1, 2], grid=4))
    drawn = [draw_patches(by_class, 300, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert 110 < sum(2 in patch.classes for patch in drawn[0]) < 190


def test_a_class_is_rarely_seen_if_few_images_hold_enough_of_it():
    maps = [np.zeros((20, 50), np.uint8) for _ in range(4)]  # 1000 pixels: 0.1% is one
    for m in maps:
        m[0, :2] = 1  # in every image
    maps[0][1, :9], maps[1][1, :9] = 2, 2  # in two of four
    for m in maps[:3]:
        m[2, :9] = 3  # in three
    maps[3][3, 0], maps[2][5] = 4, 255
    assert rarely_seen(maps, 6) == [2, 4]
    assert rarely_seen(maps, 6, least=2e-3) == [2]
    assert rarely_seen(maps, 6, most=0.75) == [2, 3, 4]
    assert rarely_seen([], 6) == []


def test_a_cell_counts_from_a_share_of_its_pixels_on():
    labels = np.zeros((16, 16), np.uint8)
    labels[0, :2], labels[0, 8] = 5, 5
    assert [p[1:3] for p in mine([labels], [5], grid=2)] == [(0, 0), (0, 1)]
    assert [p[1:3] for p in mine([labels], [5], grid=2, least=2 / 64)] == [(0, 0)]


def test_equal_confidences_are_a_tie_however_they_were_added_up():
    labels = np.array([[0, 0, 0, 1]], np.uint8)
    for value in (np.full(labels.shape, 11, np.uint8), np.full(labels.shape, 0.1)):
        assert rare_classes([labels], 2, [value], k=1) == [0, 1]  # 1 has the fewest pixels, 0 wins the tie
    with pytest.raises(ValueError, match=r"confidences: a map is \(4, 1\), its labels are \(1, 4\)"):
        rare_classes([labels], 2, [np.ones((4, 1))])


def test_a_share_of_a_cell_is_counted_exactly_and_a_class_named_once():
    labels = np.full((10, 10), 3, np.uint8)
    labels.flat[:7] = 5
    assert mine([labels], [5, 5], grid=1, least=0.07) == [(0, 0, 0, (5,))]

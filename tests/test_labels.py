import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels as official

from b2ma_core.labels import CAMVID, CITYSCAPES


def test_cityscapes_agrees_with_the_official_table():
    ids = np.arange(34, dtype=np.uint8)
    expected = [next(o.trainId for o in official if o.id == i) for i in range(34)]
    assert CITYSCAPES.encode(ids).tolist() == expected
    by_train_id = {o.trainId: o for o in official if 0 <= o.trainId < 19}
    assert CITYSCAPES.names == tuple(by_train_id[i].name for i in range(19))
    assert CITYSCAPES.colors == tuple(by_train_id[i].color for i in range(19))


def test_subsets_leave_out_what_synthia_lacks():
    assert [len(CITYSCAPES.subsets[f"mIoU{n}"]) for n in (19, 16, 13)] == [19, 16, 13]
    assert set(range(19)) - set(CITYSCAPES.subsets["mIoU13"]) == {3, 4, 5, 9, 14, 16}


def test_camvid_void_is_ignored():
    assert CAMVID.encode(np.arange(12, dtype=np.uint8)).tolist() == [*range(11), 255]


def test_colorize_paints_ignored_pixels_black():
    picture = CITYSCAPES.colorize(np.array([[0, 255]], np.uint8))
    assert picture.dtype == np.uint8 and picture.tolist() == [[[128, 64, 128], [0, 0, 0]]]


def test_label_ids_in_place_of_train_ids_are_named():
    with pytest.raises(ValueError, match=r"x\.png.*look like label ids"):
        CITYSCAPES.check(np.array([[7, 26, 33]]), "x.png")
    with pytest.raises(ValueError, match="y.png"):
        CAMVID.check(np.array([[200]]), "y.png")
    CITYSCAPES.check(np.array([[0, 18, 255]]), "fine.png")


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match="integer"):
        CITYSCAPES.encode(np.zeros((2, 2)))

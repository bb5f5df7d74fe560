import numpy as np
import pytest
import torch
from conftest import photo
from PIL import Image
from torch import nn

from b2ma_core.black_box import LabelFolder, LocalModel, ask
from b2ma_core.labels import CAMVID, CITYSCAPES

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 32, 3), dtype=np.uint8)
NAMES = ["a", "b"]


class Lopsided(nn.Module):
    """Logits that depend on the column, so that a mirror image gets other answers."""

    def forward(self, images):
        columns = torch.arange(images.shape[-1], dtype=torch.float32).expand(len(images), *images.shape[-2:])
        return torch.stack([columns * images[:, 0], columns * images[:, 1], columns * 0 + 4], dim=1)


def test_flip_averaging_equals_a_plain_average():
    box = LocalModel(Lopsided(), flip=True)
    x = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float() / 255
    logits = (Lopsided()(x) + Lopsided()(x.flip(3)).flip(3)) / 2
    answer = box.predict(IMAGES)
    assert answer.dtype == np.uint8 and np.array_equal(answer, logits.argmax(1).numpy())
    assert not np.array_equal(answer, LocalModel(Lopsided(), flip=False).predict(IMAGES))
    labels, confidence = box.predict_with_confidence(IMAGES)
    assert np.array_equal(labels, answer) and 1 / 3 <= confidence.min() <= confidence.max() <= 1


def test_a_delivered_folder_answers_by_name(tmp_path):
    for i, name in enumerate(NAMES):
        Image.fromarray(np.full((16, 32), i, np.uint8)).save(tmp_path / f"{name}.png")
    answer = ask(LabelFolder(tmp_path), IMAGES[::-1], NAMES[::-1], CITYSCAPES)
    assert answer[:, 0, 0].tolist() == [1, 0] and np.array_equal(answer[0], photo(tmp_path / "b.png"))


def test_a_delivery_in_capitals_is_found(tmp_path):
    Image.fromarray(np.full((16, 32), 5, np.uint8)).save(tmp_path / "a.PNG")
    Image.fromarray(np.full((16, 32), 6, np.uint8)).save(tmp_path / "b.png")
    box = LabelFolder(tmp_path)
    assert box.predict(IMAGES, NAMES)[:, 0, 0].tolist() == [5, 6] and box.path("c") == tmp_path / "c.png"


def test_a_folder_with_gaps_or_broken_files_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="box_root: no folder"):
        LabelFolder(tmp_path / "nothing")
    with pytest.raises(ValueError, match="a.png: the vendor's folder has no labels for the image 'a'"):
        LabelFolder(tmp_path).predict(IMAGES, NAMES)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n123")
    with pytest.raises(ValueError, match="a.png: cannot be read"):
        LabelFolder(tmp_path).predict(IMAGES, NAMES)
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a.png: labels are \(16, 16\), the image is \(16, 32\)"):
        LabelFolder(tmp_path).predict(IMAGES, NAMES)


@pytest.mark.parametrize("size", [(16, 32), (60, 90), (50, 100), (34, 50), (90, 134)])
def test_an_answer_may_have_the_images_or_the_photographs_proportions(tmp_path, size):
    """The photograph, 60 x 90, was brought to 16 x 32; answers at both, at twice, half and one and a half of either."""
    height, width = size
    quarters = 2 * (np.arange(height)[:, None] >= height / 2) + (np.arange(width) >= width / 2)
    Image.fromarray(quarters.astype(np.uint8)).save(tmp_path / "a.png")
    box = LabelFolder(tmp_path)
    for wanted in ((16, 32), (60, 90)):
        rows, columns = (np.arange(side) >= side / 2 for side in wanted)
        assert np.array_equal(box.read("a", 0, (16, 32), (60, 90), wanted), 2 * rows[:, None] + columns)
    assert box.read("a", 0, (16, 32), (60, 90)).shape == (16, 32)


@pytest.mark.parametrize("size", [(90, 64), (32, 16), (60, 60), (58, 90), (8, 12), (61, 40)])
def test_an_answer_of_other_proportions_is_named_with_all_sizes(tmp_path, size):
    Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / "a.png")
    said = rf"a.png: labels are \({size[0]}, {size[1]}\), the image is \(16, 32\), the photograph \(60, 90\)"
    with pytest.raises(ValueError, match=said):
        LabelFolder(tmp_path).read("a", 0, (16, 32), (60, 90))


def test_answers_hold_the_ids_of_the_vendors_files(tmp_path):
    Image.fromarray(np.full((16, 32), 11, np.uint8)).save(tmp_path / "a.png")
    assert (LabelFolder(tmp_path, CAMVID).read("a", 0, (16, 32), (16, 32)) == 255).all()  # SegNet's void
    Image.fromarray(np.full((16, 32), 26, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a.png: holds \[26\], but label maps of 'cityscapes' .*look like label ids"):
        LabelFolder(tmp_path, CITYSCAPES).read("a", 0, (16, 32), (16, 32))
    Image.new("RGB", (32, 16)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="a.png: labels must be an 8-bit PNG with one channel"):
        LabelFolder(tmp_path, CITYSCAPES).predict(IMAGES[:1], NAMES[:1])
    Image.fromarray(np.zeros((16, 32), np.uint8)).save(tmp_path / "a.png", "JPEG")
    with pytest.raises(ValueError, match="a.png: holds JPEG"):
        LabelFolder(tmp_path, CITYSCAPES).predict(IMAGES[:1], NAMES[:1])


def test_folders_of_views_are_known_by_their_numbers(tmp_path):
    for view, name in enumerate(("0_as_it_is", "1_brighter", "10_x")):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((16, 32), view, np.uint8)).save(tmp_path / name / "a.png")
    box = LabelFolder(tmp_path)
    assert [box.read("a", view, (16, 32), (16, 32))[0, 0] for view in (0, 1, 10)] == [0, 1, 2] and not box.flat
    with pytest.raises(ValueError, match="2_quiet_full_contrast/a.png: the vendor's folder has no labels"):
        box.read("a", 2, (16, 32), (16, 32))
    Image.fromarray(np.zeros((16, 32), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="holds label maps and folders of views"):
        LabelFolder(tmp_path)
    (tmp_path / "a.png").unlink()
    (tmp_path / "1_again").mkdir()
    with pytest.raises(ValueError, match="two folders of one view: .*1_again, 1_brighter"):
        LabelFolder(tmp_path)


@pytest.mark.parametrize(
    "answer, said",
    [
        (np.zeros((2, 16, 32)), "answered float64, needed is .*uint8"),
        (np.zeros((2, 16, 32), np.int64), "answered int64"),
        (torch.zeros(2, 16, 32, dtype=torch.uint8), "answered torch.uint8"),
        (np.zeros((2, 19, 16, 32), np.uint8), r"answered shape \(2, 19, 16, 32\), needed is \(2, 16, 32\)"),
        (np.full((2, 16, 32), 33, np.uint8), "image 'a': holds .*label ids"),
        ([[0]], "answered list"),
    ],
)
def test_a_box_that_answers_wrongly_is_named(answer, said):
    class Vendor:
        def predict(self, images, names=None):
            return answer

    with pytest.raises(ValueError, match=f"the box Vendor.*{said}"):
        ask(Vendor(), IMAGES, NAMES, CITYSCAPES)


def test_a_box_is_asked_with_a_name_for_each_image():
    with pytest.raises(ValueError, match="names: 1, but there are 2 images"):
        ask(LocalModel(Lopsided()), IMAGES, ["a"], CITYSCAPES)


def test_an_answer_from_before_the_photograph_was_turned_is_refused(tmp_path):
    Image.fromarray(np.full((80, 60), 3, np.uint8)).save(tmp_path / "a.png")
    box = LabelFolder(tmp_path)
    with pytest.raises(ValueError, match="a.png: .*photograph is .60, 80. .*lies on its side; .*EXIF"):
        box.read("a", 0, (40, 30), (60, 80))  # of the proportions of what was sent
    assert box.read("a", 0, (40, 30), (120, 160)).shape == (40, 30)


def test_a_delivery_that_was_damaged_on_its_way_is_named(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.full((64, 64), 3, np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"IEND") - 6] ^= 1  # of the checksum of the pixels, which decoding does not look at
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}: was damaged on its way"):
        LabelFolder(tmp_path).read("a", 0, (64, 64), (64, 64))

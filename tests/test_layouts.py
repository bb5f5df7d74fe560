"""Data sets in the forms in which they are distributed, made from MiniCity scenes."""

import struct
import zlib

import numpy as np
import pytest
import yaml
from conftest import Project, photo
from PIL import Image

from b2ma_core import minicity
from b2ma_core.data import datasets, layouts
from b2ma_core.labels import CITYSCAPES
from b2ma_core.params import ParamsError, check_params

LABEL_IDS = np.array([*CITYSCAPES.label_ids, *[0] * 237], np.uint8)
SYNTHIA_IDS = {train_id: own for own, train_id in layouts.SYNTHIA_TRAIN_IDS.items()}


def write_png16(path, planes: np.ndarray) -> None:
    """``(H, W, 3)`` uint16 as a 16-bit RGB PNG, by the format's definition: Pillow writes none."""
    height, width = planes.shape[:2]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in planes)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def scene(i: int, domain: str = "game", size=(64, 128)):
    return minicity.render(i, domain, "train", size=size)


@pytest.fixture
def cityscapes(tmp_path):
    root = tmp_path / "cityscapes"
    for split, city, count in (("train", "aachen", 2), ("train", "bochum", 1), ("val", "lindau", 2), ("test", "b", 1)):
        (root / "leftImg8bit" / split / city).mkdir(parents=True)
        (root / "gtFine" / split / city).mkdir(parents=True)
        for i in range(count):
            image, labels = scene(i, "camera")
            Image.fromarray(image).save(root / "leftImg8bit" / split / city / f"{city}_{i:06d}_000019_leftImg8bit.png")
            name = f"{city}_{i:06d}_000019_gtFine_labelIds.png"
            Image.fromarray(LABEL_IDS[labels]).save(root / "gtFine" / split / city / name)
    return root


@pytest.fixture
def gta5(tmp_path):
    root = tmp_path / "gta5"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for i, size in enumerate([(64, 128), (64, 128), (72, 136)]):  # a few images of GTA5 have another size
        image, labels = scene(i, size=size)
        Image.fromarray(image).save(root / "images" / f"{i:05d}.png")
        picture = Image.fromarray(LABEL_IDS[labels]).convert("P")
        picture.putdata(LABEL_IDS[labels].ravel())
        picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
        picture.save(root / "labels" / f"{i:05d}.png")
    (root / "train.txt").write_text("00002.png\n00000.png\n")
    return root


@pytest.fixture
def synthia(tmp_path):
    root = tmp_path / "synthia"
    for folder in ("RGB", "GT/LABELS"):
        (root / folder).mkdir(parents=True)
    for i in range(2):
        image, labels = scene(i)
        Image.fromarray(image).save(root / "RGB" / f"{i:07d}.png")
        own = np.vectorize(SYNTHIA_IDS.get)(labels).astype(np.uint16)
        own[0, :3] = (0, 13, 22)  # void, parking slot, lane marking
        instances = np.full_like(own, 7000)
        write_png16(root / "GT" / "LABELS" / f"{i:07d}.png", np.stack([own, instances, np.zeros_like(own)], -1))
    return root


def params_for(smoke_params, source: str, source_root, split: str, target_root=None):
    values = {
        **smoke_params.model_dump(), "study": "real", "source_dataset": source, "source_root": str(source_root),
        "source_train_split": split, "source_val_split": None, "source_train_images": None, "source_val_images": None,
    }  # fmt: skip
    if target_root:
        values |= {"target_dataset": "cityscapes", "target_root": str(target_root), "target_train_images": None,
                   "target_val_images": None, "target_test_images": None}  # fmt: skip
    return check_params(values, "real")


def test_gta5_and_cityscapes_are_read_as_distributed(smoke_params, gta5, cityscapes, tmp_path):
    parts = datasets.prepare(params_for(smoke_params, "gta5", gta5, "train", cityscapes), 1, tmp_path / "data")
    source = parts["source_train"]
    assert source.names == ["00002", "00000"] and source.sizes == [(72, 136), (64, 128)]
    image, labels = scene(0)
    assert np.array_equal(source.images[1], image) and np.array_equal(source.labels[1], labels)
    assert source.images.shape == (2, 64, 128, 3)
    target, val = parts["target_train"], parts["target_val"]
    assert target.names[0] == "aachen_000000_000019_leftImg8bit" and len(target) == 3 and len(val) == 2
    image, labels = scene(1, "camera")
    assert np.array_equal(target.images[1], image) and np.array_equal(val.labels[1], labels)


def test_the_hidden_truth_of_cityscapes_test_is_no_truth(smoke_params, gta5, cityscapes, tmp_path):
    for path in cityscapes.glob("gtFine/test/*/*_labelIds.png"):
        Image.fromarray(np.zeros((64, 128), np.uint8)).save(path)  # as distributed: not one class
    params = params_for(smoke_params, "gta5", gta5, "train", cityscapes)
    params = params.model_copy(update={"target_test_split": "test"})
    assert datasets.prepare(params, 1, tmp_path / "data")["target_test"].labels is None


def test_synthias_own_ids_become_train_ids(smoke_params, synthia, tmp_path):
    parts = datasets.prepare(params_for(smoke_params, "synthia", synthia, "all"), 1, tmp_path / "data")
    _, labels = scene(1)
    assert (parts["source_train"].labels[1, 0, :3] == 255).all()
    assert np.array_equal(parts["source_train"].labels[1, 1:], labels[1:])


def test_synthias_wrong_file_is_named(smoke_params, synthia, tmp_path):
    coloured = synthia / "GT" / "LABELS" / "0000001.png"
    Image.fromarray(np.zeros((64, 128, 3), np.uint8)).save(coloured)
    (synthia / "GT" / "LABELS" / "0000000.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    with pytest.raises(ValueError, match="2 of 2 samples") as caught:
        datasets.prepare(params_for(smoke_params, "synthia", synthia, "all"), 1, tmp_path / "data")
    assert "16-bit PNGs whose first channel" in str(caught.value)
    assert "0000000.png: cannot be read" in str(caught.value)


def test_train_ids_where_label_ids_belong_are_told(smoke_params, gta5, tmp_path):
    for path in (gta5 / "labels").iterdir():
        labels = CITYSCAPES.encode(photo(path))
        Image.fromarray(labels).save(path)
    with pytest.raises(ValueError, match="look like train ids where label ids belong"):
        datasets.prepare(params_for(smoke_params, "gta5", gta5, "all"), 1, tmp_path / "data")


def test_an_image_that_a_list_names_and_a_list_that_is_missing_are_named(smoke_params, gta5):
    (gta5 / "train.txt").write_text("00000.png\n00009.png\n")
    for split, said in (
        ("train", "train.txt: 1 images that it lists are missing, 00009"),
        ("val", "no list .*val.txt"),
    ):
        part = datasets.parts(params_for(smoke_params, "gta5", gta5, split))["source_train"]
        with pytest.raises(FileNotFoundError, match=said):
            datasets.list_items(part)


def test_real_data_sets_have_the_classes_of_cityscapes(smoke_params):
    with pytest.raises(ParamsError, match="label_space: source_dataset 'gta5' has the cityscapes classes"):
        check_params({**smoke_params.model_dump(), "label_space": "camvid", "source_dataset": "gta5",
                      "source_root": "x"}, "x")  # fmt: skip


def test_label_ids_are_converted_to_files_of_train_ids(gta5, tmp_path, capsys):
    words = ["--dataset", "gta5", "--root", str(gta5), "--split", "all", "--out", str(tmp_path / "out")]
    assert layouts.main(words) == 0 and "3 maps" in capsys.readouterr().out
    _, labels = scene(1)
    assert np.array_equal(photo(tmp_path / "out" / "00001.png"), labels)
    (tmp_path / "out" / "00001.png").unlink()
    (gta5 / "labels" / "00001.png").write_bytes(b"half")
    assert layouts.main(words) == 1 and "00001.png: cannot be read" in capsys.readouterr().err


def test_the_papers_study_passes_the_check_of_its_data(gta5, cityscapes, tmp_path):
    copy = Project(tmp_path / "copy")
    path = copy.root / "params" / "gta5_cityscapes.yaml"
    own = yaml.safe_load(path.read_text())
    own |= {"source_root": str(gta5), "target_root": str(cityscapes), "source_start": "scratch", "init": "scratch",
            "source_image_size": [72, 136], "image_size": [64, 128], "workers": 0}  # fmt: skip
    path.write_text(yaml.safe_dump(own))
    code, output = copy.notebook("00_data", "gta5_cityscapes")
    assert code == 0, output
    assert np.load(copy.root / "data" / "gta5_cityscapes" / "source_train" / "images.npy").shape == (3, 72, 136, 3)

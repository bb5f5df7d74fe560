"""Data sets in the forms in which they are distributed, made from MiniCity scenes."""

import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import yaml
from conftest import Project, photo
from PIL import Image

from b2ma_core import minicity, processes
from b2ma_core.data import conversion, datasets, layouts
from b2ma_core.files import read_label_map, read_picture
from b2ma_core.labels import CITYSCAPES, label_map, label_space
from b2ma_core.params import check_params

LABEL_IDS = np.array([*CITYSCAPES.label_ids, *[0] * 237], np.uint8)
SYNTHIA_IDS = {train_id: own for own, train_id in layouts.SYNTHIA_TRAIN_IDS.items()}


def write_png(path, values: np.ndarray, depth: int, kind: int, size: tuple[int, int] | None = None) -> None:
    """``(H, W, channels)`` integers as a PNG of any bit depth and colour type, by the format's definition: Pillow writes
    few of them. ``size``: what the head claims in place of H x W."""
    height, width = values.shape[:2]

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    bits = (values.reshape(height, -1, 1) >> np.arange(depth)[::-1]) & 1  # most significant first
    rows = b"".join(b"\0" + np.packbits(row.astype(np.uint8).ravel()).tobytes() for row in bits)
    head = struct.pack(">IIBBBBB", *(size or (height, width))[::-1], depth, kind, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(range(255, -1, -1)) * 3) if kind == 3 else b""
    body = chunk(b"IHDR", head) + palette + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


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
        write_png(root / "GT" / "LABELS" / f"{i:07d}.png", np.stack([own, instances, np.zeros_like(own)], -1), 16, 2)
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
    parts = conversion.prepare(params_for(smoke_params, "gta5", gta5, "train", cityscapes), 1, tmp_path / "data")
    source = parts["source_train"]
    assert source.names == ["00002", "00000"] and source.sizes == [(72, 136), (64, 128)]
    image, labels = scene(0)
    assert np.array_equal(source.images[1], image) and np.array_equal(source.labels[1], labels)
    assert source.images.shape == (2, 64, 128, 3)
    target, val = parts["target_train"], parts["target_val"]
    assert target.names[0] == "aachen_000000_000019_leftImg8bit" and len(target) == 3 and len(val) == 2
    image, labels = scene(1, "camera")
    assert np.array_equal(target.images[1], image) and np.array_equal(val.labels[1], labels)


def test_labels_of_gta5_may_be_a_few_pixels_larger_than_their_image_and_no_more(smoke_params, gta5, tmp_path):
    image, labels = scene(0, size=(64, 130))
    Image.fromarray(image).crop((1, 0, 129, 63)).save(gta5 / "images" / "00000.png")
    Image.fromarray(LABEL_IDS[labels]).save(gta5 / "labels" / "00000.png")
    source = conversion.prepare(params_for(smoke_params, "gta5", gta5, "all"), 1, tmp_path / "data")["source_train"]
    resized = np.asarray(Image.fromarray(labels).resize((128, 64), Image.Resampling.NEAREST))
    assert source.sizes[0] == (63, 128) and np.array_equal(source.labels[0], resized)
    Image.fromarray(LABEL_IDS[labels][:, :120]).save(gta5 / "labels" / "00000.png")
    with pytest.raises(ValueError, match=r"00000.png: labels are \(120, 64\), the image is \(128, 63\)"):
        conversion.prepare(params_for(smoke_params, "gta5", gta5, "all"), 1, tmp_path / "data")


def test_the_hidden_truth_of_cityscapes_test_is_no_truth(smoke_params, gta5, cityscapes, tmp_path):
    for path in cityscapes.glob("gtFine/test/*/*_labelIds.png"):
        Image.fromarray(np.zeros((64, 128), np.uint8)).save(path)  # as distributed: not one class
    params = params_for(smoke_params, "gta5", gta5, "train", cityscapes)
    params = params.model_copy(update={"target_test_split": "test"})
    assert conversion.prepare(params, 1, tmp_path / "data")["target_test"].labels is None


def test_synthias_own_ids_become_train_ids(smoke_params, synthia, tmp_path):
    parts = conversion.prepare(params_for(smoke_params, "synthia", synthia, "all"), 1, tmp_path / "data")
    _, labels = scene(1)
    assert (parts["source_train"].labels[1, 0, :3] == 255).all()
    assert np.array_equal(parts["source_train"].labels[1, 1:], labels[1:])


def test_synthias_ids_in_another_channel_are_refused(smoke_params, synthia, tmp_path):
    for path in (synthia / "GT" / "LABELS").iterdir():
        write_png(path, np.zeros((64, 128, 3), int) + (0, 0, 3), 16, 2)
    with pytest.raises(
        ValueError, match="source_train: .* all its 2 images are void.*0000000.png first.*first channel"
    ):
        conversion.prepare(params_for(smoke_params, "synthia", synthia, "all"), 1, tmp_path / "data")


def test_synthias_wrong_file_is_named(smoke_params, synthia, tmp_path):
    coloured = synthia / "GT" / "LABELS" / "0000001.png"
    Image.fromarray(np.zeros((64, 128, 3), np.uint8)).save(coloured)
    (synthia / "GT" / "LABELS" / "0000000.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    with pytest.raises(ValueError, match="2 of 2 samples") as caught:
        conversion.prepare(params_for(smoke_params, "synthia", synthia, "all"), 1, tmp_path / "data")
    assert "16-bit PNGs whose first channel" in str(caught.value)
    assert "0000000.png: cannot be read" in str(caught.value)


def test_train_ids_where_label_ids_belong_are_told(smoke_params, gta5, tmp_path):
    for path in (gta5 / "labels").iterdir():
        labels = CITYSCAPES.encode(photo(path))
        Image.fromarray(labels).save(path)
    with pytest.raises(ValueError, match="look like train ids where label ids belong"):
        conversion.prepare(params_for(smoke_params, "gta5", gta5, "all"), 1, tmp_path / "data")


def test_an_image_that_a_list_names_and_a_list_that_is_missing_are_named(smoke_params, gta5):
    (gta5 / "train.txt").write_text("00000.png\n00009.png\n")
    for split, said in (
        ("train", "train.txt: 1 images that it lists are missing, 00009"),
        ("val", "no list .*val.txt"),
    ):
        part = datasets.parts(params_for(smoke_params, "gta5", gta5, split))["source_train"]
        with pytest.raises(FileNotFoundError, match=said):
            conversion.list_items(part)


@pytest.mark.parametrize(
    "text", ["\ufeff00002\r\n00000\r\n\r\n", "images/00002.png\nimages\\00000.png", "00002.jpg labels/x.png\n00000\t1"]
)
def test_lists_are_read_as_windows_and_other_tools_write_them(gta5, text):
    (gta5 / "train.txt").write_bytes(text.encode())
    assert [item.name for item in layouts.list_files("gta5", gta5, "train")] == ["00002", "00000"]


def test_a_list_may_name_images_with_spaces_and_dots(gta5):
    for folder in ("images", "labels"):
        (gta5 / folder / "00000.png").rename(gta5 / folder / "a street.v2.png")
    (gta5 / "train.txt").write_text("a street.v2\n00001.png\n")
    assert [item.name for item in layouts.list_files("gta5", gta5, "train")] == ["a street.v2", "00001"]


@pytest.mark.parametrize(
    "content, said",
    [(b"\r\n", "train.txt: lists no image"), (b"00000\n00001\n00000.png", "train.txt: lists 1 images twice, 00000"),
     ("00000".encode("utf-16"), "train.txt: is no UTF-8 text")],
)  # fmt: skip
def test_a_list_of_no_use_is_named(smoke_params, gta5, content, said):
    (gta5 / "train.txt").write_bytes(content)
    with pytest.raises(ValueError, match=f"source_train: .*{said}"):
        conversion.list_items(datasets.parts(params_for(smoke_params, "gta5", gta5, "train"))["source_train"])


def test_cityscapes_images_may_be_jpeg(cityscapes):
    for path in list(cityscapes.glob("leftImg8bit/train/*/*.png")):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    items = layouts.list_files("cityscapes", cityscapes, "train")
    assert len(items) == 3 and all(item.labels.endswith("_000019_gtFine_labelIds.png") for item in items)
    assert all(photo(item.labels).shape == (64, 128) for item in items)


def test_hidden_files_are_no_data_and_others_are_counted(cityscapes, street_folder):
    train = street_folder / "train"
    for path in (train / "._seq_0.png", train / "seq_9.tif", train / "seq_8.TIF", train / "notes"):
        path.write_bytes(b"x")
    for path in (
        train / ".ipynb_checkpoints",
        train / "seq_7.png",
        cityscapes / "leftImg8bit/train/.ipynb_checkpoints",
    ):
        path.mkdir()
    (cityscapes / "leftImg8bit/train/.ipynb_checkpoints/a_leftImg8bit.png").write_bytes(b"x")
    assert [item.name for item in layouts.list_files("folder", street_folder, "train")] == [
        f"seq_{i}" for i in range(4)
    ]
    assert len(layouts.list_files("cityscapes", cityscapes, "train")) == 3
    others = layouts.passed_over("folder", street_folder, "train")
    assert others == "1 .TIF, 1 .tif, 1 files without a suffix, 1 folders"


def test_suffixes_may_be_upper_case(street_folder):
    for folder in ("train", "trainannot"):
        (street_folder / folder / "seq_0.png").rename(street_folder / folder / "seq_0.PNG")
    item = layouts.list_files("folder", street_folder, "train")[0]
    assert item.image.endswith("train/seq_0.PNG") and item.labels.endswith("trainannot/seq_0.PNG")


PIXELS = np.random.default_rng(0).integers(16, 256, (4, 6, 3), np.uint8)


@pytest.mark.parametrize("orientation, turned", [
    (1, PIXELS), (2, PIXELS[:, ::-1]), (3, PIXELS[::-1, ::-1]), (4, PIXELS[::-1]), (5, PIXELS.transpose(1, 0, 2)),
    (6, np.rot90(PIXELS, -1)), (7, PIXELS[::-1, ::-1].transpose(1, 0, 2)), (8, np.rot90(PIXELS)),
])  # fmt: skip
def test_a_photograph_is_turned_as_its_exif_says(tmp_path, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(layouts.read_image(str(tmp_path / "a.png"))), turned)


GREY = PIXELS[..., :1]


@pytest.mark.parametrize("values, depth, kind, rgb", [
    (GREY.astype(int) * 257, 16, 0, GREY), (GREY.astype(int) << 8, 16, 0, GREY), (PIXELS.astype(int) * 257, 16, 2, PIXELS),
    (np.dstack([GREY, PIXELS[..., 1:2]]), 8, 4, GREY), (np.dstack([PIXELS, GREY]), 8, 6, PIXELS),
    (np.dstack([GREY, GREY]).astype(int) * 257, 16, 4, GREY), (GREY % 2, 1, 0, GREY % 2 * 255), (GREY % 4, 2, 0, GREY % 4 * 85),
])  # fmt: skip
def test_images_of_every_kind_become_rgb(tmp_path, values, depth, kind, rgb):
    write_png(tmp_path / "a.png", values, depth, kind)
    assert np.array_equal(np.asarray(layouts.read_image(str(tmp_path / "a.png"))), np.broadcast_to(rgb, PIXELS.shape))


def test_transparent_palettes_and_cmyk_become_rgb(tmp_path, recwarn):
    picture = Image.fromarray(PIXELS).quantize(8)
    picture.save(tmp_path / "p.png", transparency=b"\0\x80\xff")
    colours = np.array(picture.getpalette()).reshape(-1, 3)[np.asarray(picture)]
    assert np.array_equal(np.asarray(layouts.read_image(str(tmp_path / "p.png"))), colours) and not recwarn.list
    cmyk = Image.new("CMYK", (8, 8), (255, 0, 0, 0))  # cyan ink alone
    cmyk.save(tmp_path / "c.jpg", quality=100)
    assert np.abs(np.asarray(layouts.read_image(str(tmp_path / "c.jpg"))).astype(int) - (0, 255, 255)).max() < 3


@pytest.mark.parametrize("kind", [0, 2])
def test_twelve_bits_in_sixteen_are_refused(tmp_path, kind):
    write_png(tmp_path / "a.png", PIXELS[..., : 1 + kind].astype(int) * 16, 16, kind)
    with pytest.raises(ValueError, match=r"a\.png: has 16 bits a channel and uses the darkest sixteenth"):
        layouts.read_image(str(tmp_path / "a.png"))


@pytest.mark.parametrize("depth, kind", [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (1, 3), (2, 3), (4, 3), (8, 3)])
def test_label_maps_are_read_exactly_at_any_bit_depth(tmp_path, depth, kind):
    values = GREY.astype(int) % 2 ** min(depth, 8)
    write_png(tmp_path / "a.png", values, depth, kind)
    found = read_label_map(tmp_path / "a.png")
    assert found.dtype == np.uint8 and np.array_equal(found, values[..., 0])


def test_what_is_no_label_map_is_refused(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(GREY[..., 0]).save(path, "JPEG")
    with pytest.raises(ValueError, match=r"a\.png: holds JPEG, whatever its name says"):
        read_label_map(path)
    write_png(path, GREY.astype(int) + 1000, 16, 0)
    with pytest.raises(ValueError, match="a.png: .* has 16 bits and values up to 1"):
        read_label_map(path)
    for kind, channels in ((2, 3), (4, 2), (6, 4)):
        write_png(path, np.repeat(GREY, channels, 2), 8, kind)
        with pytest.raises(ValueError, match="a.png: labels must be an 8-bit PNG with one channel, not"):
            read_label_map(path)


def test_a_picture_that_cannot_be_read_says_why(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:2000])
    (tmp_path / "empty.png").touch()
    (tmp_path / "link.png").symlink_to(tmp_path / "away.png")
    (tmp_path / "folder.png").mkdir()
    for name, said in (("cut.jpg", "truncated"), ("empty.png", "empty"), ("link.png", "link to .*away.png, which is not"),
                       ("folder.png", "Is a directory")):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name}: .*{said}"):
            read_picture(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"none\.png: no such file"):
        read_picture(tmp_path / "none.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_aerial_images_are_read_and_larger_ones_named(tmp_path):
    Image.new("1", (13400, 13400)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").size == (13400, 13400)
    for side in (30000, 60000):  # above our limit, and above twice that, where Pillow raises
        write_png(tmp_path / "a.png", GREY, 8, 0, size=(side, side))
        with pytest.raises(ValueError, match=r"a\.png: has more than 536,870,912 pixels"):
            read_picture(tmp_path / "a.png")


def test_results_come_in_order_and_few_wait():
    taken, given = [], 0
    with ThreadPoolExecutor(2) as pool:
        for value in processes.in_order(pool, lambda x: x * x, map(lambda i: taken.append(i) or i, range(50)), 5):
            assert value == given**2 and len(taken) <= given + 5
            given += 1
    assert given == 50


@pytest.mark.parametrize("space", ["camvid", "idd_lite"])
def test_gta5_is_joined_to_the_studys_classes(smoke_params, gta5, tmp_path, space):
    params = check_params({**params_for(smoke_params, "gta5", gta5, "train").model_dump(), "label_space": space}, "x")
    labels = conversion.prepare(params, 1, tmp_path / "data")["source_train"].labels[1]
    _, fine = scene(0)
    table = label_map(CITYSCAPES, label_space(space))
    assert np.array_equal(labels, table[fine]) and set(np.unique(labels)) <= {
        *range(label_space(space).num_classes),
        255,
    }
    for path in (gta5 / "labels").iterdir():
        Image.fromarray(CITYSCAPES.encode(photo(path))).save(path)
    with pytest.raises(ValueError, match="look like train ids where label ids belong"):
        conversion.prepare(params, 1, tmp_path / "data")


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

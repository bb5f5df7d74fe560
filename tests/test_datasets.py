import os
import select
import shutil
import subprocess
import sys
from hashlib import blake2b

import numpy as np
import pytest
from conftest import photo, same_tree
from PIL import Image

from b2ma_core import labels as label_spaces
from b2ma_core import minicity
from b2ma_core.data import conversion, datasets
from b2ma_core.files import PROJECT
from b2ma_core.params import check_params


def test_minicity_parts_are_its_scenes(smoke_params, tmp_path):
    parts = conversion.prepare(smoke_params, 1, tmp_path)
    assert {name: len(d) for name, d in parts.items()} == {
        "source_train": 24, "source_val": 8, "target_train": 24, "target_val": 8, "target_test": 4
    }  # fmt: skip
    image, labels = minicity.render(3, "camera", "val", size=(64, 128))
    assert np.array_equal(parts["target_val"].images[3], image)
    assert np.array_equal(parts["target_val"].labels[3], labels)


def test_students_learn_from_all_images_or_from_some_evenly(smoke_params, tmp_path, monkeypatch):
    whole = conversion.prepare(smoke_params, 1, tmp_path)["target_train"]
    monkeypatch.setattr(datasets, "load", lambda params, name: whole)
    assert datasets.load_to_learn(smoke_params) is whole
    assert datasets.load_to_learn(smoke_params.model_copy(update={"learn_images": 24})) is whole
    few = datasets.load_to_learn(smoke_params.model_copy(update={"learn_images": 4}))
    assert few.names == [whole.names[i] for i in (0, 7, 15, 23)]
    assert np.array_equal(few.images[2], whole.images[15]) and np.array_equal(few.labels[2], whole.labels[15])


def test_a_folder_is_read_as_it_decodes(folder_params, street_folder, tmp_path):
    data = conversion.prepare(folder_params, 1, tmp_path / "data")["target_train"]
    assert data.names == [f"seq_{i}" for i in range(4)]
    for i, name in enumerate(data.names):
        assert np.array_equal(data.images[i], photo(street_folder / "train" / f"{name}.png"))
        assert np.array_equal(data.labels[i], photo(street_folder / "trainannot" / f"{name}.png"))


def test_scored_labels_keep_their_own_size(folder_params, tmp_path):
    params = check_params({**folder_params.model_dump(), "image_size": [64, 64], "crop": None, "grid": 4}, "x")
    parts = conversion.prepare(params, 1, tmp_path / "data")
    assert parts["target_val"].labels.shape[1:] == (64, 128) and parts["target_val"].images.shape[1:3] == (64, 64)
    assert parts["target_train"].labels.shape[1:] == (64, 64)


def own_sizes(root) -> list[np.ndarray]:
    """Makes the images of ``val`` three: as it was, a portrait, and twice as large; returns their labels."""
    maps = []
    for i in range(3):
        image, labels = map(Image.fromarray, minicity.render(i, "camera", "val", size=(64, 128)))
        if i == 1:
            image, labels = image.crop((0, 0, 40, 64)), labels.crop((0, 0, 40, 64))
        if i == 2:
            image, labels = image.resize((256, 128)), labels.resize((256, 128), Image.Resampling.NEAREST)
        image.save(root / "val" / f"seq_{i}.png")
        labels.save(root / "valannot" / f"seq_{i}.png")
        maps.append(np.asarray(labels))
    return maps


def test_scored_images_keep_sizes_of_their_own(folder_params, street_folder, tmp_path):
    maps = own_sizes(street_folder)
    val = conversion.prepare(folder_params, 1, tmp_path / "data")["target_val"]
    assert val.sizes == [(64, 128), (64, 40), (128, 256)] and val.images.shape == (3, 64, 128, 3)
    portrait = Image.open(street_folder / "val" / "seq_1.png").resize((128, 64), Image.Resampling.BICUBIC)
    assert np.array_equal(val.images[1], np.asarray(portrait))
    for labels in (val.labels, val.of([0, 1, 2]).labels):
        assert isinstance(labels, datasets.LabelMaps) and len(labels) == 3
        for found, expected in zip(labels, maps, strict=True):
            assert found.dtype == np.uint8 and np.array_equal(found, expected)
    assert all(isinstance(each, np.memmap) for each in val.labels)
    some = val.of([2, 0])
    assert np.array_equal(some.labels[0], maps[2]) and np.array_equal(some.labels[-1], maps[0])
    assert np.array_equal(val.labels[1:][0], maps[1])
    assert list(val.batches(2)) == [[0], [1], [2]] and list(val.batches(2, [0, 0, 0, 2])) == [[0, 0], [0], [2]]


def test_photographs_are_turned_and_compared_with_their_labels_so(folder_params, street_folder, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera stood on its side
    path = street_folder / "val" / "seq_0.png"
    upright = photo(path)
    Image.fromarray(np.rot90(upright)).save(path, exif=exif)
    val = conversion.prepare(folder_params, 1, tmp_path / "data")["target_val"]
    assert val.sizes[0] == (64, 128) and np.array_equal(val.images[0], upright)
    Image.fromarray(np.rot90(val.labels[0])).save(street_folder / "valannot" / "seq_0.png")
    with pytest.raises(ValueError, match=r"seq_0.png: labels are \(64, 128\), .*before its EXIF orientation turned it"):
        conversion.prepare(folder_params, 1, tmp_path / "data")


def test_images_have_digests_of_their_pixels(folder_params, street_folder, tmp_path):
    data = conversion.prepare(folder_params, 1, tmp_path / "data")["target_train"]
    assert data.digests == [blake2b(image.tobytes(), digest_size=8).hexdigest() for image in data.images]
    assert data.of([3, 1]).digests == [data.digests[3], data.digests[1]]
    for i in (0, 1):
        (street_folder / "train" / f"seq_{i}.png").rename(street_folder / "train" / f"x{i}.png")
    for i in (0, 1):
        (street_folder / "train" / f"x{i}.png").rename(street_folder / "train" / f"seq_{1 - i}.png")
    again = conversion.prepare(folder_params, 1, tmp_path / "data")["target_train"]
    assert again.digests == [data.digests[i] for i in (1, 0, 2, 3)]


def test_files_of_others_where_a_part_is_written_are_refused_and_stay(folder_params, street_folder, tmp_path):
    own = tmp_path / "data" / "folder" / "target_train"
    shutil.copytree(street_folder / "train", own)
    before = sorted(path.name for path in own.iterdir())
    for params in (folder_params, folder_params.model_copy(update={"target_root": str(own.parent),
                                                                   "target_train_split": "target_train"})):  # fmt: skip
        with pytest.raises(ValueError, match=f"{own}: prepared images .* 4 other files .*seq_0.png for one: move them"):
            conversion.prepare(params, 1, tmp_path / "data")
        assert sorted(path.name for path in own.iterdir()) == before and len(list(own.parent.iterdir())) == 1
    shutil.rmtree(own)
    (own / "photos").mkdir(parents=True)
    (own / "images.npy").touch()  # of a training part that was there before the photographs
    with pytest.raises(ValueError, match="1 other files lie in it, photos for one"):
        conversion.prepare(folder_params, 1, tmp_path / "data")


@pytest.mark.parametrize("name", [b"stra\xdfe.png", b"x" * 240 + b".png"])
def test_names_that_no_record_or_file_system_takes_are_refused_before_anything_is_written(
    folder_params, street_folder, tmp_path, name
):
    folder = os.fsencode(street_folder / "train")
    try:
        os.rename(os.path.join(folder, b"seq_0.png"), os.path.join(folder, name))
    except OSError as error:
        pytest.skip(f"this file system takes no such name: {error}")
    with pytest.raises(ValueError, match="target_train: 1 names are no UTF-8 or longer than 230 bytes, .* rename"):
        conversion.prepare(folder_params, 1, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.fixture
def trained_params(folder_params, street_folder):
    """The street folder is the source too, and the source model trains on it."""
    return folder_params.model_copy(update={"source_dataset": "folder", "source_root": str(street_folder)})


def test_labels_in_a_folder_of_another_name_are_refused_where_they_are_trained_on(
    trained_params, street_folder, tmp_path
):
    (street_folder / "trainannot").rename(street_folder / "train_labels")
    with pytest.raises(ValueError, match="source_train: the source model trains on it, and it has no labels") as caught:
        conversion.prepare(trained_params, 1, tmp_path / "data")
    assert f"looked in {street_folder}/trainannot" in str(caught.value) and "train_labels/" in str(caught.value)
    assert "target_train" not in str(caught.value)
    own_weights = trained_params.model_copy(update={"source_steps": 0})  # nothing is trained on them
    parts = conversion.prepare(own_weights, 1, tmp_path / "data")
    assert parts["source_train"].labels is None and "train_labels/" in parts["target_train"].notes[0]


def spoil_empty(folder):
    for path in folder.iterdir():
        path.unlink()


def spoil_other_names(folder):
    for path in list(folder.iterdir()):
        path.rename(folder / f"{path.stem}_L.png")


def spoil_void(folder):
    for path in folder.iterdir():
        Image.fromarray(np.full((64, 128), 255, np.uint8)).save(path)


def spoil_some(folder):
    (folder / "seq_1.png").unlink()


@pytest.mark.parametrize(
    "spoil, said",
    [(spoil_empty, "trainannot holds nothing"), (spoil_other_names, "trainannot holds seq_0_L.png, seq_1_L.png"),
     (spoil_void, "the labels of all its 4 images are void, .*trainannot/seq_0.png first"), (shutil.rmtree, "no labels"),
     (spoil_some, "1 of 4 samples cannot be used:\n.*seq_1.png: no such file")],
)  # fmt: skip
def test_labels_of_no_use_are_refused_in_training_and_told_elsewhere(
    trained_params, folder_params, street_folder, tmp_path, spoil, said
):
    spoil(street_folder / "trainannot")
    for _ in range(2):  # a part that was prepared is refused again
        with pytest.raises(ValueError, match=f"source_train: .*{said}") as caught:
            conversion.prepare(trained_params, 1, tmp_path / "data")
        assert "target_train:" not in str(caught.value)
    part = conversion.prepare(folder_params, 1, tmp_path / "data")["target_train"]
    assert part.labels is None and len(part) == 4 and len(part.notes) == 1
    assert datasets.load(folder_params, "target_train", tmp_path / "data").labels is None


@pytest.mark.parametrize("spoil", [spoil_empty, spoil_void, spoil_some, shutil.rmtree])
def test_a_part_to_score_without_labels_of_use_goes_on_unscored(folder_params, street_folder, tmp_path, spoil):
    spoil(street_folder / "valannot")
    val = conversion.prepare(folder_params, 1, tmp_path / "data")["target_val"]
    assert val.labels is None and len(val.notes) == 1
    assert not (tmp_path / "data" / "folder" / "target_val" / "labels.bin").exists()


def test_single_void_maps_are_counted(folder_params, street_folder, tmp_path):
    Image.fromarray(np.full((64, 128), 255, np.uint8)).save(street_folder / "valannot" / "seq_1.png")
    val = conversion.prepare(folder_params, 1, tmp_path / "data")["target_val"]
    assert len(val.labels) == 2 and val.notes == ["1 of its 2 label maps are void everywhere"]


def test_images_of_other_formats_are_told(folder_params, street_folder, tmp_path):
    (street_folder / "val" / "seq_7.tif").write_bytes(b"x")
    notes = conversion.prepare(folder_params, 1, tmp_path / "data")["target_val"].notes
    assert notes == ["val: 1 .tif passed over, images are .png, .jpg, .jpeg"]
    for path in (street_folder / "val").glob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match="holds no images .*; val: 1 .tif passed over"):
        conversion.prepare(folder_params, 1, tmp_path / "data")


def test_what_killed_conversions_left_is_removed_and_nothing_else(folder_params, tmp_path):
    folder = tmp_path / "data" / "folder"
    (folder / ".target_train.1.part").mkdir(parents=True)
    for name in (".target_train.1.part/images.npy", "problems.txt.77.part", "mine.part", "mine.2.partial"):
        (folder / name).write_bytes(b"x")
    conversion.prepare(folder_params, 1, tmp_path / "data")
    left = {path.name for path in folder.iterdir() if path.is_file() or "part" in path.suffix}
    assert left == {".lock", "mine.part", "mine.2.partial"}


def test_a_list_of_numbers_of_threads_is_understood(folder_params, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    assert conversion.prepare(folder_params, None, tmp_path / "data")


def test_the_missing_folders_of_all_parts_are_named(trained_params, street_folder, tmp_path):
    for split in ("train", "val"):
        shutil.rmtree(street_folder / split)
    with pytest.raises(FileNotFoundError) as caught:
        conversion.prepare(trained_params, 1, tmp_path / "data")
    assert all(f"{part}: no folder" in str(caught.value) for part in datasets.parts(trained_params))


def test_a_second_call_changes_nothing_and_a_changed_file_is_read_again(folder_params, street_folder, tmp_path):
    folder = tmp_path / "data" / "folder" / "target_train"
    conversion.prepare(folder_params, 1, tmp_path / "data")
    before = (folder / "images.npy").stat().st_mtime_ns
    conversion.prepare(folder_params, 1, tmp_path / "data")
    assert (folder / "images.npy").stat().st_mtime_ns == before
    Image.fromarray(np.zeros((64, 128, 3), np.uint8)).save(street_folder / "train" / "seq_0.png")
    assert conversion.prepare(folder_params, 1, tmp_path / "data")["target_train"].images[0].max() == 0


def test_several_processes_convert_to_the_same(smoke_params, tmp_path):
    params = check_params({**smoke_params.model_dump(), "source_train_images": 70}, "x")
    one = conversion.prepare(params, 1, tmp_path / "one")["source_train"]
    two = conversion.prepare(params, 2, tmp_path / "two")["source_train"]
    assert np.array_equal(one.images, two.images) and np.array_equal(one.labels, two.labels)


PREPARE = """
import sys
from pathlib import Path
from b2ma_core.data import conversion
from b2ma_core.params import load_params
convert = conversion._convert
conversion._convert = lambda part, *rest: print(part.name) or convert(part, *rest)
conversion.prepare(load_params(sys.argv[1]), 1, Path(sys.argv[2]))
"""


def test_two_processes_that_start_at_once_make_each_part_once(smoke_params, tmp_path):
    command = [sys.executable, "-c", PREPARE, str(PROJECT / "params" / "smoke.yaml"), str(tmp_path / "both")]
    both = [subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    made = [process.communicate()[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(made[0] + made[1]) == sorted(conversion.prepare(smoke_params, 1, tmp_path / "alone"))
    for pattern in ("*.npy", "*.bin"):
        same_tree(tmp_path / "alone", tmp_path / "both", pattern)


POOL = """
from b2ma_core.processes import in_parallel
if __name__ == "__main__":
    for number in in_parallel(eval, ["__import__('os').getpid()"] * 64, 2, "x"):
        print(number, flush=True)
        input()
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for processes as Linux does")
def test_processes_that_convert_end_with_a_killed_parent(tmp_path):
    (tmp_path / "pool.py").write_text(POOL)
    parent = subprocess.Popen([sys.executable, tmp_path / "pool.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              text=True, env={**os.environ, "PYTHONPATH": str(PROJECT)})  # fmt: skip
    worker = os.pidfd_open(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    assert select.select([worker], [], [], 60)[0], "it has not ended"
    os.close(worker)


def test_all_that_is_wrong_is_listed_and_named(folder_params, street_folder, tmp_path):
    train, annot = street_folder / "train", street_folder / "trainannot"
    (train / "seq_0.png").write_bytes((train / "seq_0.png").read_bytes()[:300])
    Image.fromarray(np.zeros((32, 128), np.uint8)).save(annot / "seq_1.png")
    Image.fromarray(np.full((64, 128), 26, np.uint8)).save(annot / "seq_2.png")
    (annot / "seq_3.png").unlink()
    with pytest.raises(ValueError, match="4 of 4 samples cannot be used") as caught:
        conversion.prepare(folder_params, 1, tmp_path / "data")
    message = str(caught.value)
    for said in (
        "train/seq_0.png: cannot be read",
        "seq_1.png: labels are (128, 32)",
        "label ids",
        "seq_3.png: no such file",
    ):
        assert said in message
    assert not list((tmp_path / "data" / "folder").glob("target_train*")), "nothing half-made stays"


def test_the_faults_of_all_parts_are_in_one_list_that_stays(folder_params, street_folder, tmp_path):
    params = folder_params.model_copy(update={"source_dataset": "folder", "source_root": str(street_folder)})
    for split in ("train", "val"):
        (street_folder / split / "seq_0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError) as caught:
        conversion.prepare(params, 1, tmp_path / "data")
    report = tmp_path / "data" / "folder" / "problems.txt"
    for part in ("source_train", "source_val", "target_train", "target_val"):
        assert f"{part}: 1 of" in str(caught.value) and f"{part}: 1 of" in report.read_text()
    assert str(report) in str(caught.value)
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            image, labels = minicity.render(i, "camera", split, size=(64, 128))
            Image.fromarray(image).save(street_folder / split / f"seq_{i}.png")
    conversion.prepare(params, 1, tmp_path / "data")
    assert not report.exists()


def test_a_disk_without_room_is_named_before_anything_is_written(folder_params, tmp_path, monkeypatch):
    usage = conversion.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match="GB are free. Nothing that was there is lost"):
        conversion.prepare(folder_params, 1, tmp_path / "data")
    assert not list((tmp_path / "data" / "folder").glob("*target*"))


def test_a_class_outside_the_label_space_is_named(folder_params, street_folder, tmp_path):
    Image.fromarray(np.full((64, 128), 77, np.uint8)).save(street_folder / "valannot" / "seq_1.png")
    with pytest.raises(ValueError, match=r"seq_1\.png: holds \[77\]"):
        conversion.prepare(folder_params, 1, tmp_path / "data")


def test_coloured_labels_are_refused(folder_params, street_folder, tmp_path):
    Image.fromarray(np.zeros((64, 128, 3), np.uint8)).save(street_folder / "valannot" / "seq_1.png")
    with pytest.raises(ValueError, match="8-bit PNG with one channel"):
        conversion.prepare(folder_params, 1, tmp_path / "data")


def test_a_missing_folder_shows_the_layout_expected(folder_params, tmp_path):
    params = check_params({**folder_params.model_dump(), "target_root": str(tmp_path / "nowhere")}, "x")
    with pytest.raises(FileNotFoundError, match="nowhere/train. Expected: <root>/<split>.*Set target_root"):
        conversion.prepare(params, 1, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_an_empty_split_is_named(folder_params, street_folder, tmp_path):
    for path in (street_folder / "val").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="target_val: .*/val holds no images"):
        conversion.prepare(folder_params, 1, tmp_path / "data")


def test_sequences_choose_files_by_their_beginning(folder_params, street_folder):
    params = check_params({**folder_params.model_dump(), "target_sequences": ["seq_1", "seq_3"]}, "x")
    assert [i.name for i in conversion.list_items(datasets.parts(params)["target_train"])] == ["seq_1", "seq_3"]
    params = check_params({**folder_params.model_dump(), "target_sequences": ["no"]}, "x")
    with pytest.raises(ValueError, match="holds no images of sequences"):
        conversion.list_items(datasets.parts(params)["target_train"])


def test_two_images_of_one_name_are_named(folder_params, tmp_path):
    params = check_params({**folder_params.model_dump(), "target_val_split": "train+val"}, "x")
    with pytest.raises(ValueError, match="target_val: 2 names stand for two images, seq_0, seq_1"):
        conversion.prepare(params, 1, tmp_path / "data")


def test_joined_splits_are_told_apart_and_native_sizes_kept(folder_params, distinct_names, tmp_path):
    values = {**folder_params.model_dump(), "target_val_split": "train+val", "image_size": [64, 64]}
    val = conversion.prepare(check_params(values, "x"), 1, tmp_path / "data")["target_val"]
    assert val.splits == ["train"] * 4 + ["val"] * 2 and val.sizes == [(64, 128)] * 6
    part = val.of_split("val")
    assert part.names == ["seq_4", "seq_5"] and np.array_equal(part.labels, val.labels[4:])
    assert np.array_equal(val.of([5, 0]).images, val.images[[5, 0]])


def test_minicity_is_read_in_camvids_classes(smoke_params, tmp_path):
    params = check_params({**smoke_params.model_dump(), "label_space": "camvid"}, "x")
    labels = conversion.prepare(params, 1, tmp_path)["target_val"].labels
    _, fine = minicity.render(0, "camera", "val", size=(64, 128))
    # road, sidewalk, building, wall, fence, pole, light, sign, vegetation, terrain, sky, person, rider and so on
    table = np.array([3, 4, 1, 1, 7, 2, 6, 6, 5, 5, 0, 9, 10, 8, 8, 8, 8, 10, 10])
    assert np.array_equal(labels[0], table[fine])


def test_a_folder_in_other_classes_is_joined_and_made_again_when_its_map_changes(folder_params, street_folder, tmp_path,
                                                                                 monkeypatch):  # fmt: skip
    """Cityscapes' classes, stored as 10 times the train id and 7 for void, become two classes of the study."""
    spaces = tmp_path / "spaces"
    spaces.mkdir()
    monkeypatch.setattr(label_spaces, "FOLDER", spaces)
    lines = [f"  {name}: {{id: {10 * i}, color: [0, 0, 0]}}" for i, name in enumerate(label_spaces.CITYSCAPES.names)]
    (spaces / "tens.yaml").write_text("classes:\n" + "\n".join(lines) + "\nvoid: [7]\n")
    (spaces / "two.yaml").write_text("classes: {street: {color: [0, 0, 0]}, other: {color: [1, 1, 1]}}\n")
    joined = {name: "street" if name in ("road", "sidewalk") else "other" for name in label_spaces.CITYSCAPES.names}
    joined["sky"] = "ignored"
    (spaces / "tens_to_two.yaml").write_text("".join(f"{a}: {b}\n" for a, b in joined.items()))
    (spaces / "cityscapes_to_two.yaml").write_text("".join(f"{a}: {b}\n" for a, b in joined.items()))
    for path in [*street_folder.glob("*annot/*.png")]:
        fine = photo(path)
        Image.fromarray(np.where(fine == 255, 7, 10 * np.minimum(fine, 18)).astype(np.uint8)).save(path)
    values = {**folder_params.model_dump(), "label_space": "two", "target_label_space": "tens"}
    _, fine = minicity.render(0, "camera", "val", size=(64, 128))
    expected = np.where(fine <= 1, 0, np.where((fine == 10) | (fine == 255), 255, 1))
    params = check_params(values, "x")
    assert np.array_equal(conversion.prepare(params, 1, tmp_path / "data")["target_val"].labels[0], expected)
    path = spaces / "tens_to_two.yaml"
    path.write_text(path.read_text().replace("sky: ignored", "sky: other"))
    again = conversion.prepare(params, 1, tmp_path / "data")["target_val"].labels[0]
    assert np.array_equal(again, np.where(expected == 255, np.where(fine == 10, 1, 255), expected))
    with pytest.raises(ValueError, match=r"holds \[10, .*but label maps of 'two' hold 0 .. 1, and 255"):
        conversion.prepare(check_params({**values, "target_label_space": None}, "x"), 1, tmp_path / "data")


def test_a_part_that_was_not_prepared_names_the_notebook(smoke_params, tmp_path):
    with pytest.raises(FileNotFoundError, match="run the notebook 00_data first"):
        datasets.load(smoke_params, "target_train", tmp_path)


def test_camvid_is_read_with_void_ignored(tmp_path):
    from b2ma_core.params import load_params

    params = load_params(PROJECT / "params" / "camvid.yaml")
    if not (PROJECT / params.source_root).is_dir():
        pytest.skip(f"no CamVid at {params.source_root}: set source_root in params/camvid.yaml to a copy")
    parts = datasets.parts(params)
    counts = {name: len(conversion.list_items(part)) for name, part in parts.items()}
    assert counts == {"source_train": 406, "target_train": 62, "target_val": 62, "target_test": 62}
    item = conversion.list_items(parts["target_val"])[0]
    image, labels, _ = conversion.read_sample(item, parts["target_val"])
    assert image.shape == (240, 320, 3) and labels.shape == (360, 480)
    assert set(np.unique(labels)) <= {*range(11), 255}

import subprocess
import sys

import numpy as np
import pytest
from conftest import photo, same_tree
from PIL import Image

from b2ma_core import minicity
from b2ma_core.data import datasets
from b2ma_core.files import PROJECT
from b2ma_core.params import check_params


def test_minicity_parts_are_its_scenes(smoke_params, tmp_path):
    parts = datasets.prepare(smoke_params, 1, tmp_path)
    assert {name: len(d) for name, d in parts.items()} == {
        "source_train": 24, "source_val": 8, "target_train": 24, "target_val": 8, "target_test": 4
    }  # fmt: skip
    image, labels = minicity.render(3, "camera", "val", size=(64, 128))
    assert np.array_equal(parts["target_val"].images[3], image)
    assert np.array_equal(parts["target_val"].labels[3], labels)


def test_a_folder_is_read_as_it_decodes(folder_params, street_folder, tmp_path):
    data = datasets.prepare(folder_params, 1, tmp_path / "data")["target_train"]
    assert data.names == [f"seq_{i}" for i in range(4)]
    for i, name in enumerate(data.names):
        assert np.array_equal(data.images[i], photo(street_folder / "train" / f"{name}.png"))
        assert np.array_equal(data.labels[i], photo(street_folder / "trainannot" / f"{name}.png"))


def test_scored_labels_keep_their_own_size(folder_params, tmp_path):
    params = check_params({**folder_params.model_dump(), "image_size": [64, 64], "crop": None, "grid": 4}, "x")
    parts = datasets.prepare(params, 1, tmp_path / "data")
    assert parts["target_val"].labels.shape[1:] == (64, 128) and parts["target_val"].images.shape[1:3] == (64, 64)
    assert parts["target_train"].labels.shape[1:] == (64, 64)


def test_a_second_call_changes_nothing_and_a_changed_file_is_read_again(folder_params, street_folder, tmp_path):
    folder = tmp_path / "data" / "folder" / "target_train"
    datasets.prepare(folder_params, 1, tmp_path / "data")
    before = (folder / "images.npy").stat().st_mtime_ns
    datasets.prepare(folder_params, 1, tmp_path / "data")
    assert (folder / "images.npy").stat().st_mtime_ns == before
    Image.fromarray(np.zeros((64, 128, 3), np.uint8)).save(street_folder / "train" / "seq_0.png")
    assert datasets.prepare(folder_params, 1, tmp_path / "data")["target_train"].images[0].max() == 0


def test_several_processes_convert_to_the_same(smoke_params, tmp_path):
    params = check_params({**smoke_params.model_dump(), "source_train_images": 70}, "x")
    one = datasets.prepare(params, 1, tmp_path / "one")["source_train"]
    two = datasets.prepare(params, 2, tmp_path / "two")["source_train"]
    assert np.array_equal(one.images, two.images) and np.array_equal(one.labels, two.labels)


PREPARE = """
import sys
from pathlib import Path
from b2ma_core.data import datasets
from b2ma_core.params import load_params
convert = datasets._convert
datasets._convert = lambda part, *rest: print(part.name) or convert(part, *rest)
datasets.prepare(load_params(sys.argv[1]), 1, Path(sys.argv[2]))
"""


def test_two_processes_that_start_at_once_make_each_part_once(smoke_params, tmp_path):
    command = [sys.executable, "-c", PREPARE, str(PROJECT / "params" / "smoke.yaml"), str(tmp_path / "both")]
    both = [subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    made = [process.communicate()[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(made[0] + made[1]) == sorted(datasets.prepare(smoke_params, 1, tmp_path / "alone"))
    for pattern in ("*.npy", "*.bin"):
        same_tree(tmp_path / "alone", tmp_path / "both", pattern)


def test_all_that_is_wrong_is_listed_and_named(folder_params, street_folder, tmp_path):
    train, annot = street_folder / "train", street_folder / "trainannot"
    (train / "seq_0.png").write_bytes((train / "seq_0.png").read_bytes()[:300])
    Image.fromarray(np.zeros((32, 128), np.uint8)).save(annot / "seq_1.png")
    Image.fromarray(np.full((64, 128), 26, np.uint8)).save(annot / "seq_2.png")
    (annot / "seq_3.png").unlink()
    with pytest.raises(ValueError, match="4 of 4 samples cannot be used") as caught:
        datasets.prepare(folder_params, 1, tmp_path / "data")
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
        datasets.prepare(params, 1, tmp_path / "data")
    report = tmp_path / "data" / "folder" / "problems.txt"
    for part in ("source_train", "source_val", "target_train", "target_val"):
        assert f"{part}: 1 of" in str(caught.value) and f"{part}: 1 of" in report.read_text()
    assert str(report) in str(caught.value)
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            image, labels = minicity.render(i, "camera", split, size=(64, 128))
            Image.fromarray(image).save(street_folder / split / f"seq_{i}.png")
    datasets.prepare(params, 1, tmp_path / "data")
    assert not report.exists()


def test_a_disk_without_room_is_named_before_anything_is_written(folder_params, tmp_path, monkeypatch):
    usage = datasets.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(datasets.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match="GB are free. Nothing that was there is lost"):
        datasets.prepare(folder_params, 1, tmp_path / "data")
    assert not list((tmp_path / "data" / "folder").glob("*target*"))


def test_a_class_outside_the_label_space_is_named(folder_params, street_folder, tmp_path):
    Image.fromarray(np.full((64, 128), 77, np.uint8)).save(street_folder / "valannot" / "seq_1.png")
    with pytest.raises(ValueError, match=r"seq_1\.png: holds \[77\]"):
        datasets.prepare(folder_params, 1, tmp_path / "data")


def test_coloured_labels_are_refused(folder_params, street_folder, tmp_path):
    Image.fromarray(np.zeros((64, 128, 3), np.uint8)).save(street_folder / "valannot" / "seq_1.png")
    with pytest.raises(ValueError, match="8-bit PNG with one channel"):
        datasets.prepare(folder_params, 1, tmp_path / "data")


def test_a_missing_folder_shows_the_layout_expected(folder_params, tmp_path):
    params = check_params({**folder_params.model_dump(), "target_root": str(tmp_path / "nowhere")}, "x")
    with pytest.raises(FileNotFoundError, match="nowhere/train. Expected: <root>/<split>.*Set target_root"):
        datasets.prepare(params, 1, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_an_empty_split_is_named(folder_params, street_folder, tmp_path):
    for path in (street_folder / "val").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="target_val: .*/val holds no images"):
        datasets.prepare(folder_params, 1, tmp_path / "data")


def test_sequences_choose_files_by_their_beginning(folder_params, street_folder):
    params = check_params({**folder_params.model_dump(), "target_sequences": ["seq_1", "seq_3"]}, "x")
    assert [i.name for i in datasets.list_items(datasets.parts(params)["target_train"])] == ["seq_1", "seq_3"]
    params = check_params({**folder_params.model_dump(), "target_sequences": ["no"]}, "x")
    with pytest.raises(ValueError, match="holds no images of sequences"):
        datasets.list_items(datasets.parts(params)["target_train"])


def test_two_images_of_one_name_are_named(folder_params, tmp_path):
    params = check_params({**folder_params.model_dump(), "target_val_split": "train+val"}, "x")
    with pytest.raises(ValueError, match="target_val: 2 names stand for two images, seq_0, seq_1"):
        datasets.prepare(params, 1, tmp_path / "data")


def test_joined_splits_are_told_apart_and_native_sizes_kept(folder_params, distinct_names, tmp_path):
    values = {**folder_params.model_dump(), "target_val_split": "train+val", "image_size": [64, 64]}
    val = datasets.prepare(check_params(values, "x"), 1, tmp_path / "data")["target_val"]
    assert val.splits == ["train"] * 4 + ["val"] * 2 and val.sizes == [(64, 128)] * 6
    part = val.of_split("val")
    assert part.names == ["seq_4", "seq_5"] and np.array_equal(part.labels, val.labels[4:])
    assert np.array_equal(val.of([5, 0]).images, val.images[[5, 0]])


def test_minicity_is_read_in_camvids_classes(smoke_params, tmp_path):
    params = check_params({**smoke_params.model_dump(), "label_space": "camvid"}, "x")
    labels = datasets.prepare(params, 1, tmp_path)["target_val"].labels
    _, fine = minicity.render(0, "camera", "val", size=(64, 128))
    # road, sidewalk, building, wall, fence, pole, light, sign, vegetation, terrain, sky, person, rider and so on
    table = np.array([3, 4, 1, 1, 7, 2, 6, 6, 5, 5, 0, 9, 10, 8, 8, 8, 8, 10, 10])
    assert np.array_equal(labels[0], table[fine])


def test_a_part_that_was_not_prepared_names_the_notebook(smoke_params, tmp_path):
    with pytest.raises(FileNotFoundError, match="run the notebook 00_data first"):
        datasets.load(smoke_params, "target_train", tmp_path)


def test_camvid_is_read_with_void_ignored(tmp_path):
    from b2ma_core.params import load_params

    params = load_params(PROJECT / "params" / "camvid.yaml")
    if not (PROJECT / params.source_root).is_dir():
        pytest.skip(f"no CamVid at {params.source_root}: set source_root in params/camvid.yaml to a copy")
    parts = datasets.parts(params)
    counts = {name: len(datasets.list_items(part)) for name, part in parts.items()}
    assert counts == {"source_train": 406, "target_train": 62, "target_val": 62, "target_test": 62}
    item = datasets.list_items(parts["target_val"])[0]
    image, labels = datasets.read_sample(item, parts["target_val"])
    assert image.shape == (240, 320, 3) and labels.shape == (360, 480)
    assert set(np.unique(labels)) <= {*range(11), 255}

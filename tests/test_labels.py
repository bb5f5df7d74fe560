import numpy as np
import pytest
import yaml
from cityscapesscripts.helpers.labels import labels as official

from b2ma_core import labels
from b2ma_core.files import PROJECT
from b2ma_core.labels import CAMVID, CITYSCAPES, label_map, label_space
from b2ma_core.params import ParamsError, check_params

ANIMALS = {
    "classes": {
        "cat": {"color": [255, 0, 0], "id": 10},
        "dog": {"color": [0, 255, 0], "id": 20},
        "sea horse": {"color": [0, 0, 255], "id": 0},
    },
    "void": [30],
    "averages": {"all of them": "all", "land": ["dog", "cat"]},
}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file into a folder of label spaces that has nothing else."""
    monkeypatch.setattr(labels, "FOLDER", tmp_path)

    def write(name: str, content) -> None:
        (tmp_path / f"{name}.yaml").write_text(
            content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
        )

    return write


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


def test_classes_of_ones_own_are_a_file(write):
    write("animals", ANIMALS)
    space = label_space("animals")
    assert space.names == ("cat", "dog", "sea horse") and space.num_classes == 3
    assert space.subsets == {"all of them": (0, 1, 2), "land": (1, 0)}
    on_disk = np.array([[0, 10, 20], [30, 255, 0]], np.uint8)
    train_ids = space.from_file(on_disk, "a.png")
    assert train_ids.dtype == np.uint8 and train_ids.tolist() == [[2, 0, 1], [255, 255, 2]]
    assert space.encode(on_disk).tolist() == train_ids.tolist()
    assert space.colorize(train_ids)[0].tolist() == [[0, 0, 255], [255, 0, 0], [0, 255, 0]]
    with pytest.raises(
        ValueError, match=r"a.png: holds \[1, 40\], but label maps of 'animals' hold 10, 20, 0, and 30, 255"
    ):
        space.from_file(np.array([0, 1, 40]), "a.png")


def test_ids_and_averages_may_be_left_out(write):
    write("two", {"classes": {"road": {"color": [1, 2, 3]}, "not road": {"color": [4, 5, 6]}}})
    two = label_space("two")
    assert two.subsets == {"mIoU2": (0, 1)} and two.from_file(np.array([0, 1, 255]), "x").tolist() == [0, 1, 255]
    write("mask", {"classes": {"not road": {"color": [1, 2, 3], "id": 0}, "road": {"color": [4, 5, 6], "id": 255}}})
    assert label_space("mask").from_file(np.array([0, 255]), "x").tolist() == [0, 1]  # 255 is a class here
    with pytest.raises(ValueError, match=r"holds \[7\]"):
        label_space("mask").from_file(np.array([7]), "x")


def changed(path: str, value) -> dict:
    """ANIMALS with one value replaced; None: removed."""
    values = yaml.safe_load(yaml.safe_dump(ANIMALS, sort_keys=False))
    *folders, last = path.split(".")
    place = values
    for folder in folders:
        place = place[folder]
    place.pop(last, None)
    if value is not None:
        place[last] = value
    return values


@pytest.mark.parametrize(
    "wrong, said",
    [
        (changed("clases", 1), "clases: unknown; did you mean 'classes'"),
        (changed("classes", None), "classes: has to hold 1 .. 255 lines"),
        (changed("classes", {f"c{i}": {"color": [0, 0, i % 256]} for i in range(256)}), "1 .. 255 lines .*, has 256"),
        (changed("classes.cat.color", [0, 0, 256]), r"classes.cat.color: has to be .*got \[0, 0, 256\]"),
        (changed("classes.cat.color", [0, 0]), "classes.cat.color: has to be"),
        (changed("classes.cat.color", None), "classes.cat.color: has to be .*got None"),
        (changed("classes.cat.colour", [0, 0, 1]), "classes.cat.colour: unknown; did you mean 'color'"),
        (changed("classes.cat.id", 20), "id: 20 stand for two classes"),
        (changed("classes.cat.id", 30), "id: 30 stand for two classes, or for a class and void"),
        (changed("classes.cat.id", 256), "classes.cat.id: has to be a whole number 0 .. 255, got 256"),
        (changed("classes.cat.id", "7"), "classes.cat.id: has to be a whole number"),
        (changed("classes.dog.id", None), "classes.dog.id: other classes have one"),
        (changed("classes.ignored", {"color": [0, 0, 1], "id": 5}), "classes.ignored: in a label map this word means no"),
        (changed("void", 30), "void: has to be a list of ids"),
        (changed("averages.land", ["dog", "cot"]), "averages.land: 'cot' is no class; did you mean 'cat'"),
        (changed("averages.land", ["dog", "dog"]), "averages.land: 'dog' stands twice"),
        (changed("averages.land", []), "averages.land: has to be 'all' or a list"),
        (changed("averages.accuracy", "all"), "averages.accuracy: .*choose another"),
        ("classes: {cat: {color: [1, 2, 3]}, cat: {color: [4, 5, 6]}}", "'cat' stands twice"),
        ("classes: {no: {color: [1, 2, 3]}}", "classes.False: YAML takes it for no text"),
        ("- cat\n- dog", "must hold lines of the form"),
        ("classes: [", "not readable as YAML"),
    ],
)  # fmt: skip
def test_a_wrong_label_space_is_named_with_file_and_key(write, smoke_params, wrong, said):
    write("animals", wrong)
    with pytest.raises(ParamsError, match=f"label_space: .*animals.yaml: .*{said}"):
        check_params({**smoke_params.model_dump(), "label_space": "animals"}, "x")


def test_all_that_is_wrong_with_a_file_is_said_at_once(write):
    write("animals", {**changed("classes.cat.color", "red"), "void": [20], "averages": {"all": ["bird"]}})
    with pytest.raises(ValueError, match="animals.yaml: 3 wrong entries: classes.cat.color.*; id: 20.*; averages.all"):
        label_space("animals")


def test_an_unknown_label_space_lists_what_there_is(write, smoke_params):
    write("animals", ANIMALS)
    write("cityscapes_to_animals", {name: "ignored" for name in CITYSCAPES.names})
    for name in ("animal", "../animals", "cityscapes_to_animal"):
        with pytest.raises(
            ParamsError, match=r"label_space: no label space .*\(there are: cityscapes, camvid, animals; "
        ):
            check_params({**smoke_params.model_dump(), "label_space": name}, "x")
    write("camvid", ANIMALS)
    with pytest.raises(ValueError, match="camvid.yaml: camvid stands in b2ma_core/labels.py"):
        label_space("camvid")


def test_a_map_joins_one_space_to_another(write):
    write("animals", ANIMALS)
    write("animals_to_camvid", {"cat": "car", "dog": "sky", "sea horse": "ignored"})
    table = label_map(label_space("animals"), CAMVID)
    assert table[np.array([[0, 1, 2, 3, 255]])].tolist() == [[8, 0, 255, 255, 255]]


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"cat": "car", "dog": "sky"}, "sea horse: stands in no line"),
        ({"cat": "car", "dog": "sky", "sea horse": "car", "bird": "sky"}, "bird: no class of 'animals'"),
        (
            {"cat": "cra", "dog": "sky", "sea horse": "car"},
            "cat: 'cra' is no class of 'camvid', nor ignored; did you mean 'car'",
        ),
        ({"cat": None, "dog": "sky", "sea horse": "car"}, "cat: None is no class of 'camvid'"),
        ({"cat": ["car"], "dog": "sky", "sea horse": "car"}, r"cat: \['car'\] is no class"),
        ("cat: car\ncat: sky\ndog: sky\nsea horse: car", "'cat' stands twice"),
    ],
)
def test_a_wrong_map_is_named_with_file_and_key(write, wrong, said):
    write("animals", ANIMALS)
    write("animals_to_camvid", wrong)
    with pytest.raises(ValueError, match=f"animals_to_camvid.yaml: .*{said}"):
        label_map(label_space("animals"), CAMVID)


def test_the_projects_maps_say_what_their_data_sets_define():
    idd = label_space("idd_lite")
    assert idd.num_classes == 7 and idd.void_ids == (255,)
    table = label_map(CITYSCAPES, idd)
    groups = {0: "road", 1: "sidewalk terrain", 2: "person rider", 3: "car truck bus train motorcycle bicycle",
              5: "building vegetation", 6: "sky"}  # fmt: skip
    expected = {name: train_id for train_id, names in groups.items() for name in names.split()}
    assert table[:19].tolist() == [expected.get(name, 4) for name in CITYSCAPES.names]  # else a roadside object
    assert (table[19:] == 255).all()


@pytest.mark.parametrize(
    "told, said",
    [
        ({"target_dataset": "camvid", "target_root": "x"},
         "target_dataset 'camvid' has the classes of 'camvid', and a map .*'cityscapes': no label map .*camvid_to_cityscapes"),
        ({"source_dataset": "camvid", "source_root": "x", "label_space": "idd_lite"}, "source_dataset 'camvid' has"),
        ({"source_dataset": "folder", "source_root": "x", "source_label_space": "idd_lite"}, "'folder' has the classes of 'idd_lite'"),
        ({"source_label_space": "camvid"}, "source_label_space: is for the data set 'folder', 'minicity' has classes of its own"),
        ({"target_dataset": "folder", "target_root": "x", "target_label_space": "camvdi"}, "target_label_space: no label space"),
        ({"box": "folder", "box_root": "x", "box_label_space": "camvid"}, "box_label_space: no label map .*camvid_to_cityscapes"),
        ({"box_label_space": "camvid"}, "box_label_space: box 'model' has the classes of label_space"),
    ],
)  # fmt: skip
def test_classes_that_nothing_joins_are_refused(smoke_params, told, said):
    with pytest.raises(ParamsError, match=said):
        check_params({**smoke_params.model_dump(), **told}, "x")


def test_the_owners_confidence_belongs_to_one_answer(smoke_params):
    values = {**smoke_params.model_dump(), "box_confidence": True}
    assert check_params({**values, "box_queries": 1}, "x").box_confidence
    for told in ({"box_queries": 2}, {"box_queries": 1, "box": "folder", "box_root": "x"}):
        with pytest.raises(ParamsError, match="box_confidence: .*belongs to the model's one answer"):
            check_params({**values, **told}, "x")


def test_the_documents_example_is_read_as_it_stands(write):
    lines = (PROJECT / "docs" / "vendor.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("    classes:"))
    write("yard", "\n".join(line[4:] for line in lines[start : start + 6]))
    yard = label_space("yard")
    assert yard.from_file(np.array([0, 1, 2, 3, 255]), "x").tolist() == [255, 0, 1, 2, 255]
    assert yard.subsets == {"mIoU3": (0, 1, 2), "what moves": (1, 2)}

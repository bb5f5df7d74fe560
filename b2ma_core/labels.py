"""Label spaces: names, colours, label ids to train ids, class subsets; and maps from one to another.

Two kinds of numbers name a class. *Label ids* are what a data set stores on disk; *train ids* are
``0 .. num_classes - 1`` without gaps, and ``ignore_index`` for whatever is not scored.

Cityscapes' and CamVid's classes stand here, any others in ``params/label_spaces/<name>.yaml``, and maps in
``params/label_spaces/<from>_to_<to>.yaml``.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from b2ma_core.files import PROJECT, load_yaml

IGNORE_INDEX = 255
FOLDER = PROJECT / "params" / "label_spaces"
IGNORED = "ignored"  # what a map says of a class that has no counterpart


@dataclass(frozen=True)
class LabelSpace:
    """A set of classes.

    Attributes:
        name: how parameters call it.
        names: class names, in the order of the train ids.
        colors: one RGB triple (0 .. 255) per train id.
        label_ids: the label id of each train id, as its data set stores it.
        subsets: name of an average -> the train ids that it covers.
        ignore_index: the train id of unlabelled pixels.
        void_ids: label ids that files may hold for unlabelled pixels.
        file_ids: the id of each train id in the files of a plain folder or a delivery; None: ``label_ids``.
    """

    name: str
    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    label_ids: tuple[int, ...]
    subsets: dict[str, tuple[int, ...]] = field(hash=False)
    ignore_index: int = IGNORE_INDEX
    void_ids: tuple[int, ...] = (IGNORE_INDEX,)
    file_ids: tuple[int, ...] | None = None

    @property
    def num_classes(self) -> int:
        return len(self.names)

    def encode(self, label_ids: np.ndarray) -> np.ndarray:
        """Label ids to train ids.

        Args:
            label_ids: integer array of any shape, values 0 .. 255.

        Returns:
            uint8 array of the same shape; ids that are no class become ``ignore_index``.

        Raises:
            ValueError: if ``label_ids`` is not an integer array or leaves 0 .. 255.
        """
        label_ids = np.asarray(label_ids)
        if label_ids.dtype.kind not in "ui":
            raise ValueError(f"label_ids must be an integer array, not {label_ids.dtype}")
        if label_ids.size and (label_ids.min() < 0 or label_ids.max() > 255):
            raise ValueError(f"label_ids must lie in 0 .. 255, found {label_ids.min()} .. {label_ids.max()}")
        table = np.full(256, self.ignore_index, np.uint8)
        table[list(self.label_ids)] = np.arange(self.num_classes, dtype=np.uint8)
        return table[label_ids]

    def colorize(self, train_ids: np.ndarray) -> np.ndarray:
        """``(H, W)`` train ids to an ``(H, W, 3)`` uint8 RGB picture; ignored pixels are black."""
        table = np.zeros((256, 3), np.uint8)
        table[: self.num_classes] = self.colors
        return table[np.asarray(train_ids).astype(np.uint8)]

    def check(self, train_ids: np.ndarray, where: str) -> None:
        """Refuse a map that holds anything but train ids.

        Args:
            train_ids: integer array of any shape.
            where: what the message calls the map, for example its file name.

        Raises:
            ValueError: naming ``where``, the strange values and the likely cause.
        """
        strange = [v for v in np.unique(train_ids).tolist() if not 0 <= v < self.num_classes and v != self.ignore_index]
        if strange:
            raise ValueError(
                f"{where}: holds {strange[:8]}, but train ids of {self.name!r} are 0 .. {self.num_classes - 1} "
                f"and {self.ignore_index} for ignored pixels{self._hint(strange)}"
            )

    def from_file(self, ids: np.ndarray, where: str) -> np.ndarray:
        """The ids in a file of a plain folder or a delivery to train ids.

        Args:
            ids: uint8 array of any shape: ``file_ids``, or ``void_ids`` for unlabelled pixels.
            where: what the message calls the map, for example its file name.

        Returns:
            uint8 array of the same shape.

        Raises:
            ValueError: naming ``where`` and the ids that are neither.
        """
        classes = self.file_ids or self.label_ids
        strange = [v for v in np.unique(ids).tolist() if v not in {*classes, *self.void_ids}]
        if strange:
            raise ValueError(f"{where}: holds {strange[:8]}, but label maps of {self.name!r} hold {self.ids_in_files}"
                             f"{self._hint(strange)}")  # fmt: skip
        return replace(self, label_ids=classes).encode(ids)

    @property
    def ids_in_files(self) -> str:
        """What :meth:`from_file` takes, in words."""
        ids = self.file_ids or self.label_ids
        listed = f"0 .. {len(ids) - 1}" if ids == tuple(range(len(ids))) else _some(ids, 20)
        return f"{listed}, and {_some(self.void_ids, 8)} for ignored pixels"

    def _hint(self, strange: list[int]) -> str:
        if self.num_classes <= min(strange) and max(strange) <= max(self.label_ids):
            return "; these look like label ids of a data set, and train ids belong here (LabelSpace.encode makes them)"
        return ""


_CITYSCAPES = (  # name, label id, colour: from the public Cityscapes label definitions
    ("road", 7, (128, 64, 128)), ("sidewalk", 8, (244, 35, 232)), ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)), ("fence", 13, (190, 153, 153)), ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)), ("traffic sign", 20, (220, 220, 0)), ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)), ("sky", 23, (70, 130, 180)), ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)), ("car", 26, (0, 0, 142)), ("truck", 27, (0, 0, 70)), ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)), ("motorcycle", 32, (0, 0, 230)), ("bicycle", 33, (119, 11, 32)),
)  # fmt: skip
_COLOR = {name: color for name, _, color in _CITYSCAPES}

CITYSCAPES = LabelSpace(
    name="cityscapes",
    names=tuple(name for name, _, _ in _CITYSCAPES),
    colors=tuple(color for _, _, color in _CITYSCAPES),
    label_ids=tuple(label_id for _, label_id, _ in _CITYSCAPES),
    subsets={
        "mIoU19": tuple(range(19)),
        "mIoU16": tuple(c for c in range(19) if c not in (9, 14, 16)),  # SYNTHIA has no terrain, truck, train
        "mIoU13": tuple(c for c in range(19) if c not in (3, 4, 5, 9, 14, 16)),  # and wall, fence, pole left out
    },
    file_ids=tuple(range(19)),  # label ids lie in Cityscapes' and GTA5's own folders, which data/layouts.py reads
)

# SegNet's eleven classes, in Cityscapes' colours; 11 on disk is void.
_CAMVID = {
    "sky": "sky", "building": "building", "pole": "pole", "road": "road", "pavement": "sidewalk",
    "tree": "vegetation", "sign": "traffic sign", "fence": "fence", "car": "car", "pedestrian": "person",
    "bicyclist": "rider",
}  # fmt: skip
CAMVID = LabelSpace(
    name="camvid",
    names=tuple(_CAMVID),
    colors=tuple(_COLOR[name] for name in _CAMVID.values()),
    label_ids=tuple(range(11)),
    subsets={"mIoU11": tuple(range(11))},
    void_ids=(11, IGNORE_INDEX),
)

_IN_CODE = {space.name: space for space in (CITYSCAPES, CAMVID)}


def label_space(name: str) -> LabelSpace:
    """The label space of a name: one of those above, or that of ``params/label_spaces/<name>.yaml``.

    Raises:
        ValueError: if there is none, naming those that there are; or listing all that is wrong with the file.
    """
    path = FOLDER / f"{name}.yaml"
    if name in _IN_CODE:
        if path.is_file():
            raise ValueError(f"{_shown(path)}: {name} stands in b2ma_core/labels.py: rename the file")
        return _IN_CODE[name]
    if not re.fullmatch(r"[\w-]+", name) or not path.is_file():
        known = [*_IN_CODE, *sorted(p.stem for p in FOLDER.glob("*.yaml") if "_to_" not in p.stem)]
        raise ValueError(f"no label space {name!r}{nearest(name, known)} (there are: {', '.join(known)}; any other is "
                         f"a file {_shown(FOLDER)}/<name>.yaml)")  # fmt: skip
    return _space(name, load_yaml(path), _shown(path))


def label_map(source: LabelSpace, target: LabelSpace) -> np.ndarray:
    """How train ids of one label space are said in another, by ``params/label_spaces/<source>_to_<target>.yaml``.

    Args:
        source: the space that is spoken.
        target: the space that is wanted.

    Returns:
        ``(256,)`` uint8: the target's train id of each of the source's; ``ignore_index`` for all others.

    Raises:
        ValueError: if there is no such file; or listing all that is wrong with it.
    """
    path = FOLDER / f"{source.name}_to_{target.name}.yaml"
    if not path.is_file():
        raise ValueError(f"no label map {_shown(path)}: it would say for each class of {source.name!r} which one of "
                         f"{target.name!r} it is, or {IGNORED}, in lines of the form 'name: name'")  # fmt: skip
    values = load_yaml(path)
    problems = [f"{class_name}: stands in no line" for class_name in source.names if class_name not in values]
    for said, meant in values.items():
        if said not in source.names:
            problems.append(f"{said}: no class of {source.name!r}{nearest(said, source.names)}")
        if meant not in (*target.names, IGNORED):
            problems.append(f"{said}: {meant!r} is no class of {target.name!r}, nor {IGNORED}"
                            f"{nearest(meant, (*target.names, IGNORED))}")  # fmt: skip
    _refuse(problems, _shown(path))
    ids = {**{class_name: i for i, class_name in enumerate(target.names)}, IGNORED: target.ignore_index}
    table = np.full(256, target.ignore_index, np.uint8)
    table[: source.num_classes] = [ids[values[class_name]] for class_name in source.names]
    return table


def _space(name: str, values: Mapping[str, Any], where: str) -> LabelSpace:
    """The label space that a file describes, checked."""
    problems = [f"{key}: unknown{nearest(key, _KEYS)}" for key in values if key not in _KEYS]
    classes = values["classes"] if isinstance(values.get("classes"), dict) else {}
    if not 1 <= len(classes) <= 255:
        problems.append(f"classes: has to hold 1 .. 255 lines 'name: {{color: [r, g, b]}}', has {len(classes)}")
    names, colors, ids = tuple(classes), [], []
    for i, (class_name, told) in enumerate(classes.items()):
        key = f"classes.{class_name}"
        told = told if isinstance(told, dict) else {"color": told}
        problems += [f"{key}.{k}: unknown{nearest(k, ('color', 'id'))}" for k in told if k not in ("color", "id")]
        if not isinstance(class_name, str) or class_name == IGNORED:
            taken = "in a label map this word means no class" if class_name == IGNORED else "YAML takes it for no text"
            problems.append(f"{key}: {taken}: choose another name, or put it in quotes")
        colors.append(told.get("color"))
        if not _is_ids(colors[-1]) or len(colors[-1]) != 3:
            problems.append(f"{key}.color: has to be [red, green, blue], each 0 .. 255, got {colors[-1]!r}")
        ids.append(told.get("id", i))
        if not _is_ids([ids[-1]]):
            problems.append(f"{key}.id: has to be a whole number 0 .. 255, got {ids[-1]!r}")
        elif "id" not in told and any("id" in other for other in classes.values() if isinstance(other, dict)):
            problems.append(f"{key}.id: other classes have one: give it to all of them, or to none (then 0, 1, 2 ..)")
    void = values.get("void", [])
    if not _is_ids(void):
        problems.append(f"void: has to be a list of ids 0 .. 255, got {void!r}")
        void = []
    twice = [i for i, times in Counter(map(str, [*ids, *dict.fromkeys(void)])).items() if times > 1]
    if twice:
        problems.append(f"id: {', '.join(twice)} stand for two classes, or for a class and void")
    averages = values.get("averages", {f"mIoU{len(names)}": "all"})
    subsets = {}
    for average, covered in averages.items() if isinstance(averages, dict) else [("", None)]:
        key = f"averages.{average}".rstrip(".")
        covered = list(names) if covered == "all" else covered
        if not isinstance(average, str) or average in _TAKEN:
            problems.append(f"{key}: is no name for an average, or that of another result: choose another")
        if not isinstance(covered, list) or not covered:
            problems.append(f"{key}: has to be 'all' or a list of class names, got {covered!r}")
            continue
        strange = [c for c in covered if c not in names]
        problems += [f"{key}: {c!r} is no class{nearest(c, names)}" for c in strange]
        problems += [f"{key}: {c!r} stands twice" for c, times in Counter(map(str, covered)).items() if times > 1]
        subsets[average] = tuple(names.index(c) for c in covered if c not in strange)
    _refuse(problems, where)
    void_ids = tuple(dict.fromkeys([*void, *({IGNORE_INDEX} - set(ids))]))
    return LabelSpace(name, names, tuple(map(tuple, colors)), tuple(ids), subsets, void_ids=void_ids)


_KEYS = ("classes", "void", "averages")
_TAKEN = ("accuracy", "iou", "miou", "precision")


def _is_ids(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v <= 255 for v in values)


def _refuse(problems: list[str], where: str) -> None:
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(f"{where}: {len(problems)} wrong {'entries' if len(problems) > 1 else 'entry'}: "
                         + "; ".join(problems[:10]) + more)  # fmt: skip


def nearest(word: Any, known: Iterable[str]) -> str:
    """ "; did you mean 'road'?" for a word that is nearly one of those known, else nothing."""
    near = difflib.get_close_matches(str(word), map(str, known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _some(ids: Iterable[int], most: int) -> str:
    ids = list(map(str, ids))
    return ", ".join(ids[:most]) + (" .." if len(ids) > most else "")


def _shown(path: Path) -> str:
    return str(path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else path)

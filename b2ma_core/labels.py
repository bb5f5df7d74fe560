"""Label spaces: names, colours, label ids to train ids, class subsets.

Two kinds of numbers name a class. *Label ids* are what a data set stores on disk; *train ids* are
``0 .. num_classes - 1`` without gaps, and ``ignore_index`` for whatever is not scored.
"""

from dataclasses import dataclass, field

import numpy as np

IGNORE_INDEX = 255


@dataclass(frozen=True)
class LabelSpace:
    """A set of classes.

    Attributes:
        name: how parameters call it.
        names: class names, in the order of the train ids.
        colors: one RGB triple (0 .. 255) per train id.
        label_ids: the label id on disk of each train id.
        subsets: name of an average -> the train ids that it covers.
        ignore_index: the train id of unlabelled pixels.
    """

    name: str
    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    label_ids: tuple[int, ...]
    subsets: dict[str, tuple[int, ...]] = field(hash=False)
    ignore_index: int = IGNORE_INDEX

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
        found = np.unique(train_ids)
        strange = [int(v) for v in found if not 0 <= v < self.num_classes and v != self.ignore_index]
        if strange:
            hint = ""
            if set(found.tolist()) <= {*self.label_ids, *range(34), 255} and max(strange) < 34:
                hint = "; these look like label ids: convert them to train ids first (LabelSpace.encode)"
            raise ValueError(
                f"{where}: holds {strange[:8]}, but train ids of {self.name!r} are 0 .. {self.num_classes - 1} "
                f"and {self.ignore_index} for ignored pixels{hint}"
            )


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
)

# Cityscapes' classes in CamVid's words: the eleven of SegNet join walls to buildings, lights to signs, all plants to
# trees, trucks, buses and trains to cars, and whoever and whatever goes on two wheels to bicyclists.
_JOINED = {
    "sidewalk": "pavement", "wall": "building", "traffic light": "sign", "traffic sign": "sign", "vegetation": "tree",
    "terrain": "tree", "person": "pedestrian", "rider": "bicyclist", "truck": "car", "bus": "car", "train": "car",
    "motorcycle": "bicyclist", "bicycle": "bicyclist",
}  # fmt: skip


def cityscapes_to_camvid(train_ids: np.ndarray) -> np.ndarray:
    """Cityscapes train ids (uint8, any shape) to CamVid's; ignored pixels stay ignored."""
    table = np.full(256, IGNORE_INDEX, np.uint8)
    table[: CITYSCAPES.num_classes] = [CAMVID.names.index(_JOINED.get(name, name)) for name in CITYSCAPES.names]
    return table[train_ids]


LABEL_SPACES = {space.name: space for space in (CITYSCAPES, CAMVID)}

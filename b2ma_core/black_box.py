"""The black-box boundary: images in, labels out. Nothing else of the source model is ever seen on the other side."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from b2ma_core.files import check_sums, read_label_map
from b2ma_core.labels import LabelSpace
from b2ma_core.queries import VIEWS, view_name


class BlackBox(Protocol):
    """Whatever answers images with labels: a model, a web service, a folder that a vendor sent."""

    def predict(self, images: np.ndarray, names: Sequence[str] | None = None) -> np.ndarray:
        """``(N, H, W, 3)`` uint8 RGB images to ``(N, H, W)`` uint8 train ids.

        Args:
            images: the images.
            names: their names, for boxes that look answers up; others pass them over.
        """
        ...


class LocalModel:
    """A source model behind the boundary, on its owner's side.

    Args:
        model: the owner's network.
        flip: average the logits of the image and of its mirror image, as published.
        device: where the network is.
        autocast: context of the forward passes, for example ``fabric.autocast``.
    """

    def __init__(
        self,
        model: nn.Module,
        flip: bool = True,
        device: torch.device | str = "cpu",
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self.model = model.to(device, memory_format=torch.channels_last).eval()
        self.flip, self.device, self.autocast = flip, device, autocast

    def predict(
        self, images: np.ndarray, names: Sequence[str] | None = None, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        return self.predict_with_confidence(images, size)[0]

    def predict_with_confidence(
        self, images: np.ndarray, size: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Labels, and ``(N, H, W)`` float32 softmax probabilities of them: the owner's to give or to keep.

        Logits are brought to ``size`` (height, width) before arg max, if one is given.
        """
        best = [logs.max(1) for logs in self._log_probabilities(images, size)]
        labels, confidences = torch.cat([b.indices for b in best]), torch.cat([b.values for b in best]).exp()
        return labels.to(torch.uint8).cpu().numpy(), confidences.cpu().numpy()

    @torch.no_grad()
    def _log_probabilities(self, images: np.ndarray, size: tuple[int, int] | None) -> Iterator[Tensor]:
        """``(1, C, H, W)`` of each image: at 1024 x 2048 pixels those of eight are 1.3 GB."""
        batch = torch.from_numpy(np.array(images)).to(self.device).permute(0, 3, 1, 2).float() / 255  # channels last
        with self.autocast():
            logits = self.model(batch).float()
            if self.flip:
                logits = (logits + self.model(batch.flip(-1)).flip(-1).float()) / 2
        for one in logits.split(1):
            if size is not None:
                one = nn.functional.interpolate(one, size, mode="bilinear", align_corners=False)
            yield one.log_softmax(1)


class LabelFolder:
    """A vendor's delivery: an 8-bit PNG of ids for each image, under the image's name.

    Either ``<root>/<name>.png``, one answer an image, or ``<root>/<view>/<name>.png``, one for each view of it; the
    names of the views' folders begin with their numbers: ``0_as_it_is``, ``1_..``.

    Args:
        root: the folder.
        space: whose ids the PNGs hold, see :meth:`LabelSpace.from_file`; None: they are taken as they are.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds answers of both kinds, or two folders of one view.
    """

    def __init__(self, root: str | Path, space: LabelSpace | None = None):
        self.root, self.space = Path(root), space
        if not self.root.is_dir():
            raise FileNotFoundError(f"box_root: no folder {self.root}; it should hold <image name>.png label maps. "
                                    "Make it, empty if nothing was delivered yet")  # fmt: skip
        folders = [path for path in sorted(self.root.iterdir()) if path.is_dir() and re.match(r"\d+(_|$)", path.name)]
        self.views = {int(path.name.partition("_")[0]): path for path in folders}
        self.flat = any(p.suffix.lower() == ".png" and p.name[0] != "." and p.is_file() for p in self.root.iterdir())
        if len(folders) > len(self.views):
            raise ValueError(f"{self.root}: two folders of one view: {', '.join(path.name for path in folders)}")
        if folders and self.flat:
            raise ValueError(f"{self.root}: holds label maps and folders of views ({folders[0].name}): leave one kind")

    def path(self, name: str, view: int = 0) -> Path:
        """Where the answer to a view of an image belongs."""
        folder = self.root if self.flat else self.views.get(view) or self.root / view_name(view)
        shouted = folder / f"{name}.PNG"
        return shouted if shouted.is_file() else folder / f"{name}.png"

    def predict(self, images: np.ndarray, names: Sequence[str] | None = None) -> np.ndarray:
        """Look the answers to the images as they are up by name, see :meth:`read`."""
        if names is None:
            raise ValueError("a folder of labels is asked by the images' names: predict(images, names)")
        return np.stack([self.read(name, 0, images.shape[1:3], images.shape[1:3]) for name in names])

    def read(
        self, name: str, view: int, sent: tuple[int, int], photograph: tuple[int, int],
        size: tuple[int, int] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """One answer.

        Args:
            name: of the image.
            view: of it, from 0.
            sent: (height, width) of the view.
            photograph: (height, width) of the image before it was brought to the study's size. An answer has the size
                of either, or any other, of 16 pixels a side or more, of the proportions of one of them, a pixel more or
                less; of a larger or smaller view, whose sides are rounded, eight pixels.
            size: (height, width) wanted, the nearest pixels are taken; None: ``sent``.

        Returns:
            ``size`` uint8 train ids.

        Raises:
            ValueError: naming the file that is missing, unreadable, of other proportions or holds other ids.
        """
        path = self.path(name, view)
        try:
            labels = read_label_map(path)
        except FileNotFoundError:
            raise ValueError(f"{path}: the vendor's folder has no labels for the image {name!r}") from None
        check_sums(path)
        if labels.shape == photograph[::-1] and labels.shape not in (photograph, sent):
            raise ValueError(f"{path}: labels are {labels.shape}, the photograph is {photograph} (H x W): it lies "
                             "on its side; was it answered before its EXIF orientation turned it?")  # fmt: skip
        # The sides of a larger or smaller view are rounded to eight pixels, whatever the size of its image was.
        rounding = 1 if view >= len(VIEWS) or VIEWS[view][2] == 1 else 8
        if not any(_alike(labels.shape, other, rounding) for other in (sent, photograph)):
            own = f", the photograph {photograph}" if photograph != sent else ""
            raise ValueError(f"{path}: labels are {labels.shape}, the image is {sent}{own} (H x W): they must have the "
                             "proportions of one of them, and 16 pixels a side")  # fmt: skip
        labels = labels if self.space is None else self.space.from_file(labels, str(path))
        height, width = size or sent
        if labels.shape == (height, width):
            return labels
        return np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))


def _alike(size: tuple[int, int], other: tuple[int, int], rounding: int) -> bool:
    """Whether two sizes are the same, or proportional within a rounding of so many pixels."""
    (height, width), (h, w) = size, other
    off = min(abs(height - width * h / w), abs(width - height * w / h))
    return size == other or (min(size) >= 16 and off <= rounding)


def ask(
    box: BlackBox, images: np.ndarray, names: Sequence[str], space: LabelSpace, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Ask a box and check its answer: the one way across the boundary.

    Args:
        box: the box.
        images: ``(N, H, W, 3)`` uint8 RGB.
        names: one per image.
        space: the label space that was agreed.
        size: (height, width) of the labels wanted, from a :class:`LocalModel`; None: the images'.

    Returns:
        ``(N, H, W)`` uint8 train ids, or of the size wanted.

    Raises:
        ValueError: if there are not as many names as images, the answer has another shape or type, or holds ids
            outside the label space, of which it names the image.
    """
    if len(names) != len(images):
        raise ValueError(f"names: {len(names)}, but there are {len(images)} images")
    answer = box.predict(images, names) if size is None else box.predict(images, names, size)
    expected = (len(images), *(size or images.shape[1:3]))
    who = f"the box {type(box).__name__}"
    if not isinstance(answer, np.ndarray) or answer.dtype != np.uint8:
        kind = getattr(answer, "dtype", type(answer).__name__)
        raise ValueError(f"{who} answered {kind}, needed is a numpy array of uint8 train ids (labels, nothing else)")
    if answer.shape != expected:
        raise ValueError(f"{who} answered shape {answer.shape}, needed is {expected}: one label a pixel")
    for name, labels in zip(names, answer, strict=True):
        space.check(labels, f"{who}, image {name!r}")
    return answer

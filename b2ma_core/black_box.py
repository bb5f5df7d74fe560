"""The wall: images in, labels out. Nothing else of the source model is ever seen on the other side."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from b2ma_core.labels import LabelSpace


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
    """A source model behind the wall, on its owner's side.

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
        confidence, labels = self._log_probabilities(images, size).max(1)
        return labels.to(torch.uint8).cpu().numpy(), confidence.exp().cpu().numpy()

    def mean_entropy(self, images: np.ndarray) -> np.ndarray:
        """``(N,)`` float32 mean over the pixels of ``- sum p log p`` in nats, 0 .. log C: the owner's as well."""
        logs = self._log_probabilities(images, None)
        return -(logs.exp() * logs).sum(1).mean((1, 2)).cpu().numpy()

    @torch.no_grad()
    def _log_probabilities(self, images: np.ndarray, size: tuple[int, int] | None) -> Tensor:
        batch = torch.from_numpy(np.array(images)).to(self.device).permute(0, 3, 1, 2).float() / 255  # channels last
        with self.autocast():
            logits = self.model(batch).float()
            if self.flip:
                logits = (logits + self.model(batch.flip(-1)).flip(-1).float()) / 2
        if size is not None:
            logits = nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)
        return logits.log_softmax(1)


class LabelFolder:
    """A vendor's delivery: one 8-bit PNG of train ids per image, under the image's name.

    Args:
        root: the folder.

    Raises:
        FileNotFoundError: if there is no such folder.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"box_root: no folder {self.root}; it should hold <image name>.png label maps")

    def predict(self, images: np.ndarray, names: Sequence[str] | None = None) -> np.ndarray:
        """Look the answers up by name; ValueError names what is missing, unreadable or of another size."""
        if names is None:
            raise ValueError("a folder of labels is asked by the images' names: predict(images, names)")
        answers = []
        for name, image in zip(names, images, strict=True):
            path = self.root / f"{name}.png"
            try:
                labels = np.asarray(Image.open(path))
            except FileNotFoundError:
                raise ValueError(f"{path}: the vendor's folder has no labels for the image {name!r}") from None
            except (OSError, SyntaxError) as error:
                raise ValueError(f"{path}: cannot be read as a picture ({error})") from None
            if labels.dtype != np.uint8 or labels.ndim != 2:
                raise ValueError(f"{path}: must be an 8-bit PNG with one channel, is {labels.dtype} {labels.shape}")
            if labels.shape != image.shape[:2]:
                resized = Image.fromarray(labels).resize(image.shape[1::-1], Image.Resampling.NEAREST)
                if labels.shape[0] * image.shape[1] != labels.shape[1] * image.shape[0]:
                    raise ValueError(f"{path}: labels are {labels.shape}, the image is {image.shape[:2]} (H x W)")
                labels = np.asarray(resized)
            answers.append(labels)
        return np.stack(answers)


def ask(
    box: BlackBox, images: np.ndarray, names: Sequence[str], space: LabelSpace, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Ask a box and check its answer: the one way through the wall.

    Args:
        box: the box.
        images: ``(N, H, W, 3)`` uint8 RGB.
        names: one per image.
        space: the label space that was agreed.
        size: (height, width) of the labels wanted, from a :class:`LocalModel`; None: the images'.

    Returns:
        ``(N, H, W)`` uint8 train ids, or of the size wanted.

    Raises:
        ValueError: if the answer has another shape or type, or holds ids outside the label space; it names the box
            and the image.
    """
    answer = box.predict(images, names) if size is None else box.predict(images, names, size)
    expected = (len(images), *(size or images.shape[1:3]))
    who = f"the box {type(box).__name__}"
    if isinstance(answer, Tensor) or not isinstance(answer, np.ndarray) or answer.dtype != np.uint8:
        kind = getattr(answer, "dtype", type(answer).__name__)
        raise ValueError(f"{who} answered {kind}, needed is a numpy array of uint8 train ids (labels, nothing else)")
    if answer.shape != expected:
        raise ValueError(f"{who} answered shape {answer.shape}, needed is {expected}: one label a pixel")
    for name, labels in zip(names, answer, strict=True):
        space.check(labels, f"{who}, image {name!r}")
    return answer

"""Which images a training sees at which step, and how they are drawn: a batch follows from (seed, stage, step) alone.

Nothing random has a memory here, so that the step's number is all of the sampler's and the generators' state.
"""

import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from b2ma_core.augmentations import random_view
from b2ma_core.params import Params
from b2ma_core.processes import end_with_parent


def generator_for(seed: int, stage: str, step: int) -> torch.Generator:
    """The generator of one step of one stage."""
    key = np.random.SeedSequence([seed, step, *stage.encode()]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(key >> 1))


def indices_of(numbers: range, images: int, seed: int, stage: str) -> list[int]:
    """Which of the ``images`` a training sees as its first, second, .. (0, 1, ..), over all its steps.

    An epoch is a new permutation, each image once.
    """
    chosen, orders = [], {}
    for number in numbers:
        epoch, place = divmod(number, images)
        if epoch not in orders:
            orders[epoch] = torch.randperm(images, generator=generator_for(seed, f"{stage} order", epoch))
        chosen.append(int(orders[epoch][place]))
    return chosen


@dataclass(eq=False)
class Batches(Dataset):
    """A stage's batches by step: ``batches[step]`` is ``(N, 3, h, w)`` uint8 images and ``(N, h, w)`` uint8 train ids.

    A loader process gets arrays that are memory-mapped by the names of their files: eight loaders of 69 GB of images
    need no memory for them.

    Args:
        images: ``(M, H, W, 3)`` uint8.
        labels: ``(M, H, W)`` uint8 train ids.
        params: crop and scale.
        seed: the run's.
        stage: name that keeps the draws of stages apart.
        augment: cut, scale and mirror; otherwise whole images as they are.
        rank, ranks: which share of each batch this process sees. Draws belong to an image's number in the training, so
            that any number of processes sees the same images, changed alike.
        size: images in a batch; None: the parameters' ``batch_size``.
        scale: lowest and highest enlargement of a view; None: the parameters' ``random_scale``.
    """

    images: np.ndarray
    labels: np.ndarray
    params: Params
    seed: int
    stage: str
    augment: bool
    rank: int = 0
    ranks: int = 1
    size: int | None = None
    scale: Sequence[float] | None = None

    def __post_init__(self):
        self.size, self.scale = self.size or self.params.batch_size, tuple(self.scale or self.params.random_scale)

    def numbers(self, step: int) -> range:
        """The numbers, over the whole training, of the images that this process sees in a step."""
        return range(step * self.size, (step + 1) * self.size)[self.rank :: self.ranks]

    def __getstate__(self) -> dict:
        return {**vars(self), "images": _by_file(self.images), "labels": _by_file(self.labels)}

    def __setstate__(self, state: dict) -> None:
        opened = {k: np.load(v, mmap_mode="r") if isinstance(v, Path) else v for k, v in state.items()}
        vars(self).update(opened)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        numbers, samples = self.numbers(step), []
        for number, index in zip(numbers, indices_of(numbers, len(self.images), self.seed, self.stage), strict=True):
            image = torch.from_numpy(np.array(self.images[index])).permute(2, 0, 1)
            labels = torch.from_numpy(np.array(self.labels[index]))
            if self.augment:
                generator = generator_for(self.seed, f"{self.stage} view", number)
                size = tuple(self.params.crop or self.images.shape[1:3])
                image, labels = random_view(image, labels, size, self.scale, generator)
            samples.append((image, labels))
        images, labels = zip(*samples, strict=True)
        return torch.stack(images), torch.stack(labels)

    def from_step(self, start: int, steps: int, workers: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of the steps ``start .. steps - 1``, in order; loader processes: None, as the parameters say."""
        workers = self.params.workers if workers is None else workers
        return iter(DataLoader(
            self, batch_size=None, sampler=range(start, steps), num_workers=workers,
            multiprocessing_context="spawn" if workers else None, pin_memory=torch.cuda.is_available(),
            worker_init_fn=partial(_ends_with, os.getpid()),
        ))  # fmt: skip

    def workers(self, processes: int = 1) -> int:
        """How many loader processes there is shared memory for, at most as many as the parameters say.

        Loaders hand batches over in shared memory; where it is full they would wait for ever. Each has two batches
        ready, and one more is in use or in the making. ``processes``: trainings on this machine that load as much.
        """
        shared = Path("/dev/shm")  # elsewhere than on Linux there is no such limit
        if not shared.is_dir() or not self.params.workers:
            return self.params.workers
        height, width = self.params.crop or self.images.shape[1:3]
        each = 3 * 4 * height * width * len(self.numbers(0))  # an image has three bytes a pixel, its labels one
        return min(self.params.workers, shutil.disk_usage(shared).free // (processes * each))


def _by_file(array: np.ndarray) -> np.ndarray | Path:
    """The file that an array is memory-mapped from, if it is the whole file; else the array."""
    if getattr(array, "filename", None) is None:  # a copy has none, a part has its whole's
        return array
    whole = np.load(array.filename, mmap_mode="r")
    same = (whole.shape, whole.strides, whole.dtype) == (array.shape, array.strides, array.dtype)
    return Path(array.filename) if same else array


def _ends_with(process: int, _: int) -> None:
    end_with_parent(signal.SIGKILL, process)


def to_device(images: Tensor, device: torch.device) -> Tensor:
    """uint8 images to float in [0, 1], channels last, on the device."""
    return images.to(device, non_blocking=True).to(torch.float32, memory_format=torch.channels_last) / 255

"""All that crosses the wall: label PNGs, one per target image, in ``labels/<part>/`` of a run."""

from collections.abc import Callable

import numpy as np
from PIL import Image
from tqdm import tqdm

from b2ma_core.black_box import BlackBox, LocalModel, ask
from b2ma_core.datasets import Data
from b2ma_core.labels import LABEL_SPACES
from b2ma_core.records import Run, write_png


def ask_for_labels(run: Run, box: BlackBox, data: Data, batch: int = 8) -> np.ndarray:
    """Send a part's images through the wall and keep the answers; answers that are there already are not asked again.

    Args:
        run: the run; ``labels/<part>/<name>.png`` get the train ids, ``labels/<part>_color/`` pictures for people,
            ``labels/<part>_confidence/`` the confidences (0 .. 255), where the owner publishes them.
        box: the box.
        data: the part.
        batch: images per question.

    Returns:
        ``(N, H, W)`` uint8 train ids.

    Raises:
        ValueError: if the box's answer is no map of train ids, see :func:`black_box.ask`.
    """
    space = LABEL_SPACES[run.params.label_space]
    folder = run.path("labels", data.name)
    todo = [i for i, name in enumerate(data.names) if not (folder / f"{name}.png").is_file()]
    for start in tqdm(range(0, len(todo), batch), desc=f"ask for {data.name}", unit="batch", mininterval=5):
        indices = todo[start : start + batch]
        images, names = np.array(data.images[indices]), [data.names[i] for i in indices]
        answers = ask(box, images, names, space)
        if run.params.box_confidence and isinstance(box, LocalModel):
            confidences = (box.predict_with_confidence(images)[1] * 255).round().astype(np.uint8)
            for name, confidence in zip(names, confidences, strict=True):
                write_png(run.path("labels", f"{data.name}_confidence", f"{name}.png"), confidence)
        for name, labels in zip(names, answers, strict=True):
            write_png(run.path("labels", f"{data.name}_color", f"{name}.png"), space.colorize(labels))
            write_png(folder / f"{name}.png", labels)
    return read_labels(run, data)


def read_labels(run: Run, data: Data) -> np.ndarray:
    """``(N, H, W)`` uint8 pseudo labels of a part; errors name the notebook that comes first, or the broken file."""
    space = LABEL_SPACES[run.params.label_space]

    def check(labels: np.ndarray, path: str) -> np.ndarray:
        if labels.shape != data.images.shape[1:3]:
            raise ValueError(f"{path}: labels are {labels.shape}, the images {data.images.shape[1:3]} (H x W)")
        space.check(labels, path)
        return labels

    return _read(run, data, data.name, check)


def read_confidences(run: Run, data: Data) -> np.ndarray | None:
    """``(N, H, W)`` float32 confidences, 0 .. 1; None where the box gave labels alone."""
    if not run.path("labels", f"{data.name}_confidence").is_dir():
        return None
    return _read(run, data, f"{data.name}_confidence", lambda values, path: values).astype(np.float32) / 255


def _read(run: Run, data: Data, folder: str, check: Callable) -> np.ndarray:
    maps = []
    for name in data.names:
        path = run.path("labels", folder, f"{name}.png")
        try:
            maps.append(check(np.asarray(Image.open(path)), str(path)))
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} is missing: run the notebook 02_pseudo_labels first") from None
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path}: cannot be read ({error}); remove it and run 02_pseudo_labels again") from None
    return np.stack(maps)

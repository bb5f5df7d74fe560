"""All that crosses the black-box boundary: label PNGs, one per target image, in ``labels/<part>/`` of a run.

With test-time augmentation the box answers several views of an image, its queries: the *plain answers* are those to the
images as they are, the *votes* what the weighted majority of all answers says, see :mod:`b2ma_core.queries`.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.v2.functional as T
from PIL import Image
from tqdm import tqdm

from b2ma_core.black_box import BlackBox, LabelFolder, LocalModel, ask
from b2ma_core.data.datasets import Data, LabelMaps, together
from b2ma_core.files import read_label_map, start_npy, whole_file, write_bytes, write_json, write_png
from b2ma_core.params import Params
from b2ma_core.queries import VIEWS, steadiness, view_size, views, weighted_majority_vote
from b2ma_core.study.provenance import answered
from b2ma_core.study.records import Run

_SUFFIXES = ("_color", "_votes", "_confidence", "")  # the plain answers last: they say that all is there


def queries(params: Params, box: BlackBox) -> int:
    """How many views of each image the box answers; a folder without folders of views has one answer to give."""
    return 1 if isinstance(box, LabelFolder) and box.flat else params.box_queries


def voted(run: Run, data: Data) -> bool:
    """Whether a part has the answers to several views."""
    if run.params.box == "folder":  # 02 has seen how many there are
        return run.path("labels", f"{data.name}_votes").is_dir()
    return run.params.box_queries > 1


def ask_for_labels(run: Run, box: BlackBox, data: Data, batch: int = 8, asked: Sequence[Data] = ()) -> np.ndarray:
    """Send a part's images to the box and keep the answers; only what the box would answer otherwise, or to
    another image, is asked again, see :func:`provenance.answered`.

    Args:
        run: the run. ``labels/<part>/<name>.png`` get the answers to the images as they are and
            ``labels/<part>_color/`` pictures of them; with several queries ``labels/<part>_votes/`` get the majority
            vote and ``labels/<part>_confidence/`` the vote agreement (0 .. 255). Where the owner publishes
            confidences, those stand there.
        box: the box.
        data: the part.
        batch: images per query.
        asked: parts that were asked before; images that they have in common with this one are not
            asked about again; answers of another size are brought to this one's by the nearest.

    Returns:
        ``(N, H, W)`` uint8 train ids: the answers to the images as they are; LabelMaps where their sizes differ.

    Raises:
        ValueError: if the box's answer is no map of train ids, see :func:`black_box.ask`, or all answers are void.
    """
    space, count = run.params.space, queries(run.params, box)
    steady = _forget_stale(run, data)
    for other in asked if not isinstance(box, LabelFolder) else ():  # looking up costs nothing
        _take_over(run, data, other, steady)
    todo = [i for i, name in enumerate(data.names) if not run.path("labels", data.name, f"{name}.png").is_file()]
    for indices in tqdm(list(data.batches(batch, todo)), desc=f"ask for {data.name}", unit="batch", mininterval=5):
        names, answers = [data.names[i] for i in indices], ask_views(run, box, data, indices)
        kept = {"_color": [space.colorize(labels) for labels in answers[0]]}
        if count == len(VIEWS):
            steady |= dict(zip(names, steadiness(answers).tolist(), strict=True))
            write_json(_steadiness_file(run, data), steady)
        if count > 1:
            kept["_votes"], shares = weighted_majority_vote(answers, space.num_classes, run.params.vote_exponent)
            kept["_confidence"] = (shares * 255).round().astype(np.uint8)
        if run.params.box_confidence:  # of a model's one answer, see params.py
            confidence = box.predict_with_confidence(data.images[indices], answers.shape[2:])[1]
            kept["_confidence"] = (confidence * 255).round().astype(np.uint8)
        for suffix, maps in {**kept, "": answers[0]}.items():  # as _SUFFIXES: the plain answers last
            for name, values in zip(names, maps, strict=True):
                write_png(run.path("labels", data.name + suffix, f"{name}.png"), values)
    labels = read_labels(run, data)
    if all((m == space.ignore_index).all() for m in labels):
        raise ValueError(f"the box's answers to all {len(data)} images of {data.name} are void "
                         f"({space.ignore_index}): there is nothing to learn from")  # fmt: skip
    return labels


def ask_views(run: Run, box: BlackBox, data: Data, indices: Sequence[int]) -> np.ndarray:
    """A box's answers to all views of some images whose labels, if they have any, are of one size.

    Returns:
        ``(K, N, H, W)`` uint8 train ids of the study, in the images' frame: the first view's are the plain answers.

    Raises:
        ValueError: see :func:`black_box.ask` and :meth:`LabelFolder.read`.
    """
    names, sent, own = [data.names[i] for i in indices], data.images.shape[1:3], answer_size(data, indices[0])
    count, table = queries(run.params, box), run.params.label_map("box")
    if isinstance(box, LabelFolder):
        answers = np.array([[box.read(data.names[i], k, view_size(sent, k), data.sizes[i], own) for i in indices]
                            for k in range(count)])  # fmt: skip
    else:
        size = own if isinstance(box, LocalModel) and own != sent else None
        space = run.params.space_of("box")
        answers = [ask(box, view, names, space, size) for view in views(data.images[indices], count)]
        answers = np.stack([in_frame(answer, answers[0].shape[1:]) for answer in answers])
    return answers if table is None else table[answers]


def _steadiness_file(run: Run, data: Data) -> Path:
    return run.path("labels", f"{data.name}_steadiness.json")


def _read_steadiness(run: Run, data: Data) -> dict[str, list[float]]:
    """Name -> :func:`queries.steadiness` of a part's images whose six views were answered."""
    file = _steadiness_file(run, data)
    return json.loads(file.read_text()) if file.is_file() else {}


def _forget_stale(run: Run, data: Data) -> dict[str, list[float]]:
    """Remove the answers of a part that were made from something else than is there now, and those of images that are
    gone; the steadiness of the others. ``labels/<part>.json`` says what each is made from; it is written before the
    first answer."""
    index, now = run.path("labels", f"{data.name}.json"), answered(run, data.name, data.names)
    then, steady = json.loads(index.read_text()) if index.is_file() else {}, _read_steadiness(run, data)
    if then == now:
        return steady
    for suffix in _SUFFIXES:
        folder = run.path("labels", data.name + suffix)
        for path in folder.glob("*.png"):
            if then.get(path.stem) != now.get(path.stem, ""):
                path.unlink()
        if folder.is_dir() and not any(folder.iterdir()):  # its being there says that there are votes, or confidences
            folder.rmdir()
    steady = {name: values for name, values in steady.items() if then.get(name) == now.get(name, "")}
    _steadiness_file(run, data).unlink(missing_ok=True)
    if steady:
        write_json(_steadiness_file(run, data), steady)
    write_json(index, now)
    return steady


def _take_over(run: Run, data: Data, other: Data, steady: dict[str, list[float]]) -> None:
    """Take over the answers to images of the same name and pixels that another part has at least as large."""
    there, theirs = {name: i for i, name in enumerate(other.names)}, _read_steadiness(run, other)
    for i, name in enumerate(data.names):
        height, width = answer_size(data, i)
        if name not in there or height > answer_size(other, there[name])[0]:
            continue
        if not np.array_equal(data.images[i], other.images[there[name]]):
            continue
        for suffix in _SUFFIXES:
            answer = run.path("labels", other.name + suffix, f"{name}.png")
            mine = run.path("labels", data.name + suffix, f"{name}.png")
            if answer.is_file() and not mine.is_file():
                write_png(mine, np.asarray(Image.open(answer).resize((width, height), Image.Resampling.NEAREST)))
        if name in theirs:
            steady[name] = theirs[name]
    if theirs:
        write_json(_steadiness_file(run, data), steady)


def answer_size(data: Data, i: int) -> tuple[int, int]:
    """(height, width) of the answer to an image: its labels' own where it has some, so that the owner's model is scored
    as the students are; else the image's."""
    return (data.images if data.labels is None else data.labels)[i].shape[:2]


def rank_by_entropy(run: Run, box: LocalModel, data: Data, batch: int = 8) -> dict[str, float]:
    """The published lists of easy and hard images, on the owner's side: a label-only box has no entropy.

    ``labels/<part>_easy.txt`` names the half with the lower mean entropy, from the lowest, ``labels/<part>_hard.txt``
    the rest. Nothing here reads them.

    Returns:
        Name -> mean entropy in nats.

    Source: Pan et al., IntraDA (CVPR 2020), as the published code uses it.
    """
    entropies: dict[str, float] = {}
    for i in range(0, len(data), batch):
        values = box.mean_entropy(np.array(data.images[i : i + batch])).tolist()
        entropies.update(zip(data.names[i : i + batch], values, strict=True))
    ranked = sorted(entropies, key=lambda name: (entropies[name], name))
    for kind, names in (("easy", ranked[: len(ranked) // 2]), ("hard", ranked[len(ranked) // 2 :])):
        write_bytes(run.path("labels", f"{data.name}_{kind}.txt"), "".join(f"{name}\n" for name in names).encode())
    return entropies


def in_frame(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``(N, h, w)`` uint8 labels of a view brought to the (height, width) of the image, by the nearest."""
    if labels.shape[1:] == size:
        return labels
    return T.resize(torch.from_numpy(labels), list(size), interpolation=T.InterpolationMode.NEAREST_EXACT).numpy()


def read_labels(run: Run, data: Data, votes: bool = False) -> np.ndarray | LabelMaps:
    """``(N, H, W)`` uint8 train ids that the box gave to a part, LabelMaps where their sizes differ: its plain answers,
    or the votes.

    Errors name the notebook that comes first, or the broken file.
    """
    space = run.params.space

    def check(labels: np.ndarray, path: str, i: int) -> np.ndarray:
        if labels.shape not in (data.images.shape[1:3], answer_size(data, i)):
            raise ValueError(f"{path}: labels are {labels.shape}, the images {data.images.shape[1:3]} (H x W)")
        space.check(labels, path)
        return labels

    return _read(run, data, f"{data.name}_votes" if votes else data.name, check)


def part_steadiness(run: Run, data: Data) -> tuple[float, float] | None:
    """How steady the box's answers to a part are by exposure and by size, 0 .. 1: means of
    :func:`queries.steadiness` over its images; None where fewer than all views were answered."""
    told = _read_steadiness(run, data)
    missing = next((name for name in data.names if name not in told), None)
    if told and missing:
        raise ValueError(f"{_steadiness_file(run, data)} says nothing of {missing}: run 02_pseudo_labels again, or set "
                         "pseudo_labels to plain or votes")  # fmt: skip
    return tuple(np.mean([told[name] for name in data.names], axis=0).tolist()) if told else None


def learns_from_votes(run: Run, data: Data) -> bool:
    """Whether the votes are a part's pseudo labels, or the plain answers, by ``pseudo_labels`` of the parameters.

    A box that suits its images answers another exposure much as the images themselves; votes then only blur its
    answers. A box that is lost on them says something else to each view that suits it better. What is much, its answers
    to other sizes say; no truth is needed.
    """
    told = run.params.pseudo_labels
    if told == "auto":
        steady = part_steadiness(run, data)
        return steady is not None and steady[0] < steady[1]
    return told == "votes" and voted(run, data)


def read_pseudo_labels(run: Run, data: Data) -> np.ndarray:
    """``(N, H, W)`` uint8: what the student learns from, the plain answers or the votes."""
    return read_labels(run, data, votes=learns_from_votes(run, data))


def read_confidences(run: Run, data: Data) -> np.ndarray | None:
    """``(N, H, W)`` uint8 confidences, 0 .. 255: the vote agreement, that is the share of the votes for the class that
    won, or the owner's; None after a single query.

    Bytes as they are in the files: as floats, those of Cityscapes' training images would take four times the room.
    """
    if not run.path("labels", f"{data.name}_confidence").is_dir():
        return None
    return _read(run, data, f"{data.name}_confidence", lambda values, path, i: values)


def _read(run: Run, data: Data, folder: str, check: Callable) -> np.ndarray | LabelMaps:
    """The maps, memory-mapped: those of Cityscapes' training images are 1.5 GB, which no process has to hold.

    They are decoded into ``cache/`` of the run, and anew when a PNG has changed. Maps of several sizes are scored and
    never trained on; they are read into memory.
    """
    files = [run.path("labels", folder, f"{name}.png") for name in data.names]
    if len({_size(file) for file in files}) > 1:
        return together(list(_decoded(files, check)))
    stamps = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) if f.is_file() else None for f in files]
    kept = run.path("cache", f"{folder}-{hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]}.npy")
    if not kept.is_file():
        maps = _decoded(files, check)
        first = next(maps)
        with whole_file(kept) as file:
            start_npy(file, (len(files), *first.shape))
            for values in chain([first], maps):
                file.write(values.tobytes())
        for old in set(kept.parent.glob(f"{folder}-*.npy")) - {kept}:
            old.unlink(missing_ok=True)  # whoever has it open keeps it
    return np.load(kept, mmap_mode="r")


def _decoded(files: Sequence[Path], check: Callable) -> Iterator[np.ndarray]:
    for i, path in enumerate(files):
        try:
            yield check(read_label_map(path), str(path), i)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} is missing: run the notebook 02_pseudo_labels first") from None
        except ValueError as error:
            raise ValueError(f"{error}; remove it and run 02_pseudo_labels again") from None


def _size(path: Path) -> tuple[int, int] | None:
    """(width, height) by a picture's header; None for a file that :func:`_decoded` will complain of."""
    try:
        with Image.open(path) as picture:
            return picture.size
    except (OSError, SyntaxError):
        return None

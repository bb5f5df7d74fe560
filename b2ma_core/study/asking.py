"""All that crosses the black-box boundary: label PNGs, one per target image, in ``labels/<part>/`` of a run.

With test-time augmentation the box answers several views of an image, its queries: the *plain answers* are those to the
images as they are, the *votes* what the weighted majority of all answers says, see :mod:`b2ma_core.queries`.
"""

import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.v2.functional as T
from PIL import Image
from tqdm import tqdm

from b2ma_core.black_box import BlackBox, LabelFolder, LocalModel, ask
from b2ma_core.data.datasets import PARTS, Data
from b2ma_core.files import PROJECT, read_json, write_json, write_png
from b2ma_core.params import Params, base_study
from b2ma_core.queries import VIEWS, steadiness, view_size, views, weighted_majority_vote
from b2ma_core.study.inputs import MARK, answered
from b2ma_core.study.pseudo_labels import answer_size, read_labels, read_steadiness, steadiness_file
from b2ma_core.study.records import Run
from b2ma_core.study.stages import trained_model
from b2ma_core.study.training import make_fabric

_SUFFIXES = ("_color", "_votes", "_confidence", "")  # the plain answers last: they say that all is there


def open_box(run: Run, data: Path = PROJECT / "data") -> BlackBox:
    """The box of a study: the trained source model, on its owner's side, the vendor's folder, or a service.

    A service is the same box for all seeds and arms: ``<data>/<study>/answers/`` keeps what it said to any of them.
    Whoever removes that folder has it asked anew: the mark in it is part of what labels are made from.
    """
    params = run.params
    if params.box == "folder":
        return LabelFolder(PROJECT / params.box_root, params.space_of("box"))
    if params.box == "service":
        from b2ma_core.service import LabelService  # here: no other box needs httpx

        kept = data / base_study(params.study) / "answers"
        kept.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError), open(kept / MARK, "x") as mark:
            mark.write(uuid.uuid4().hex)
        return LabelService(params.box_address, params.space_of("box"), kept,
                            params.box_token_variable, params.box_timeout, params.box_requests)  # fmt: skip
    run.require("01_source_model")
    fabric = make_fabric(params)
    model = trained_model(run, "source", "source", "source.safetensors")
    return LocalModel(model, device=fabric.device, autocast=fabric.autocast)


def queries(params: Params, box: BlackBox) -> int:
    """How many views of each image the box answers; a folder without folders of views has one answer to give."""
    return 1 if isinstance(box, LabelFolder) and box.flat else params.box_queries


def ask_for_labels(run: Run, box: BlackBox, data: Data, batch: int = 8, asked: Sequence[Data] = ()) -> np.ndarray:
    """Send a part's images to the box and keep the answers; only what the box would answer otherwise, or to
    another image, is asked again, see :func:`inputs.answered`.

    Args:
        run: the run. ``labels/<part>/<name>.png`` get the answers to the images as they are and
            ``labels/<part>_color/`` pictures of them; with several queries ``labels/<part>_votes/`` get the majority
            vote and ``labels/<part>_confidence/`` the vote agreement (0 .. 255), with all six views
            ``labels/<part>_steadiness.json`` what :func:`queries.steadiness` says of each image. Where the owner
            publishes confidences, those stand in their place.
        box: the box.
        data: the part.
        batch: images per query.
        asked: parts that were asked before; images that they have in common with this one are not
            asked about again; answers of another size are brought to this one's by the nearest.

    Returns:
        ``(N, H, W)`` uint8 train ids: the answers to the images as they are; LabelMaps where their sizes differ.

    Raises:
        ValueError: if the box's answer is no map of train ids, see :func:`black_box.ask`, or all answers are void; of
            a folder's files, the first wrong one of each batch.
    """
    space, count = run.params.space, queries(run.params, box)
    steady = _forget_stale(run, data)
    for other in asked if not isinstance(box, LabelFolder) else ():  # looking up costs nothing
        _take_over(run, data, other, steady)
    todo = [i for i, name in enumerate(data.names)
            if not run.path("labels", data.name, f"{name}.png").is_file()
            or (count == len(VIEWS) and name not in steady)]  # fmt: skip
    wrong = []
    for indices in tqdm(list(data.batches(batch, todo)), desc=f"ask for {data.name}", unit="batch", mininterval=5):
        names = [data.names[i] for i in indices]
        try:
            answers = ask_views(run, box, data, indices)
        except ValueError as error:
            if not isinstance(box, LabelFolder):
                raise
            wrong.append(str(error))  # the vendor hears of many at once
            continue
        kept = {"_color": [space.colorize(labels) for labels in answers[0]]}
        if count == len(VIEWS):
            steady |= dict(zip(names, steadiness(answers).tolist(), strict=True))
            write_json(steadiness_file(run, data.name), steady)
        if count > 1:
            kept["_votes"], shares = weighted_majority_vote(answers, space.num_classes, run.params.vote_exponent)
            kept["_confidence"] = (shares * 255).round().astype(np.uint8)
        if run.params.box_confidence:  # of a model's one answer, see params.py
            confidence = box.predict_with_confidence(data.images[indices], answers.shape[2:])[1]
            kept["_confidence"] = (confidence * 255).round().astype(np.uint8)
        for suffix, maps in {**kept, "": answers[0]}.items():  # as _SUFFIXES: the plain answers last
            for name, values in zip(names, maps, strict=True):
                write_png(run.path("labels", data.name + suffix, f"{name}.png"), values)
    if wrong:
        raise ValueError("\n".join([*wrong[:20], f".. and {len(wrong) - 20} more"] if len(wrong) > 20 else wrong))
    labels = read_labels(run, data)
    if all((m == space.ignore_index).all() for m in labels):
        anew = f". When the service is mended, remove {box.kept}" if run.params.box == "service" else ""
        raise ValueError(f"the box's answers to all {len(data)} images of {data.name} are void "
                         f"({space.ignore_index}): there is nothing to learn from{anew}")  # fmt: skip
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


def _forget_stale(run: Run, data: Data) -> dict[str, list[float]]:
    """Remove the answers of a part that were made from something else than is there now, and those of images that are
    gone; the steadiness of the others. ``labels/<part>.json`` says what each is made from; it is written before the
    first answer."""
    index, now = run.path("labels", f"{data.name}.json"), answered(run, data.name, data.names)
    then, steady = read_json(index, {}), read_steadiness(run, data.name)
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
    if steady:
        write_json(steadiness_file(run, data.name), steady)
    else:
        steadiness_file(run, data.name).unlink(missing_ok=True)
    write_json(index, now)
    return steady


def forget_all_but(run: Run, parts: Sequence[Data]) -> None:
    """Remove the answers of parts that a folder could answer once and no longer does: they would be scored."""
    for part in set(PARTS[2:]) - {part.name for part in parts}:
        for suffix in _SUFFIXES:
            shutil.rmtree(run.path("labels", part + suffix), ignore_errors=True)
        for file in (run.path("labels", f"{part}.json"), steadiness_file(run, part)):
            file.unlink(missing_ok=True)


def _take_over(run: Run, data: Data, other: Data, steady: dict[str, list[float]]) -> None:
    """Take over the answers to images of the same name and pixels that another part has at least as large."""
    there, theirs = {name: i for i, name in enumerate(other.names)}, read_steadiness(run, other.name)
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
        write_json(steadiness_file(run, data.name), steady)


def in_frame(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``(N, h, w)`` uint8 labels of a view brought to the (height, width) of the image, by the nearest."""
    if labels.shape[1:] == size:
        return labels
    return T.resize(torch.from_numpy(labels), list(size), interpolation=T.InterpolationMode.NEAREST_EXACT).numpy()

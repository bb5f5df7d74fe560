"""Scores of a run: the box and every checkpoint on the same labelled images, as one table."""

from collections.abc import Sequence

import numpy as np
from lightning_fabric import Fabric
from PIL import Image
from torch import nn

from b2ma_core.data.datasets import Data, load
from b2ma_core.files import read_json, read_label_map, whole_file, write_png
from b2ma_core.metrics import ConfusionMatrix, gap_closed, miou_of_present, scores_of
from b2ma_core.study.pipeline import EVALUATION, trainings
from b2ma_core.study.pseudo_labels import read_labels, voted
from b2ma_core.study.records import Run
from b2ma_core.study.stages import trained_model
from b2ma_core.study.training import make_fabric, predict, score

SAMPLES = 4
BOX_ROWS = ("source-only", "votes")  # what the box answers, to the image as it is and to all views; nothing is trained


def row_names(run: Run) -> list[str]:
    """The trained rows of a run's table, without the oracle: stage 1 and its rounds."""
    return list(trainings(run.params))[:-1]


def score_rows(run: Run, names: Sequence[str] | None = None) -> dict[str, dict]:
    """Score rows of a run's table on the target's validation part.

    Args:
        run: a run whose trainings of these rows are done.
        names: of the rows; None: all but the oracle, that is the box's labels, its votes, stage 1 and every round.

    Returns:
        Row -> what the record keeps of it: ``confusion``, split -> :meth:`ConfusionMatrix.counts`, of which all tables
        are made; for whoever opens the record, ``miou`` of all splits together and ``best_miou``, the highest of the
        curve. Nothing without labels to score with.
    """
    val, rows = load(run.params, "target_val"), {}
    if val is None or val.labels is None:
        return rows
    for name in [*_box_rows(run, val), *row_names(run)] if names is None else names:
        confusion = {split: s.counts().tolist() for split, s in _score_apart(run, name, val).items()}
        miou = miou_of_present(scores_of(confusion))
        rows[name] = {"miou": miou, "best_miou": _best(run, name), "confusion": confusion}
    return rows


def evaluate_run(run: Run, with_oracle: bool, rows: dict[str, dict] | None = None) -> dict:
    """Score the box's labels, its votes, stage 1, every round and the oracle on the target's validation part.

    Args:
        run: a run whose trainings are done.
        with_oracle: score ``oracle/`` too.
        rows: what :func:`score_rows` said of the other rows before the oracle was trained; None: they are scored now.

    Returns:
        The metrics for the record: ``rows`` of :func:`score_rows`, ``gap_closed`` of the last of them (None without
        oracle) and ``scored_on``. A few images with predictions go to ``records/samples.npz``.
    """
    rows = score_rows(run) if rows is None else rows
    rows = rows | (score_rows(run, ["oracle"]) if with_oracle else {})
    gap = None
    if {"source-only", "oracle"} <= set(rows):
        gap = gap_closed(*(rows[name]["miou"] for name in ("source-only", row_names(run)[-1], "oracle")))
    val = load(run.params, "target_val")
    _save_samples(run, val)
    return {"rows": rows, "gap_closed": gap, "scored_on": _scored_on(run, val, rows)}


def predict_part(run: Run, part: Data, shown: Sequence[int]) -> list[np.ndarray]:
    """Write the last student's train ids of a part, ``predictions/<part>/<name>.png`` at each image's own size.

    Returns:
        ``(h, w)`` uint8 for each of the images to show, by index.
    """
    model, fabric = _student(run, row_names(run)[-1])
    paths = [run.path("predictions", part.name, f"{name}.png") for name in part.names]
    for i, (path, size) in enumerate(zip(paths, part.sizes, strict=True)):
        write_png(path, predict(model, fabric, part.images[i : i + 1], size, run.params.predict_scale)[0])
    return [read_label_map(paths[i]) for i in shown]


def load_samples(run: Run) -> dict[str, np.ndarray]:
    """Column title -> ``(N, H, W, 3)`` images or ``(N, H, W)`` train ids, as the evaluation left them.

    Nothing where the record is there without them, as published records of photographs are.
    """
    run.require(EVALUATION)
    if not run.path("records", "samples.npz").is_file():
        return {}
    with np.load(run.path("records", "samples.npz")) as file:
        return {name.replace("_", " "): file[name] for name in file.files}


def _box_rows(run: Run, val: Data) -> tuple[str, ...]:
    """What of the box can be scored; a folder of labels may have none for these images."""
    if run.params.box == "folder" and not run.path("labels", val.name).is_dir():
        return ()
    return BOX_ROWS[: 1 + voted(run, val)]


def _score_apart(run: Run, name: str, val: Data) -> dict[str, ConfusionMatrix]:
    """Confusion matrices of one row, by split; labels of another size than the truth are brought to it (nearest)."""
    classes, splits = run.params.space.num_classes, dict.fromkeys(val.splits)
    if name not in BOX_ROWS:
        network = _student(run, name)
        return {split: score(*network, val.of_split(split), classes, run.params.predict_scale) for split in splits}
    scores = {split: ConfusionMatrix(classes) for split in splits}
    for labels, truth, split in zip(read_labels(run, val, name == "votes"), val.labels, val.splits, strict=True):
        scores[split].update(_at(labels, truth.shape), truth)
    return scores


def _student(run: Run, row: str) -> tuple[nn.Module, Fabric]:
    """The network of a trained row on its device, and the fabric that it computes with."""
    fabric = make_fabric(run.params)
    return fabric.to_device(trained_model(run, "target", trainings(run.params)[row], "student.safetensors")), fabric


def _at(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A label map brought to (height, width) by the nearest."""
    if labels.shape == size:
        return labels
    return np.asarray(Image.fromarray(np.asarray(labels)).resize(size[::-1], Image.Resampling.NEAREST))


def _best(run: Run, row: str) -> float | None:
    history = {} if row in BOX_ROWS else read_json(run.path(trainings(run.params)[row], "history.json"), {})
    return max((value for _, value in history.get("miou", ())), default=None)


def _scored_on(run: Run, val: Data | None, rows: dict[str, dict]) -> str:
    if not rows:
        return "nothing was scored: the target has no validation labels"
    count, present = run.params.space.num_classes, len(scores_of(next(iter(rows.values()))["confusion"]).present())
    classes = f"{count} classes" if present == count else f"the {present} of {count} classes that the truth holds"
    text = f"mIoU over {classes} on {len(val)} target images"
    train = load(run.params, "target_train")
    if set(train.names) & set(val.names):
        text += " (the oracle was trained on these very images)"
    return text


def _save_samples(run: Run, val: Data | None) -> None:
    part = val or load(run.params, "target_train")
    chosen, size = part.evenly(SAMPLES), part.images.shape[1:3]
    samples = {"target_image": np.array(part.images[chosen])}
    if part.labels is not None:
        samples["truth"] = np.stack([_at(part.labels[i], size) for i in chosen])
    if run.path("labels", part.name).is_dir():
        labels = read_labels(run, part)
        samples["source-only"] = np.stack([_at(labels[i], size) for i in chosen])
    for name in dict.fromkeys(("stage 1", row_names(run)[-1])):
        said = predict(*_student(run, name), samples["target_image"], None, run.params.predict_scale)
        samples[name.replace(" ", "_")] = said
    with whole_file(run.path("records", "samples.npz")) as file:
        np.savez_compressed(file, **samples)

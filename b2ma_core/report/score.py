"""Score a checkpoint or a folder of predictions: ``python -m b2ma_core.report.score --study STUDY --checkpoint FILE``.

Every logit is brought to the label's own size before arg max. Results are printed, and with ``--out`` written as JSON,
Markdown and LaTeX; ``--submission`` writes label ids under the names of the Cityscapes benchmark server.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import nn
from tqdm import tqdm

from b2ma_core.data.datasets import Data, load
from b2ma_core.files import read_label_map, write_bytes, write_json, write_png
from b2ma_core.labels import LabelSpace
from b2ma_core.metrics import ConfusionMatrix, miou_of_present
from b2ma_core.models import MODELS, build_model, load_weights
from b2ma_core.params import Params, load_params, study_file
from b2ma_core.processes import run_command
from b2ma_core.report.results import spread, table_text
from b2ma_core.study.batches import to_device
from b2ma_core.study.check import check_writable
from b2ma_core.study.training import make_fabric


@torch.no_grad()
def predict_scales(
    model: nn.Module,
    fabric: Fabric,
    image: np.ndarray,
    size: tuple[int, int],
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> np.ndarray:
    """Labels of one image from the mean probability over scales and mirror images.

    Args:
        model: in eval mode.
        fabric: device and precision.
        image: ``(H, W, 3)`` uint8 RGB.
        size: (height, width) of the labels wanted.
        scales: factors of the image's sides; the network gets each side rounded to a multiple of 8.
        flip: the mirror image too.

    Returns:
        ``size`` uint8 train ids.
    """
    batch = to_device(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None], fabric.device)
    total = 0.0
    for scale in scales:
        sides = [max(8, round(side * scale / 8) * 8) for side in batch.shape[-2:]]
        scaled = batch
        if scale != 1:
            scaled = nn.functional.interpolate(batch, sides, mode="bilinear", align_corners=False, antialias=True)
        for mirrored in (False, True)[: 1 + flip]:
            with fabric.autocast():
                logits = model(scaled.flip(-1) if mirrored else scaled).float()
            logits = nn.functional.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)
            total = total + (logits.flip(-1) if mirrored else logits).softmax(1)
    return total.argmax(1)[0].to(torch.uint8).cpu().numpy()


def read_prediction(folder: Path, name: str, size: tuple[int, int], space: LabelSpace) -> np.ndarray:
    """``(H, W)`` uint8 train ids of ``<folder>/<name>.png``; ValueError names what is missing or does not fit."""
    path = folder / f"{name}.png"
    try:
        labels = read_label_map(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no prediction for the image {name!r}") from None
    if labels.shape != tuple(size):
        raise ValueError(f"{path}: the prediction is {labels.shape}, the labels are {tuple(size)} (H x W)")
    space.check(labels, str(path))
    return labels


def result(scores: ConfusionMatrix, space: LabelSpace) -> dict:
    """mIoU of every subset of classes, IoU per class by name, accuracy; 0 .. 1."""
    return {
        **{subset: scores.miou(ids) for subset, ids in space.subsets.items()},
        "accuracy": scores.accuracy(),
        "iou": dict(zip(space.names, scores.iou().tolist(), strict=True)),
    }


def result_cells(found: dict) -> pd.DataFrame:
    """A result's table, in percent: classes, then averages."""
    averages = {name: value for name, value in found.items() if name != "iou"}
    return pd.DataFrame([(name, spread([value])) for name, value in (found["iou"] | averages).items()],
                        columns=["", "%"])  # fmt: skip


def server_name(name: str) -> str:
    """The file name that the Cityscapes benchmark server wants for an image's label ids."""
    return f"{name.removesuffix('_leftImg8bit')}_pred_labelIds.png"


def server_ids(space: LabelSpace) -> np.ndarray:
    """``(256,)`` uint8: the label id of each train id; for all others one that stands for no class."""
    void = next((v for v in (0, *space.void_ids) if v not in space.label_ids), space.ignore_index)
    return np.array([*space.label_ids, *[void] * (256 - space.num_classes)], np.uint8)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", required=True, help="params/<study>.yaml: data, classes, network")
    parser.add_argument(
        "--part", default="target_val", choices=("source_val", "target_train", "target_val", "target_test")
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", type=Path, help="weights of the target network, or of --network")
    what.add_argument("--predictions", type=Path, help="folder of <image name>.png with train ids")
    parser.add_argument("--network", choices=MODELS, help="with --checkpoint; default: the study's target_network. "
                        "Public DeepLabV2 weights fit both forms, and are meant for deeplabv2_resnet101")  # fmt: skip
    parser.add_argument("--scales", type=float, nargs="+", help="with --checkpoint; default: the study's predict_scale")
    parser.add_argument("--flip", action="store_true", help="with --checkpoint: the mirror image too")
    parser.add_argument("--out", type=Path, help="writes <out>.json, <out>.md and <out>.tex")
    parser.add_argument("--submission", type=Path, help="folder for label ids under the benchmark server's names")
    args = parser.parse_args(arguments)
    return run_command("score", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Predict or read, score where there are labels, write what was asked for."""
    params = load_params(study_file(args.study))
    part = checked_part(args, params)
    space, label_ids = params.space, server_ids(params.space)
    scores = ConfusionMatrix(space.num_classes, space.ignore_index)
    progress = tqdm(answers(args, params, part), desc="score", total=len(part), unit="image", mininterval=5)
    for i, (name, labels) in enumerate(progress):
        if part.labels is not None:
            scores.update(labels, part.labels[i])
        if args.submission:
            write_png(args.submission / server_name(name), label_ids[labels])
    if part.labels is None:
        return
    found = result(scores, space)
    print(table_text(result_cells(found)))
    print(f"against the labels as notebook 00 read them last ({', '.join(dict.fromkeys(part.splits))})")
    absent = [name for c, name in enumerate(space.names) if c not in scores.present()]
    if absent:
        print(f"note: {', '.join(absent)}: without a true pixel; in the averages a class of them counts as 0 where "
              f"it is answered. Over the others alone: {100 * miou_of_present(scores):.1f}%")  # fmt: skip
    if args.out:
        write_json(args.out.with_name(args.out.name + ".json"), found)
        for end, form in ((".md", "pipe"), (".tex", "latex")):
            write_bytes(args.out.with_name(args.out.name + end), table_text(result_cells(found), form).encode())


def checked_part(args: argparse.Namespace, params: Params) -> Data:
    """The part that the arguments name; ValueError or FileNotFoundError says which of them is wrong."""
    if args.predictions and (args.scales or args.flip or args.network):
        raise ValueError("--scales, --flip and --network: belong to --checkpoint, predictions are scored as they are")
    if not all(0.1 <= scale <= 4 for scale in args.scales or ()):
        raise ValueError(f"--scales: each must lie between 0.1 and 4, got {' '.join(f'{s:g}' for s in args.scales)}")
    for folder, option in ((args.out and args.out.parent, "--out"), (args.submission, "--submission")):
        if folder:
            check_writable(folder, f"{option} goes there")
    part = load(params, args.part)
    if part is None:
        raise ValueError(f"--part: {args.study} has no {args.part}")
    if args.predictions and not args.predictions.is_dir():
        raise FileNotFoundError(f"--predictions: no folder {args.predictions}")
    if part.labels is None and not args.submission:
        way = "give --submission to write predictions"
        if args.part.endswith("_test"):
            way += "; labels of a test part are never read: to score with them, name it as target_val_split of a study"
        raise ValueError(f"--part: {args.part} has no labels to score with; {way}")
    return part


def answers(args: argparse.Namespace, params: Params, part: Data) -> Iterator[tuple[str, np.ndarray]]:
    """Each image's name and ``(H, W)`` train ids at its label's size, or its own: read, or of the checkpoint."""
    sizes = part.sizes if part.labels is None else [labels.shape for labels in part.labels]
    if args.predictions:
        for name, size in zip(part.names, sizes, strict=True):
            yield name, read_prediction(args.predictions, name, size, params.space)
        return
    fabric, model = make_fabric(params), build_model(args.network or params.target_network, params.space.num_classes)
    load_weights(model, args.checkpoint)
    model, scales = fabric.to_device(model.eval()), args.scales or [params.predict_scale]
    for name, image, size in zip(part.names, part.images, sizes, strict=True):
        yield name, predict_scales(model, fabric, image, size, scales, args.flip)


if __name__ == "__main__":
    sys.exit(main())

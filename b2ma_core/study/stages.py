"""The study's trainings, each one call on a run: source model, stage 1, rounds of stage 2, oracle.

A training reads its inputs from the run's folder and writes its weights there, so that it can be called from a
notebook, go on after a stop, or be started on several processes:
``python -m b2ma_core.study.stages RUN STAGE [ROUND]``.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from b2ma_core.augmentations import Changes, draw_changes, jitter_and_blur, sensor_noise
from b2ma_core.class_shares import ClassShares, class_frequencies
from b2ma_core.data.datasets import Data, load, load_to_learn
from b2ma_core.distillation import (
    SelfDistillation,
    Sharing,
    class_weights,
    cross_domain_step,
    ema_update,
    make_teacher,
    self_distillation_step,
)
from b2ma_core.files import read_json
from b2ma_core.labels import nearest
from b2ma_core.metrics import miou_of_present
from b2ma_core.mixes import mix
from b2ma_core.models import MODELS, build_model, freeze_batch_norm, load_weights
from b2ma_core.params import Params
from b2ma_core.processes import PARENT, end_with_parent, run_command
from b2ma_core.study.batches import Batches, generator_for
from b2ma_core.study.mining import hard_batch, patch_groups, read_patches
from b2ma_core.study.provenance import processor, training
from b2ma_core.study.pseudo_labels import read_pseudo_labels
from b2ma_core.study.records import Run, stored_run
from b2ma_core.study.training import fit, in_precision, learning_rate, make_fabric, polynomial, score, set_up


def train(run: Run, stage: str, *numbers: int) -> dict:
    """Run one training, in this process or, with ``devices`` above 1, in that many others; see ``TRAININGS``.

    A notebook's kernel cannot become several processes once it has computed something, so they are started fresh.
    What a training is made from is kept beside it, and ValueError names what has changed since it was begun.
    """
    name = "/".join([stage, *(f"round-{number}" for number in numbers)])
    with training(run, name, lambda: device_of(run.params)):
        if run.params.devices == 1:
            TRAININGS[stage](run, *numbers)
        else:
            command = [sys.executable, "-m", "b2ma_core.study.stages", str(run.folder), stage, *map(str, numbers)]
            if subprocess.run(command, env={**os.environ, PARENT: str(os.getpid())}).returncode:
                raise RuntimeError(
                    f"{stage}: one of its {run.params.devices} processes failed; what it said stands above, in the "
                    "notebook. The same command goes on from the last saved step"
                )
    return read_json(run.path(name, "history.json"))


def device_of(params: Params) -> dict:
    """The device's name, the precision that was resolved, and the threads."""
    fabric = make_fabric(params)
    device = torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else processor()
    return {"device": device, "precision": fabric._precision.precision, "threads": torch.get_num_threads()}


def new_model(run: Run, which: str, start: str) -> nn.Module:
    """A network with its first weights: ``start`` is "scratch", "imagenet" or a file. ``which``: source or target."""
    name = getattr(run.params, f"{which}_network")
    if name not in MODELS:
        raise ValueError(
            f"{which}_network: no network {name!r}{nearest(name, MODELS)} (there are: {', '.join(MODELS)})"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for(run.seed, f"{which} weights", 0).initial_seed())
        return build_model(name, run.params.space.num_classes, None if start == "scratch" else start)


def trained_model(run: Run, which: str, *path: str) -> nn.Module:
    """A network with weights of this run, in eval mode."""
    model = build_model(getattr(run.params, f"{which}_network"), run.params.space.num_classes)
    load_weights(model, run.path(*path))
    return model.eval()


def train_source(run: Run) -> dict:
    """The owner's training, on source labels -> ``source/source.safetensors``."""
    params, data = run.params, load(run.params, "source_train")
    none = np.empty((0, *params.image_size, 3), np.uint8)  # without data, weights are used as they are, see Params
    images, labels = (none, none[..., 0]) if data is None else (data.images, data.labels)
    return _train_on_labels(
        run, "source", new_model(run, "source", params.source_start), images, labels, load(params, "source_val"),
        steps=params.source_steps, peak=params.source_learning_rate, warmup=params.source_warmup_steps,
        optimizer=params.source_optimizer, weight_decay=params.source_weight_decay, backbone_rate=1.0,
        batch=params.source_batch_size or params.batch_size, scale=(1.0, 1.25),  # an owner enlarges a little
        jitter=params.source_jitter, noise=0.0, weights=None, smoothing=0.0, average=False, predict_scale=1.0,
    )  # fmt: skip


def train_stage1(run: Run) -> dict:
    """Cross-domain distillation: the box's labels teach the target network -> ``stage1/student.safetensors``."""
    params, data = run.params, load_to_learn(run.params)
    pseudo_labels = read_pseudo_labels(run, data)
    return _train_on_labels(
        run, "stage1", stage1_start(run), data.images, pseudo_labels, load(params, "target_val"),
        steps=params.stage1_steps, mixed_by=params.stage1_mix, **_target_recipe(params, pseudo_labels),
    )  # fmt: skip


def stage1_start(run: Run) -> nn.Module:
    """The student before its first step."""
    if run.params.init == "source":
        return trained_model(run, "source", "source", "source.safetensors").train()
    return new_model(run, "target", run.params.init)


def stage1_weights(params: Params, pseudo_labels: np.ndarray) -> Tensor | None:
    """``(C,)`` class weights of stage 1; None: all alike."""
    if params.stage1_class_weights == "none":
        return None
    return class_weights(class_frequencies(pseudo_labels, params.space.num_classes))


def train_oracle(run: Run) -> dict:
    """The reference: the target network on the target's own labels, trained as stage 1 is but for its mix ->
    ``oracle/student.safetensors``. A weak reference would flatter the share of the gap that is closed: a mix is there
    against noise, of which true labels have none, and makes the oracle weaker (docs/parameters.md)."""
    params, data = run.params, load(run.params, "target_train")
    start = "scratch" if params.init == "source" else params.init
    return _train_on_labels(
        run, "oracle", new_model(run, "target", start), data.images, data.labels, load(params, "target_val"),
        steps=params.oracle_steps, **_target_recipe(params, data.labels),
    )  # fmt: skip


def _target_recipe(params: Params, labels: np.ndarray) -> dict:
    """What stage 1 and the oracle share."""
    return {
        "peak": params.stage1_learning_rate, "warmup": params.warmup_steps,
        "optimizer": params.target_optimizer, "weight_decay": params.weight_decay,
        "backbone_rate": params.backbone_rate, "batch": params.batch_size, "scale": params.random_scale,
        "jitter": params.target_jitter, "noise": params.target_noise, "weights": stage1_weights(params, labels),
        "smoothing": params.stage1_label_smoothing, "average": params.average_weights,
        "predict_scale": params.predict_scale,
    }  # fmt: skip


def class_shares(params: Params, pseudo_labels: np.ndarray) -> ClassShares:
    """What keeps the teacher's class shares near those of the pseudo labels in stage 2."""
    return ClassShares(class_frequencies(pseudo_labels, params.space.num_classes), params.share_alignment)


def self_distillation_of(params: Params, mined: bool) -> SelfDistillation:
    """What a study tells the steps of stage 2; ``mined``: whether there are hard patches.

    A pasted patch shows the student one image's content in another, as a mix does; where there is none to paste, a mix
    takes its place (docs/parameters.md).
    """
    mix = params.stage2_mix
    if mix == "auto":
        mix = "none" if mined else "cutmix"
    return SelfDistillation(
        mix=mix, position_beta=params.position_beta, confidence=params.confidence,
        confidence_threshold=params.confidence_threshold, hard_patch_weight=params.hard_patch_weight,
        paste_patches=params.paste_patches, box_share=params.teacher_box_share,
    )  # fmt: skip


def train_stage2(run: Run, number: int) -> dict:
    """Round ``number`` (1, 2, ..) of self-distillation -> ``stage2/round-<number>/student.safetensors``."""
    params, stage = run.params, f"stage2/round-{number}"
    data = load_to_learn(params)
    before = "stage1" if number == 1 else f"stage2/round-{number - 1}"
    model = trained_model(run, "target", before, "student.safetensors").train()
    labels = read_pseudo_labels(run, data)
    patches = read_patches(run) if params.hard_patch_weight > 0 else []

    fabric = _launched(params)
    student, optimizer = set_up(
        params, fabric, model, params.target_optimizer, params.weight_decay, params.backbone_rate
    )
    teacher = make_teacher(model)
    result = teacher if params.average_weights else model
    shares = class_shares(params, labels).to(fabric.device)
    recipe, groups = self_distillation_of(params, bool(patches)), patch_groups(params, patches)
    # Every process has the whole batch: an image is mixed with any other, whoever computes it.
    total = partial(fabric.all_reduce, reduce_op="sum")
    sharing = Sharing(params.accumulate, fabric.global_rank, fabric.world_size, total)
    batches = Batches(data.images, labels, params, run.seed, stage, params.stage2_views)

    def losses_of(step: int, images: Tensor, train_ids: Tensor):
        student.train()
        if params.student_batch_norm == "frozen":
            freeze_batch_norm(student)
        teacher.train(params.teacher_mode == "train")
        generator = generator_for(run.seed, f"{stage} patches", step)
        hard = hard_batch(params, images, data.images, labels, groups, generator)
        generator = generator_for(run.seed, f"{stage} mix", step)
        answer = in_precision(teacher, fabric)
        return self_distillation_step(student, answer, images, train_ids, hard, recipe, generator, shares, sharing)

    return fit(
        fabric, {"student": model, "teacher": teacher, "shares": shares}, student, optimizer, losses_of, batches,
        run.path(stage), steps=params.stage2_steps, result=result,
        after_step=lambda step: ema_update(teacher, model, step, params.ema_alpha, params.ema_buffers == "average"),
        rate=lambda step: learning_rate(step, params.stage2_steps, params.stage2_learning_rate, params.warmup_steps),
        evaluate=_scorer(run, result, fabric, load(params, "target_val"), params.predict_scale),
    )  # fmt: skip


def changed(images: Tensor, numbers: range, seed: int, stage: str, jitter: float, noise: float) -> Tensor:
    """Jitter, blur and noise of a training on labels, which belong to the number of an image in the training.

    Args:
        images: ``(N, 3, H, W)`` float in [0, 1].
        numbers: the images' numbers, see :meth:`Batches.numbers`.
        seed, stage: of the training.
        jitter: strength of colour jitter (with probability 0.8) and blur (0.5); 0: neither.
        noise: see :func:`augmentations.sensor_noise`.
    """
    generators = [generator_for(seed, f"{stage} jitter", number) for number in numbers]
    if jitter > 0:
        draws = [draw_changes(1, jitter, 0.8, 0.5, generator) for generator in generators]
        images = jitter_and_blur(images, Changes(*map(torch.cat, zip(*draws, strict=True))))
    if noise > 0:
        each = zip(images.split(1), generators, strict=True)
        images = torch.cat([sensor_noise(image, noise, generator) for image, generator in each])
    return images


def _train_on_labels(run, stage, model, images, labels, evaluate_on, *, steps, peak, warmup, optimizer, weight_decay,
                     backbone_rate, batch, scale, jitter, noise, weights, smoothing, average, predict_scale,
                     mixed_by="none"):  # fmt: skip
    """Source model, stage 1 and oracle are one training; they differ in whose images and labels it sees, and stage 1
    alone may mix."""
    params, kind = run.params, optimizer
    fabric = _launched(params)
    student, optimizer = set_up(params, fabric, model, kind, weight_decay, backbone_rate)
    weights = None if weights is None else weights.to(fabric.device)
    # A mix needs the whole batch in every process; else each loads the images that it computes. All have as many parts.
    share, whole = (fabric.global_rank, fabric.world_size), (0, 1)
    loaded, computed = (share, whole) if mixed_by == "none" else (whole, share)
    parts = min(params.accumulate, batch // fabric.world_size)
    sharing = Sharing(parts, *computed, partial(fabric.all_reduce, reduce_op="sum"))
    batches = Batches(images, labels, params, run.seed, stage, True, *loaded, batch, scale)

    def losses_of(step: int, images: Tensor, train_ids: Tensor):
        student.train()
        generator = generator_for(run.seed, f"{stage} mix", step)
        images, train_ids = mix((images, train_ids), train_ids, mixed_by, params.position_beta, generator)
        numbers = batches.numbers(step)
        for part in sharing.slices(len(images)):
            images[part] = changed(images[part], numbers[part], run.seed, stage, jitter, noise)
        return cross_domain_step(student, images, train_ids, weights, smoothing, sharing)

    def rate(step: int) -> float:
        return polynomial(step, steps, peak) if kind == "sgd" else learning_rate(step, steps, peak, warmup)

    def after_step(step: int) -> None:
        if average:
            ema_update(result, model, step, params.ema_alpha)

    modules, result = {"source" if stage == "source" else "student": model}, model
    if average:
        modules["average"] = result = make_teacher(model)
    return fit(
        fabric, modules, student, optimizer, losses_of, batches, run.path(stage), steps=steps, rate=rate, result=result,
        after_step=after_step, evaluate=_scorer(run, result, fabric, evaluate_on, predict_scale),
    )  # fmt: skip


def _launched(params: Params) -> Fabric:
    fabric = make_fabric(params, params.devices)
    fabric.launch()
    return fabric


def _scorer(run: Run, model: nn.Module, fabric: Fabric, data: Data | None, scale: float) -> Callable[[], float] | None:
    """mIoU for the curve, on 100 images at most, evenly chosen; the evaluation takes all."""
    if data is None or data.labels is None:
        return None
    shown = data.of(data.evenly(100))

    def evaluate() -> float:
        return miou_of_present(score(model, fabric, shown, run.params.space.num_classes, scale))

    return evaluate


TRAININGS = {"source": train_source, "stage1": train_stage1, "stage2": train_stage2, "oracle": train_oracle}


def main(folder: str, stage: str, *numbers: int | str) -> None:
    TRAININGS[stage](stored_run(Path(folder)), *map(int, numbers))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One training of a run, in as many processes as its devices.")
    parser.add_argument("run", help="runs/<study>/<seed>")
    parser.add_argument("stage", choices=TRAININGS)
    parser.add_argument("round", type=int, nargs="?", help="of stage2: 1, 2 ..")
    args = parser.parse_args()
    if (args.stage == "stage2") != (args.round is not None):
        parser.error("stage2: say which round" if args.stage == "stage2" else f"{args.stage} has no rounds")
    end_with_parent(signal.SIGKILL)  # the notebook, or the first of the processes
    sys.exit(run_command(args.stage, lambda: main(args.run, args.stage, *filter(None, [args.round]))))

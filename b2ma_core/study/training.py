"""One training loop for every stage, which stops and goes on at any step with the same bits.

Nothing random has a memory here, see :mod:`b2ma_core.study.batches`. The same bits are a promise for the CPU with the
same number of threads. On CUDA the draws are the same, and the values are as near as kernels give that add in no fixed
order (bilinear upsampling and max pooling backward, for example).
"""

import copy
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from b2ma_core.data.datasets import Data
from b2ma_core.files import only_one, read_json, whole_file, write_json
from b2ma_core.metrics import ConfusionMatrix
from b2ma_core.models import CLASSIFIERS, load_weights, save_weights
from b2ma_core.params import Params
from b2ma_core.processes import cpuinfo
from b2ma_core.study.batches import Batches, generator_for, to_device


def make_fabric(params: Params, devices: int = 1) -> Fabric:
    """Device and precision as the parameters say, for one process or several; precision "auto" takes bf16 where there
    are units for it."""
    precision = params.precision
    if precision == "auto":
        if params.accelerator in ("auto", "cuda") and torch.cuda.is_available():
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = params.accelerator != "mps" and re.search(r"\b(avx512|amx)_bf16\b", cpuinfo())
        precision = "bf16-mixed" if fast else "32-true"
    strategy = "auto" if devices == 1 else "ddp"
    return Fabric(accelerator=params.accelerator, devices=devices, strategy=strategy, precision=precision)


def in_precision(model: nn.Module, fabric: Fabric) -> Callable[[Tensor], Tensor]:
    """A network as a function of images that computes in the study's precision."""

    def answer(images: Tensor) -> Tensor:
        with fabric.autocast():
            return model(images)

    return answer


def set_up(params: Params, fabric: Fabric, model: nn.Module, optimizer: str, weight_decay: float, backbone_rate: float):
    """The network as the processes train it, and its optimizer. The weights are those of ``model`` itself."""
    model = model.to(fabric.device, memory_format=torch.channels_last)
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    model = compiled(model, fabric, params.image_size) if params.compile else model
    classifier = [p for name, p in trained.items() if name.startswith(CLASSIFIERS)]
    body = [p for name, p in trained.items() if not name.startswith(CLASSIFIERS)]
    if not classifier and (optimizer == "sgd" or backbone_rate != 1):
        raise ValueError(f"no parameter of this network begins with {', '.join(CLASSIFIERS)}: which is its classifier, "
                         "with a rate of its own? Name it so, or add its name to CLASSIFIERS of models/")  # fmt: skip
    factors = (1, 10) if optimizer == "sgd" else (backbone_rate, 1)
    groups = [{"params": part, "factor": factor} for part, factor in zip((body, classifier), factors, strict=True)]
    kind = {"sgd": partial(torch.optim.SGD, momentum=0.9), "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return fabric.setup(model, kind[optimizer](groups, lr=0.0, weight_decay=weight_decay))


def compiled(model: nn.Module, fabric: Fabric, size: Sequence[int]) -> nn.Module:
    """torch.compile's form of a network if a training step of it works here; else the network, and a message why."""
    trial = copy.deepcopy(model).train()
    try:
        with fabric.autocast():
            torch.compile(trial)(torch.zeros(2, 3, *size, device=fabric.device)).mean().backward()
    except Exception as error:  # whatever is missing: a compiler, a header, an operator
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        print(f"compile: does not work here, training goes on without ({reason[:200]})")
        return model
    return torch.compile(model)


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a half cosine from ``peak`` to 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def polynomial(step: int, steps: int, peak: float) -> float:
    """``peak * (1 - step / steps) ** 0.9``, as DeepLab is trained (Chen et al., PAMI 2018)."""
    return peak * (1 - step / steps) ** 0.9


def fit(
    fabric: Fabric,
    modules: dict[str, nn.Module],
    wrapped: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses_of: Callable[[int, Tensor, Tensor], Iterator[Tensor]],
    batches: Batches,
    folder: Path,
    *,
    steps: int,
    rate: Callable[[int], float],
    result: nn.Module,
    after_step: Callable[[int], None] = lambda step: None,
    evaluate: Callable[[], float] | None = None,
) -> dict:
    """Train, or go on training, or do nothing if it was finished before.

    Args:
        fabric: device, precision, processes.
        modules: all that the checkpoint keeps, by name; the first is trained.
        wrapped: the first module as ``fabric`` has set it up.
        optimizer: of the first module, set up by ``fabric``.
        losses_of: (step, images, train ids) -> losses of the parts of a batch, one after another, which sum, over
            processes too, to the step's loss: what the steps in :mod:`distillation` yield.
        batches: what the steps see.
        folder: gets ``progress.pt`` meanwhile and ``<name of the first>.safetensors``, ``history.json`` at the end.
        steps: number of steps.
        rate: learning rate of a step.
        result: what is scored and written: the first of the modules, or its average.
        after_step: called after each update, for the average teacher.
        evaluate: mIoU (0 .. 1) for the curve; None where there are no labels to score with. It steers nothing.

    Returns:
        The history: ``loss`` (one a step), ``miou`` ([step, value] pairs).
    """
    params, progress = batches.params, folder / "progress.pt"
    with only_one(folder) if fabric.is_global_zero else nullcontext():
        name = next(iter(modules))
        if (folder / "history.json").is_file():
            load_weights(result, folder / f"{name}.safetensors")
            return read_json(folder / "history.json")
        start, history = 0, {"loss": [], "miou": []}
        if progress.is_file():
            start, history = _resume(progress, modules, optimizer)
        workers = batches.workers(fabric.world_size)
        if workers < params.workers and fabric.is_global_zero:
            print(f"workers: {params.workers} loader processes need more shared memory than /dev/shm has free: going "
                  f"on with {workers} (a container gets more by --shm-size)")  # fmt: skip
        losses: list[Tensor] = []
        bar = tqdm(range(start, steps), initial=start, total=steps, desc=folder.name, unit="step", mininterval=5,
                   disable=not fabric.is_global_zero)  # fmt: skip
        for step, (images, train_ids) in zip(bar, batches.from_step(start, steps, workers), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate(step) * group.get("factor", 1)
            # Dropout draws from torch's own state: after a stop it has to draw the same.
            torch.manual_seed(generator_for(batches.seed, f"{batches.stage} network", step).initial_seed())
            images, train_ids = to_device(images, fabric.device), train_ids.to(fabric.device).long()
            losses.append(_gradients(fabric, wrapped, losses_of(step, images, train_ids)))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            after_step(step)
            done = step + 1
            if evaluate and (done % params.evaluate_every == 0 or done == steps):
                history["miou"].append([done, evaluate()])
            if done % params.save_every == 0 or done == steps:
                history["loss"] += torch.stack(losses).tolist()
                losses.clear()
                bar.set_postfix(loss=f"{np.mean(history['loss'][-params.save_every :]):.3f}", refresh=False)
                if fabric.is_global_zero:
                    _save(progress, done, modules, optimizer, history)
        if fabric.is_global_zero:
            save_weights(result.state_dict(), folder / f"{name}.safetensors")
            write_json(folder / "history.json", history)  # last: says that all is there
            progress.unlink(missing_ok=True)
        fabric.barrier()
    return history


def _gradients(fabric: Fabric, wrapped: nn.Module, losses: Iterator[Tensor]) -> Tensor:
    """Gradients of a step's losses, summed over processes; returns their sum."""
    total = torch.zeros((), device=fabric.device)
    with fabric.no_backward_sync(wrapped):  # processes may have unlike numbers of parts: summed once, below
        for loss in losses:
            fabric.backward(loss)
            total += loss.detach()
    if fabric.world_size > 1:
        statistics = [m for m in wrapped.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
        _over_processes(fabric, "sum", [total, *(p.grad for p in wrapped.parameters() if p.grad is not None)])
        _over_processes(fabric, "mean", [t for m in statistics for t in (m.running_mean, m.running_var)])
    return total


@torch.no_grad()
def _over_processes(fabric: Fabric, operation: str, tensors: list[Tensor]) -> None:
    """Sum or mean of tensors over processes, in place and in one message."""
    if not tensors:
        return
    values = fabric.all_reduce(torch.cat([t.flatten() for t in tensors]), reduce_op=operation)
    for tensor, value in zip(tensors, values.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(value.view(tensor.shape))


@torch.no_grad()
def predict(
    model: nn.Module, fabric: Fabric, images: np.ndarray, size: tuple[int, int] | None = None, scale: float = 1.0
) -> np.ndarray:
    """What a network says to images.

    Args:
        model: the network; it answers in eval mode.
        fabric: device and precision.
        images: ``(N, H, W, 3)`` uint8 RGB.
        size: (height, width) that the logits are brought to; None: the images'.
        scale: the network sees the images enlarged so. One that learnt from enlarged views knows things at that size.

    Returns:
        ``(N, h, w)`` uint8 train ids.

    Source of the scale: Touvron et al., Fixing the train-test resolution discrepancy (NeurIPS 2019).
    """
    was_training = model.training
    model.eval()
    answers, size = [], size or images.shape[1:3]
    seen = [round(side * scale) for side in images.shape[1:3]]
    for i in range(0, len(images), 8):
        batch = to_device(torch.from_numpy(np.array(images[i : i + 8])).permute(0, 3, 1, 2), fabric.device)
        if scale != 1:
            batch = nn.functional.interpolate(batch, seen, mode="bilinear", align_corners=False)
        with fabric.autocast():
            logits = model(batch).float()
        for one in logits.split(1):  # at 1024 x 2048 pixels the logits of eight images are 1.3 GB
            if tuple(size) != one.shape[-2:]:
                one = nn.functional.interpolate(one, size, mode="bilinear", align_corners=False)
            answers.append(one.argmax(1).to(torch.uint8).cpu().numpy())
    model.train(was_training)
    return np.concatenate(answers)


def score(model: nn.Module, fabric: Fabric, data: Data, num_classes: int, scale: float = 1.0) -> ConfusionMatrix:
    """Confusion matrix of a network on labelled data, at the labels' own size; each process scores its share. The
    scale is that of :func:`predict`."""
    scores, own = ConfusionMatrix(num_classes), range(len(data))[fabric.global_rank :: fabric.world_size]
    for indices in data.batches(8, own):
        size = data.labels[indices[0]].shape
        for i, said in zip(indices, predict(model, fabric, data.images[indices], size, scale), strict=True):
            scores.update(said, data.labels[i])  # one at a time: counting takes 40 bytes a pixel
    if fabric.world_size > 1:
        scores.matrix = fabric.all_reduce(scores.matrix.to(fabric.device), reduce_op="sum").cpu()
    return scores


def _save(path: Path, step: int, modules, optimizer, history: dict) -> None:
    state = {
        "step": step,
        "modules": {name: module.state_dict() for name, module in modules.items()},
        "optimizer": optimizer.state_dict(),
        "history": json.dumps(history),
    }
    with whole_file(path) as file:
        torch.save(state, file)


def _resume(path: Path, modules, optimizer) -> tuple[int, dict]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, module in modules.items():
            module.load_state_dict(state["modules"][name])
        optimizer.load_state_dict(state["optimizer"])
        return state["step"], json.loads(state["history"])
    except Exception as error:  # torch, zip and key errors alike mean that the file is of no use
        raise ValueError(
            f"{path}: this checkpoint is truncated or of another network ({repr(error)[:200]}). "
            "Remove the file to begin this stage anew; finished stages stay"
        ) from error

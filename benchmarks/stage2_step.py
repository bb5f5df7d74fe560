"""A stage-2 step against a bare forward and backward pass of the same work: ``make benchmark``.

The same work is what the method asks of the networks: the teacher's forward pass on clean images, the student's
forward and backward pass on mixed images and on hard patches, the optimiser's step. All else is overhead: reading the
batch, SpatialMix, jitter and blur, votes, cutting patches, the teacher's average. Both are timed in turns in one run.

At the paper's size, on scenes of MiniCity: ``.venv/bin/python benchmarks/stage2_step.py --study gta5_cityscapes``.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from b2ma_core import minicity
from b2ma_core.distillation import ema_update, label_loss, make_teacher, self_distillation_step
from b2ma_core.files import PROJECT
from b2ma_core.hard_patches import mine
from b2ma_core.models import build_model, freeze_batch_norm
from b2ma_core.params import Params, load_params
from b2ma_core.study import mining, stages
from b2ma_core.study.batches import Batches, generator_for, to_device
from b2ma_core.study.records import peak_memory
from b2ma_core.study.training import in_precision, make_fabric

WARM_UP = 5  # steps that are not counted


def time_steps(params: Params, images: np.ndarray, labels: np.ndarray, steps: int) -> dict[str, float | str]:
    """Time the method's steps and bare ones, in turns.

    Args:
        params: sizes, network, batch, loaders and device.
        images: ``(N, H, W, 3)`` uint8.
        labels: ``(N, H, W)`` uint8 train ids, as the box would give them.
        steps: of each, after five that are not counted.

    Returns:
        Medians in ms, the overhead in percent, on a GPU the peak of its memory in GiB, and the precision.
    """
    fabric, recipe = make_fabric(params), stages.self_distillation_of(params, True)
    cuda, classes = fabric.device.type == "cuda", params.space.num_classes
    groups = mining.patch_groups(params, mine(labels, params.rare_classes or [6, 7, 12, 17, 18], params.grid))
    model = build_model(params.target_network, classes).to(fabric.device, memory_format=torch.channels_last)
    student, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=1e-5))
    teacher, shares = make_teacher(model), stages.class_shares(params, labels).to(fabric.device)
    answer = in_precision(teacher, fabric)
    loaded = Batches(images, labels, params, 0, "bench", params.stage2_views).from_step(0, steps + WARM_UP)

    def finish(losses: Iterator[Tensor]) -> None:
        for loss in losses:
            fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def method(step: int) -> None:
        batch, train_ids = next(loaded)
        batch, train_ids = to_device(batch, fabric.device), train_ids.to(fabric.device).long()
        hard = mining.hard_batch(params, batch, images, labels, groups, generator_for(0, "patches", step))
        freeze_batch_norm(student.train())
        generator = generator_for(0, "mix", step)
        finish(self_distillation_step(student, answer, batch, train_ids, hard, recipe, generator, shares))
        ema_update(teacher, model, step)

    def fixed(count: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        seen = torch.rand(count, 3, *size, device=fabric.device).contiguous(memory_format=torch.channels_last)
        return seen, torch.randint(classes, (count, *size), device=fabric.device)

    size = tuple(images.shape[1:3])
    passes = [(1, fixed(params.batch_size, tuple(params.crop or size) if params.stage2_views else size))]
    if not params.paste_patches:
        passes.append((0.1, fixed(params.hard_patch_batch, tuple(s // params.grid for s in size))))

    def bare(step: int) -> None:
        with torch.no_grad():
            answer(passes[0][1][0])
        freeze_batch_norm(student.train())
        finish(weight * label_loss(student(seen), ids) for weight, (seen, ids) in passes)

    times, memory = {"bare": [], "method": []}, {"bare": 0.0, "method": 0.0}
    for step in range(steps + WARM_UP):
        for name, work in (("bare", bare), ("method", method)):
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            work(step)
            if cuda:
                torch.cuda.synchronize()
                memory[name] = max(memory[name], torch.cuda.max_memory_allocated() / 2**30)
            if step >= WARM_UP:
                times[name].append(1000 * (time.perf_counter() - started))
    medians = {f"{name}, ms": statistics.median(values) for name, values in times.items()}
    return {
        **medians,
        "overhead, %": 100 * (medians["method, ms"] / medians["bare, ms"] - 1),
        **({f"{name}, GiB": peak for name, peak in memory.items()} if cuda else {}),
        "precision": fabric._precision.precision,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", default="minicity", help="sizes, network and batch of params/<study>.yaml")
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    params = load_params(PROJECT / "params" / f"{args.study}.yaml")
    samples = [minicity.render(i, "camera", "train", size=tuple(params.image_size)) for i in range(32)]
    found = time_steps(params, *(np.stack(arrays) for arrays in zip(*samples, strict=True)), args.steps)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    print(f"{platform.machine()}, {device}, torch {torch.__version__}, precision {found['precision']}")
    print(
        f"stage-2 step {found['method, ms']:.1f} ms, bare passes {found['bare, ms']:.1f} ms: "
        f"overhead {found['overhead, %']:.1f}%; peak memory, GiB: {peak_memory()}"
    )
    hours = found["method, ms"] * params.stage2_steps * params.rounds / 3.6e6
    print(f"by extrapolation, not measured: {hours:.2f} h for the {params.rounds} rounds of {args.study}")


if __name__ == "__main__":
    main()

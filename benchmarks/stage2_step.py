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

import numpy as np
import torch

from b2ma_core import minicity
from b2ma_core.distillation import box_votes, ema_update, label_loss, make_teacher, self_distillation_step
from b2ma_core.files import PROJECT
from b2ma_core.hard_patches import holders, mine
from b2ma_core.models import build_model, freeze_batch_norm
from b2ma_core.params import load_params
from b2ma_core.study.records import peak_memory
from b2ma_core.study.stages import class_shares, hard_batch, self_distillation_of
from b2ma_core.study.training import Batches, batch_indices, generator_for, in_precision, make_fabric, to_device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", default="minicity", help="sizes, network and batch of params/<study>.yaml")
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    params = load_params(PROJECT / "params" / f"{args.study}.yaml")
    samples = [minicity.render(i, "camera", "train", size=tuple(params.image_size)) for i in range(32)]
    images, labels = (np.stack(arrays) for arrays in zip(*samples, strict=True))
    by_class = holders(mine(labels, [6, 7, 12, 17, 18], params.grid))
    fabric = make_fabric(params)
    model = build_model(params.target_network, 19).to(fabric.device, memory_format=torch.channels_last)
    student, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=1e-5))
    teacher = make_teacher(model)
    answer = in_precision(teacher, fabric)
    recipe = self_distillation_of(params)
    shares = class_shares(params, labels).to(fabric.device)
    batches = Batches(images, None, params, 0, "bench", augment=False)

    def finish(losses):
        for loss in losses:
            fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def method(step):
        batch = to_device(batches[step][0], fabric.device)
        generator = generator_for(0, "patches", step)
        hard = hard_batch(params, fabric.device, images, labels, by_class, generator)
        freeze_batch_norm(student)
        chosen = batch_indices(len(images), params.batch_size, step, 0, "bench")
        votes = box_votes(labels[chosen], None, params.teacher_votes)
        generator = generator_for(0, "mix", step)
        finish(self_distillation_step(student, answer, batch, hard, recipe, generator, shares, votes))
        ema_update(teacher, model, step)

    fixed = to_device(batches[0][0], fabric.device)
    target = torch.randint(0, 19, (len(fixed), *fixed.shape[-2:]), device=fabric.device)
    rows, columns = (side // params.grid for side in params.image_size)
    small = fixed[:, :, :rows, :columns].contiguous(memory_format=torch.channels_last)
    small_target = target[:, :rows, :columns].contiguous()

    def bare(step):
        with torch.no_grad():
            answer(fixed)
        freeze_batch_norm(student)
        finish(f() for f in (lambda: label_loss(student(fixed), target),
                             lambda: 0.1 * label_loss(student(small), small_target)))  # fmt: skip

    seconds = {"method": [], "bare": []}
    for step in range(args.steps + 5):
        for name, work in (("method", method), ("bare", bare)):
            started = time.perf_counter()
            work(step)
            if fabric.device.type == "cuda":
                torch.cuda.synchronize()
            if step >= 5:
                seconds[name].append(time.perf_counter() - started)
    whole, least = (statistics.median(seconds[name]) for name in ("method", "bare"))
    device = torch.cuda.get_device_name() if fabric.device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{platform.machine()}, {device}, torch {torch.__version__}, precision {fabric._precision.precision}")
    print(
        f"stage-2 step {1e3 * whole:.1f} ms, bare passes {1e3 * least:.1f} ms: "
        f"overhead {100 * (whole / least - 1):.1f}%; peak memory, GiB: {peak_memory()}"
    )
    hours = whole * params.stage2_steps * params.rounds / 3600
    print(f"by extrapolation, not measured: {hours:.2f} h for the {params.rounds} rounds of {args.study}")


if __name__ == "__main__":
    main()

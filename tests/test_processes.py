"""Several processes, on the CPU with gloo: what one computes, two compute, and a stopped training goes on."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import same_tree
from safetensors.torch import load_file
from test_distillation import RECIPE, gradients, problem
from torch import distributed

from b2ma_core.data import conversion, datasets
from b2ma_core.distillation import Sharing, self_distillation_step
from b2ma_core.files import write_png
from b2ma_core.hard_patches import mine
from b2ma_core.models import save_weights
from b2ma_core.params import check_params
from b2ma_core.study.mining import write_patches
from b2ma_core.study.records import Run
from b2ma_core.study.stages import new_model

# Started in two processes by Fabric. "frozen": batch norm keeps its statistics, which two processes do not share on a
# CPU (on CUDA they do, by SyncBatchNorm). "stop": the machine goes away after the first checkpoint.
SCRIPT = """
import os, sys
from pathlib import Path
import torch
from b2ma_core.data import datasets
from b2ma_core.study import stages, training

folder, stage, data, *how = sys.argv[1:]
stage, *number = stage.split()
load = datasets.load
stages.load = datasets.load = lambda params, name: load(params, name, Path(data))
if "frozen" in how:
    torch.nn.BatchNorm2d.train = lambda self, mode=True: torch.nn.Module.train(self, False)
if "stop" in how:
    save = training._save
    def save_and_stop(*values):
        save(*values)
        os._exit(7)
    training._save = save_and_stop
stages.main(folder, stage, *number)
"""


@pytest.fixture
def train(smoke_params, tmp_path):
    """Train a source model of 6 steps, or another stage, in processes of its own; returns its folder and the exit."""
    (tmp_path / "script.py").write_text(SCRIPT)
    values = {**smoke_params.model_dump(), "accelerator": "cpu", "source_steps": 6, "save_every": 3, "evaluate_every": 3,
              "source_optimizer": "sgd", "source_learning_rate": 1e-2, "precision": "32-true"}  # fmt: skip
    conversion.prepare(check_params(values, "x"), 1, tmp_path / "data")
    labels = np.load(tmp_path / "data" / smoke_params.study / "source_train" / "labels.npy", mmap_mode="r+")
    labels[::2, :, 20:] = 255  # processes have unlike numbers of labelled pixels

    def run(name, *how, stage="source", **changes):
        run = Run(check_params({**values, **changes}, "x"), 0, tmp_path / name)
        run.claim()
        if stage != "source":
            across_the_boundary(run, datasets.load(run.params, "target_train", tmp_path / "data"))
        command = [sys.executable, tmp_path / "script.py", run.folder, stage, tmp_path / "data", *how]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        return run.path(*stage.replace(" ", "/round-").split("/")), done

    return run


def across_the_boundary(run, data):
    """What stage 2 needs: a student of stage 1, labels with their votes, hard patches."""
    save_weights(new_model(run, "target", "scratch").state_dict(), run.path("stage1", "student.safetensors"))
    shares = np.random.default_rng(0).integers(0, 256, data.labels.shape, dtype=np.uint8)
    for name, label, share in zip(data.names, data.labels, shares, strict=True):
        for suffix, values in (("", label), ("_votes", label), ("_confidence", share)):
            write_png(run.path("labels", f"target_train{suffix}", f"{name}.png"), np.asarray(values))
    write_patches(run, mine(data.labels, [6, 7, 11, 12, 17, 18], run.params.grid))
    run.record("04_hard_patches", {})


def a_step_of_two(rank, folder):
    """One of two processes: gradients of two steps of stage 2, each process in three parts at the most."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    student, teacher, images, hard, said, shares = problem()

    def total(tensor):
        distributed.all_reduce(tensor)
        return tensor

    sharing, kept = Sharing(3, rank, 2, total), []
    for seed in range(2):
        student.zero_grad()
        generator = torch.Generator().manual_seed(seed)
        step = self_distillation_step(student, teacher, images, said, hard, RECIPE, generator, shares, sharing)
        own, loss = gradients(student, step)
        kept.append((total(own), total(torch.tensor(loss)), shares.running.clone()))
    torch.save(kept, f"{folder}/{rank}.pt")


def test_two_processes_have_the_gradients_of_one(tmp_path):
    torch.multiprocessing.spawn(a_step_of_two, (tmp_path,), nprocs=2)
    student, teacher, images, hard, said, shares = problem()
    both = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for seed in range(2):
        student.zero_grad()
        generator = torch.Generator().manual_seed(seed)
        step = self_distillation_step(student, teacher, images, said, hard, RECIPE, generator, shares)
        expected, loss = gradients(student, step)
        for theirs, their_loss, running in (both[0][seed], both[1][seed]):
            assert (theirs - expected).norm() < 1e-5 * expected.norm()
            assert their_loss.item() == pytest.approx(loss, rel=1e-5) and torch.equal(running, shares.running)


def test_two_processes_and_a_batch_in_parts_distil_as_one_does(train):
    options = {"stage": "stage2 1", "stage2_steps": 4, "evaluate_every": 2, "hard_patch_batch": 5}
    histories = []
    for name, changes in (("one", {}), ("two", {"devices": 2, "accumulate": 2})):  # each part is one image
        folder, done = train(name, **options, **changes)
        assert done.returncode == 0, done.stderr
        histories.append(json.loads((folder / "history.json").read_text()))
    torch.testing.assert_close(histories[1]["loss"], histories[0]["loss"], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(histories[1]["miou"], histories[0]["miou"], rtol=0, atol=1e-3)


def flat(state):
    return torch.cat([state[key].flatten().float() for key in sorted(state)])


def test_two_processes_and_a_batch_in_parts_train_as_one_does(train, smoke_params):
    one, _ = train("one", "frozen")
    run = Run(smoke_params, 0, one)
    history = json.loads((one / "history.json").read_text())
    reference, start = (
        flat(load_file(one / "source.safetensors")),
        flat(new_model(run, "source", "scratch").state_dict()),
    )
    for name, changes in (("two", {"devices": 2}), ("parts", {"accumulate": 4})):
        other, done = train(name, "frozen", **changes)
        assert done.returncode == 0, done.stderr
        weights = flat(load_file(other / "source.safetensors"))
        apart, moved = (weights - reference).norm(), (reference - start).norm()
        assert apart < 1e-3 * moved
        theirs = json.loads((other / "history.json").read_text())
        torch.testing.assert_close(theirs["loss"], history["loss"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(theirs["miou"], history["miou"], rtol=0, atol=1e-3)  # of all images, not of a share


def test_two_processes_that_were_stopped_end_with_the_same_bits(train):
    whole, done = train("whole", devices=2)
    assert done.returncode == 0, done.stderr
    stopped, done = train("stopped", "stop", devices=2)
    assert done.returncode == 7 and (stopped / "progress.pt").is_file() and not (stopped / "history.json").exists()
    stopped, done = train("stopped", devices=2)
    assert done.returncode == 0, done.stderr
    same_tree(whole, stopped, "*.[sj]*")

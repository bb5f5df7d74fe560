"""Several processes, on the CPU with gloo: what one computes, two compute, and a stopped training goes on."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import same_tree
from safetensors.torch import load_file

from b2ma_core.data import datasets
from b2ma_core.params import check_params
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
stages.load = lambda params, name: datasets.load(params, name, Path(data))
if "frozen" in how:
    torch.nn.BatchNorm2d.train = lambda self, mode=True: torch.nn.Module.train(self, False)
if "stop" in how:
    save = training._save
    def save_and_stop(*values):
        save(*values)
        os._exit(7)
    training._save = save_and_stop
stages.main(folder, stage)
"""


@pytest.fixture
def train(smoke_params, tmp_path):
    """Train a source model of 6 steps in processes of its own; returns the run's folder and the exit code."""
    (tmp_path / "script.py").write_text(SCRIPT)
    values = {**smoke_params.model_dump(), "accelerator": "cpu", "source_steps": 6, "save_every": 3, "evaluate_every": 3,
              "source_optimizer": "sgd", "source_learning_rate": 1e-2, "precision": "32-true"}  # fmt: skip
    datasets.prepare(check_params(values, "x"), 1, tmp_path / "data")
    labels = np.load(tmp_path / "data" / smoke_params.study / "source_train" / "labels.npy", mmap_mode="r+")
    labels[::2, :, 20:] = 255  # processes have unlike numbers of labelled pixels

    def run(name, *how, **changes):
        run = Run(check_params({**values, **changes}, "x"), 0, tmp_path / name)
        run.claim()
        command = [sys.executable, tmp_path / "script.py", run.folder, "source", tmp_path / "data", *how]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        return run.path("source"), done

    return run


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

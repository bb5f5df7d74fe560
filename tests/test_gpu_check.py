"""The checks for a GPU, small and on the CPU: they run, their bounds hold, and a check that fails is seen. Of the drill
its parameters alone."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from b2ma_core.files import PROJECT
from b2ma_core.params import check_params


def benchmark(name: str):
    spec = importlib.util.spec_from_file_location(name, PROJECT / "benchmarks" / f"{name}.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gpu_check():
    return benchmark("gpu_check")


def test_the_small_checks_hold_on_a_cpu(gpu_check, tmp_path):
    # All but torch.compile, which takes minutes on a CPU, and resume, which here is the same as its other form.
    chosen = [check.__name__ for check, _ in gpu_check.CHECKS if check.__name__ not in ("compiled", "resume")]
    out = tmp_path / "out.json"
    assert gpu_check.main(["--small", "--device", "cpu", "--only", *chosen, "--out", str(out)]) == 0
    rows = {row["check"]: row for row in json.loads(out.read_text())["rows"]}
    assert list(rows) == chosen
    assert not [row for row in rows.values() if {"failed", "skipped", "stopped"} & set(row["measured"])]
    assert rows["resume_deterministic"]["measured"]["same bits"] is True
    assert rows["default_study"]["measured"]["all, s"] > 0
    assert not list((PROJECT / "data").glob("gpu_check_*"))


def test_it_needs_no_package_of_the_notebooks():
    names = ("jupyter_core", "IPython", "papermill", "nbformat", "ipywidgets", "pandas", "seaborn", "scipy", "tabulate")
    without = f"import runpy, sys; sys.modules |= dict.fromkeys({names}); sys.argv = ['gpu_check', '--help']; "
    command = [sys.executable, "-c", without + "runpy.run_path('benchmarks/gpu_check.py', run_name='__main__')"]
    told = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT)
    assert told.returncode == 0, told.stderr
    assert "--seconds" in told.stdout


def test_a_check_that_raises_or_breaks_its_bound_does_not_stop_the_others(gpu_check, monkeypatch, capsys):
    def raises(case):
        raise RuntimeError("no such kernel")

    def far_off(case):
        return gpu_check.within({"logits": 0.5}, 1e-4)

    monkeypatch.setattr(gpu_check, "CHECKS", ((raises, 1), (far_off, 1), (gpu_check.losses, 1)))
    assert gpu_check.main(["--small", "--device", "cpu"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "no such kernel" in lines[1] and "losses" in lines[3] and " ok " in lines[3]
    assert lines[-1] == "3 checks: NOT within bounds: raises, far_off"


def test_the_step_at_full_size_is_the_published_one(gpu_check):
    params = gpu_check.paper_params(gpu_check.Case(torch.device("cpu"), False, 0.0, Path("nowhere")))
    assert (params.target_network, params.image_size, params.batch_size) == ("deeplabv2_resnet101", [512, 1024], 4)
    assert params.stage2_mix == "spatial" and params.hard_patch_weight == 0.1 and params.hard_patch_batch == 4


def test_a_check_that_no_longer_fits_is_skipped_and_says_so(gpu_check):
    case = gpu_check.Case(torch.device("cpu"), True, time.time(), Path("nowhere"))
    row = gpu_check.run_check(gpu_check.losses, 60, case)
    assert row.holds is None and "skipped" in row.measured


def test_the_deadline_stops_a_check_wherever_it_is(gpu_check):
    with pytest.raises(gpu_check.TimeIsOut), gpu_check.until(time.time()):
        while True:
            pass


def test_a_network_with_one_changed_weight_is_out_of_bounds(gpu_check):
    images, _ = gpu_check.batch(1, (32, 64))
    reference, model = gpu_check.pair("deeplab_small", torch.device("cpu"))
    with torch.no_grad():
        next(model.parameters())[0] *= 1.1
        found = gpu_check.apart(model(gpu_check.on(torch.device("cpu"), images)), reference(images))
    assert gpu_check.within({"logits": found}, 1e-4).holds is False


def test_the_studies_of_the_drill_are_studies(tmp_path):
    drill = benchmark("drill")
    for name, values in drill.studies(tmp_path, [256, 512], "deeplabv2_resnet101").items():
        for study, devices, _ in drill.PLAN:
            if study == name:
                check_params({"study": name, **values, "devices": devices}, name)

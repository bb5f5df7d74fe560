"""Command lines: what is wrong is one message, said before anything starts; what was started ends with its parent."""

import subprocess
import sys

import pytest
from conftest import Project
from PIL import Image

from b2ma_core.processes import PARENT
from b2ma_core.study.check import count_of, seeds_of


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """A copy of the project, in a folder whose name needs quotes."""
    return Project(tmp_path_factory.mktemp("bare") / "mit Leerzeichen und ü")


def one_message(output: str, *said: str) -> None:
    for text in said:
        assert text in output, output
    assert "Traceback" not in output and len(output.splitlines()) < 16, output


@pytest.mark.parametrize(
    "words, said",
    [
        ("study STUDY=smok", "params/smok.yaml: no such study; did you mean 'smoke'"),
        ("study STUDY=../smoke", "'../smoke' is no name"),
        ("study STUDY=", "'' is no name"),
        ("study STUDY=wrong", "stage1_step: unknown parameter; did you mean 'stage1_steps'?"),
        ("study SEEDS=x", "SEEDS: must be whole numbers of at least 0, as in SEEDS=\"0 1 2\", got 'x'"),
        ("study SEEDS=1,1", "SEEDS: each once"),
        ("study JOBS=0", "JOBS: must be a whole number of at least 1, got '0'"),
        ("study CORES=-1", "CORES: must be a whole number of at least 1, got '-1'"),
        ("study PROFILE=profiles/slrum", "PROFILE: no folder profiles/slrum; there is profiles/slurm"),
        ("ablation ARMS=nothing", "no arm 'nothing' (there are: published_stage1"),
        ("ablation ARMS=plain STUDY=minicity+mix", "name the study that it stems from"),
        ("ablation SEEDS=-1", "SEEDS: must be whole numbers"),
        ("figures STUDY=smoke SEEDS=3", "runs/smoke: no record of an evaluation for seed 3"),
        ("figures RUNS=nowhere", "nowhere/minicity: no record of an evaluation for seed 0"),
        ("test CORES=two", "CORES: must be a whole number"),
        ("clean STUDY=", "'' is no name of a study"),
        ("clean STUDY=../params", "'../params' is no name of a study"),
        ("study JOBS=x SEEDS=y", "SEEDS: must"),  # and not the first alone
        ("study JOBS=x SEEDS=y", "JOBS: must"),
    ],
)
def test_make_says_what_it_was_told_wrong(project, words, said):
    project.write_study("wrong", stage1_step=3)
    code, output = project.make(*words.split())
    assert code == 2
    one_message(output, said)
    assert not (project.root / "runs").exists()


def test_make_says_where_it_cannot_write(project, tmp_path):
    (tmp_path / "file").touch()
    code, output = project.make("study", "STUDY=smoke", HOME=str(tmp_path / "file"))
    assert code == 2
    one_message(output, f"{tmp_path}/file: cannot be written (Not a directory)", "name another home: HOME=")
    (project.root / "runs").touch()
    code, output = project.make("study", "STUDY=smoke")
    assert code == 2
    one_message(output, "runs: cannot be written")
    (project.root / "runs").unlink()


def test_a_notebook_that_fails_under_make_says_why_once(project):
    project.write_study("lost", target_dataset="folder", target_root="no/where")
    code, output = project.make("study", "STUDY=lost")
    assert code == 2 and output.count("no/where/train") == 1
    one_message(output, "Expected: <root>/<split>", "job execution failed")


def test_what_snakemake_itself_says_is_shown(project):
    (project.root / "notebooks" / "04_hard_patches.ipynb").rename(project.root / "04")
    code, output = project.make("study", "STUDY=smoke")
    (project.root / "04").rename(project.root / "notebooks" / "04_hard_patches.ipynb")
    assert code == 2
    one_message(output, "Missing input files for rule 04_hard_patches", "notebooks/04_hard_patches.ipynb")


@pytest.mark.parametrize(
    "words, said",
    [
        ("--study ../x", "'../x' is no name"),
        ("--study smoke --seed -1", "seed: must be a whole number of at least 0, got -1"),
        ("--study smoke --seed x", "argument --seed: invalid int value: 'x'"),
        ("--study smoke -p runs", "-p runs: must be NAME=VALUE"),
        ("--study smoke -p runs=", "-p runs=: must be of the form of"),
        ("--study smoke -p runs=nowhere", "-p runs: no folder"),
        ("--study smoke -p seed=5", "-p seed=5: say --seed 5"),
        ("--study smoke -p study=x", "-p study=x: say --study x"),
        ("--study smoke -p gird=5", "-p gird: 07_figures has no such parameter; it has runs, seed, seeds, study"),
        ("--study smoke -p seeds=0", "-p seeds=0: must be of the form of [0]"),
        ("--study smoke -p seeds=[-1]", "-p seeds=[-1]: must be of the form of [0]"),
        ("--study smoke -p seeds=[a]", "-p seeds=[a]: must be of the form of [0]"),
        ("--study smoke -p seeds=[0", "'[0' cannot be read as YAML"),
        ("--study smoke -p seeds=[0] -p seeds=[1]", "-p seeds: given twice"),
    ],
)
def test_a_notebook_says_what_it_was_told_wrong(project, words, said):
    code, output = project.python("notebooks/run.py", "07_figures", *words.split())
    assert code in (1, 2)
    one_message(output, said)


@pytest.mark.parametrize(
    "words, said",
    [
        ("minicity --domain game --images new --count 0", "--count: must be at least 1, got 0"),
        ("minicity --domain game --images new --size 8 8", "at least 32"),
        ("minicity --domain game --images new --size 64 999999", "--size: must be at most 8192"),
        ("minicity --domain game --images new --seed -1", "seed must be a whole number"),
        ("minicity --domain game --images new --labels new", "--labels: new is the folder of the images"),
        ("minicity --domain game --images pyproject.toml/x", "pyproject.toml/x/0000.png: cannot be written"),
        ("data.layouts --dataset gta5 --root nowhere --split all --out new", "no folder nowhere/images"),
        ("report.results smoke 0", "records/06_evaluation.json is missing: make study STUDY=smoke SEEDS=0"),
        ("report.results smoke x", "SEEDS: must be whole numbers"),
        ("report.results ../x 0", "'../x' is no name"),
        ("report.results", "the following arguments are required: study, seeds"),
        ("report.ablation config minicity - nothing", "no arm 'nothing'"),
        ("report.ablation table minicity 0,x", "SEEDS: must be whole numbers"),
        ("report.ablation tabel minicity -", "invalid choice: 'tabel'"),
        ("study.records", "the following arguments are required: folder"),
        ("study.stages runs/smoke/0 stage2", "stage2: say which round"),
        ("study.check stuyd", "no target 'stuyd'"),
    ],
)
def test_a_command_says_what_it_was_told_wrong(project, words, said):
    module, *rest = words.split()
    code, output = project.python("-m", f"b2ma_core.{module}", *rest)
    assert code in (1, 2)
    one_message(output, said)
    assert not (project.root / "new").exists()


def test_scenes_are_written_as_they_are_rendered(project, tmp_path):
    words = ("--domain", "game", "--count", "1", "--size", "64", "128")
    code, output = project.python("-m", "b2ma_core.minicity", *words, "--images", str(tmp_path / "images"))
    assert code == 0, output
    assert Image.open(tmp_path / "images" / "0000.png").size == (128, 64)


def test_seeds_and_counts():
    assert seeds_of("0 1 2") == seeds_of("0,1, 2") == [0, 1, 2] and count_of("JOBS", "12") == 12
    for text in ("", "x", "-1", "1.0", "1 1", "²", "1" * 10):
        with pytest.raises(ValueError, match="SEEDS"):
            seeds_of(text)
    for text in ("", "0", "-1", "two", "1.5"):
        with pytest.raises(ValueError, match="JOBS"):
            count_of("JOBS", text)


CHILD = "from b2ma_core.processes import *; end_with_parent(9, {}); print('ready', flush=True); import time; time.sleep(600)"
STARTS_ONE = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}.format(sys.argv[1])])"


@pytest.mark.parametrize("parent", ["os.getppid()", "None"])
def test_a_process_ends_with_the_one_that_started_it(parent):
    """Two generations: the pipe ends when the last one who could write into it is gone."""
    code = STARTS_ONE if parent != "None" else f"import os; os.environ[{PARENT!r}] = str(os.getpid()); {STARTS_ONE}"
    process = subprocess.Popen([sys.executable, "-c", code, parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.kill()
    assert process.stdout.read() == ""
    process.wait()


def test_a_process_whose_parent_ended_before_it_asked_ends_too():
    done = subprocess.run([sys.executable, "-c", CHILD.format(1 << 22)], stdout=subprocess.PIPE, text=True)
    assert done.returncode == -9 and done.stdout == ""


def test_a_killed_kernel_is_one_message(project):
    path = project.root / "notebooks" / "04_hard_patches.ipynb"
    whole = path.read_text()
    path.write_text(whole.replace('"import numpy as np\\n"', '"import os; os.kill(os.getpid(), 9)\\n"'))
    code, output = project.notebook("04_hard_patches", "smoke")
    path.write_text(whole)
    assert code == 1
    one_message(output, "its kernel was killed, perhaps because memory ran out; the same command goes on")


def test_another_error_than_ours_is_told_by_its_name(project):
    path = project.root / "notebooks" / "04_hard_patches.ipynb"
    whole = path.read_text()
    path.write_text(whole.replace('"import numpy as np\\n"', "\"{}['a key']\\n\""))
    code, output = project.notebook("04_hard_patches", "smoke")
    path.write_text(whole)
    assert code == 1
    one_message(output, "KeyError: 'a key'")

"""The notebooks as a whole: a smoke study, its executed copies under nbval, kills, the wall."""

import fcntl
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import numpy as np
import pytest
from conftest import same_tree

from b2ma_core.files import PROJECT
from b2ma_core.study.records import STAGES, publish

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_committed_clean_with_parameters_and_a_title(path):
    book = nbformat.read(path, 4)
    nbformat.validate(book)
    code = [c for c in book.cells if c.cell_type == "code"]
    assert all(not c.outputs and c.execution_count is None for c in code), "clear all outputs before committing"
    assert [c.metadata.get("tags") for c in code][0] == ["parameters"]
    assert book.cells[0].source.startswith(f"# {path.stem[:2]} ")
    assert all(len(c.source.splitlines()) <= 20 for c in code)
    assert "run.record(" in code[-1].source


def test_the_study_has_every_notebook():
    assert [p.stem for p in NOTEBOOKS] == list(STAGES)


def test_the_smoke_study_ran_through_all_notebooks(project):
    run = project.root / "runs" / "smoke" / "0"
    rows = project.metrics("smoke", 0, "06_evaluation")["rows"]
    assert list(rows) == ["source-only", "votes", "stage 1", "round 1", "round 2", "oracle"]
    for stage in STAGES[:8]:
        executed = run / "notebooks" / f"{stage}.ipynb"
        assert executed.stat().st_size < 3e6
        outputs = [o for c in nbformat.read(executed, 4).cells for o in c.get("outputs", [])]
        assert sum(o.output_type == "stream" for o in outputs) <= 6, f"{stage}: a flood of progress lines"
        if stage not in ("07_figures",):
            assert any("image/png" in o.get("data", {}) for o in outputs), f"{stage} draws nothing"
    drawn = {p.name for p in (project.root / "figures" / "smoke").iterdir()}
    names = ("miou_by_round", "class_iou", "examples", "training_curves")
    assert drawn == {"table.md", "table.tex", *(f"{n}.{s}" for n in names for s in ("pdf", "png"))}
    assert len(list((run / "predictions" / "target_test").glob("*.png"))) == 4
    assert not list(run.rglob("*.part")) and not list(run.rglob("progress.pt"))


def test_the_findings_are_drawn_from_records_and_an_arm_begins_at_its_switch(project):
    """An arm of the smoke study: stage 1 is the study's own, stage 2 another; 08 then compares what was run."""
    command = project.snakemake("smoke")
    code, output = project.python(*command[:2], "ablation", *command[2:-2], "arms=plain", *command[-2:])
    assert code == 0 and "03_cross_domain" not in output and "[smoke+plain 0] 05_self_distill" in output, output
    arm, run = (project.root / "runs" / name / "0" for name in ("smoke+plain", "smoke"))
    weights = "student.safetensors"
    assert (arm / "stage1" / weights).samefile(run / "stage1" / weights) and not (arm / "source").exists()
    other = (arm / "stage2/round-1" / weights).read_bytes()
    assert other != (run / "stage2/round-1" / weights).read_bytes()
    rows = project.metrics("smoke+plain", 0, "06_evaluation")["rows"]
    assert list(rows) == ["source-only", "votes", "stage 1", "round 1", "round 2", "oracle"]
    assert rows["stage 1"] == project.metrics("smoke", 0, "06_evaluation")["rows"]["stage 1"]
    told = ("-p", "studies=[smoke, smoke+plain, camvid]")
    code, output = project.notebook("08_findings", "smoke", 0, *told)
    assert code == 0, output
    assert project.metrics("smoke", 0, "08_findings")["seeds"] == {"smoke": [0], "smoke+plain": [0]}
    text = (project.root / "figures" / "findings" / "benchmarks.md").read_text()
    assert f"| stage 1 | {100 * rows['stage 1']['miou']:.1f} |" in text

    kept, tables = project.root / "figures" / "records", project.root / "figures" / "smoke"
    assert publish(kept, project.root / "runs") == ["smoke/0", "smoke+plain/0"]
    assert '"machine"' not in (kept / "smoke/0/records/06_evaluation.json").read_text()
    assert not (kept / "smoke+plain/0/records/05_self_distill.json").exists()  # an arm's scores are enough
    table = (tables / "table.md").read_text()
    (tables / "table.md").unlink()
    for notebook, options in (("07_figures", ()), ("08_findings", told)):  # drawn again from them alone
        code, output = project.notebook(notebook, "smoke", 0, "-p", "runs=figures/records", *options)
        assert code == 0, output
    assert (tables / "table.md").read_text() == table
    assert (project.root / "figures" / "findings" / "benchmarks.md").read_text() == text


def test_a_second_call_does_nothing(project):
    stamps = {p: p.stat().st_mtime_ns for p in (project.root / "runs" / "smoke").rglob("*") if p.is_file()}
    code, output = project.study()
    assert code == 0 and "00_data" not in output
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}


def test_a_second_study_in_the_same_folder_is_told_to_wait(project):
    with open(project.root / "runs" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, output = project.study()
    assert code == 1 and "another make study is running in this folder" in output and "Traceback" not in output


def test_executed_notebooks_pass_nbval(project):
    """The executed copies run again, cell by cell, on the finished run."""
    executed = [str(project.root / "runs/smoke/0/notebooks" / f"{stage}.ipynb") for stage in STAGES[:8]]
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-q", "-p", "no:cacheprovider",
               "-p", "no:xdist", "--rootdir", str(project.root), *executed]  # fmt: skip
    result = subprocess.run(command, cwd=project.root, env=project.env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]


def test_the_same_seed_gives_the_same_records_and_weights_after_kills(project):
    """A second run, killed with SIGKILL again and again, ends as the first."""
    first, work = project.root / "runs" / "smoke" / "0", project.root / "runs" / "killed" / "0"
    project.write_study("killed")
    kills = 0
    for _ in range(40):
        process = project.start(*project.snakemake("killed"), start_new_session=True)
        # Each attempt is killed once it has got a little further than the last one.
        saved = {p for p in work.rglob("*") if p.suffix in (".pt", ".json")}
        while process.poll() is None and kills < 5:
            if {p for p in work.rglob("*") if p.suffix in (".pt", ".json")} - saved:
                time.sleep(0.3 * kills)
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.05)
        process.communicate()
        if process.returncode == 0:
            break
    assert process.returncode == 0 and kills == 5
    for folder in ("source", "stage1", "stage2", "oracle", "labels"):
        same_tree(first / folder, work / folder, "*.safetensors" if folder != "labels" else "*.png")
    for stage in STAGES[:7]:
        assert project.metrics("killed", 0, stage) == project.metrics("smoke", 0, stage), stage


def test_another_seed_gives_another_run(project):
    for stage in STAGES[:2]:
        code, output = project.notebook(stage, "smoke", 1)
        assert code == 0, output
    losses = [project.metrics("smoke", seed, STAGES[1])["history"]["loss"] for seed in (0, 1)]
    assert losses[0] != losses[1] and np.isfinite(losses).all()


def test_behind_the_wall_nothing_of_the_source_or_the_targets_labels_is_needed(project):
    """03 to 07 with source/ and the target's training labels deleted: the same student, bit for bit, and no oracle."""
    root, first = project.root, project.root / "runs" / "smoke" / "0"
    project.write_study("wall")
    shutil.copytree(root / "data" / "smoke", root / "data" / "wall")
    work = root / "runs" / "wall" / "0"
    for name in ("labels", "records"):
        shutil.copytree(first / name, work / name)
    for stage in STAGES[3:8]:
        (work / "records" / f"{stage}.json").unlink()
    for part in ("source_train", "source_val"):
        shutil.rmtree(root / "data" / "wall" / part)
    (root / "data" / "wall" / "target_train" / "labels.npy").unlink()
    for stage in STAGES[3:8]:
        code, output = project.notebook(stage, "wall")
        assert code == 0, output
    assert not (work / "source").exists()
    for folder in ("stage1", "stage2"):
        same_tree(first / folder, work / folder, "*.safetensors")
    evaluation = project.metrics("wall", 0, "06_evaluation")
    assert "oracle" not in evaluation["rows"] and evaluation["gap_closed"] is None
    whole = project.metrics("smoke", 0, "06_evaluation")["rows"]
    assert all(evaluation["rows"][name] == whole[name] for name in evaluation["rows"])

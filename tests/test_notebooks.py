"""The notebooks as a whole: a smoke study, its executed copies under nbval, kills, the wall, a vendor's folder."""

import fcntl
import json
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import numpy as np
import pytest
from conftest import Project, same_tree
from PIL import Image

from b2ma_core.records import PROJECT, STAGES

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))


def metrics(project: Project, study: str, seed: int, stage: str) -> dict:
    path = project.root / "runs" / study / str(seed) / "records" / f"{stage}.json"
    return json.loads(path.read_text())["metrics"]


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
    rows = metrics(project, "smoke", 0, "06_evaluation")["rows"]
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
    rows = metrics(project, "smoke+plain", 0, "06_evaluation")["rows"]
    assert list(rows) == ["source-only", "votes", "stage 1", "round 1", "oracle"]
    assert rows["stage 1"] == metrics(project, "smoke", 0, "06_evaluation")["rows"]["stage 1"]
    told = ("-p", "studies=[smoke, smoke+plain, camvid]")
    code, output = project.notebook("08_findings", "smoke", 0, *told)
    assert code == 0, output
    assert metrics(project, "smoke", 0, "08_findings")["seeds"] == {"smoke": [0], "smoke+plain": [0]}
    text = (project.root / "figures" / "findings" / "benchmarks.md").read_text()
    assert f"| stage 1 | {100 * rows['stage 1']['miou']:.1f} |" in text


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
        assert metrics(project, "killed", 0, stage) == metrics(project, "smoke", 0, stage), stage


def test_another_seed_gives_another_run(project):
    for stage in STAGES[:2]:
        code, output = project.notebook(stage, "smoke", 1)
        assert code == 0, output
    losses = [metrics(project, "smoke", seed, STAGES[1])["history"]["loss"] for seed in (0, 1)]
    assert losses[0] != losses[1] and np.isfinite(losses).all()


def test_two_processes_train_one_network(project):
    """``devices: 2`` on the CPU: a notebook starts its training in two gloo processes, which share each batch."""
    project.write_study("two", devices=2, accelerator="cpu")
    for stage in STAGES[:2]:
        code, output = project.notebook(stage, "two")
        assert code == 0, output
    assert "MEMBER: 2/2" in output
    history = metrics(project, "two", 0, STAGES[1])["history"]
    assert len(history["loss"]) == 40 and np.mean(history["loss"][-5:]) < np.mean(history["loss"][:5])


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
    evaluation = metrics(project, "wall", 0, "06_evaluation")
    assert "oracle" not in evaluation["rows"] and evaluation["gap_closed"] is None
    whole = metrics(project, "smoke", 0, "06_evaluation")["rows"]
    assert all(evaluation["rows"][name] == whole[name] for name in evaluation["rows"])


def test_a_vendors_folder_of_labels_and_images_without_truth(project):
    root = project.root
    command = ["-m", "b2ma_core.minicity", "--domain", "camera", "--count", "24", "--size", "64", "128"]
    code, output = project.python(*command, "--images", "data/mine/all", "--labels", "data/vendor")
    assert code == 0, output
    project.write_study("vendor", source_dataset="none", box="folder", box_root="data/vendor", target_dataset="folder",
                        target_root="data/mine", target_train_split="all", target_val_split=None,
                        target_test_split=None, rounds=1)  # fmt: skip
    for name in ("source_train_images", "source_val_images", "target_train_images", "target_val_images"):
        path = root / "params" / "vendor.yaml"
        path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith(name)))
    code, output = project.study("vendor")
    assert code == 0, output
    assert metrics(project, "vendor", 0, "06_evaluation")["rows"] == {}
    assert (root / "figures" / "vendor" / "examples.png").is_file()
    assert not (root / "runs" / "vendor" / "0" / "source").exists()


def one_message(code: int, output: str, *said: str) -> None:
    assert code == 1, output
    for text in said:
        assert text in output, output
    assert "Traceback" not in output and len(output.splitlines()) < 25, output


def test_a_notebook_out_of_order_says_which_comes_first(project):
    one_message(*project.notebook("03_cross_domain", "smoke", 9), "run the notebook 02_pseudo_labels first")


def test_wrong_parameters_stop_before_anything_is_made(project):
    project.write_study("wrong", stage1_step=3, rounds="two")
    said = ("params/wrong.yaml: 2 wrong parameters", "did you mean stage1_steps?", "got 'two'")
    one_message(*project.notebook("00_data", "wrong"), *said)
    assert not (project.root / "runs" / "wrong").exists()
    one_message(*project.notebook("00_data", "nothing"), "params/nothing.yaml: no such study")
    one_message(*project.notebook("04_hard_patches", "smoke", 0, "-p", "gird=3"), "no such parameter")


def test_changed_parameters_of_a_run_are_named(project):
    path = project.root / "params" / "changed.yaml"
    project.write_study("changed")
    assert project.notebook("00_data", "changed")[0] == 0
    path.write_text(path.read_text().replace("rounds: 2", "rounds: 1"))
    one_message(*project.notebook("00_data", "changed"), "made with other parameters", "rounds: 2 -> 1")


def test_a_missing_data_folder_is_one_message(project):
    project.write_study("lost", target_dataset="folder", target_root="no/where")
    one_message(*project.notebook("00_data", "lost"), "no/where/train", "Expected: <root>/<split>")


def test_a_truncated_picture_is_one_message(project):
    folder = project.root / "data" / "broken" / "train"
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((64, 128, 3), np.uint8)).save(folder / "a.png")
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:60])
    project.write_study("broken", target_dataset="folder", target_root="data/broken", target_val_split=None,
                        target_test_split=None)  # fmt: skip
    one_message(*project.notebook("00_data", "broken"), "a.png: cannot be read as a picture")


def test_a_run_folder_that_cannot_be_made_is_one_message(project):
    (project.root / "runs").mkdir(exist_ok=True)
    (project.root / "runs" / "taken").write_text("a file in the way")
    project.write_study("taken")
    one_message(*project.notebook("00_data", "taken"), "runs/taken/0/notebooks: cannot be written")


def test_a_stop_leaves_no_kernel_and_a_message(project):
    project.write_study("stopped")
    path = project.root / "params" / "stopped.yaml"
    path.write_text(path.read_text().replace("source_steps: 40", "source_steps: 4000"))
    assert project.notebook("00_data", "stopped")[0] == 0
    process = project.start("notebooks/run.py", "01_source_model", "--study", "stopped")
    progress = project.root / "runs" / "stopped" / "0" / "source" / "progress.pt"
    while not progress.is_file() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    time.sleep(3)
    stamp = progress.stat().st_mtime_ns
    time.sleep(2)
    assert progress.stat().st_mtime_ns == stamp, "a kernel still trains"

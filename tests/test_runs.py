"""Runs that stand alone: a vendor's labels, two processes, a stop, and the one message that says what is wrong."""

import signal
import time

import numpy as np
import pytest
from conftest import Project, photo, same_tree
from PIL import Image

from b2ma_core.study.records import STAGES


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """A copy of the project in which nothing has run yet."""
    return Project(tmp_path_factory.mktemp("bare"))


def test_two_processes_train_one_network(project):
    """``devices: 2`` on the CPU: a notebook starts its training in two gloo processes, which share each batch."""
    project.write_study("two", devices=2, accelerator="cpu")
    for stage in STAGES[:2]:
        code, output = project.notebook(stage, "two")
        assert code == 0, output
    assert "MEMBER: 2/2" in output
    history = project.metrics("two", 0, STAGES[1])["history"]
    assert len(history["loss"]) == 40 and np.mean(history["loss"][-5:]) < np.mean(history["loss"][:5])


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
    assert project.metrics("vendor", 0, "06_evaluation")["rows"] == {}
    assert (root / "figures" / "vendor" / "examples.png").is_file()
    assert not (root / "runs" / "vendor" / "0" / "source").exists()
    code, output = project.study("vendor")
    assert code == 0 and "[vendor 0]" not in output, output
    for path in (root / "data" / "vendor").glob("*.png"):  # the vendor has another model now, which knows no road
        labels = photo(path)[:, ::-1].copy()
        labels[labels == 0] = 1
        Image.fromarray(labels).save(path)
    code, output = project.study("vendor")
    assert "note: no pseudo label says road" in output, output
    assert code == 1 and "labels: other content" in output and "FROM=03_cross_domain" in output, output
    answers, kept = project.root / "data" / "vendor", root / "runs" / "vendor" / "0"
    same_tree(answers, kept / "labels" / "target_train", "*.png")
    assert (kept / "stage1" / "student.safetensors").is_file()


def test_photographs_with_truth_at_a_size_of_their_own(project):
    """Images and truth of 96 x 192 pixels, a study of 64 x 128: the notebooks draw errors at either size."""
    for split, count in (("train", 24), ("val", 3)):
        command = ["-m", "b2ma_core.minicity", "--domain", "camera", "--split", split, "--size", "96", "192"]
        folders = ["--images", f"data/street/{split}", "--labels", f"data/street/{split}annot"]
        code, output = project.python(*command, "--count", str(count), *folders)
        assert code == 0, output
    project.write_study("street", source_dataset="none", box="folder", box_root="data/street/trainannot",
                        target_dataset="folder", target_root="data/street", target_train_split="train",
                        target_val_split="val", target_test_split=None, stage1_steps=20, rounds=0,
                        oracle_steps=20, source_train_images=None, source_val_images=None, target_train_images=None,
                        target_val_images=None, target_test_images=None)  # fmt: skip
    code, output = project.study("street")
    assert code == 0, output
    rows = project.metrics("street", 0, "06_evaluation")["rows"]
    assert "stage 1" in rows and "oracle" in rows
    assert photo(next((project.root / "runs/street/0/predictions/target_val").glob("*.png"))).shape == (96, 192)


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


def one_message(code: int, output: str, *said: str) -> None:
    assert code == 1, output
    for text in said:
        assert text in output, output
    assert "Traceback" not in output and len(output.splitlines()) < 25, output


def test_a_notebook_out_of_order_says_which_comes_first(project):
    one_message(*project.notebook("03_cross_domain", "smoke", 9), "run the notebook 00_data first")


def test_wrong_parameters_stop_before_anything_is_made(project):
    project.write_study("wrong", stage1_step=3, rounds="two")
    said = ("params/wrong.yaml: 2 wrong parameters", "did you mean 'stage1_steps'?", "got 'two'")
    one_message(*project.notebook("00_data", "wrong"), *said)
    assert not (project.root / "runs" / "wrong").exists()
    one_message(*project.notebook("00_data", "nothing"), "params/nothing.yaml: no such study")
    one_message(*project.notebook("04_hard_patches", "smoke", 0, "-p", "gird=3"), "no such parameter")


def test_a_run_is_not_made_with_other_parameters_than_its_studys(project):
    project.write_study("changed")
    assert project.notebook("00_data", "changed")[0] == 0
    told = ("made with other parameters", "source_steps: 40 -> 50")
    one_message(*project.notebook("01_source_model", "changed", 0, "-p", "source_steps=50"), *told)


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

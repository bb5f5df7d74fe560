import errno
import fcntl
import json
import os
import resource
import signal

import numpy as np
import pytest

from b2ma_core.files import only_one, whole_folder, write_bytes, write_json
from b2ma_core.study.provenance import training
from b2ma_core.study.records import Run, open_run


def test_a_record_holds_what_made_it(run):
    record = run.record("00_data", {"value": np.float64(0.5), "list": np.array([1.0, np.nan])})
    stored = json.loads(run.path("records", "00_data.json").read_text())
    assert stored["metrics"] == {"value": 0.5, "list": [1.0, None]} and stored["seed"] == 0
    assert stored["params"] == run.params.model_dump() and record["where"]["torch"]


def test_a_stage_out_of_order_names_the_one_that_comes_first(run):
    with pytest.raises(FileNotFoundError, match="no record of 03_cross_domain: run the notebook 03_cross_domain first"):
        run.require("03_cross_domain")


def test_a_run_whose_training_was_made_with_other_parameters_says_which(run):
    run.claim()
    other = Run(run.params.model_copy(update={"rounds": 7, "workers": 2}), 0, run.folder.parent.parent)
    other.claim()  # nothing was trained yet
    assert json.loads(run.path("params.json").read_text())["rounds"] == 7
    with training(run, "stage1", dict):
        write_json(run.path("stage1", "history.json"), {})
    other.claim()  # stage 1 does not read rounds
    other = Run(run.params.model_copy(update={"stage1_steps": 7, "workers": 2}), 0, run.folder.parent.parent)
    with pytest.raises(
        ValueError, match="made with other parameters:\n  stage1_steps: 30 -> 7\n.*FROM=03_cross_domain"
    ):
        other.claim()
    run.claim()  # taken back


def test_a_full_disk_loses_nothing(tmp_path):
    path = tmp_path / "file"
    write_bytes(path, b"old")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # the system refuses longer files, as a full disk does
    try:
        with pytest.raises(OSError, match="file: cannot be written .*free some space"):
            write_bytes(path, b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_made_is_named(run):
    run.folder.parent.parent.mkdir(parents=True)
    run.folder.parent.write_text("a file where the run's folder should be")
    with pytest.raises(OSError, match="params.json: cannot be written"):
        run.claim()


def test_folders_appear_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "a") as part:
        (part / "x").write_text("1")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    for text in "12":
        with whole_folder(tmp_path / "a") as part:
            (part / text).write_text(text)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["2"]


def test_one_process_works_in_a_folder(tmp_path):
    with only_one(tmp_path), pytest.raises(RuntimeError, match="another process"):
        with only_one(tmp_path, patience=0):
            pass
    with only_one(tmp_path, patience=0):
        pass


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match=f"{tmp_path}: files cannot be locked there"), only_one(tmp_path):
        pass


def test_what_a_notebook_is_given_overrides_the_studys_file():
    run = open_run("smoke", 3, rounds=4, position_beta=None)
    assert run.params.rounds == 4 and run.params.position_beta == 0.25 and run.folder.parts[-2:] == ("smoke", "3")
    with pytest.raises(ValueError, match="params/smok.yaml: no such study; did you mean 'smoke'"):
        open_run("smok", 0)
    with pytest.raises(ValueError, match="seed"):
        open_run("smoke", -1)


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "x.json", {"a": float("nan"), 1: (2, np.int64(3))})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "1": [2, 3]}


def test_a_row_of_a_matrix_takes_one_line(tmp_path):
    value = {"m": np.arange(6).reshape(2, 3), "words": ["a [ 1,\n 2 ]", "b"], "none": [], "nan": [0.5, float("nan")]}
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text()
    assert '\n "m": [\n  [0, 1, 2],\n  [3, 4, 5]\n ],' in text and '"nan": [0.5, null]' in text
    assert json.loads(text)["words"] == value["words"] and json.loads(text)["none"] == []

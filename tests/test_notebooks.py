"""The notebooks as a whole: a smoke study, its executed copies under nbval, kills, the black-box boundary."""

import ast
import copy
import fcntl
import platform
import re
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from conftest import same_tree

from b2ma_core.files import PROJECT
from b2ma_core.params import Params
from b2ma_core.report.executed import LIMIT, MARKUP, publish
from b2ma_core.report.site import write_site
from b2ma_core.study import records
from b2ma_core.study.records import STAGES

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


def assigned(source: str) -> set[str]:
    """Names that code binds outside of functions, by assignment, loop or import."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).split(".")[0])
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebooks_parameters_are_those_of_its_tagged_cell(path):
    """They reach the run from there, all of them, and no other cell uses their names or another parameter's."""
    cells = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    told = assigned(cells[0])
    for source in cells[1:]:
        assert not assigned(source) & (told | set(Params.model_fields)), source
    calls = [node for source in cells for node in ast.walk(ast.parse(source))
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open_run"]  # fmt: skip
    passed = {keyword.arg: ast.unparse(keyword.value) for keyword in calls[0].keywords}
    names = told & set(Params.model_fields) - {"study"}
    assert len(calls) == 1 and passed == {name: name for name in names}
    assert [ast.unparse(a) for a in calls[0].args][:2] == ["study", "seed"]


def test_the_study_has_every_notebook():
    assert [p.stem for p in NOTEBOOKS] == list(STAGES)


def test_the_smoke_study_ran_through_all_notebooks(project):
    run = project.root / "runs" / "smoke" / "0"
    rows = project.metrics("smoke", 0, "06_evaluation")["rows"]
    assert list(rows) == ["source-only", "votes", "stage 1", "round 1", "round 2", "oracle"]
    for stage in STAGES[:8]:
        executed = run / "notebooks" / f"{stage}.ipynb"
        assert executed.stat().st_size < LIMIT
        book = nbformat.read(executed, 4)
        outputs = [o for c in book.cells for o in c.get("outputs", [])]
        kinds = {kind for o in outputs for kind in o.get("data", {})}
        assert not any(o.get("name") == "stderr" for o in outputs), f"{stage}: red lines"
        assert "widgets" not in book.metadata and not any("widget" in kind for kind in kinds), f"{stage}: sliders"
        if stage not in ("07_figures",):
            assert kinds & {"image/png", "image/jpeg"}, f"{stage} draws nothing"
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
    assert "note: round 1 learnt nothing" in output  # after a few steps no teacher is sure, and there are no patches
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
    assert f"| stage 1 | {100 * rows['stage 1']['miou']:.1f} |" in re.sub(" +", " ", text)

    kept, tables = project.root / "figures" / "records", project.root / "figures" / "smoke"
    assert records.publish(kept, project.root / "runs") == ["smoke/0", "smoke+plain/0"]
    assert '"machine"' not in (kept / "smoke/0/records/06_evaluation.json").read_text()
    assert not (kept / "smoke+plain/0/records/05_self_distill.json").exists()  # an arm's scores are enough
    table = (tables / "table.md").read_text()
    (tables / "table.md").unlink()
    (kept / "smoke/0/records/samples.npz").unlink()  # as records of photographs are published
    for notebook, options in (("07_figures", ()), ("08_findings", told)):  # drawn again from them alone
        code, output = project.notebook(notebook, "smoke", 0, "-p", "runs=figures/records", *options)
        assert code == 0 and ("note: no examples drawn" in output) == (notebook == "07_figures"), output
    assert (tables / "table.md").read_text() == table
    assert (project.root / "figures" / "findings" / "benchmarks.md").read_text() == text


def test_a_second_call_does_nothing(project):
    stamps = {p: p.stat().st_mtime_ns for p in (project.root / "runs" / "smoke").rglob("*") if p.is_file()}
    code, output = project.study()
    assert code == 0 and "00_data" not in output
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}


def test_a_record_that_is_missing_is_made_again_where_later_ones_stand(project):
    record = project.root / "runs" / "smoke" / "0" / "records" / "01_source_model.json"
    away = record.rename(record.with_suffix(".away"))  # as Snakemake takes it away where a notebook refuses
    plan = [word for word in project.snakemake() if word not in ("-q", "all")]
    code, output = project.python(*plan, "-n")
    away.rename(record)
    assert code == 0 and "rule 01_source_model" in output and "rule 00_data" not in output, output


def test_a_second_study_in_the_same_folder_is_told_to_wait(project):
    with open(project.root / "runs" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, output = project.study()
    assert code == 1 and "another make study is running in this folder" in output and "Traceback" not in output


def test_executed_notebooks_pass_nbval(project):
    """The executed copies run again on the finished run, cell by cell, each cell followed by those that open the run,
    as somebody does who explores: no variable stands in the way of a parameter. Then from the last cell to the first:
    none stands in the way of an earlier cell."""
    executed = []
    for stage in STAGES[:8]:
        book = nbformat.read(project.root / "runs/smoke/0/notebooks" / f"{stage}.ipynb", 4)
        code = [c for c in book.cells if c.cell_type == "code"]
        opening = code[: next(i for i, c in enumerate(code) if "open_run(" in c.source) + 1]
        book.cells = [copy.deepcopy(again) for cell in code for again in (cell, *opening)] + copy.deepcopy(code[::-1])
        for i, cell in enumerate(book.cells):
            cell.id = str(i)
        executed.append(project.root / "again" / f"{stage}.ipynb")
        executed[-1].parent.mkdir(exist_ok=True)
        nbformat.write(book, executed[-1])
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-q", "-p", "no:cacheprovider",
               "-p", "no:xdist", "--rootdir", str(project.root), *executed]  # fmt: skip
    result = subprocess.run(command, cwd=project.root, env=project.env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]


def test_the_same_seed_gives_the_same_records_and_weights_after_kills(project):
    """A second run, whose make, Snakemake, run.py or kernel is killed now and then, ends as the first, bit by bit."""
    output = subprocess.run(
        [sys.executable, PROJECT / "benchmarks" / "kills.py", "--kills", "3", "--longest", "20", "--project", project.root],
        env=project.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ).stdout  # fmt: skip
    assert "3 kills: nothing left running, every bit as in the undisturbed study" in output, output


def test_another_seed_gives_another_run(project):
    for stage in STAGES[:2]:
        code, output = project.notebook(stage, "smoke", 1)
        assert code == 0, output
    losses = [project.metrics("smoke", seed, STAGES[1])["history"]["loss"] for seed in (0, 1)]
    assert losses[0] != losses[1] and np.isfinite(losses).all()


def test_across_the_boundary_nothing_of_the_source_or_the_targets_labels_is_needed(project):
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


def test_the_executed_notebooks_can_be_committed(project, tmp_path):
    assert publish("smoke", 0, tmp_path, project.root / "runs") == list(STAGES[:7])
    for stage in STAGES[:7]:
        text = (tmp_path / f"{stage}.ipynb").read_text()
        said = MARKUP.sub("", re.sub(r"[\w+/=]{60,}", "", text))  # a short name stands in base64, and in styles
        named = re.search(rf"\b{re.escape(platform.node())}\b", said)
        assert len(text) < LIMIT and str(project.root) not in text and not named, stage


def test_the_executed_notebooks_become_pages_with_their_pictures(project, tmp_path):
    names = write_site("smoke", 0, tmp_path / "site", project.root / "runs")
    assert names[:8] == list(STAGES[:8])
    for i, name in enumerate(names):
        page = (tmp_path / "site" / f"{name}.html").read_text()
        assert all(f'href="{other}.html"' in page for other in names[max(i - 1, 0) : i] + names[i + 1 : i + 2])
    page = (tmp_path / "site" / "05_self_distill.html").read_text()
    assert all(f"data:image/{kind};base64," in page for kind in ("png", "jpeg"))
    index = (tmp_path / "site" / "index.html").read_text()
    assert all(f'href="{name}.html"' in index for name in names)
    with pytest.raises(FileNotFoundError, match="no executed notebook; make study STUDY=smoke SEEDS=7"):
        write_site("smoke", 7, tmp_path / "none", project.root / "runs")

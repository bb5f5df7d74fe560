"""Stale answers: what a stage was made from is kept beside it, and what has changed since is made again or refused."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
import torchvision
from conftest import Project, same_tree
from PIL import Image

from b2ma_core.data import conversion, datasets
from b2ma_core.digests import code_digests
from b2ma_core.files import PROJECT, write_json
from b2ma_core.params import check_params, load_params
from b2ma_core.report.results import check_alike, cost, read_records, trained_where
from b2ma_core.study import arms, inputs, on_disk, provenance
from b2ma_core.study.arms import branch, main
from b2ma_core.study.asking import ask_for_labels
from b2ma_core.study.pipeline import PIPELINE, STAGES, notebooks_before
from b2ma_core.study.provenance import check, training
from b2ma_core.study.records import Run


class Threshold:
    """A box that calls bright pixels road and dark ones sidewalk, and counts the images that it was asked for."""

    def __init__(self):
        self.asked = 0

    def predict(self, images, names=None):
        self.asked += len(images)
        return (images.mean(3) < 128).astype(np.uint8)


@pytest.fixture
def study(folder_params, tmp_path, monkeypatch):
    """A run on a small data set whose project's folder is a temporary one; called, it prepares the data and opens it."""
    monkeypatch.setattr(inputs, "PROJECT", tmp_path)
    monkeypatch.setattr(on_disk, "PROJECT", tmp_path)

    def opened(seed=0, **changes) -> Run:
        params = check_params({**folder_params.model_dump(), "box_queries": 1, **changes}, "x")
        conversion.prepare(params, 1, tmp_path / "data")
        return Run(params, seed, tmp_path / "runs")

    return opened


def load(run, part="target_train"):
    return datasets.load(run.params, part, run.folder.parents[2] / "data")


def train(run, name, weights="weights"):
    """A training that leaves what a training leaves."""
    with training(run, name, lambda: {"device": "abacus", "precision": "exact", "threads": 1}):
        file = "source" if name == "source" else "student"
        if not run.path(name, "history.json").is_file():
            write_json(run.path(name, f"{file}.safetensors"), weights)
            write_json(run.path(name, "history.json"), {"loss": [1.0], "miou": [[1, 0.5]]})


def replaced(path, keep_date=True):
    """Another picture of the same name and size in bytes as far as that is possible, and the same date."""
    before = path.stat()
    Image.fromarray(np.asarray(Image.open(path))[::-1]).save(path)
    if keep_date:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_table_names_functions_that_there_are_and_every_parameter_has_a_reader():
    for stage in PIPELINE:
        for entry in stage.code:
            module, _, name = entry.rpartition(".")
            assert any(entry in (found, f"{found}.{name}") for found in code_digests(entry)), entry
        assert set(stage.after) <= {other.name for other in PIPELINE}
    assert notebooks_before("05_self_distill") == [STAGES[0], STAGES[2], STAGES[3], STAGES[4]]
    names = load_params(PROJECT / "params/smoke.yaml").model_dump()
    unread = {name for name in names if not any(stage.read(name) for stage in PIPELINE)}
    assert unread == {"study", "workers", "save_every"}, "a parameter has to stand in the reads of a stage of PIPELINE"


def test_the_digest_of_code_passes_over_comments_and_sees_whatever_a_stage_leads_to(tmp_path):
    project = Project(tmp_path)
    say = ("from b2ma_core.digests import code_digests; import json; print(json.dumps([code_digests(f'study.stages.{n}')"
           " for n in ('train_source', 'train_stage2')]))")  # fmt: skip

    def digests():
        code, output = project.python("-c", say)
        assert code == 0, output
        return json.loads(output)

    first, path = digests(), tmp_path / "b2ma_core" / "hard_patches.py"
    text = path.read_text()
    assert "hard_patches" not in first[0] and "hard_patches" in first[1] and "report.figures" not in first[1]
    path.write_text(
        '"""Another docstring."""\n# a comment\n' + text.split('"""', 2)[2].replace('    """', '    """So: ', 1)
    )
    assert digests() == first
    path.write_text(text.replace("def cell(", "OTHER = 1\n\n\ndef cell("))
    assert digests() == first  # nothing uses it
    position = text.index("return", text.index("def cell("))
    path.write_text(text[:position] + "0\n    " + text[position:])
    second = digests()
    assert second[0] == first[0] and {n for n in first[1] if first[1][n] != second[1][n]} == {"hard_patches"}


def test_only_replaced_and_added_images_are_asked_again_and_removed_ones_leave(study, street_folder):
    run, box = study(), Threshold()
    ask_for_labels(run, box, load(run))
    ask_for_labels(run, box, load(run))
    assert box.asked == 4
    before = {p.name: p.read_bytes() for p in run.path("labels", "target_train").iterdir()}
    replaced(street_folder / "train" / "seq_1.png")
    for folder in ("train", "trainannot"):
        shutil.copy(street_folder / folder / "seq_2.png", street_folder / folder / "seq_9.png")
        (street_folder / folder / "seq_0.png").unlink()
    run = study()
    ask_for_labels(run, box, load(run))
    assert box.asked == 6
    after = {p.name: p.read_bytes() for p in run.path("labels", "target_train").iterdir()}
    assert set(after) == {"seq_1.png", "seq_2.png", "seq_3.png", "seq_9.png"}
    assert {name for name in after if before.get(name) != after[name]} == {"seq_1.png", "seq_9.png"}
    write_json(run.path("source", "source.safetensors"), "another box")
    ask_for_labels(run, box, load(run))
    assert box.asked == 10
    run = study(vote_exponent=2.0)
    ask_for_labels(run, box, load(run))
    assert box.asked == 14


@pytest.mark.parametrize("suffix", ["png", "PNG"])
def test_a_second_delivery_is_taken_whole_and_what_it_lacks_is_named(study, tmp_path, suffix):
    from b2ma_core.black_box import LabelFolder

    root = tmp_path / "vendor"
    root.mkdir()
    maps = [np.full((64, 128), i, np.uint8) for i in range(4)]
    for i, labels in enumerate(maps):
        Image.fromarray(labels).save(root / f"seq_{i}.{suffix}")
    run = study(box="folder", box_root="vendor", source_dataset="none", source_train_images=None, source_val_split=None)
    answers = ask_for_labels(run, LabelFolder(root), load(run))
    assert (answers == np.stack(maps)).all()
    run.record("02_pseudo_labels", {})
    run.record("00_data", {})
    check(run, "03_cross_domain")
    train(run, "stage1")
    for i in (1, 2, 3):
        Image.fromarray(maps[i] + 4).save(root / f"seq_{i}.{suffix}")
    (root / f"seq_0.{suffix}").unlink()
    with pytest.raises(ValueError, match="02_pseudo_labels was made from something else:\n  delivery: other content"):
        check(run, "03_cross_domain")
    with pytest.raises(ValueError, match="no labels for the image 'seq_0'"):
        ask_for_labels(run, LabelFolder(root), load(run))
    Image.fromarray(maps[0] + 4).save(root / f"seq_0.{suffix}")
    assert (ask_for_labels(run, LabelFolder(root), load(run)) == np.stack(maps) + 4).all()
    run.record("02_pseudo_labels", {})
    check(run, "03_cross_domain")
    with pytest.raises(ValueError, match="stage1 was made from .*\n  labels: other content\n.*FROM=03_cross_domain"):
        train(run, "stage1")


def test_a_training_begun_from_something_else_is_refused_and_goes_on_when_that_is_taken_back(study, street_folder):
    run = study()
    with pytest.raises(KeyboardInterrupt), training(run, "source", dict):
        write_json(run.path("source", "progress.pt"), {})
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match=r"made with other parameters:\n  batch_size: 4 -> 3\nTake that back"):
        train(study(batch_size=3), "source")
    train(study(rounds=1, oracle_steps=3, workers=2), "source")  # none of its business
    images = street_folder / "train"
    kept = (images / "seq_1.png").read_bytes()
    train(run, "oracle")
    replaced(images / "seq_1.png")
    with pytest.raises(ValueError, match="oracle was made from something else:\n  target_train images: other content"):
        train(study(), "oracle")
    (images / "seq_1.png").write_bytes(kept)
    train(study(), "oracle")
    replaced(street_folder / "trainannot" / "seq_1.png")
    with pytest.raises(ValueError, match="target_train labels: other content"):
        train(study(), "oracle")
    shutil.rmtree(run.path("oracle"))
    write_json(run.path("oracle", "history.json"), {})
    with pytest.raises(ValueError, match="what it was made from was not kept"):
        train(study(), "oracle")


def test_replaced_weights_are_noticed_where_they_are_read(study, tmp_path):
    weights = tmp_path / "start.safetensors"
    weights.write_bytes(b"one")
    run = study(source_start=str(weights), init=str(weights), rounds=1)
    write_json(run.path("labels", "target_train", "a.png"), 1)
    write_json(run.path("patches", "index.json"), [])
    for name in ("source", "stage1", "stage2/round-1"):
        train(run, name)
    write_json(run.path("stage1", "student.safetensors"), "others")
    with pytest.raises(ValueError, match="round-1 was made from something else:\n  stage1: other content"):
        train(run, "stage2/round-1")
    weights.write_bytes(b"two")
    for name in ("source", "stage1"):
        with pytest.raises(ValueError, match=f"{name} was made from something else:\n  first weights: other content"):
            train(run, name)
    shutil.rmtree(run.path("source"))  # from 03 on nothing needs it


def test_other_validation_labels_cost_the_curve_and_not_the_training(study, street_folder):
    run = study()
    train(run, "oracle")
    replaced(street_folder / "valannot" / "seq_1.png")
    train(study(), "oracle")
    assert json.loads(run.path("oracle", "history.json").read_text()) == {"loss": [1.0], "miou": []}
    assert run.path("oracle", "student.safetensors").is_file()
    train(study(), "oracle")


def test_a_record_keeps_where_and_how_long_the_training_ran(study, monkeypatch):
    run = study()
    with (
        pytest.raises(KeyboardInterrupt),
        training(run, "oracle", lambda: {"device": "a", "precision": "p", "threads": 1}),
    ):
        write_json(run.path("oracle", "progress.pt"), {})
        began = json.loads(run.path("oracle", "provenance.json").read_text())["began"]
        os.utime(run.path("oracle", "progress.pt"), (began + 100, began + 100))
        raise KeyboardInterrupt
    train(run, "oracle")
    record = run.record("06_evaluation", {"rows": {}})
    assert [where["device"] for where in record["trained"]["oracle"]["sessions"]] == ["a", "abacus"]
    assert 100 <= record["trained"]["oracle"]["seconds"] < 160 and 100 <= record["when"]["seconds"] < 160
    monkeypatch.setattr(provenance, "environment", lambda: {"git": "later", "dirty": True})
    again = study()  # another process, a later revision
    train(again, "oracle")
    second = again.record("06_evaluation", {"rows": {}})
    assert second == json.loads(json.dumps(record)) and second["when"] == record["when"]
    other = again.record("06_evaluation", {"rows": {"a": {"confusion": {}}}})
    assert other["trained"] == record["trained"] and other["when"]["seconds"] >= 100
    records = read_records("folder", [0], run.folder.parents[1])
    assert cost({"folder": records})["oracle"].tolist() == [f"{other['trained']['oracle']['seconds']:.0f}"]
    assert cost({"folder": records})["stage 1"].tolist() == ["-"]
    text = trained_where(records)
    assert "on a, abacus" in text and "later" not in text


def test_records_of_other_code_or_other_data_do_not_stand_in_one_table(study):
    run = study()
    train(run, "oracle")
    one = run.record("06_evaluation", {"rows": {}})
    other = json.loads(json.dumps(one))
    check_alike(one, other)
    other["trained"]["oracle"]["code"]["distillation"] = "0"
    with pytest.raises(ValueError, match=r"folder/0 was made by other code than folder/0 \(distillation of oracle\)"):
        check_alike(other, one)
    other = json.loads(json.dumps(one))
    other["made_from"]["inputs"]["target_val labels"] = "0"
    with pytest.raises(ValueError, match=r"scored on other data than folder/0 \(target_val labels\)"):
        check_alike(other, one)


def test_other_code_is_accepted_by_hand_and_kept_in_the_record(study, monkeypatch, capsys):
    """A mix was added beside the others: what was trained before it is taken for the same, because somebody says so."""
    run = study()
    train(run, "source")
    before = provenance.kept(run, "source")
    other = {**before, "code": {**before["code"], "mixes": "0"}}
    write_json(run.path("source", "made_from.json"), other)
    with pytest.raises(ValueError, match=r"mixes.py: other code\n.*make accept STUDY=folder"):
        train(run, "source")
    assert provenance.accept(run) == [f"{run.path('source')}: b2ma_core/mixes.py: other code"]
    train(run, "source")
    assert provenance.accept(run) == []
    told = provenance.trained(run, "01_source_model")["source"]
    assert told["code"] == before["code"] and [each["code"] for each in told["then"]] == [other["code"]]

    write_json(run.path("params.json"), run.params.model_dump())
    write_json(run.path("source", "made_from.json"), other)
    monkeypatch.setattr(arms, "PROJECT", run.folder.parents[2])
    for said in (f"{run.path('source')}: b2ma_core/mixes.py: other code\n", "runs/folder: nothing to accept\n"):
        main("accept", "folder")
        assert capsys.readouterr().out == said
    other["params"] = {**before["params"], "source_steps": 7}
    write_json(run.path("source", "made_from.json"), other)
    with pytest.raises(ValueError, match="source_steps: 7 -> ") as refused:
        provenance.accept(run)
    assert "make accept" not in str(refused.value)


def test_a_parameter_that_is_younger_than_a_training_counts_as_its_default(study):
    run = study()
    train(run, "source")
    before = provenance.kept(run, "source")
    params = {name: value for name, value in before["params"].items() if name != "source_weight_decay"}
    write_json(run.path("source", "made_from.json"), {**before, "params": params})
    train(run, "source")
    with pytest.raises(ValueError, match="source_weight_decay: None -> 0.5"):
        train(study(source_weight_decay=0.5), "source")


def test_a_changed_arm_is_made_again_and_an_origin_made_anew_is_linked_anew(study, tmp_path, monkeypatch):
    def arm(**switches) -> Run:
        monkeypatch.setattr(arms, "switched", lambda study: switches)
        run = study(**switches)
        return Run(run.params.model_copy(update={"study": "folder+arm"}), 0, tmp_path / "runs")

    def no_link(*_):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    def origin(weights):
        run = study(rounds=1)
        for name in ("source", "stage1", "stage2/round-1", "oracle"):
            if name == "stage1":
                ask_for_labels(run, Threshold(), load(run))
                write_json(run.path("patches", "index.json"), [])
            train(run, name, weights)
        for stage in STAGES[:7]:
            run.record(stage, {})
        return run

    first = origin("one")
    run = arm(rounds=1, stage2_mix="cutmix")
    branch(run)
    train(run, "stage2/round-1")
    branch(run)
    assert run.path("stage2", "round-1").is_dir()
    same_tree(run.path("labels"), first.path("labels"), "*.png")
    run = arm(rounds=1, stage2_mix="cutmix", share_alignment=0.5)
    branch(run)
    assert not run.path("stage2").exists() and run.path("stage1", "history.json").samefile(
        first.path("stage1/history.json")
    )
    train(run, "stage2/round-1")
    with pytest.raises(ValueError, match="FROM=03_stage: no such notebook"):
        main("clean", "none", "03_stage")
    arms.remove_from(first.folder, "03_cross_domain")
    assert not first.path("stage1").exists() and first.path("labels").is_dir() and not first.path("oracle").exists()
    first = origin("two")
    branch(run)
    assert not run.path("stage2").exists()  # its stage 1 was another
    assert run.path("stage1", "student.safetensors").samefile(first.path("stage1", "student.safetensors"))
    with monkeypatch.context() as other_disk:
        other_disk.setattr(os, "link", no_link)
        shutil.rmtree(run.path("stage1"))
        branch(run)
    copied, shared = (each.path("stage1", "student.safetensors") for each in (run, first))
    assert not copied.samefile(shared) and copied.read_bytes() == shared.read_bytes()
    assert copied.stat().st_mtime == shared.stat().st_mtime
    run = arm(rounds=1, stage1_steps=7)  # the arm begins earlier now
    branch(run)
    assert not run.path("stage1").exists() and not run.path("records", "03_cross_domain.json").exists()


def test_what_snakemake_sees_changes_with_files_and_values_and_not_with_comments(study, street_folder, monkeypatch):
    def seen(**changes):
        on_disk._stamps.cache_clear()
        return {name: on_disk.on_disk(study(**changes), name) for name in STAGES[:7]}

    first = seen()
    assert seen(workers=3) == first
    changed = seen(oracle_steps=7)
    assert {name for name in first if first[name] != changed[name]} == {"00_data", "06_evaluation"}
    for change in (lambda: replaced(street_folder / "train" / "seq_0.png"),
                   lambda: shutil.copy(street_folder / "train" / "seq_0.png", street_folder / "train" / "seq_9.png")):  # fmt: skip
        before = seen()
        change()
        after = {name: on_disk.on_disk(study_without_data(study), name) for name in STAGES[:7]}
        assert {name for name in before if before[name] != after[name]} == {"00_data"}
        shutil.copy(street_folder / "trainannot" / "seq_0.png", street_folder / "trainannot" / "seq_9.png")


def test_a_record_of_other_code_is_made_again_whatever_the_dates_say(study):
    run = study()
    path, record = run.path("on_disk", "00_data.json"), run.path("records", "00_data.json")
    run.record("00_data", {})
    on_disk.look_at_disk(run, "00_data")
    stamp = path.stat().st_mtime_ns
    on_disk.look_at_disk(run, "00_data")
    assert path.stat().st_mtime_ns == stamp
    stored = json.loads(record.read_text())
    stored["made_from"]["code"]["data.layouts"] = "0"
    write_json(record, stored)  # as in a run from another machine, later than all else here
    on_disk.look_at_disk(run, "00_data")
    assert path.stat().st_mtime_ns > record.stat().st_mtime_ns


def study_without_data(study):
    on_disk._stamps.cache_clear()
    return study()


def test_the_names_of_torchvisions_files_are_its_own(monkeypatch):
    models, files = torchvision.models, inputs.IMAGENET_FILES
    for name, weights in (
        ("deeplab_mobilenet_v2", models.MobileNet_V2_Weights.IMAGENET1K_V1),
        ("deeplabv2_resnet101", models.ResNet101_Weights.IMAGENET1K_V1),
        ("deeplabv2_resnet101_full", models.ResNet101_Weights.IMAGENET1K_V1),
    ):
        assert files[name] == weights.url.rpartition("/")[2]

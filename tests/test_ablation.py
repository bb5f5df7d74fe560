"""The ablation: arms, what they share with their study, and the numbers of its table by hand."""

import json
import math

import numpy as np
import pytest
import yaml

from b2ma_core.files import PROJECT, write_json
from b2ma_core.metrics import ConfusionMatrix
from b2ma_core.params import Params, ParamsError, load_params, unlike
from b2ma_core.report.ablation import ablation_rows, arms_of, curve, main, read_ablation
from b2ma_core.report.paper_figures import gap_bars
from b2ma_core.report.results import (
    ablation_cells,
    answered_to_true,
    difference,
    gains,
    in_words,
    paired_difference,
    read_evaluations,
    result_rows,
    spread,
)
from b2ma_core.study.arms import branch, first_stage, switched
from b2ma_core.study.provenance import training
from b2ma_core.study.records import STAGES, Run

PARAMS = PROJECT / "params"


def test_an_arm_is_its_study_with_some_parameters_switched():
    arm, study = load_params(PARAMS / "minicity+self.yaml"), load_params(PARAMS / "minicity.yaml")
    told = set(unlike(arm.model_dump(), study.model_dump()))
    assert told == {
        "study",
        "rounds",
        "hard_patch_weight",
        "share_alignment",
        "teacher_box_share",
    }
    assert set(switched("minicity+self")) == told - {"study"} and switched("minicity") == {}
    with pytest.raises(ParamsError, match="no arm 'plane'"):
        load_params(PARAMS / "minicity+plane.yaml")


def test_the_table_and_the_curves_speak_of_arms_that_there_are():
    plan = read_ablation()
    cells = [
        *plan["table"].values(),
        *plan["without"].values(),
        *(c for points in plan["curves"].values() for c in points.values()),
    ]
    assert set(arms_of(cells)) | {"source_jitter", "published"} == set(plan["arms"]) and set(plan["quick"]) <= set(
        plan["arms"]
    )


def test_an_arm_begins_at_the_first_stage_that_reads_a_switch():
    assert first_stage(["mix_images", "rounds"]) == "05_self_distill"
    assert first_stage(["rounds", "grid"]) == "04_hard_patches"
    assert first_stage(["box_queries", "rounds"]) == "02_pseudo_labels"
    with pytest.raises(ValueError, match="image_size: an arm shares its study's data"):
        first_stage(["image_size"])
    ours = {"study", "label_space", "image_size", "world_seed", "box", "accelerator", "devices", "precision", "workers"}
    data = {n for n in Params.model_fields if n.startswith(("source_", "target_")) and n.split("_")[1] in
            ("dataset", "root", "domain", "sequences", "image", "label", "train", "val", "test")}  # fmt: skip
    for name in set(Params.model_fields) - ours - data - {"save_every"}:
        first_stage([name])  # every other parameter has its stage


def finished(study: str, seed: int, runs, rows: dict) -> Run:
    run = Run(load_params(PARAMS / f"{study}.yaml"), seed, runs)
    for folder in ("labels", "patches"):
        write_json(run.path(folder, "index.json"), folder)
    for folder in ("source", "stage1", "stage2/round-1", "stage2/round-2", "oracle"):
        with training(run, folder, dict):
            write_json(run.path(folder, "student.safetensors"), [study, seed])
            write_json(run.path(folder, "history.json"), folder)
    for stage in STAGES[:6]:
        run.record(stage, {})
    run.record(STAGES[6], {"rows": rows})
    return run


def test_an_arm_shares_what_was_made_before_and_never_the_source(tmp_path):
    origin = finished("minicity", 3, tmp_path, {})
    for arm, shared in (("plain", {"labels", "stage1", "patches", "oracle"}), ("two_queries", {"source", "oracle"})):
        run = Run(load_params(PARAMS / f"minicity+{arm}.yaml"), 3, tmp_path)
        branch(run)
        assert {p.name for p in run.folder.iterdir()} == shared | {"records"}
        assert len(list(run.path("records").iterdir())) == STAGES.index(first_stage(switched(f"minicity+{arm}")))
        assert run.path("oracle", "history.json").samefile(origin.path("oracle", "history.json"))
        write_json(run.path("oracle", "history.json"), "other")  # whole files replace: the origin keeps its own
        assert origin.path("oracle", "history.json").read_text() == '"oracle"\n'
    with pytest.raises(FileNotFoundError, match="run the notebook 00_data first"):
        branch(Run(load_params(PARAMS / "minicity+plain.yaml"), 4, tmp_path))


def test_an_arm_of_another_method_shares_nothing_that_was_trained_otherwise(tmp_path):
    finished("minicity", 0, tmp_path, {})
    run = Run(load_params(PARAMS / "minicity+published.yaml"), 0, tmp_path)
    names = switched("minicity+published")
    assert {"method", "target_optimizer", "warmup_steps", "random_scale", "target_jitter", "box_queries"} <= set(names)
    assert not any(name.startswith("source_") for name in names)  # the owner's model is the same
    branch(run)
    assert {p.name for p in run.folder.iterdir()} == {"source", "records"}


def test_what_an_arm_switches_is_what_differs_once_defaults_are_applied(tmp_path):
    for name in ("minicity", "ablation"):
        (tmp_path / f"{name}.yaml").write_text((PARAMS / f"{name}.yaml").read_text())
    with open(tmp_path / "minicity.yaml", "a") as file:
        file.write("warmup_steps: 20\ntarget_jitter: 0.1\n")
    arms = yaml.safe_load((tmp_path / "ablation.yaml").read_text())
    arms["arms"] |= {"default": {"grid": 4, "rounds": 2}, "mixed": {"method": "published", "target_jitter": 0.2}}
    (tmp_path / "ablation.yaml").write_text(yaml.safe_dump(arms))
    assert switched("minicity+default", tmp_path) == {}  # the values that were there without being told
    published = switched("minicity+published", tmp_path)
    assert (published["warmup_steps"], published["target_jitter"]) == (0, 0.0)  # whatever the study's file says
    assert switched("minicity+mixed", tmp_path)["target_jitter"] == 0.2  # what the arm itself says counts


def test_the_table_compares_with_the_row_above_seed_by_seed(tmp_path):
    for seed, (a, b) in enumerate([(0.40, 0.42), (0.50, 0.51), (0.60, 0.63)]):
        finished("minicity", seed, tmp_path, {"stage 1": {"miou": a}, "round 1": {"miou": b}})
    table = {"first": [None, "stage 1"], "not run": ["plain", "round 1"], "second": [None, "round 1"]}
    rows = ablation_rows("minicity", {"table": table}, [0, 1, 2], tmp_path)
    assert [row["name"] for row in rows] == ["first", "second (and 1 not run)"] and rows[0]["difference"] is None
    mean, half = rows[1]["difference"]
    assert mean == pytest.approx(0.02) and half == pytest.approx(4.303 * 0.01 / math.sqrt(3))
    assert curve("minicity", {1: ["plain", "round 1"], 6: [None, "stage 1"]}, [0, 1, 2], tmp_path) == {
        6: [0.40, 0.50, 0.60]
    }


def test_parts_are_taken_out_of_the_whole(tmp_path):
    for seed, (whole, without) in enumerate([(0.42, 0.40), (0.51, 0.50)]):
        finished("minicity", seed, tmp_path, {"stage 1": {"miou": 0.3}, "round 1": {"miou": whole}})
        finished("minicity+mix", seed, tmp_path, {"round 1": {"miou": without}})
    table = {"stage 1": [None, "stage 1"], "whole": [None, "round 1"]}
    plan = {"table": table, "without": {"not run": ["plain", "round 1"], "no mix": ["mix", "round 1"]}}
    rows = ablation_rows("minicity", plan, [0, 1], tmp_path)
    assert [(row["name"], row["against"]) for row in rows][1:] == [("whole", "above"), ("no mix", "the whole")]
    assert rows[2]["difference"][0] == pytest.approx(-0.015)
    assert ablation_cells(rows)[1][2][2].startswith("the whole: -1.5 (")
    plan["table"]["missing"] = ["plain", "round 1"]  # the last row: there is no whole to compare with
    assert len(ablation_rows("minicity", plan, [0, 1], tmp_path)) == 2


def test_runs_of_two_recipes_do_not_stand_in_one_table(tmp_path):
    for study in ("minicity", "minicity+plain"):
        for seed in (0, 1):
            finished(study, seed, tmp_path, {"round 1": {"miou": 0.5}})
    table = {"whole": [None, "round 1"], "plain": ["plain", "round 1"]}
    plan = {"table": table}
    assert len(ablation_rows("minicity", plan, [0, 1], tmp_path)) == 2
    assert len(read_evaluations("minicity", [0, 1], tmp_path)) == 2

    def change(study, **values):
        path = tmp_path / study / "1" / "records" / "06_evaluation.json"
        record = json.loads(path.read_text())
        write_json(path, {**record, "params": {**record["params"], **values}})

    change("minicity+plain", workers=7)  # has no effect on results
    ablation_rows("minicity", plan, [0, 1], tmp_path)
    change("minicity+plain", stage2_steps=7)
    with pytest.raises(
        ValueError, match=r"minicity\+plain/1 was .* than minicity/1 \(stage2_steps\): remove its folder"
    ):
        ablation_rows("minicity", plan, [0, 1], tmp_path)
    change("minicity", stage1_steps=7)
    with pytest.raises(ValueError, match=r"minicity/1 was .* than minicity/0 \(stage1_steps\)"):
        read_evaluations("minicity", [0, 1], tmp_path)


def test_a_gap_that_is_none_has_no_share():
    """An oracle no better than source-only, in one seed of two: a dash, no division by zero, and no mean over the rest."""
    rows = [{n: {"miou": v} for n, v in zip(("source-only", "stage 1", "oracle"), values, strict=True)}
            for values in ((0.4, 0.5, 0.4), (0.4, 0.5, 0.6))]  # fmt: skip
    (_, first, _), (_, both, _) = (result_rows([{"rows": r} for r in some]) for some in (rows[:1], rows))
    assert math.isnan(first["gap"][0]) and spread(first["gap"]) == spread(both["gap"]) == spread(None) == "-"
    assert result_rows([{"rows": rows[1]}])[1]["gap"] == pytest.approx([0.5])
    del rows[1]["oracle"]  # the labels of a seed's data were taken away
    assert [r["name"] for r in result_rows([{"rows": r} for r in rows])] == ["source-only", "stage 1"]
    figure = gap_bars({"x": result_rows([{"rows": rows[0]}])}, {"x": "x"})
    assert "nan" not in " ".join(text.get_text() for text in figure.axes[0].texts)


def test_a_single_seed_has_no_interval():
    assert difference(paired_difference([0.5], [0.4])) == "+10.0"


def test_gains_name_rare_classes_and_those_that_died():
    rows = {"source-only": {"iou": [0.5, 0.2, 0.1]}, "stage 1": {"iou": [0.6, 0.0, 0.3]}, "oracle": {"iou": [1, 1, 1]}}
    (line,) = gains([{"rows": rows, "class_shares": [0.99, 0.008, 0.002]}])
    assert line["name"] == "stage 1" and line["died"] == [1]
    assert line["all"][0] == pytest.approx(0.1 / 3) and line["rare"][0] == pytest.approx(0.0)


def test_make_ablation_tells_snakemake_its_arms_and_seeds(capsys):
    main("config", "camvid", "0,1", "source_jitter")
    assert capsys.readouterr().out == "study=camvid seeds=0,1 arms=source_jitter\n"
    main("config", "minicity", "-", "quick")
    quick = "self,box,plain,mix,mix_patches,published_patches"
    assert capsys.readouterr().out == f"study=minicity seeds=0,1,2,3,4 arms={quick}\n"
    main("config", "minicity", "-")
    assert "published_stage1" in capsys.readouterr().out


def test_the_findings_in_words_by_hand():
    rows = {name: {"miou": miou, "iou": [miou, miou + d], "precision": [1, 0.5]} for name, miou, d in
            (("source-only", 0.2, 0), ("stage 1", 0.3, 0.1), ("round 1", 0.4, -0.1), ("oracle", 0.6, 0))}  # fmt: skip
    text = in_words("mine", [{"rows": rows, "class_shares": [0.995, 0.005]}], ("road", "pole"))
    assert text.startswith(
        "**mine**: source-only 20.0 mIoU; stage 1 +10.0, round 1 +10.0; 50% of the way to the oracle's 60.0"
    )
    # of 100 pixels of pole with IoU 0.2 and precision 0.5: 50 answered, 25 of them right, 25 / (100 + 50 - 25)
    assert "under 1%, as a multiple of their true pixels: source-only 0.50, stage 1 1.33, round 1 0.86. From" in text
    assert "most won road +10.0, pole -10.0; most lost or least won pole -10.0, road +10.0" in text


def test_how_often_a_class_is_answered_comes_out_of_iou_and_precision():
    truth, answers = np.random.default_rng(0).integers(0, 4, (2, 40, 40))
    answers[answers == 2] = 1  # never answered
    answers[(truth == 3) & (answers == 3)] = 0  # always wrong
    scores = ConfusionMatrix(5)  # 4 is not there
    scores.update(answers, truth)
    precision = scores.matrix.diag() / scores.matrix.sum(0)
    found = [{"rows": {"x": {"iou": scores.iou().tolist(), "precision": precision.tolist()}}}]
    (ratio,) = answered_to_true(found, "x")
    assert ratio[:2] == pytest.approx([(answers == c).sum() / (truth == c).sum() for c in (0, 1)])
    assert ratio[2] == 0 and np.isnan(ratio[3:]).all()

"""The ablation: arms, what they share with their study, and the numbers of its table by hand."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import yaml

from b2ma_core.files import PROJECT, write_json
from b2ma_core.metrics import ConfusionMatrix, miou_of_present
from b2ma_core.params import Params, ParamsError, load_params, unlike
from b2ma_core.report import paper_figures, results
from b2ma_core.report.ablation import (
    ablation_cells,
    ablation_rows,
    arms_of,
    cell_miou,
    class_differences,
    curve_cells,
    curves,
    in_words,
    main,
    not_run,
    read_ablation,
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
        "hard_patch_weight",
        "stage2_mix",
        "share_alignment",
        "teacher_box_share",
    }
    assert set(switched("minicity+self")) == told - {"study"} and switched("minicity") == {}
    with pytest.raises(ParamsError, match="no arm 'plane'"):
        load_params(PARAMS / "minicity+plane.yaml")


def test_the_table_and_the_curves_speak_of_arms_that_there_are():
    plan = read_ablation()
    pairs = [cell for pair in plan["pairs"].values() for cell in pair]
    cells = [*plan["table"].values(), *plan["without"].values(), *pairs, *curve_cells(plan)]
    beside = {"source_jitter", "published", "mix1_long_oracle"}  # in no table
    unseen = set(plan["arms"]) - set(arms_of(cells)) - beside
    assert not unseen, "an arm has to stand in the table, without, pairs or curves of params/ablation.yaml"
    assert set(arms_of(cells)) | beside == set(plan["arms"]) and set(plan["quick"]) <= set(plan["arms"])


def test_an_arm_begins_at_the_first_stage_that_reads_a_switch():
    assert first_stage(["stage2_mix", "rounds"]) == "05_self_distill"
    assert first_stage(["rounds", "grid"]) == "04_hard_patches"
    assert first_stage(["box_queries", "rounds"]) == "02_pseudo_labels"
    with pytest.raises(ValueError, match="image_size: an arm shares its study's data"):
        first_stage(["image_size"])
    with pytest.raises(ValueError, match="workers: no stage reads it; add it to the reads"):
        first_stage(["workers"])
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
    run.record(STAGES[6], {"rows": {name: row | padded(**row) for name, row in rows.items()}})
    return run


def padded(confusion: dict | None = None, **_) -> dict:
    """A row's counts with those of the study's other classes, none of which has a pixel."""
    if confusion is None:
        return {}
    counts = np.array(confusion["val"])
    whole = np.zeros((19, 20), int)
    whole[: len(counts), [*range(len(counts)), -1]] = counts
    return {"confusion": {"val": whole.tolist()}}


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
    arms["arms"] |= {"default": {"grid": 4, "rounds": 1}, "mixed": {"method": "published", "target_jitter": 0.2}}
    (tmp_path / "ablation.yaml").write_text(yaml.safe_dump(arms))
    assert switched("minicity+default", tmp_path) == {}  # the values that were there without being told
    published = switched("minicity+published", tmp_path)
    assert (published["warmup_steps"], published["target_jitter"]) == (0, 0.0)  # whatever the study's file says
    assert switched("minicity+mixed", tmp_path)["target_jitter"] == 0.2  # what the arm itself says counts


def scored(*iou: float, pixels: tuple[int, ...] = (1000, 1000, 1000)) -> dict:
    """A row of a record by hand: every class has its IoU, what is not right was not answered."""
    counts = np.zeros((len(iou), len(iou) + 1), int)
    for c, value in enumerate(iou):
        counts[c, [c, -1]] = round(value * pixels[c]), pixels[c] - round(value * pixels[c])
    return {"confusion": {"val": counts.tolist()}}


def test_the_table_compares_with_the_row_above_seed_by_seed(tmp_path):
    for seed, (a, b) in enumerate([(0.40, 0.42), (0.50, 0.51), (0.60, 0.63)]):
        finished("minicity", seed, tmp_path, {"stage 1": scored(a), "round 1": scored(b)})
    table = {"first": [None, "stage 1"], "not run": ["plain", "round 1"], "second": [None, "round 1"]}
    rows = ablation_rows("minicity", {"table": table}, [0, 1, 2], tmp_path)
    assert [row["name"] for row in rows] == ["first", "second"] and rows[0]["difference"] is None
    assert not_run(rows) == 'Not run, so that it is part of "second": not run.'
    mean, half = rows[1]["difference"]
    assert mean == pytest.approx(0.02) and half == pytest.approx(4.3027 * 0.01 / math.sqrt(3), rel=1e-4)
    for seed, value in enumerate([0.40, 0.50, 0.60]):
        for arm, less in {"images_25": 0.2, "steps_300": 0.02, "mix1": 0}.items():
            finished(f"minicity+{arm}", seed, tmp_path, {"stage 1": scored(value - less)})
    finished("minicity+mix1_images_50", 0, tmp_path, {"stage 1": scored(0.3)})
    images = {"no mix": [None, "images_50", "images_25"], "SpatialMix": ["mix1", "mix1_images_50"]}
    plan = {"curves": {
        "mix": {"parameter": "stage1_mix", "row": "stage 1", "lines": {"stage 1": [None, "mix1"]}},
        "steps": {"parameter": "stage1_steps", "row": "stage 1",
                  "lines": {"no mix": [None, "steps_300", "steps_100"], "SpatialMix": ["mix1"]}},
        "images": {"parameter": "learn_images", "row": "stage 1", "lines": images},
    }}  # fmt: skip
    points = curves("minicity", plan, [0, 1, 2], tmp_path)
    steps, images = (points[points["varied"] == name] for name in ("steps", "images"))
    assert set(steps["line"]) == {"no mix"}  # one value is no curve, and two names are a pair
    assert set(points["varied"]) == {"steps", "images"}
    assert steps["to"].tolist() == ["300"] * 3 + ["1200"] * 3 and steps["seed"].tolist() == [0, 1, 2] * 2
    assert steps["miou"].tolist() == pytest.approx([0.38, 0.48, 0.58, 0.40, 0.50, 0.60])
    assert images["to"].tolist() == ["25"] * 3 + ["all"] * 3 + ["50", "all"]
    assert images["seed"].tolist() == [0, 1, 2] * 2 + [0, 0]  # a line is of the seeds that all its values have
    left, right = paper_figures.curve_panels(points).axes
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["300", "1200"]
    assert left.lines[0].get_ydata() == pytest.approx([48, 50])  # the means, in percent
    assert [tick.get_text() for tick in right.get_xticklabels()] == ["25", "50", "all"]


def test_seeds_that_were_run_without_the_oracle_stand_in_no_table_of_the_study(tmp_path):
    rows = {"source-only": scored(0.3), "stage 1": scored(0.4)}
    for seed, more in enumerate(({"oracle": scored(0.5)}, {}, {"oracle": scored(0.6)})):
        finished("minicity", seed, tmp_path, rows | more)
    assert results.alike_seeds("minicity", tmp_path) == [0, 2]
    assert results.alike_seeds("camvid", tmp_path) == []


def test_parts_are_taken_out_of_the_whole(tmp_path):
    for seed, (whole, without) in enumerate([(0.42, 0.40), (0.51, 0.50)]):
        finished("minicity", seed, tmp_path, {"stage 1": scored(0.3), "round 1": scored(whole)})
        finished("minicity+mix", seed, tmp_path, {"round 1": scored(without)})
    table = {"stage 1": [None, "stage 1"], "whole": [None, "round 1"]}
    plan = {"table": table, "without": {"not run": ["plain", "round 1"], "no mix": ["mix", "round 1"]}}
    rows = ablation_rows("minicity", plan, [0, 1], tmp_path)
    assert [(row["name"], row["against"]) for row in rows][1:] == [("whole", "above"), ("no mix", "the whole")]
    assert rows[2]["difference"][0] == pytest.approx(-0.015)
    cells = ablation_cells(rows)
    assert cells[""].tolist() == ["stage 1", "whole", "no mix"] and cells["mIoU (%)"][1] == "46.5 ± 6.4"
    assert cells["against the row above (95%)"][2].startswith("the whole: -1.5 (")
    # The interval is 12.706 * 0.5 to both sides.
    assert in_words(rows) == "No mix, against the whole: -1.5 points (-7.9 to +4.9), which may be nothing."
    finished("minicity", 2, tmp_path, {"stage 1": scored(0.4), "round 1": scored(0.9)})  # a seed that the arm lacks
    more = ablation_rows("minicity", plan, [0, 1, 2], tmp_path)
    assert [row["seeds"] for row in more] == [[0, 1, 2], [0, 1, 2], [0, 1]] and more[2] == rows[2]
    alone = ablation_rows("minicity", plan, [0], tmp_path)
    assert in_words(alone) == "No mix, against the whole: -2.0 points, one seed."
    left, right = paper_figures.ablation_dots(rows).axes
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["whole", "against the whole:", "no mix"]
    assert left.get_title() == "stage 1: 30.0"
    diamonds = [line.get_xdata().item() for line in right.lines if line.get_marker() == "D"]
    assert diamonds == pytest.approx([-1.5])  # the first step, from another row's world, is in the table alone
    plan["pairs"] = {"not run": [["mix", "round 1"], ["plain", "round 1"]],
                     "the mix": [[None, "round 1"], ["mix", "round 1"]]}  # fmt: skip
    pair = ablation_rows("minicity", plan, [0, 1], tmp_path)[-1]
    assert (pair["name"], pair["against"]) == ("the mix", "the same without it")
    assert pair["difference"][0] == pytest.approx(0.015)
    plan["table"]["missing"] = ["plain", "round 1"]  # the last row: there is no whole to compare with
    assert len(ablation_rows("minicity", plan | {"pairs": {}}, [0, 1], tmp_path)) == 2


def test_what_a_part_is_worth_to_each_class_is_told_seed_by_seed(tmp_path):
    for seed, road in enumerate((0.5, 0.7)):
        finished("minicity", seed, tmp_path, {"round 1": scored(road, *[0.2] * 18, pixels=(1000,) * 19)})
        finished("minicity+plain", seed, tmp_path, {"round 1": scored(0.4, *[0.3] * 18, pixels=(1000,) * 19)})
        path = tmp_path / "minicity" / str(seed) / "records" / "04_hard_patches.json"
        write_json(path, {"metrics": {"patches_by_class": {"train": 3} if seed else {}}})
    cells = [[None, "round 1"], ["plain", "round 1"]]
    more = class_differences("minicity", cells, [0, 1, 2], tmp_path)
    assert more.groupby("class")["difference"].mean()[["road", "train"]].tolist() == pytest.approx([0.2, -0.1])
    assert more[more["mined"]][["class", "seed"]].values.tolist() == [["train", 1]]
    (axis,) = paper_figures.class_differences(more).axes
    assert axis.get_xticklabels()[0].get_text() == "road"
    assert not len(class_differences("minicity", [[None, "round 1"], ["mix", "round 1"]], [0, 1], tmp_path))


def test_runs_of_two_recipes_do_not_stand_in_one_table(tmp_path):
    for study in ("minicity", "minicity+plain"):
        for seed in (0, 1):
            finished(study, seed, tmp_path, {"round 1": scored(0.5)})
    table = {"whole": [None, "round 1"], "plain": ["plain", "round 1"]}
    plan = {"table": table}
    assert len(ablation_rows("minicity", plan, [0, 1], tmp_path)) == 2
    assert len(results.read_records("minicity", [0, 1], tmp_path)) == 2

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
    change("minicity+plain", stage2_steps=load_params(PARAMS / "minicity.yaml").stage2_steps, hard_patch_weight=7.0)
    assert len(ablation_rows("minicity", plan, [0, 1], tmp_path)) == 2
    change("minicity", stage1_steps=7)
    with pytest.raises(ValueError, match=r"minicity/1 was .* than minicity/0 \(stage1_steps\)"):
        results.read_records("minicity", [0, 1], tmp_path)


def test_a_row_is_compared_by_what_it_was_made_by(tmp_path):
    for study in ("minicity", "minicity+steps_100"):
        finished(study, 0, tmp_path, {"source-only": scored(0.4), "stage 1": scored(0.5)})
    path = tmp_path / "minicity+steps_100" / "0" / "records" / "06_evaluation.json"
    record = json.loads(path.read_text())
    record["trained"] = {name: {"code": {"m": "0"}} for name in ("stage1", "stage2/round-1")}
    origin = tmp_path / "minicity" / "0" / "records" / "06_evaluation.json"
    write_json(origin, {**json.loads(origin.read_text()), "trained": record["trained"]})

    def found(row, other_code=(), **values):
        trained = record["trained"] | {name: {"code": {"m": "1"}} for name in other_code}
        write_json(path, {**record, "trained": trained, "params": {**record["params"], **values}})
        return cell_miou("minicity", ["steps_100", row], [0], tmp_path).to_dict()

    assert found("stage 1", stage2_steps=7, oracle_steps=1200, stage2_mix="spatial") == {0: pytest.approx(0.5)}
    assert found("stage 1", ["stage2/round-1"]) == {0: pytest.approx(0.5)}
    assert found("source-only", stage1_learning_rate=7.0) == {0: pytest.approx(0.4)}
    for row, values in (("stage 1", {"stage1_learning_rate": 7.0}), ("source-only", {"box_queries": 2})):
        with pytest.raises(ValueError, match=f"made with other parameters than minicity/0 .{[*values][0]}.:"):
            found(row, **values)
    with pytest.raises(ValueError, match="made by other code than minicity/0 .m of stage1.:"):
        found("stage 1", ["stage1"])


def tidy(*rows_of_seeds: dict, names: tuple[str, ...] = ("road", "pole", "rider")) -> pd.DataFrame:
    records = [{"study": "mine", "seed": seed, "metrics": {"rows": rows}} for seed, rows in enumerate(rows_of_seeds)]
    return results.tidy(records, names)


def test_a_gap_that_is_none_has_no_share():
    """An oracle no better than source-only, in one seed of two: a dash, no division by zero, and no mean over the rest."""
    one, other = ({n: scored(v) for n, v in zip(("source-only", "stage 1", "oracle"), values, strict=True)}
                  for values in ((0.4, 0.5, 0.4), (0.4, 0.5, 0.6)))  # fmt: skip
    for seeds in ([one], [one, other]):
        cells = results.table(tidy(*seeds, names=("road",)))
        assert cells["gap closed (%)"].tolist() == ["-", "-", "-"]
    assert cells["seed 1"].tolist() == ["40.0", "50.0", "60.0"] and cells["mIoU (%)"][2] == "50.0 ± 14.1"
    cells = results.table(tidy(other, names=("road",)))
    assert cells["mIoU (%)"].tolist() == ["40.0", "50.0", "60.0"]
    assert cells["gap closed (%)"].tolist() == ["-", "50.0", "-"]
    figure = paper_figures.gap_bars(tidy(one, names=("road",)))
    assert "nan" not in " ".join(text.get_text() for text in figure.axes[0].texts)
    del other["oracle"]  # the labels of a seed's data were taken away
    cells = results.table(tidy(one, other, names=("road",)))
    assert cells[""].tolist() == ["source-only", "stage 1"] and cells["gap closed (%)"].tolist() == ["-", "-"]


def test_tables_as_text():
    cells = pd.DataFrame({"": ["a_b", "c"], "%": ["1.0 ± 0.5", "-"]})
    assert results.table_text(cells).splitlines()[2].split() == ["|", "a_b", "|", "1.0", "±", "0.5", "|"]
    assert r"a\_b & 1.0 $\pm$ 0.5 \\" in results.table_text(cells, "latex")
    assert results.table_text(cells, "plain").splitlines()[-1].split() == ["c", "-"]
    assert results.tables_text(tidy({})) == "nothing was scored: the target has no labels\n"
    assert r"\begin{tabular}{lrr}" in results.table_text(results.table(tidy({})), "latex")  # a head and no row


def test_a_study_from_synthia_is_averaged_over_the_classes_that_synthia_has():
    """Of 100 pixels a class half are right in source-only, 75 in stage 1, all by the oracle; SYNTHIA's three absent
    classes (9, 14, 16) and wall (3) are never answered."""
    params = load_params(PROJECT / "params" / "synthia_cityscapes.yaml")

    def row(right: int, without: tuple) -> dict:
        counts = np.zeros((19, 20), int)
        for c in range(19):
            counts[c, c], counts[c, 19] = (0, 100) if c in without else (right, 100 - right)
        return {"confusion": {"val": counts.tolist()}}

    rows = {"source-only": row(50, (3, 9, 14, 16)), "stage 1": row(75, (3, 9, 14, 16)), "oracle": row(100, ())}
    found = tidy(rows, names=params.space.names)
    lines = results.averages_text(found, params).splitlines()
    assert [line for line in lines if line.endswith(":")] == ["mIoU16:", "mIoU13:"]
    cells = [[word.strip() for word in line.split("|")[1:-1]] for line in lines if line.startswith("| stage 1")]
    assert cells == [["stage 1", "70.3", "44.1"], ["stage 1", "75.0", "50.0"]]
    assert results.averages_text(found, params.model_copy(update={"source_dataset": "gta5"})) == ""
    assert results.averages_text(tidy({}), params) == ""


def test_an_interval_is_students_t_and_a_single_seed_has_none():
    assert results.difference(results.paired_difference([0.5], [0.4])) == "+10.0"
    mean, half = results.paired_difference([0.1, 0.3], [0, 0])  # half of 12.706 times 0.2: t of one degree of freedom
    assert mean == pytest.approx(0.2) and half == pytest.approx(1.27062, abs=1e-5)
    assert results.difference((mean, half)) == "+20.0 (-107.1 .. +147.1)" and results.difference(None) == "-"


def test_gains_name_small_classes_and_those_no_longer_answered():
    """Of 10,000 pixels 99% are road, 0.8% pole, 0.2% rider."""
    iou = {"source-only": (0.5, 0.2, 0.1), "stage 1": (0.7, 0.0, 0.5), "oracle": (1, 1, 1)}
    found = tidy({name: scored(*values, pixels=(9900, 80, 20)) for name, values in iou.items()})
    assert results.gains(found).values.tolist() == [["mine", "stage 1", "+13.3", "+10.0", "pole"]]
    found = tidy({name: scored(*values) for name, values in iou.items()})
    assert results.gains(found)["classes under 1% of pixels"].tolist() == ["-"]
    del iou["source-only"]
    assert results.gains(tidy({name: scored(*values) for name, values in iou.items()})).empty


def test_make_ablation_tells_snakemake_its_arms_and_seeds(capsys):
    main("config", "camvid", "0,1", "source_jitter")
    assert capsys.readouterr().out == "study=camvid seeds=0,1 arms=source_jitter\n"
    main("config", "minicity", "-", "quick")
    quick = "plain,mix,cutmix,classmix,patches,mix_patches,mix1,published_patches"
    assert capsys.readouterr().out == f"study=minicity seeds=0,1,2,3,4 arms={quick}\n"
    main("config", "minicity", "-")
    assert "published_stage1" in capsys.readouterr().out


def test_the_findings_in_words_by_hand():
    """835,800 pixels of road, 4,200 of pole (0.5%). Half of what is called pole is road, but for the oracle."""

    def row(road: int, pole: int, wrong: int) -> dict:
        return {"confusion": {"val": [[road, wrong, 835_800 - road - wrong], [0, pole, 4200 - pole]]}}

    rows = {
        "source-only": row(167_160, 1050, 1050),  # IoU of road 0.2; of pole 1050 / (4200 + 2100 - 1050) = 0.2
        "stage 1": row(250_740, 2800, 2800),  # 0.3, 0.4
        "round 1": row(417_900, 1800, 1800),  # 0.5, 0.3
        "oracle": row(501_480, 2520, 0),  # 0.6, 0.6
    }
    text = results.in_words(tidy(rows, names=("road", "pole")))
    assert text.startswith(
        "**mine**: source-only 20.0 mIoU; against it stage 1 +15.0, round 1 +20.0; 50% of the way to the oracle's 60.0"
    )
    assert "under 1%, as a multiple of their true pixels: source-only 0.50, stage 1 1.33, round 1 0.86. From" in text
    assert "most won road +20.0; most lost pole -10.0" in text
    better = {**rows, "oracle": rows["source-only"]}
    found = tidy(better, names=("road", "pole"))
    assert "the oracle is no better at 20.0" in results.in_words(found)
    assert "The oracle is no better than the box" in results.tables_text(found)


def test_rows_are_averaged_over_the_classes_that_the_truth_holds():
    """The box answers a class that is not there, the student does not: both are averaged over the one that is."""
    rows = {name: {"confusion": {"val": [[right, wrong, 0], [0, 0, 0]]}}
            for name, right, wrong in (("source-only", 90, 10), ("stage 1", 80, 0))}  # fmt: skip
    found = tidy(rows, names=("road", "truck"))
    assert results.miou(found).iloc[:, 0].to_dict() == {"source-only": 0.9, "stage 1": 1.0}
    scores = ConfusionMatrix.of([[90, 10, 0], [0, 0, 0]])
    assert scores.present() == [0] and scores.miou() == 0.45 and miou_of_present(scores) == 0.9


def test_the_tidy_table_counts_every_class_of_every_split():
    truth, answers = np.random.default_rng(0).integers(0, 4, (2, 2, 40, 40))
    answers[answers == 2] = 1  # never answered
    answers[(truth == 3) & (answers == 3)] = 0  # always wrong
    parts = {"train": ConfusionMatrix(5), "val": ConfusionMatrix(5)}  # 4 is not there
    for i, scores in enumerate(parts.values()):
        scores.update(answers[i], truth[i])
    row = {"confusion": {split: scores.counts().tolist() for split, scores in parts.items()}}
    found = tidy({"x": row}, {"x": row}, names=tuple("abcde")).set_index(["seed", "split", "class"])
    assert len(found) == 2 * 3 * 5 and set(found["row"]) == {"x"} and set(found["study"]) == {"mine"}
    for split, some in (("train", slice(0, 1)), ("val", slice(1, 2)), (results.ALL, slice(0, 2))):
        said, true = answers[some], truth[some]
        for i, name in enumerate("abcd"):
            line, right = found.loc[(1, split, name)], ((said == i) & (true == i)).sum()
            assert line["true_pixels"] == (true == i).sum() and line["answers"] == (said == i).sum()
            assert line["iou"] == right / ((said == i) | (true == i)).sum()
            assert name == "c" or line["precision"] == right / (said == i).sum()
        assert found.loc[(0, split, "e")][["true_pixels", "answers"]].tolist() == [0, 0]
        assert np.isnan(found["precision"][0, split, "c"]) and np.isnan(found["iou"][0, split, "e"])
    table = found.reset_index()
    assert results.miou(table, "val").loc["x", 1] == pytest.approx(parts["val"].miou())
    axis = paper_figures.answered_by_class(results.together(table)).axes[0]
    expected = [(answers == i).sum() / (truth == i).sum() for i in range(4)]
    assert axis.lines[0].get_ydata() == pytest.approx(np.maximum(expected, 0.02))
    axis = paper_figures.noise_by_class(results.together(table)).axes[0]
    right = [((answers == i) & (truth == i)).sum() / (answers == i).sum() for i in (0, 1, 3)]
    assert [bar.get_height() for bar in axis.patches if bar.get_height() > 0][:3] == pytest.approx(
        [100 * (1 - share) for share in right]
    )


def test_a_record_without_confusion_matrices_is_named(tmp_path):
    finished("minicity", 0, tmp_path, {"stage 1": {"miou": 0.5, "iou": [0.5]}})
    with pytest.raises(ValueError, match=r"06_evaluation.json: is of an older form.*SEEDS=0"):
        results.read_records("minicity", [0], tmp_path)

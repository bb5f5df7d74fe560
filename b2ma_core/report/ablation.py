"""The ablation's table and curves. ``params/ablation.yaml`` lists the arms; ``study/arms.py`` makes runs of them."""

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from b2ma_core.files import PROJECT, load_yaml, read_json
from b2ma_core.params import Params, load_params, study_file, unlike
from b2ma_core.processes import run_command
from b2ma_core.report import results
from b2ma_core.study.check import check_study, seeds_of
from b2ma_core.study.pipeline import EVALUATION, made_by, stage_named, trainings


def read_ablation(path: Path = PROJECT / "params" / "ablation.yaml") -> dict:
    """``params/ablation.yaml``: study, seeds, arms, table and curves."""
    return load_yaml(path)


def arms_of(cells: Iterable[Sequence]) -> list[str]:
    """The arms that some cells ``[arm, row]`` speak of, each once."""
    return list(dict.fromkeys(arm for arm, _ in cells if arm))


def curve_cells(plan: dict) -> list[list]:
    """The cells ``[arm, row]`` of the plan's curves."""
    return [
        [arm, curve["row"]] for curve in plan["curves"].values() for arms in curve["lines"].values() for arm in arms
    ]


def cell_scores(study: str, cell: Sequence, seeds: Sequence[int], runs: Path = PROJECT / "runs") -> pd.DataFrame:
    """:func:`results.class_scores` of ``[arm, row]``, with ``seed``: of the seeds that have been run.

    Raises:
        ValueError: if what an arm's row was made by differs from its study's in more than the arm switches, as after a
            change of recipe or code.
    """
    arm, row = cell
    names = study, f"{study}+{arm}" if arm else study
    paths = {seed: [runs / name / str(seed) / "records" / f"{EVALUATION}.json" for name in names] for seed in seeds}
    pairs = {seed: map(results.read_record, pair) for seed, pair in paths.items() if all(p.is_file() for p in pair)}
    if not pairs:  # not every arm fits every study
        return pd.DataFrame(columns=["seed", "class", "iou"])
    others, params = (load_params(study_file(name)) for name in names)
    stages = made_by(trainings(params).get(row, "labels")) | {"evaluation"}
    unread = [key for key in Params.model_fields if not any(stage_named(each).read(key) for each in stages)]
    free = [*unlike(params.model_dump(), others.model_dump()), *unread]
    found = []
    for seed, (origin, record) in pairs.items():
        results.check_alike(record, origin, free, stages)
        scores = {row: results.scores_of(record["metrics"]["rows"][row]["confusion"])}
        found.append(results.class_scores(scores, params.space.names).assign(seed=seed))
    return pd.concat(found)


def cell_miou(study: str, cell: Sequence, seeds: Sequence[int], runs: Path = PROJECT / "runs") -> pd.Series:
    """mIoU (0 .. 1) of :func:`cell_scores`, by seed."""
    return cell_scores(study, cell, seeds, runs).groupby("seed")["iou"].mean()


def compared(name: str, miou: pd.Series, other: pd.Series, against: str) -> dict | None:
    """A row of :func:`ablation_rows`, of the seeds that it shares with what it is compared with; None without any."""
    miou, other = miou.align(other, join="inner")
    if miou.empty:
        return None
    difference = results.paired_difference(miou, other)
    return {"name": name, "seeds": list(miou.index), "miou": list(miou), "difference": difference, "against": against}


def ablation_rows(study: str, plan: dict, seeds: Sequence[int], runs: Path = PROJECT / "runs") -> list[dict]:
    """The table's rows that have been run: ``name``, ``seeds``, ``miou`` of each, ``difference`` and interval to
    another row over the seeds that both have.

    ``against`` is that row: "above", for the plan's ``without`` "the whole", the table's last, and for its ``pairs``
    "the same without it". ``skipped`` names the rows above it that were not run, whose part is then in its difference.
    """
    rows, above, skipped = [], pd.Series(dtype=float), []
    scores = partial(cell_miou, study, seeds=seeds, runs=runs)
    for name, cell in plan["table"].items():
        miou = scores(cell)
        row = compared(name, miou, above if rows else miou, "above")
        if row is None:
            skipped.append(name)
            continue
        rows.append(row | {"difference": row["difference"] if rows else None, "skipped": skipped})
        above, skipped = miou, []
    without, pairs = {} if skipped else plan.get("without", {}), plan.get("pairs", {})
    others = [compared(name, scores(cell), above, "the whole") for name, cell in without.items()]
    others += [compared(name, *map(scores, pair), "the same without it") for name, pair in pairs.items()]
    return rows + [row for row in others if row]


def class_differences(
    study: str, cells: Sequence[Sequence], seeds: Sequence[int], runs: Path = PROJECT / "runs"
) -> pd.DataFrame:
    """What one cell ``[arm, row]`` has more than another, class by class.

    Args:
        study: the study.
        cells: the two.
        seeds, runs: as in :func:`cell_scores`.

    Returns:
        A line a seed (that both have) and class: ``class``, ``seed``, ``difference`` of the IoU (-1 .. 1), and
        ``mined``, whether the study's hard patches of this seed hold the class.
    """
    one, other = (cell_scores(study, cell, seeds, runs).set_index(["class", "seed"])["iou"] for cell in cells)
    one, other = one.align(other, join="inner")
    lines = (one - other).reset_index(name="difference")
    mined = set()
    for seed in lines["seed"].unique():
        record = read_json(runs / study / str(seed) / "records" / "04_hard_patches.json")
        mined |= {(name, seed) for name in record["metrics"]["patches_by_class"]} if record else set()
    return lines.assign(mined=one.index.isin(mined))


def ablation_cells(rows: list[dict]) -> pd.DataFrame:
    """The ablation's table in words, of :func:`ablation_rows`."""
    against = [f"{r['against']}: " * (r["against"] != "above") + results.difference(r["difference"]) for r in rows]
    return pd.DataFrame({"": [r["name"] for r in rows], "seeds": [str(len(r["seeds"])) for r in rows],
                         "mIoU (%)": [results.spread(r["miou"]) for r in rows],
                         "against the row above (95%)": against})  # fmt: skip


def not_run(rows: list[dict]) -> str:
    """What the table of :func:`ablation_rows` leaves out, a sentence for each row that stands for more than itself."""
    skipped = [(row["name"], row["skipped"]) for row in rows if row.get("skipped")]
    return " ".join(f'Not run, so that it is part of "{name}": {"; ".join(names)}.' for name, names in skipped)


def in_words(rows: list[dict]) -> str:
    """A sentence for each row of :func:`ablation_rows` that is not compared with the one above: what it does to the
    mIoU, and whether zero lies in the interval."""
    sentences = []
    for row in rows:
        if row["against"] != "above":
            mean, half = (100 * value for value in row["difference"])
            name, against = row["name"][0].upper() + row["name"][1:], row["against"]
            told = "an interval without zero" if abs(mean) > half else "which may be nothing"
            sure = f" ({mean - half:+.1f} to {mean + half:+.1f}), {told}" if len(row["seeds"]) > 1 else ", one seed"
            sentences.append(f"{name}, against {against}: {mean:+.1f} points{sure}.")
    return " ".join(sentences)


def curves(study: str, plan: dict, seeds: Sequence[int], runs: Path = PROJECT / "runs") -> pd.DataFrame:
    """mIoU (0 .. 1) along the plan's curves of which two values (of names three) or more have been run.

    A row a value and seed: ``study``, ``varied``, ``line``, ``to`` (the varied parameter's value, "all" for None),
    ``seed`` and ``miou``, in the order of the values, of the seeds that all run values of its line have.
    """
    lines = [pd.DataFrame(columns=["study", "varied", "line", "to", "seed", "miou"])]
    for name, curve in plan["curves"].items():
        for line, arms in curve["lines"].items():
            found = {}
            for arm in sorted(arms, key=lambda arm: arm is not None):  # where an arm switches nothing, the study stands
                of_seed = cell_miou(study, [arm, curve["row"]], seeds, runs)
                if len(of_seed):
                    found.setdefault(_value(study, arm, curve["parameter"]), of_seed)
            named = any(isinstance(value, str) for value in found)
            if len(found) > 1 + named:
                values = found if named else sorted(found)
                shared = pd.DataFrame({"all" if v == math.inf else str(v): found[v] for v in values}).dropna()
                points = shared.melt(var_name="to", value_name="miou", ignore_index=False).reset_index(names="seed")
                lines.append(points.assign(study=study, varied=name, line=line))
    return pd.concat(lines, ignore_index=True)


def _value(study: str, arm: str | None, parameter: str):
    """An arm's value of a parameter; infinity for None, which stands for all there are."""
    value = getattr(load_params(study_file(f"{study}+{arm}" if arm else study)), parameter)
    return math.inf if value is None else value


def main(what: str, study: str, seeds: str, *names: str) -> None:
    """``config STUDY SEEDS [quick] [ARM ..]`` prints what Snakefile is told, ``table STUDY SEEDS`` what came out.

    ``SEEDS`` are joined by commas; "-" stands for those of ``params/ablation.yaml``.
    """
    plan = read_ablation()
    numbers = plan["seeds"] if seeds == "-" else seeds_of(seeds)
    if what == "table":
        rows = ablation_rows(study, plan, numbers)
        print(f"\n{study}, seeds {numbers}: mean, and paired differences (95%, Student's t)")
        print(results.table_text(ablation_cells(rows), "plain"), not_run(rows), sep="\n")
        return
    if names[:1] == ("quick",):
        names = (*plan["quick"], *names[1:])
    arms = names or arms_of([*plan["table"].values(), *plan["without"].values(), *curve_cells(plan)])
    check_study(study, " ".join(arms))
    print(f"study={study} seeds={','.join(map(str, numbers))} arms={','.join(arms)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=main.__doc__.splitlines()[0])
    parser.add_argument("what", choices=("config", "table"))
    parser.add_argument("study")
    parser.add_argument("seeds")
    parser.add_argument("arms", nargs="*")
    args = parser.parse_args()
    sys.exit(run_command("ablation", lambda: main(args.what, args.study, args.seeds, *args.arms)))

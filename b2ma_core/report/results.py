"""Results as one tidy table, from records alone: ``python -m b2ma_core.report.results STUDY SEED ..`` prints them."""

import argparse
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from b2ma_core.files import PROJECT, read_json
from b2ma_core.metrics import ALL, ConfusionMatrix, gap_closed, scores_of
from b2ma_core.params import Params, load_params, study_file, unlike
from b2ma_core.processes import run_command
from b2ma_core.study.check import seeds_of
from b2ma_core.study.pipeline import EVALUATION, stage_named

RARE_BELOW = 0.01  # share of the true pixels under which a class is called rare
ENDS = ["source-only", "oracle"]  # of the gap: the box as it answers, the same network trained with true labels


def alike_seeds(study: str, runs: Path = PROJECT / "runs") -> list[int]:
    """The evaluated seeds of a study with the most rows: without those that were run for arms alone, with no oracle."""
    paths = (runs / study).glob(f"*/records/{EVALUATION}.json")
    rows = {int(path.parts[-3]): len(read_record(path)["metrics"]["rows"]) for path in paths}
    return sorted(seed for seed, count in rows.items() if count == max(rows.values()))


def read_records(study: str, seeds: Sequence[int], runs: Path = PROJECT / "runs") -> list[dict]:
    """The evaluation's record of each seed.

    Raises:
        FileNotFoundError: naming what to run.
        ValueError: naming a seed that was run otherwise than the first, see :func:`check_alike`, or a record of an
            older form.
    """
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: each once, got {list(seeds)}")
    found = []
    for seed in seeds:
        path = runs / study / str(seed) / "records" / f"{EVALUATION}.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: make study STUDY={study} SEEDS={seed}")
        found.append(read_record(path))
        check_alike(found[-1], found[0])
    return found


def read_record(path: Path) -> dict:
    """An evaluation's record; ValueError if it is of an older form, without confusion matrices."""
    record = read_json(path)
    if not all("confusion" in row for row in record["metrics"]["rows"].values()):
        raise ValueError(f"{path}: is of an older form, without confusion matrices; remove it and run it again: "
                         f"make study STUDY={record['study']} SEEDS={record['seed']}")  # fmt: skip
    return record


def check_alike(record: dict, other: dict, besides: Sequence[str] = (), stages: Collection[str] | None = None) -> None:
    """ValueError, naming run and what differs, if one evaluation's run was made with other parameters, by other code,
    or scored on other data than another's. Code is compared of the trainings that both have.

    Args:
        record, other: of two runs, the first the one to be blamed.
        besides: names of parameters that may differ.
        stages: names of the stages whose code counts; None: of all.
    """
    names = [name for name in unlike(record["params"], other["params"]) if name not in besides]
    found = {"made with other parameters": names}
    mine, others = _told(record, stages), _told(other, stages)
    for what in mine:
        shared = mine[what].keys() & others[what].keys()
        found[what] = sorted(name for name in shared if mine[what][name] != others[what][name])
    for what, names in found.items():
        if names:
            raise ValueError(
                f"{record['study']}/{record['seed']} was {what} than {other['study']}/{other['seed']} "
                f"({', '.join(names)}): remove its folder and run it again, the two cannot stand in one table"
            )


def _told(record: dict, stages: Collection[str] | None) -> dict[str, dict[str, str]]:
    trained = {name: told["code"] for name, told in record["trained"].items()
               if stages is None or stage_named(name).name in stages}  # fmt: skip
    code = {f"{module} of {name}": digest for name, modules in trained.items() for module, digest in modules.items()}
    data = {name: digest for name, digest in record["made_from"]["inputs"].items() if name.startswith("target_val")}
    return {"made by other code": code, "scored on other data": data}


def trained_where(records: Sequence[dict]) -> str:
    """Where and with what the trainings of some evaluations ran, in one line, as it was kept at the time."""
    sessions = [where for r in records for told in r["trained"].values() for where in told["sessions"]]
    known = pd.DataFrame(sessions, columns=["git", "dirty", "precision", "device", "threads", "torch", "torchvision"])
    known["git"] = known["git"].fillna("unknown") + known["dirty"].map({True: " with changes"}).fillna("")
    each = {name: ", ".join(values.astype(str).unique()) for name, values in known.items()}
    return ("trained at revision {git} in {precision} on {device}, {threads} threads, torch {torch}, torchvision "
            "{torchvision}").format(**each)  # fmt: skip


def class_scores(scores: Mapping[str, ConfusionMatrix], names: Sequence[str]) -> pd.DataFrame:
    """A line a row and class: ``row``, ``class``, ``true_pixels``, ``answers`` (pixels predicted as it), ``iou`` and
    ``precision`` (0 .. 1; NaN where a class has none), see :class:`ConfusionMatrix`. A class without a true pixel has
    no IoU, so that all rows are averaged over the same classes.

    Args:
        scores: row -> its confusion matrix.
        names: of the ``C`` classes.
    """
    columns = ("true_pixels", "answers", "iou", "precision")
    found = pd.concat([
        pd.DataFrame({"row": row, "class": names, **{each: getattr(s, each)() for each in columns}})
        for row, s in scores.items()
    ], ignore_index=True)  # fmt: skip
    return found.assign(iou=found["iou"].where(found["true_pixels"] > 0))


def tidy(records: Sequence[dict], names: Sequence[str]) -> pd.DataFrame:
    """All results of a study's seeds, a line a seed, split, row and class.

    Args:
        records: the evaluation's, one a seed.
        names: of the ``C`` classes.

    Returns:
        :func:`class_scores` with ``study``, ``seed`` and ``split`` (``ALL``, and each of several), of the rows that
        every seed has, in the table's order; empty where nothing was scored.
    """
    rows = [row for row in records[0]["metrics"]["rows"] if all(row in r["metrics"]["rows"] for r in records)]
    parts = []
    for record in records if rows else ():
        splits = list(record["metrics"]["rows"][rows[0]]["confusion"])
        for split in [ALL, *(splits if len(splits) > 1 else ())]:
            place = {"study": record["study"], "seed": record["seed"], "split": split}
            found = {row: scores_of(record["metrics"]["rows"][row]["confusion"], split) for row in rows}
            parts.append(class_scores(found, names).assign(**place))
    empty = pd.DataFrame(columns=["study", "seed", "split", "row", "class", "iou"])
    return pd.concat(parts, ignore_index=True) if parts else empty


def together(results: pd.DataFrame, rows: Sequence[str] | None = None) -> pd.DataFrame:
    """The results on all images together; of some rows, or of all."""
    return results[(results["split"] == ALL) & (results["row"].isin(rows) if rows is not None else True)]


def miou(results: pd.DataFrame, split: str = ALL) -> pd.DataFrame:
    """mIoU (0 .. 1) of one study, a line a row, a column a seed."""
    return results[results["split"] == split].pivot_table("iou", "row", "seed", "mean", sort=False)


def gaps_closed(means: pd.DataFrame) -> pd.DataFrame:
    """:func:`gap_closed` of every value of :func:`miou`; NaN for both ends of the gap, and without them."""
    if not set(ENDS) <= set(means.index):
        return means * math.nan
    closed = means.apply(lambda seed: seed.map(lambda value: gap_closed(seed["source-only"], value, seed["oracle"])))
    closed.loc[ENDS] = math.nan
    return closed


def paired_difference(values: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Mean of ``values - others``, seed by seed, and half the width of its 95% interval (Student's t; NaN for one).

    Example:
        >>> mean, half = paired_difference([0.52, 0.50, 0.51], [0.50, 0.50, 0.50])
        >>> round(mean, 3), round(half, 4)
        (0.01, 0.0248)
    """
    differences = np.array(values, float) - np.array(others, float)
    n = len(differences)
    half = stats.t.ppf(0.975, n - 1) * stats.sem(differences) if n > 1 else math.nan
    return float(differences.mean()), float(half)


def spread(values: Sequence[float]) -> str:
    """Percent with one decimal: the value, or mean ± standard deviation of several; "-" if a seed has none."""
    values = 100 * np.array(values, float)
    if np.isnan(values).any():
        return "-"
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def difference(pair: tuple[float, float] | None) -> str:
    """Mean and 95% interval of :func:`paired_difference`, in percent; "-" without one."""
    mean, half = (100 * value for value in pair or (math.nan, math.nan))
    if math.isnan(mean):
        return "-"
    return f"{mean:+.1f}" + ("" if math.isnan(half) else f" ({mean - half:+.1f} .. {mean + half:+.1f})")


def table(results: pd.DataFrame, split: str = ALL) -> pd.DataFrame:
    """A study's table, in words: its rows, mIoU of each seed and of all, share of the gap."""
    means = miou(results, split)
    cells = means.map(lambda value: spread([value])).add_prefix("seed ") if means.shape[1] > 1 else means[[]].copy()
    cells["mIoU (%)"] = [spread(values) for values in means.values]
    cells["gap closed (%)"] = [spread(values) for values in gaps_closed(means).values]
    return cells.rename_axis(columns=None).reset_index(names="")


def table_text(cells: pd.DataFrame, form: str = "pipe") -> str:
    """A table of words as text: ``pipe`` (Markdown), ``latex``, or ``plain`` for a terminal."""
    others = cells.shape[1] - 1
    if form == "latex":
        return cells.to_latex(index=False, escape=True, column_format="l" + "r" * others).replace("±", r"$\pm$")
    sides = ["left", *["right"] * others] if len(cells) else None  # tabulate wants none without lines
    return cells.to_markdown(index=False, tablefmt=form, disable_numparse=True, colalign=sides) + "\n"


def tables_text(results: pd.DataFrame, form: str = "pipe") -> str:
    """A study's table and, where several splits were scored, one of each; see :func:`table_text`. Below it why no share
    of a gap is told, where there is none."""
    texts = [f"\nof these, {split}:\n\n" * (split != ALL) + table_text(table(results, split), form)
             for split in results["split"].unique()]  # fmt: skip
    means = miou(results) if texts else pd.DataFrame()
    if set(ENDS) <= set(means.index) and (means.loc["oracle"] <= means.loc["source-only"]).any():
        texts.append("\nThe oracle is no better than the box, on one seed at least: this network, so trained, did not "
                     "reach the box with true labels either, and there is no gap to close.\n")  # fmt: skip
    return "".join(texts) or "nothing was scored: the target has no labels\n"


def averages_text(results: pd.DataFrame, params: Params, form: str = "pipe") -> str:
    """A study's table over the 16 classes that SYNTHIA has, and over the 13 that most papers average: an average over
    19 compares with none of theirs. Nothing for a study from another source."""
    if params.source_dataset != "synthia" or not len(results):
        return ""
    names, subsets = params.space.names, params.space.subsets
    chosen = {title: [names[c] for c in ids] for title, ids in subsets.items() if len(ids) < len(names)}
    return "".join(f"\n{title}:\n\n{table_text(table(results[results['class'].isin(some)]), form)}"
                   for title, some in chosen.items())  # fmt: skip


def rare_classes(results: pd.DataFrame) -> list[str]:
    """Classes of one study that hold less than ``RARE_BELOW`` of the true pixels, but some."""
    pixels = together(results).drop_duplicates("class").set_index("class")["true_pixels"]
    return list(pixels.index[(pixels > 0) & (pixels < RARE_BELOW * pixels.sum())])


def gains(results: pd.DataFrame) -> pd.DataFrame:
    """Every row of one study but the oracle against source-only of the same seed, in words.

    :func:`paired_difference` of the mIoU over all classes, and over those under 1% of the true pixels; and the classes
    no longer answered: their mean IoU was at least 1% in source-only and is below 0.1% now.
    """
    iou = together(results).pivot(index=["row", "seed"], columns="class", values="iou")[results["class"].unique()]
    rare, lines = rare_classes(results), []
    for row in results["row"].unique() if "source-only" in iou.index else ():
        if row not in ENDS:
            after, before = iou.loc[row], iou.loc["source-only"]
            everywhere, rarely = (difference(paired_difference(after[some].mean(axis=1), before[some].mean(axis=1)))
                                  for some in (iou.columns, rare))  # fmt: skip
            lost = iou.columns[(before.mean() >= 0.01) & (after.mean() < 0.001)]
            lines.append((results["study"].iloc[0], row, everywhere, rarely, ", ".join(lost) or "-"))
    return pd.DataFrame(
        lines, columns=["study", "row", "against source-only", "classes under 1% of pixels", "no longer answered"]
    )


def in_words(results: pd.DataFrame) -> str:
    """What each row has more than the first, and the classes that stage 2 moved most; means of seeds."""
    results = together(results)
    means, closed = 100 * miou(results).mean(axis=1), gaps_closed(miou(results))
    first, *later = [row for row in means.index if row != "oracle"]
    more = ", ".join(f"{row} {means[row] - means[first]:+.1f}" for row in later)
    text = f"**{results['study'].iloc[0]}**: {first} {means[first]:.1f} mIoU; against it {more}"
    last = [first, *later][-1]
    if set(ENDS) <= set(means.index):
        share = closed.loc[last].mean(skipna=False)
        way = "the oracle is no better at" if math.isnan(share) else f"{100 * share:.0f}% of the way to the oracle's"
        text += f"; {way} {means['oracle']:.1f}"
    if "stage 1" in means.index and last != "stage 1":
        rare = results[results["class"].isin(rare_classes(results))].groupby("row")[["answers", "true_pixels"]].sum()
        if len(rare):
            said = rare["answers"] / rare["true_pixels"]
            parts = ", ".join(f"{row} {said[row]:.2f}" for row in [first, *later])
            text += f". Answers of the classes under 1%, as a multiple of their true pixels: {parts}"
        iou = results.pivot_table("iou", "class", "row", sort=False)
        moved = (100 * (iou[last] - iou["stage 1"])).dropna().sort_values(kind="stable")
        won, lost = (", ".join(f"{c} {value:+.1f}" for c, value in some.items()) or "none"
                     for some in (moved[moved > 0][:-4:-1], moved[moved < 0][:3]))  # fmt: skip
        text += f". From stage 1 to {last}: most won {won}; most lost {lost}"
    return text + "."


def cost(records: Mapping[str, Sequence[dict]]) -> pd.DataFrame:
    """Seconds of each training, however often it was stopped and resumed, all rounds together; median over the seeds
    that have it ("-": none), a line a study, in words.

    Args:
        records: of each study, the evaluation's, one a seed.
    """
    columns = {"source": "source model", "stage1": "stage 1", "stage2": "self-distillation", "oracle": "oracle"}
    lines = [(study, record["seed"], columns[stage_named(name).name], told["seconds"])
             for study, each in records.items() for record in each
             for name, told in record["trained"].items()]  # fmt: skip
    told = pd.DataFrame(lines, columns=["study", "seed", "training", "seconds"])
    sums = told.groupby(["study", "seed", "training"])["seconds"].sum().replace(0, math.nan)
    medians = sums.groupby(["study", "training"]).median().unstack().reindex(records, columns=columns.values())
    return medians.map(lambda value: "-" if math.isnan(value) else f"{value:.0f}").reset_index(names="seconds")


def main(study: str, seeds: str) -> None:
    params = load_params(study_file(study))
    records = read_records(study, seeds_of(seeds))
    found = tidy(records, params.space.names)
    scored = f": {records[0]['metrics']['scored_on']}, last checkpoints" if len(found) else ""
    tables = tables_text(found, "plain") + averages_text(found, params, "plain")
    print(f"\n{study}{scored}\n{tables}{trained_where(records)}")
    print(f"figures: {(PROJECT / 'figures' / study).relative_to(PROJECT)}/   runs: runs/{study}/\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print a study's table from its records.")
    parser.add_argument("study")
    parser.add_argument("seeds", nargs="+")
    args = parser.parse_args()
    sys.exit(run_command("results", lambda: main(args.study, " ".join(args.seeds))))

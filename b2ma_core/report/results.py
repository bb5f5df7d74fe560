"""Result tables from records alone: ``python -m b2ma_core.report.results STUDY SEED [SEED ..]`` prints one."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from b2ma_core.files import PROJECT
from b2ma_core.metrics import ConfusionMatrix
from b2ma_core.params import study_file, unlike
from b2ma_core.processes import run_command
from b2ma_core.study.check import seeds_of
from b2ma_core.study.pipeline import EVALUATION, STAGES

RARE_BELOW = 0.01  # share of the true pixels under which a class is called rare


def read_evaluations(study: str, seeds: Sequence[int], runs: Path = PROJECT / "runs") -> list[dict]:
    """The evaluation's metrics of each seed.

    Raises:
        FileNotFoundError: naming what to run.
        ValueError: naming a seed that was run otherwise than the first, see :func:`check_alike`, or a record of an
            older form.
    """
    return [record["metrics"] for record in read_records(study, seeds, runs)]


def read_records(study: str, seeds: Sequence[int], runs: Path = PROJECT / "runs") -> list[dict]:
    """The evaluation's record of each seed; raises as :func:`read_evaluations`."""
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
    record = json.loads(path.read_text())
    if not all("confusion" in row for row in record["metrics"]["rows"].values()):
        raise ValueError(f"{path}: is of an older form, without confusion matrices; run it again: "
                         f"make study STUDY={record['study']} SEEDS={record['seed']} FROM={EVALUATION}")  # fmt: skip
    return record


def check_alike(record: dict, other: dict, besides: Sequence[str] = ()) -> None:
    """ValueError, naming run and what differs, if one evaluation's run was made with other parameters, by other code,
    or scored on other data than another's. What a record of an older form does not tell is not compared.

    Args:
        record, other: of two runs, the first the one to be blamed.
        besides: names that may differ.
    """
    names = [name for name in unlike(record["params"], other["params"]) if name not in besides]
    found = {"made with other parameters": names}
    for what, told in (("made by other code", _code_of), ("scored on other data", _data_of)):
        mine, others = told(record), told(other)
        found[what] = sorted(name for name in mine.keys() & others.keys() if mine[name] != others[name])
    for what, names in found.items():
        if names:
            raise ValueError(
                f"{record['study']}/{record['seed']} was {what} than {other['study']}/{other['seed']} "
                f"({', '.join(names)}): remove its folder and run it again, the two cannot stand in one table"
            )


def _code_of(record: dict) -> dict[str, str]:
    return {f"{module} of {name}": digest for name, told in record.get("trained", {}).items()
            for module, digest in told["code"].items()}  # fmt: skip


def _data_of(record: dict) -> dict[str, str]:
    inputs = record.get("made_from", {}).get("inputs", {})
    return {name: digest for name, digest in inputs.items() if name.startswith("target_val")}


def trained_where(records: Sequence[dict]) -> str:
    """Where and with what the trainings of some evaluations ran, in one line, as it was kept at the time."""
    sessions = [where for r in records for told in r.get("trained", {}).values() for where in told["sessions"]]
    if not sessions:
        return "where it was trained was not recorded"

    def each(name: str) -> str:
        return ", ".join(dict.fromkeys(str(where[name]) for where in sessions))

    known = [f"{w['git'] or 'unknown'}{' with changes' * bool(w['dirty'])}" for w in sessions]
    revisions = ", ".join(dict.fromkeys(known))
    return (f"trained at revision {revisions} in {each('precision')} on {each('device')}, {each('threads')} threads, "
            f"torch {each('torch')}, torchvision {each('torchvision')}")  # fmt: skip


def gap_closed(source_only: float, value: float, oracle: float) -> float:
    """Share of the gap between source-only and oracle that a value closes; 1 is all of it, NaN: there is no gap."""
    return (value - source_only) / (oracle - source_only) if oracle > source_only else math.nan


def shared_rows(evaluations: Sequence[dict]) -> list[str]:
    """Names of the rows that the evaluation of every seed has, in the table's order."""
    return [name for name in evaluations[0]["rows"] if all(name in e["rows"] for e in evaluations)]


def splits_of(evaluations: Sequence[dict]) -> list[str]:
    """The splits that were scored apart; none where a study scores a single one."""
    splits = list(next(iter(evaluations[0]["rows"].values()), {}).get("confusion", {}))
    return splits if len(splits) > 1 else []


def scores_of(evaluation: dict, name: str, split: str | None = None) -> ConfusionMatrix:
    """A row's confusion matrix on one of its splits; None: on all of them together."""
    parts = evaluation["rows"][name]["confusion"]
    return ConfusionMatrix.of(np.sum([parts[split]] if split else list(parts.values()), 0))


def per_class(evaluations: Sequence[dict], name: str, key: str = "iou") -> np.ndarray:
    """``(S, C)`` float64 IoU or precision of a row by seed and class, 0 .. 1; NaN where a class has none."""
    return np.array([getattr(scores_of(e, name), key)().numpy() for e in evaluations])


def class_shares(evaluations: Sequence[dict]) -> np.ndarray:
    """``(C,)`` float64 shares of the true pixels, 0 .. 1; every seed is scored on the same."""
    pixels = scores_of(evaluations[0], next(iter(evaluations[0]["rows"]))).true_pixels().numpy()
    return pixels / pixels.sum()


def answered_to_true(evaluations: Sequence[dict], name: str) -> np.ndarray:
    """``(S, C)`` float64: a row's answers of each class over its true pixels, by seed; NaN without such pixels."""
    said, true = per_class(evaluations, name, "answers"), per_class(evaluations, name, "true_pixels")
    return np.where(true > 0, said / np.maximum(true, 1), np.nan)


def result_rows(evaluations: Sequence[dict], split: str | None = None) -> list[dict]:
    """One row per stage: name, mIoU of each seed, and the gap's share of each seed (None without an oracle).

    Args:
        evaluations: one a seed.
        split: one of :func:`splits_of`; None: all images together.
    """

    def miou_of(evaluation: dict, name: str) -> float:
        return scores_of(evaluation, name, split).miou()

    names = shared_rows(evaluations)
    rows = []
    for name in names:
        miou = [miou_of(e, name) for e in evaluations]
        gap = None
        if {"oracle", "source-only"} <= set(names) and name not in ("oracle", "source-only"):
            gap = [gap_closed(miou_of(e, "source-only"), m, miou_of(e, "oracle"))
                   for e, m in zip(evaluations, miou, strict=True)]  # fmt: skip
        rows.append({"name": name, "miou": miou, "gap": gap})
    return rows


def spread(values: Sequence[float] | None) -> str:
    """Percent with one decimal: the value, or mean ± standard deviation of several; "-" if there is none for a seed."""
    values = 100 * np.array(math.nan if values is None else values, float).ravel()
    if np.isnan(values).any():
        return "-"
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def result_cells(rows: list[dict], seeds: Sequence[int]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of a study's table."""
    several = len(seeds) > 1
    head = ["", *([f"seed {s}" for s in seeds] if several else []), "mIoU (%)", "gap closed (%)"]
    lines = [
        [r["name"], *([f"{100 * v:.1f}" for v in r["miou"]] if several else []), spread(r["miou"]), spread(r["gap"])]
        for r in rows
    ]
    return head, lines


# Student's t, 97.5%, by degrees of freedom.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def paired_difference(values: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Mean of ``values - others``, seed by seed, and half the width of its 95% interval (Student's t; NaN for one).

    Example:
        >>> mean, half = paired_difference([0.52, 0.50, 0.51], [0.50, 0.50, 0.50])
        >>> round(mean, 3), round(half, 4)
        (0.01, 0.0248)
    """
    differences = np.array(values, float) - np.array(others, float)
    n = len(differences)
    if n < 2:
        return float(differences.mean()), math.nan
    t = _T[min(n - 1, max(_T))]  # a little wide from eleven values on
    return float(differences.mean()), float(t * differences.std(ddof=1) / math.sqrt(n))


def difference(pair: tuple[float, float] | None) -> str:
    """Mean and 95% interval of :func:`paired_difference`, in percent."""
    if pair is None:
        return "-"
    mean, half = (100 * value for value in pair)
    return f"{mean:+.1f}" + ("" if half != half else f" ({mean - half:+.1f} .. {mean + half:+.1f})")


def gains(evaluations: Sequence[dict]) -> list[dict]:
    """Every row but the oracle against source-only of the same seed.

    Returns:
        For each row ``name``; ``all`` and ``rare``, :func:`paired_difference` of the mIoU over all classes, and over
        those that hold less than ``RARE_BELOW`` of the true pixels (None without any); ``died``, the classes whose
        mean IoU was at least 1% in source-only and is below 0.1% now.
    """
    names = [name for name in shared_rows(evaluations) if name != "oracle"]
    if "source-only" not in names:
        return []

    shares = class_shares(evaluations)
    rare = np.flatnonzero((shares > 0) & (shares < RARE_BELOW))
    before, lines = per_class(evaluations, "source-only"), []
    for name in names[1:]:
        after = per_class(evaluations, name)
        lines.append({
            "name": name,
            "all": paired_difference(np.nanmean(after, 1), np.nanmean(before, 1)),
            "rare": paired_difference(after[:, rare].mean(1), before[:, rare].mean(1)) if len(rare) else None,
            "died": np.flatnonzero((before.mean(0) >= 0.01) & (after.mean(0) < 0.001)).tolist(),
        })  # fmt: skip
    return lines


def in_words(study: str, evaluations: Sequence[dict], names: Sequence[str]) -> str:
    """What asking, stage 1 and stage 2 bring, and the classes that stage 2 moved most: means over seeds.

    Args:
        study: its name.
        evaluations: one a seed.
        names: of the classes.
    """
    rows = [name for name in shared_rows(evaluations) if name != "oracle"]

    def mean(name: str) -> float:
        return 100 * float(np.mean([scores_of(e, name).miou() for e in evaluations]))

    steps = [f"{b} {mean(b) - mean(a):+.1f}" for a, b in zip(rows, rows[1:], strict=False)]
    text = f"**{study}**: {rows[0]} {mean(rows[0]):.1f} mIoU; " + ", ".join(steps)
    if {"source-only", "oracle"} <= set(shared_rows(evaluations)):
        closed = gap_closed(mean("source-only"), mean(rows[-1]), mean("oracle"))
        way = "the oracle is no better at" if math.isnan(closed) else f"{100 * closed:.0f}% of the way to the oracle's"
        text += f"; {way} {mean('oracle'):.1f}"
    if "stage 1" in rows and rows[-1] != "stage 1":
        moved = 100 * (per_class(evaluations, rows[-1]) - per_class(evaluations, "stage 1")).mean(0)
        order = [c for c in np.argsort(moved) if moved[c] == moved[c]]
        lost, won = ([f"{names[c]} {moved[c]:+.1f}" for c in some] for some in (order[:3], order[:-4:-1]))
        shares = class_shares(evaluations)
        shares = shares * (shares < RARE_BELOW)
        said = {row: np.nansum(answered_to_true(evaluations, row) * shares, 1).mean() for row in rows}
        if shares.any():
            parts = ", ".join(f"{row} {value / shares.sum():.2f}" for row, value in said.items())
            text += f". Answers of the classes under 1%, as a multiple of their true pixels: {parts}"
        text += f". From stage 1 to {rows[-1]}: most won {', '.join(won)}; most lost or least won {', '.join(lost)}"
    return text + "."


def finished_seeds(study: str, runs: Path = PROJECT / "runs") -> list[int]:
    """Every seed of a study that has been evaluated."""
    found = (runs / study).glob(f"*/records/{EVALUATION}.json")
    return sorted(int(path.parts[-3]) for path in found)


def cost_cells(seeds: dict[str, Sequence[int]], runs: Path = PROJECT / "runs") -> tuple[list[str], list[list[str]]]:
    """Seconds of each stage with its trainings, however often they were resumed, median over the seeds whose record is
    there ("-": none), a line a study."""

    def median(study: str, stage: str) -> str:
        paths = [runs / study / str(seed) / "records" / f"{stage}.json" for seed in seeds[study]]
        found = [json.loads(path.read_text())["when"]["seconds"] for path in paths if path.is_file()]
        return f"{np.median(found):.0f}" if found else "-"

    return ["seconds", *STAGES[1:7]], [[study, *(median(study, stage) for stage in STAGES[1:7])] for study in seeds]


def ablation_cells(rows: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the ablation's table, see :func:`ablation.ablation_rows`."""
    head = ["", "mIoU (%)", "against the row above (95%)"]
    lines = []
    for row in rows:
        against = "the whole: " if row["against"] == "the whole" else ""
        lines.append([row["name"], spread(row["miou"]), against + difference(row["difference"])])
    return head, lines


def markdown(head: list[str], lines: list[list[str]]) -> str:
    """A table in Markdown."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines]) + "\n"


def latex(head: list[str], lines: list[list[str]]) -> str:
    """A table in LaTeX (booktabs)."""

    def join(cells: list[str]) -> str:
        return " & ".join(c.replace("%", r"\%").replace("±", r"$\pm$").replace("_", r"\_") for c in cells) + r" \\"

    body = "\n".join(join(line) for line in lines)
    columns = "l" + "r" * (len(head) - 1)
    return (
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{join(head)}\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
    )


def plain(head: list[str], lines: list[list[str]]) -> str:
    """A table for a terminal."""
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    return "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in [head, *lines]
    )


def main(study: str, seeds: str) -> None:
    study_file(study)
    numbers = seeds_of(seeds)
    evaluations = read_evaluations(study, numbers)
    print(f"\n{study}: {evaluations[0]['scored_on']}, last checkpoints")
    for split in [None, *splits_of(evaluations)]:
        if split:
            print(f"\nof these, {split}:")
        print(plain(*result_cells(result_rows(evaluations, split), numbers)))
    print(trained_where(read_records(study, numbers)))
    print(f"figures: {(PROJECT / 'figures' / study).relative_to(PROJECT)}/   runs: runs/{study}/\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print a study's table from its records.")
    parser.add_argument("study")
    parser.add_argument("seeds", nargs="+")
    args = parser.parse_args()
    sys.exit(run_command("results", lambda: main(args.study, " ".join(args.seeds))))

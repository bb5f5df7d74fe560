"""Result tables from records alone: ``python -m b2ma_core.tables STUDY SEED [SEED ..]`` prints one."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from b2ma_core.records import PROJECT, STAGES


def read_evaluations(study: str, seeds: Sequence[int], runs: Path = PROJECT / "runs") -> list[dict]:
    """The evaluation's metrics of each seed; FileNotFoundError names what to run."""
    found = []
    for seed in seeds:
        path = runs / study / str(seed) / "records" / f"{STAGES[6]}.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: make study STUDY={study} SEEDS={seed}")
        found.append(json.loads(path.read_text())["metrics"])
    return found


def gap_closed(source_only: float, value: float, oracle: float) -> float:
    """Share of the gap between source-only and oracle that a value closes; 1 is all of it."""
    return (value - source_only) / (oracle - source_only)


def result_rows(evaluations: Sequence[dict]) -> list[dict]:
    """One row per stage: name, mIoU of each seed, and the gap's share of each seed (None without an oracle)."""
    names = list(evaluations[0]["rows"])
    rows = []
    for name in names:
        miou = [e["rows"][name]["miou"] for e in evaluations]
        gap = None
        if {"oracle", "source-only"} <= set(names) and name not in ("oracle", "source-only"):
            gap = [gap_closed(e["rows"]["source-only"]["miou"], m, e["rows"]["oracle"]["miou"])
                   for e, m in zip(evaluations, miou, strict=True)]  # fmt: skip
        rows.append({"name": name, "miou": miou, "gap": gap})
    return rows


def spread(values: Sequence[float] | None) -> str:
    """Percent with one decimal: the value, or mean ± standard deviation of several."""
    if values is None:
        return "-"
    values = 100 * np.array(values, float)
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def _cells(rows: list[dict], seeds: Sequence[int]) -> tuple[list[str], list[list[str]]]:
    several = len(seeds) > 1
    head = ["", *([f"seed {s}" for s in seeds] if several else []), "mIoU (%)", "gap closed (%)"]
    lines = [
        [r["name"], *([f"{100 * v:.1f}" for v in r["miou"]] if several else []), spread(r["miou"]), spread(r["gap"])]
        for r in rows
    ]
    return head, lines


def markdown(rows: list[dict], seeds: Sequence[int]) -> str:
    """The table in Markdown."""
    head, lines = _cells(rows, seeds)
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines]) + "\n"


def latex(rows: list[dict], seeds: Sequence[int]) -> str:
    """The table in LaTeX (booktabs)."""
    head, lines = _cells(rows, seeds)

    def join(cells: list[str]) -> str:
        return " & ".join(c.replace("%", r"\%").replace("±", r"$\pm$") for c in cells) + r" \\"

    body = "\n".join(join(line) for line in lines)
    columns = "l" + "r" * (len(head) - 1)
    return (
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{join(head)}\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
    )


def plain(rows: list[dict], seeds: Sequence[int]) -> str:
    """The table for a terminal."""
    head, lines = _cells(rows, seeds)
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    return "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in [head, *lines]
    )


def main(study: str, *seeds: str) -> None:
    numbers = [int(seed) for seed in seeds]
    evaluations = read_evaluations(study, numbers)
    print(f"\n{study}: {evaluations[0]['scored_on']}, last checkpoints")
    print(plain(result_rows(evaluations), numbers))
    print(f"figures: {(PROJECT / 'figures' / study).relative_to(PROJECT)}/   runs: runs/{study}/\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

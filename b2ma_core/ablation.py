"""Arms of the ablation: a finished run with some parameters switched, trained again from the first stage they touch.

``params/ablation.yaml`` lists the arms. The arm ``<study>+<arm>`` of a seed shares with ``<study>``, by hard links,
all that was made before: the same box, the same labels, the same stage 1, so that a difference is the switch's.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from b2ma_core.params import base_study, load_params, read_yaml, unlike
from b2ma_core.records import PROJECT, STAGES, Run
from b2ma_core.tables import ablation_cells, check_alike, paired_difference, plain

# The first stage that reads a parameter, by how the name begins. What is not here belongs to the data.
_READ_BY = {
    STAGES[1]: ("source_network", "source_start", "source_steps", "source_learning", "source_jitter",
                "source_optimizer", "source_weight", "source_batch", "batch_size", "accumulate", "compile",
                "weight_decay", "warmup_steps", "crop", "random_scale"),
    STAGES[2]: ("box_", "vote_", "method"),
    STAGES[3]: ("stage1_", "init", "target_network", "target_jitter", "target_noise"),
    STAGES[4]: ("grid", "rare_"),
    STAGES[5]: ("stage2_", "rounds", "share_", "position_beta", "mix_", "ema_", "confidence",
                "consistency_", "teacher_", "student_", "hard_patch_"),
    STAGES[6]: ("oracle_", "evaluate_"),
}  # fmt: skip
_ORACLE_READS = ("target_network", "target_jitter", "target_noise", "oracle_steps", "stage1_learning_rate", "init",
                 "batch_size", "accumulate", "compile", "weight_decay", "warmup_steps", "crop",
                 "random_scale")  # fmt: skip
_MADE_BY = {STAGES[1]: "source", STAGES[2]: "labels", STAGES[3]: "stage1", STAGES[4]: "patches", STAGES[5]: "stage2"}


def first_stage(names: Iterable[str]) -> str:
    """The first stage that reads one of the parameters.

    Raises:
        ValueError: for a parameter of the data, which the arms of a study share.
    """
    found = STAGES[6]
    for name in names:
        stages = [stage for stage, begins in _READ_BY.items() if name.startswith(begins)]
        if not stages:
            raise ValueError(f"{name}: an arm shares its study's data; give this one a params file of its own")
        found = min(found, stages[0])
    return found


def switched(study: str, params: Path = PROJECT / "params") -> dict:
    """What an arm switches: name -> value; nothing for a plain study."""
    base, values = read_yaml(params / f"{base_study(study)}.yaml"), read_yaml(params / f"{study}.yaml")
    return {k: v for k, v in values.items() if k != "study" and (k not in base or base[k] != v)}


def branch(run: Run) -> None:
    """Link into an arm's new folder what the finished run that it stems from made before the first switch.

    Raises:
        FileNotFoundError: if that run has not come so far.
    """
    if "+" not in run.params.study:
        return
    names = switched(run.params.study)
    start = first_stage(names)
    before = STAGES[: STAGES.index(start)]
    if run.path("records", f"{before[-1]}.json").is_file():  # linked last
        return
    origin = Run(run.params.model_copy(update={"study": base_study(run.params.study)}), run.seed, run.folder.parents[1])
    origin.require(*before)
    kept = [folder for stage, folder in _MADE_BY.items() if stage < start and folder != "source"]
    kept += ["source"] if start == STAGES[2] else []  # nothing later may read it
    if not set(names) & set(_ORACLE_READS) and origin.path("oracle", "history.json").is_file():
        kept.append("oracle")
    for folder in kept:
        shutil.copytree(origin.path(folder), run.path(folder), copy_function=_link, dirs_exist_ok=True)
    run.path("records").mkdir(parents=True, exist_ok=True)
    for stage in before:
        _link(origin.path("records", f"{stage}.json"), run.path("records", f"{stage}.json"))


def _link(source: str | Path, target: str | Path) -> None:
    """Two names of one file: outputs are replaced whole, never written into, so that neither changes the other."""
    if not os.path.exists(target):
        os.link(source, target)


def read_ablation(path: Path = PROJECT / "params" / "ablation.yaml") -> dict:
    """``params/ablation.yaml``: study, seeds, arms, table and curves."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def arms_of(cells: Iterable[Sequence]) -> list[str]:
    """The arms that some cells ``[arm, row]`` speak of, each once."""
    return list(dict.fromkeys(arm for arm, _ in cells if arm))


def cell_scores(study: str, cell: Sequence, seeds: Sequence[int], runs: Path = PROJECT / "runs") -> list[float] | None:
    """mIoU (0 .. 1) of ``[arm, row]`` for each seed; None unless every seed has been run.

    Raises:
        ValueError: if an arm differs from its study in more than it switches, as after a change of the recipe.
    """
    arm, row = cell
    name = f"{study}+{arm}" if arm else study
    switches = unlike(*(load_params(PROJECT / "params" / f"{each}.yaml").model_dump() for each in (study, name)))
    found = []
    for seed in seeds:
        paths = [runs / each / str(seed) / "records" / f"{STAGES[6]}.json" for each in (study, name)]
        if not all(path.is_file() for path in paths):
            return None
        origin, record = (json.loads(path.read_text()) for path in paths)
        check_alike(record, origin, switches)
        found.append(record["metrics"]["rows"][row]["miou"])
    return found


def ablation_rows(study: str, plan: dict, seeds: Sequence[int], runs: Path = PROJECT / "runs") -> list[dict]:
    """The table's rows that have been run: ``name``, ``miou`` of each seed, ``difference`` and interval to another row.

    ``against`` is that row: "above", or for the plan's ``without`` "the whole", the table's last. A name says how many
    rows above it are missing, whose part is then in its difference.
    """
    rows, missing = [], 0
    for name, cell in plan["table"].items():
        miou = cell_scores(study, cell, seeds, runs)
        if miou is None:
            missing += 1
            continue
        name, missing = f"{name} (and {missing} not run)" if missing else name, 0
        against = paired_difference(miou, rows[-1]["miou"]) if rows else None
        rows.append({"name": name, "miou": miou, "difference": against, "against": "above"})
    whole = None if missing or not rows else rows[-1]["miou"]
    for name, cell in plan.get("without", {}).items():
        miou = cell_scores(study, cell, seeds, runs)
        if whole and miou:
            against = paired_difference(miou, whole)
            rows.append({"name": name, "miou": miou, "difference": against, "against": "the whole"})
    return rows


def curve(study: str, points: dict, seeds: Sequence[int], runs: Path = PROJECT / "runs") -> dict[float, list[float]]:
    """What was varied -> mIoU of each seed, for the values that have been run."""
    found = {value: cell_scores(study, cell, seeds, runs) for value, cell in points.items()}
    return {value: miou for value, miou in found.items() if miou is not None}


def main(what: str, study: str, seeds: str, *names: str) -> None:
    """``config STUDY SEEDS [quick] [ARM ..]`` prints what Snakefile is told, ``table STUDY SEEDS`` what came out.

    ``SEEDS`` are joined by commas; "-" stands for those of ``params/ablation.yaml``.
    """
    plan = read_ablation()
    numbers = plan["seeds"] if seeds == "-" else [int(seed) for seed in seeds.split(",")]
    if what == "table":
        rows = ablation_rows(study, plan, numbers)
        print(f"\n{study}, seeds {numbers}: mean, and paired differences (95%, Student's t)")
        print(plain(*ablation_cells(rows)))
        return
    if names[:1] == ("quick",):
        names = (*plan["quick"], *names[1:])
    points = [cell for curve in plan["curves"].values() for cell in curve.values()]
    arms = names or arms_of([*plan["table"].values(), *plan["without"].values(), *points])
    print(f"study={study} seeds={','.join(map(str, numbers))} arms={','.join(arms)}")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Arms of the ablation as runs: which stage an arm begins at, and what it shares with the study that it stems from.

The arm ``<study>+<arm>`` of a seed shares with ``<study>``, by hard links, all that was made before its first switch is
read: the same box, the same labels, the same stage 1, so that a difference is the switch's.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from b2ma_core.files import PROJECT
from b2ma_core.params import base_study, load_params
from b2ma_core.study.records import STAGES, Run

# The first stage that reads a parameter, by how the name begins. What is not here belongs to the data.
_READ_BY = {
    STAGES[1]: ("source_network", "source_start", "source_steps", "source_learning", "source_jitter",
                "source_optimizer", "source_weight", "source_batch", "source_warmup", "source_random", "batch_size",
                "accumulate", "compile", "crop"),
    STAGES[2]: ("box_", "vote_"),
    STAGES[3]: ("stage1_", "init", "target_network", "target_jitter", "target_noise", "target_optimizer",
                "weight_decay", "warmup_steps", "random_scale"),
    STAGES[4]: ("grid", "rare_"),
    STAGES[5]: ("stage2_", "rounds", "share_", "position_beta", "mix_", "ema_", "confidence",
                "consistency_", "teacher_", "student_", "hard_patch_"),
    STAGES[6]: ("oracle_", "evaluate_", "method"),  # a method is read as the parameters that it sets
}  # fmt: skip
_ORACLE_READS = ("target_network", "target_jitter", "target_noise", "target_optimizer", "oracle_steps",
                 "stage1_learning_rate", "init", "batch_size", "accumulate", "compile", "weight_decay", "warmup_steps",
                 "crop", "random_scale")  # fmt: skip
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
    """What an arm switches, once defaults and methods are applied: name -> value; nothing for a plain study."""
    base, values = (load_params(params / f"{name}.yaml").model_dump() for name in (base_study(study), study))
    return {k: v for k, v in values.items() if k != "study" and base[k] != v}


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

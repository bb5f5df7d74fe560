"""Arms of the ablation as runs: which stage an arm begins at, and what it shares with the study that it stems from.

The arm ``<study>+<arm>`` of a seed shares with ``<study>``, by hard links or else copies, all that was made before its
first switch is read: the same box, the same labels, the same stage 1, so that a difference is the switch's. What was
made of an arm that has changed since is made again.
"""

import os
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from b2ma_core.data.datasets import FILES, PARTS
from b2ma_core.files import PROJECT
from b2ma_core.params import base_study, load_params, study_file, unlike
from b2ma_core.processes import run_command
from b2ma_core.study.inputs import made_from, trainings_of
from b2ma_core.study.pipeline import EVALUATION, PIPELINE, STAGES, stage_named
from b2ma_core.study.provenance import accept, changes, check, kept
from b2ma_core.study.records import Run, stored_run


def first_stage(names: Iterable[str]) -> str:
    """The first notebook that reads one of the parameters.

    Raises:
        ValueError: for a parameter of the data, which the arms of a study share, or one that no stage reads.
    """
    notebooks = {EVALUATION}
    for name in names:
        stage = next((stage for stage in PIPELINE if stage.read(name)), None)
        if stage is None:
            raise ValueError(f"{name}: no stage reads it; add it to the reads of those that do, in study/pipeline.py")
        if stage.name == "data":
            raise ValueError(f"{name}: an arm shares its study's data; give this one a params file of its own")
        notebooks.add(stage.notebook)
    return min(notebooks, key=STAGES.index)


def switched(study: str, params: Path = PROJECT / "params") -> dict:
    """What an arm switches, once defaults and methods are applied: name -> value; nothing for a plain study."""
    base, arm = (load_params(params / f"{name}.yaml").model_dump() for name in (base_study(study), study))
    return {name: arm[name] for name in unlike(base, arm) if name != "study"}


def branch(run: Run) -> None:
    """Link into an arm's folder what the finished run that it stems from made before the first switch.

    What the arm made itself, and would make otherwise now, is removed, with all that came of it.

    Raises:
        FileNotFoundError: if that run has not come so far.
    """
    if "+" not in run.params.study:
        return
    names = switched(run.params.study)
    start = STAGES.index(first_stage(names))
    before = STAGES[:start]
    origin = Run(run.params.model_copy(update={"study": base_study(run.params.study)}), run.seed, run.folder.parents[1])
    origin.require(*before)
    check(origin, STAGES[start])
    shared = [stage for stage in PIPELINE if stage.notebook in before and stage.folder]
    # Nothing after 02 may read the owner's weights. The oracle is the study's own where no switch concerns it.
    shared = [stage for stage in shared if stage.name != "source" or start == STAGES.index("02_pseudo_labels")]
    oracle = stage_named("oracle")
    if not any(map(oracle.read, names)) and origin.path("oracle", "history.json").is_file():
        shared.append(oracle)
    for stage in shared:
        _share(origin.path(stage.folder), run.path(stage.folder))
    for notebook in before:
        _share(origin.path("records", f"{notebook}.json"), run.path("records", f"{notebook}.json"))
    for name in trainings_of(run):
        if stage_named(name).notebook not in before and changes(kept(run, name), made_from(run, name)):
            remove_from(run.folder, stage_named(name).notebook)
            break


def remove_from(run: Path, notebook: str) -> None:
    """Remove from a run's folder what a notebook and those after it have made."""
    later = STAGES[STAGES.index(notebook) :]
    for stage in PIPELINE:
        if stage.notebook in later:
            if stage.folder:
                shutil.rmtree(run / stage.folder, ignore_errors=True)
            for path in (run / "records").glob(f"*{stage.notebook}.json"):  # the record and its twin
                path.unlink()


def _share(source: Path, target: Path) -> None:
    """Two names of one file or folder's files: outputs are replaced whole, never written into, so that neither changes
    the other. What differs in the target gives way. Where there can be no second name, a copy of the same date."""
    files = [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]
    wanted = {path.relative_to(source): path for path in files if path.name != ".lock"}
    for path in [*target.rglob("*")]:
        if path.is_file() and path.relative_to(target) not in wanted:
            path.unlink()
    for relative, path in wanted.items():
        link = target / relative
        if link.exists() and link.samefile(path):
            continue
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        try:
            os.link(path, link)
        except OSError:
            shutil.copy2(path, link)


def main(what: str, study: str, notebook: str = "") -> None:
    """``clean STUDY NOTEBOOK`` removes from all runs of a study and of its arms what a notebook and later ones made,
    ``accept STUDY`` takes the present code for theirs, see :func:`provenance.accept`."""
    study_file(study)
    runs = sorted([*PROJECT.glob(f"runs/{study}/*"), *PROJECT.glob(f"runs/{study}+*/*")])
    if what == "accept":
        opened = [stored_run(run) for run in runs if (run / "params.json").is_file()]
        print(*[line for run in opened for line in accept(run)] or [f"runs/{study}: nothing to accept"], sep="\n")
        return
    if what != "clean" or notebook not in STAGES:
        raise ValueError(f"FROM={notebook}: no such notebook; there are {', '.join(STAGES)}")
    for run in runs:
        remove_from(run, notebook)
    if notebook == STAGES[0]:
        for part in PARTS:
            folder = PROJECT / "data" / study / part
            for file in FILES:  # and no others, which somebody put there
                (folder / file).unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()


if __name__ == "__main__":
    sys.exit(run_command("arms", lambda: main(*sys.argv[1:])))

"""What ``make`` asks before it starts anything: ``python -m b2ma_core.study.check TARGET``, told in make's variables.

Everything that is wrong is said in one message, a line each. Imports no torch.
"""

import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from jupyter_core.paths import jupyter_runtime_dir

from b2ma_core.files import PROJECT
from b2ma_core.params import base_study, load_params, study_file
from b2ma_core.processes import run_command
from b2ma_core.study.records import STAGES

WRITES = {  # the targets that are checked, and the folders of the project that each writes into
    "study": ("runs", "data", "figures", ".snakemake"), "ablation": ("runs", "data", ".snakemake"),
    "figures": ("figures",), "records": ("figures",), "site": ("site",), "notebooks": ("figures",),
    "lab": (), "test": (),
}  # fmt: skip


def seeds_of(text: str) -> list[int]:
    """The seeds that a text names, with spaces or commas between; ValueError for anything else."""
    words = text.replace(",", " ").split()
    if not words or not all(re.fullmatch(r"\d{1,9}", word) for word in words):
        raise ValueError(f'SEEDS: must be whole numbers of at least 0, as in SEEDS="0 1 2", got {text!r}')
    seeds = [int(word) for word in words]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"SEEDS: each once, got {text!r}")
    return seeds


def count_of(name: str, text: str) -> int:
    """A whole number of at least 1; ValueError for anything else."""
    if not re.fullmatch(r"[1-9]\d{0,5}", text):
        raise ValueError(f"{name}: must be a whole number of at least 1, got {text!r}")
    return int(text)


def check_study(study: str, arms: str = "") -> None:
    """ValueError unless a study, and every arm of the ablation that is named, has parameters without fault."""
    load_params(study_file(study))
    names = arms.replace(",", " ").split()
    if names and study != base_study(study):
        raise ValueError(f"STUDY: {study} is an arm itself; name the study that it stems from")
    for name in names:
        load_params(study_file(f"{study}+{name}"))


def check_profile(profile: str) -> None:
    """ValueError unless the folder of a Snakemake profile is there, in the project or among the user's own."""
    places = (Path(), Path.home() / ".config" / "snakemake")
    if profile and not any((place / profile).is_dir() for place in places):
        known = sorted(str(path.parent) for path in Path("profiles").glob("*/config.yaml"))
        raise ValueError(f"PROFILE: no folder {profile}; there is {', '.join(known) or 'none'}")


def check_writable(folder: Path, whose: str) -> None:
    """ValueError unless a file can be made in a folder, or the folder itself where it is not there yet."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        if folder.is_symlink() and not folder.exists():
            raise OSError("a link that leads nowhere")
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise ValueError(f"{there}: cannot be written ({error.strerror or error}); {whose}") from None


def check_records(runs: str, study: str, seeds: list[int]) -> None:
    """ValueError unless every seed of a study has been evaluated, by the records in a folder of runs."""
    found = sorted(int(path.parts[-3]) for path in (PROJECT / runs / study).glob(f"*/records/{STAGES[6]}.json"))
    missing = [seed for seed in seeds if seed not in found]
    if missing:
        names = " ".join(map(str, found))
        hint = f'has records of SEEDS="{names}"' if found else "has none of this study"
        raise ValueError(f"{runs}/{study}: no record of an evaluation for seed {', '.join(map(str, missing))}; the "
                         f"folder {hint}. make study STUDY={study} runs it")  # fmt: skip


def check(target: str, told: Mapping[str, str]) -> None:
    """Check what one of make's targets is told; ValueError has a line for each thing that is wrong."""
    study, seeds, runs = told.get("STUDY", ""), told.get("SEEDS", ""), told.get("RUNS", "runs")
    problems = []

    def tried(what: Callable, *arguments) -> None:
        try:
            what(*arguments)
        except ValueError as error:
            problems.append(str(error))

    if target not in WRITES:
        raise ValueError(f"no target {target!r} that is checked")
    if target in ("study", "ablation", "figures", "site", "notebooks"):
        tried(check_study, study, told.get("ARMS", "") if target == "ablation" else "")
        tried(seeds_of, seeds)
    if target in ("study", "ablation"):
        tried(count_of, "JOBS", told.get("JOBS", ""))
        tried(check_profile, told.get("PROFILE", ""))
    if target in ("study", "ablation", "test"):
        tried(count_of, "CORES", told.get("CORES", ""))
    for folder in (*WRITES[target], *([runs] if target == "figures" else [])):
        tried(check_writable, PROJECT / folder, "make the project's folder writable")
    if target in ("study", "ablation", "figures", "lab"):
        caches = {Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"), Path(jupyter_runtime_dir())}
        for folder in sorted(caches):
            tried(check_writable, folder, "Snakemake and Jupyter keep files there; name another home: HOME=/tmp/home "
                  "make ..")  # fmt: skip
    if not problems and target == "figures":
        tried(check_records, runs, study, seeds_of(seeds))
    if problems:
        raise ValueError("\n  ".join(dict.fromkeys(problems)))


if __name__ == "__main__":
    target = " ".join(sys.argv[1:])
    sys.exit(run_command(f"make {target}", lambda: check(target, os.environ)))

"""Run folders: where a study's stages leave their outputs, whole or not at all, each with a record.

``runs/<study>/<seed>/`` holds one run. A stage's record, ``records/<stage>.json``, is written last, so that
it is there only when all else is.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from b2ma_core.files import PROJECT, write_bytes, write_json
from b2ma_core.params import Params, check_params, read_yaml, study_file
from b2ma_core.processes import run_command

STAGES = (
    "00_data", "01_source_model", "02_pseudo_labels", "03_cross_domain", "04_hard_patches", "05_self_distill",
    "06_evaluation", "07_figures", "08_findings",
)  # fmt: skip


class Run:
    """One run: a study's parameters with one seed, in one folder.

    Attributes:
        params: the checked parameters.
        seed: seed of every random draw of the training; the data do not depend on it.
        folder: ``runs/<study>/<seed>``.
    """

    def __init__(self, params: Params, seed: int, runs: Path = PROJECT / "runs"):
        if not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed: must be a whole number of at least 0, got {seed!r}")
        self.params, self.seed, self.folder = params, seed, Path(runs) / params.study / str(seed)
        self._started = time.time()

    def path(self, *parts: str) -> Path:
        """A path inside the run's folder."""
        return self.folder.joinpath(*parts)

    def claim(self) -> None:
        """Make the folder, or check that it was made with the same parameters.

        Raises:
            ValueError: if it was made with others; the message says which.
            OSError: if it cannot be written.
        """
        stored = self.path("params.json")
        if stored.is_file():
            changed = self.params.differences(json.loads(stored.read_text()))
            if changed:
                raise ValueError(
                    f"{self.folder} was made with other parameters:\n  " + "\n  ".join(changed) + "\n"
                    f"Take them back, give the new study a name of its own (copy params/{self.params.study}.yaml), or "
                    f"remove the run: make clean STUDY={self.params.study}"
                )
        else:
            write_json(stored, self.params.model_dump())

    def require(self, *stages: str) -> None:
        """Raise FileNotFoundError, naming the notebook that comes first, unless the stages have their records."""
        for stage in stages:
            if not self.path("records", f"{stage}.json").is_file():
                raise FileNotFoundError(
                    f"{self.folder} has no record of {stage}: run the notebook {stage} first "
                    f"(or all in order: make study STUDY={self.params.study})"
                )

    def metrics(self, stage: str) -> dict[str, Any]:
        """The metrics that a stage has recorded."""
        self.require(stage)
        return json.loads(self.path("records", f"{stage}.json").read_text())["metrics"]

    def record(self, stage: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Write a stage's record and return it.

        Everything but ``when`` and ``where`` is the same for two runs with the same seed.
        """
        record = {
            "stage": stage,
            "study": self.params.study,
            "seed": self.seed,
            "params": self.params.model_dump(),
            "metrics": dict(metrics),
            "when": {
                "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "seconds": round(time.time() - self._started, 1),
                "peak_gib": peak_memory(),
            },
            "where": environment(),
        }
        write_json(self.path("records", f"{stage}.json"), record)
        return record


def open_run(study: str, seed: int, runs: Path = PROJECT / "runs", **given: Any) -> Run:
    """The run of a study and a seed, as a notebook's cell of parameters speaks of it.

    Args:
        study: ``params/<study>.yaml`` holds its parameters.
        seed: seed of the training's draws.
        runs: the folder of all runs.
        given: parameters in place of the file's; None: as the file says.

    Raises:
        ParamsError: if there is no such study, or the resulting parameters are wrong.
    """
    path = study_file(study)
    values = {**read_yaml(path), **{name: value for name, value in given.items() if value is not None}}
    return Run(check_params(values, str(path.relative_to(PROJECT))), seed, runs)


def peak_memory() -> dict[str, float]:
    """GiB at the most: resident in this process and in its largest finished child, allocated on the first GPU."""
    unit = 2**30 if sys.platform == "darwin" else 2**20  # ru_maxrss is in bytes there, in KiB on Linux
    peaks = {
        "process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit,
        "children": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit,
    }
    torch = sys.modules.get("torch")  # not imported for this
    if torch is not None and torch.cuda.is_available():
        peaks["gpu"] = torch.cuda.max_memory_allocated() / 2**30
    return {name: round(value, 2) for name, value in peaks.items()}


def environment() -> dict[str, str | None]:
    """Versions and machine, for a record."""
    try:
        git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=PROJECT, capture_output=True, text=True)
        revision = git.stdout.strip() or None
    except FileNotFoundError:
        revision = None
    packages = {name: version(name) for name in ("torch", "torchvision", "lightning-fabric", "numpy", "pillow")}
    return {"git": revision, "python": platform.python_version(), "machine": platform.platform(), **packages}


def publish(folder: Path, runs: Path = PROJECT / "runs") -> list[str]:
    """Copy what the figures are drawn from out of all finished runs, small enough to be committed.

    ``<folder>/<study>/<seed>/records/`` gets the records of 01 to 06 (of an arm: 06), without the machine's name, and
    the samples of the first seed where the target is drawn: photographs stay where their licence keeps them.

    Returns:
        ``study/seed`` of each.
    """
    copied = []
    for last in sorted(runs.glob(f"*/*/records/{STAGES[6]}.json")):
        study, seed = last.parts[-4:-2]
        first = seed == min((path.name for path in last.parents[2].glob("[0-9]*")), key=int)
        into = folder / study / seed / "records"
        for stage in STAGES[6:7] if "+" in study else STAGES[1:7]:
            record = json.loads((last.parent / f"{stage}.json").read_text())
            record["where"].pop("machine", None)
            write_bytes(into / f"{stage}.json", (json.dumps(record, separators=(",", ":")) + "\n").encode())
        if first and "+" not in study and record["params"]["target_dataset"] == "minicity":
            write_bytes(into / "samples.npz", (last.parent / "samples.npz").read_bytes())
        copied.append(f"{study}/{seed}")
    return copied


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Copy the records of all finished runs into a folder.")
    parser.add_argument("folder", type=Path)
    into = parser.parse_args().folder
    sys.exit(run_command("records", lambda: print("published:", *(publish(into) or ["nothing, no run is finished"]))))

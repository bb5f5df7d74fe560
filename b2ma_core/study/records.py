"""Run folders: where a study's stages leave their outputs, whole or not at all, each with a record.

``runs/<study>/<seed>/`` holds one run. A stage's record, ``records/<stage>.json``, is written last, so that
it is there only when all else is.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from b2ma_core.files import PROJECT, read_json, write_bytes, write_json
from b2ma_core.params import Params, check_params, read_yaml, study_file, unlike
from b2ma_core.processes import run_command
from b2ma_core.study import inputs, provenance
from b2ma_core.study.pipeline import EVALUATION, STAGES, notebooks_before, stage_named, stages_of


class Run:
    """One run: a study's parameters with one seed, in one folder.

    Attributes:
        params: the checked parameters.
        seed: seed of every random draw of the training; the data do not depend on it.
        overridden: what the study's file says of the parameters that a notebook has set otherwise.
        trained_for: seconds that trainings took in this process.
        folder: ``runs/<study>/<seed>``.
    """

    def __init__(self, params: Params, seed: int, runs: Path = PROJECT / "runs"):
        if not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed: must be a whole number of at least 0, got {seed!r}")
        self.params, self.seed, self.folder = params, seed, Path(runs) / params.study / str(seed)
        self.trained_for = 0.0
        self.overridden: dict[str, Any] = {}
        self._started = time.time()

    def path(self, *parts: str) -> Path:
        """A path inside the run's folder."""
        return self.folder.joinpath(*parts)

    def claim(self) -> None:
        """Make the folder this run's, with its parameters.

        Raises:
            ValueError: if a training in it was made with others, or a notebook sets others than the study's file; the
                message says which.
            OSError: if it cannot be written.
        """
        if self.overridden:
            now = self.params.model_dump()
            lines = [f"{name}: {value!r} -> {now[name]!r}" for name, value in self.overridden.items()]
            raise ValueError(
                f"{self.folder} is not made with other parameters than params/{self.params.study}.yaml's:\n  "
                + "\n  ".join(lines) + "\nSet them there, or give the new study a name of its own: copy the file"
            )  # fmt: skip
        for name in inputs.trainings_of(self):
            before = provenance.kept(self, name)
            if before is not None:
                now = {**before, "params": inputs.params_of(self.params, name)}
                provenance.refuse(self, name, provenance.changes(before, now))
        stored, params = self.path("params.json"), self.params.model_dump()
        if read_json(stored) != params:
            write_json(stored, params)

    def require(self, *stages: str) -> None:
        """Raise FileNotFoundError, naming the notebook that comes first, unless the stages have their records."""
        for stage in stages:
            if not self.path("records", f"{stage}.json").is_file():
                raise FileNotFoundError(
                    f"{self.folder} has no record of {stage}: run the notebook {stage} first "
                    f"(or all in order: make study STUDY={self.params.study})"
                )

    def require_before(self, stage: str) -> None:
        """Raise unless the notebooks that a notebook builds on have been run, on what is there now.

        Raises:
            FileNotFoundError: naming the notebook that comes first.
            ValueError: naming what has changed since.
        """
        self.require(*notebooks_before(stage))
        provenance.check(self, stage)

    def metrics(self, stage: str) -> dict[str, Any]:
        """The metrics that a stage has recorded."""
        self.require(stage)
        return read_json(self.path("records", f"{stage}.json"))["metrics"]

    def record(self, stage: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Write a stage's record and return it.

        ``made_from`` is what it was made from, ``trained`` where and how long its trainings ran, kept since then.
        ``when.seconds`` are the notebook's and those of its trainings, however often they were resumed. Everything but
        ``trained``, ``when`` and ``where`` is the same for two runs with the same seed. A notebook that is executed
        again and comes to the same leaves its record as it is.
        """
        trained = provenance.trained(self, stage)
        own = [told for name, told in trained.items() if stage_named(name).notebook == stage]
        elsewhere = own[-1]["sessions"][-1] if own and stage != EVALUATION else None
        record = {
            "stage": stage,
            "study": self.params.study,
            "seed": self.seed,
            "params": self.params.model_dump(),
            "metrics": dict(metrics),
            "made_from": inputs.made_from(self, stages_of(stage)[-1].name),
            "trained": trained,
            "when": {
                "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "seconds": round(time.time() - self._started - self.trained_for + sum(t["seconds"] for t in own), 1),
                "peak_gib": peak_memory(),
            },
            "where": elsewhere or provenance.environment(),
        }
        path, twin = self.path("records", f"{stage}.json"), self.path("records", f".{stage}.json")
        write_json(path, record)
        then, now = read_json(twin), read_json(path)  # the twin: Snakemake has removed the record itself
        if then and {**then, "when": None, "where": None} == {**now, "when": None, "where": None}:
            write_bytes(path, twin.read_bytes())
            return then
        write_bytes(twin, path.read_bytes())
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
    base, where = read_yaml(path), str(path.relative_to(PROJECT))
    params = check_params({**base, **{name: value for name, value in given.items() if value is not None}}, where)
    run, told = Run(params, seed, runs), check_params(base, where).model_dump()
    run.overridden = {name: told[name] for name in unlike(params.model_dump(), told)}
    return run


def stored_run(folder: Path) -> Run:
    """The run of a folder ``<runs>/<study>/<seed>``, with the parameters that it was claimed with."""
    path = folder / "params.json"
    return Run(check_params(read_json(path), str(path)), int(folder.name), folder.parent.parent)


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


def publish(folder: Path, runs: Path = PROJECT / "runs") -> list[str]:
    """Copy what the figures are drawn from out of all finished runs, small enough to be committed.

    ``<folder>/<study>/<seed>/records/`` gets the records of 01 to 06 (of an arm: 06), without the machine's name, and
    the samples of the first seed where the target is drawn: photographs stay where their licence keeps them.

    Returns:
        ``study/seed`` of each.
    """
    copied = []
    for last in sorted(runs.glob(f"*/*/records/{EVALUATION}.json")):
        study, seed = last.parts[-4:-2]
        first = seed == min((path.name for path in last.parents[2].glob("[0-9]*")), key=int)
        into = folder / study / seed / "records"
        for stage in (EVALUATION,) if "+" in study else STAGES[1:7]:
            record = read_json(last.parent / f"{stage}.json")
            sessions = [where for told in record.get("trained", {}).values() for where in told["sessions"]]
            for where in (record["where"], *sessions):
                where.pop("machine", None)
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

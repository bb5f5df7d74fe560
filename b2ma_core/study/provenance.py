"""What a stage was made from, as it was kept then, and where: beside a training's weights from before its first step
(``made_from.json``, ``provenance.json``) and in every record, so that weights never get the name of a later revision,
of other data or of other parameters.
"""

import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version

from b2ma_core.digests import code_digests
from b2ma_core.files import PROJECT, read_json, write_json
from b2ma_core.params import base_study, unlike
from b2ma_core.processes import cpuinfo
from b2ma_core.study.inputs import made_from, trainings_of
from b2ma_core.study.pipeline import EVALUATION, PIPELINE, made_by, stage_named, stages_of

MADE_FROM, PROVENANCE = "made_from.json", "provenance.json"
OTHER_CODE = ": other code"  # how such a line of changes ends


def changes(before: dict | None, now: dict) -> list[str]:
    """What differs between two answers of :func:`made_from`, a line each; before: what was kept, None: nothing was.

    Inputs that are gone do not count, nor does what a curve is drawn from.
    """
    if before is None:
        return ["what it was made from was not kept"]
    then, params = before["params"], now["params"]
    lines = [f"{name}: {then.get(name)!r} -> {params.get(name)!r}" for name in unlike(then, params)]
    lines += [
        f"{key}: other content" for key, value in now["inputs"].items()
        if key != "curve" and before["inputs"].get(key, value) != value
    ]  # fmt: skip
    modules = {*before["code"], *now["code"]}
    lines += [f"b2ma_core/{module.replace('.', '/')}.py{OTHER_CODE}" for module in sorted(modules)
              if before["code"].get(module) != now["code"].get(module)]  # fmt: skip
    return lines


def kept(run, name: str) -> dict | None:
    """What a stage was made from, as it was kept then: beside a training, in the record of any other stage."""
    stage = stage_named(name)
    if stage.is_training:
        return read_json(run.path(name, MADE_FROM))
    return read_json(run.path("records", f"{stage.notebook}.json"), {}).get("made_from")


def refuse(run, name: str, lines: list[str]) -> None:
    """Raise ValueError, naming what changed and the way out, if anything did."""
    if not lines:
        return
    stage, study = stage_named(name), run.params.study
    if stage.is_training:
        what = "with other parameters" if all(" -> " in line for line in lines) else "from something else"
        ways = [
            f"Take that back, give the new study a name of its own (copy params/{base_study(study)}.yaml)",
            f"remove this stage and all that came of it: make clean STUDY={study} FROM={stage.notebook}",
        ]
        if all(line.endswith(OTHER_CODE) for line in lines):
            ways.append(f"say that the new code makes the same of it: make accept STUDY={base_study(study)}")
        raise ValueError(f"{run.path(name)} was made {what}:\n  " + "\n  ".join(lines) + "\n" + ", or ".join(ways))
    raise ValueError(
        f"{stage.notebook} was made from something else:\n  " + "\n  ".join(lines) + "\n"
        f"Run the notebook {stage.notebook} first (or all in order: make study STUDY={study})"
    )


def accept(run) -> list[str]:
    """Take the present code for that by which a run's trainings were made: whoever changed it says that it makes the
    same of them, as where a mix was added beside the others. Their records name the code of then, too.

    Returns:
        What was accepted, a line each.

    Raises:
        ValueError: if more than code has changed.
    """
    accepted = []
    for name in trainings_of(run):
        before, now = kept(run, name), made_from(run, name)
        lines = changes(before, now)
        refuse(run, name, [line for line in lines if not line.endswith(OTHER_CODE)])
        if lines:
            told = {"code": before["code"], "when": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
            write_json(
                run.path(name, MADE_FROM), {**before, "code": now["code"], "then": [*before.get("then", []), told]}
            )
            accepted += [f"{run.path(name)}: {line}" for line in lines]
    return accepted


def check(run, notebook: str) -> None:
    """Raise ValueError if an earlier stage that a notebook builds on was made from something else than is there now."""
    for stage in stages_of(notebook):
        code_digests(*stage.code)  # read now, as it was imported, and not after an edit beside a running kernel
    needed = set().union(*(made_by(stage.name) for stage in stages_of(notebook)))
    trained = trainings_of(run)
    for stage in PIPELINE:
        if stage.name in needed and stage.notebook != notebook:
            names = [n for n in trained if stage_named(n) is stage] if stage.is_training else [stage.name]
            for name in names:
                refuse(run, name, changes(kept(run, name), made_from(run, name)))


@contextmanager
def training(run, name: str, device: Callable[[], dict]) -> Iterator[None]:
    """Keep what a training is made from and where it runs; ValueError if it was begun from something else.

    The validation labels that only its curve is drawn from may change: then the curve is dropped and the weights stay.

    Args:
        run: the run.
        name: the training's folder in it.
        device: tells ``device``, ``precision`` and ``threads``; only asked if there is anything to train.
    """
    folder, now = run.path(name), made_from(run, name)
    path, begun, finished = folder / PROVENANCE, name in trainings_of(run), (folder / "history.json").is_file()
    before = kept(run, name) if begun else now
    refuse(run, name, changes(before, now))
    told = {"seconds": 0.0, "sessions": [], **(read_json(path, {}) if begun else {})}
    if "began" in told:  # it was killed: what it had saved counts
        saved = folder / ("history.json" if finished else "progress.pt")
        told["seconds"] += max(saved.stat().st_mtime - told.pop("began"), 0.0)
    if not finished:
        write_json(folder / MADE_FROM, before)
        here = {**device(), **environment()}
        told["sessions"] += [here] * (told["sessions"][-1:] != [here])
        began = time.time()
        write_json(path, {**told, "began": began})
    yield
    if not finished:
        run.trained_for += time.time() - began
        told["seconds"] += time.time() - began
    if "finished" not in told:
        when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        write_json(path, {**told, "seconds": round(told["seconds"], 1), "finished": when})
    if before["inputs"].get("curve") != now["inputs"].get("curve"):
        write_json(folder / "history.json", {**read_json(folder / "history.json"), "miou": []})
        write_json(folder / MADE_FROM, now)


def trained(run, notebook: str) -> dict[str, dict]:
    """Where each training that a notebook shows ran, as it was kept then: folder -> code and provenance.

    The evaluation shows them all.
    """
    found = {}
    for name in trainings_of(run):
        path = run.path(name, PROVENANCE)
        if path.is_file() and notebook in (stage_named(name).notebook, EVALUATION):
            made = kept(run, name)
            then = {"then": made["then"]} if "then" in made else {}  # see accept
            found[name] = {"code": made["code"], **then, **read_json(path)}
    return found


@cache
def environment() -> dict[str, str | bool | None]:
    """Revision of the code and whether it was changed, versions, machine."""
    git = {"git": None, "dirty": None}
    try:
        said = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=PROJECT, capture_output=True, text=True)
        revision = said.stdout.strip()
        git = {"git": revision.removesuffix("-dirty") or None, "dirty": revision.endswith("-dirty")}
    except FileNotFoundError:
        pass
    packages = {name: version(name) for name in ("torch", "torchvision", "lightning-fabric", "numpy", "pillow")}
    return {**git, "python": platform.python_version(), "machine": platform.platform(), **packages}


def processor() -> str:
    """The processor's name as the system tells it."""
    named = re.search(r"^model name\s*: *(.*\S)", cpuinfo(), re.M)
    return named[1] if named else platform.processor() or platform.machine()

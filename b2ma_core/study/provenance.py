"""What a stage was made from: its parameters, the content of its inputs, the code that made it; and where.

It is kept beside a training's weights from before its first step (``made_from.json``, ``provenance.json``) and in
every record, so that weights never get the name of a later revision, of other data or of other parameters.
"""

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path

from b2ma_core.data.datasets import PARTS
from b2ma_core.digests import code_digests, digest, file_digest, stamp
from b2ma_core.files import PROJECT, write_json
from b2ma_core.params import NO_EFFECT_ON_RESULTS, Params, base_study
from b2ma_core.study.pipeline import EVALUATION, PIPELINE, Stage, made_by, stage_named, stages_of

MADE_FROM, PROVENANCE = "made_from.json", "provenance.json"
IMAGENET_FILES = {  # torchvision's names in its cache; a test holds them together
    "deeplab_mobilenet_v2": "mobilenet_v2-b0353104.pth",
    "deeplabv2_resnet101": "resnet101-63fe2227.pth",
    "deeplabv2_resnet101_full": "resnet101-63fe2227.pth",
}


def made_from(run, name: str) -> dict[str, dict]:
    """What a stage would be made from now.

    Args:
        run: the run.
        name: a stage's name; ``stage2/round-1`` is a round, ``stage2`` means the last one.

    Returns:
        ``params`` (those that it reads), ``inputs`` (what is read -> digest of its content; what is not there is left
        out) and ``code`` (module -> digest).
    """
    stage = stage_named(name)
    inputs = {key: value for key, value in _inputs(run, name, stage).items() if value is not None}
    return {"params": params_of(run.params, name), "inputs": inputs, "code": code_digests(*stage.code)}


def params_of(params: Params, name: str) -> dict:
    """The parameters that a stage reads, and what it knows of the classes: to a training, their number alone."""
    stage = stage_named(name)
    found = {
        key: value
        for key, value in params.model_dump().items()
        if stage.read(key) and key not in NO_EFFECT_ON_RESULTS and not (stage.is_training and key == "rounds")
    }
    if stage.start and found[stage.start] not in ("scratch", "imagenet", "source"):
        found[stage.start] = "a file"  # wherever it lies: its content is an input
    if found:
        found["classes"] = params.space.num_classes if stage.is_training else _classes(params)
    return found


def _classes(params: Params) -> str:
    """Digest of all that is known of the classes: names, colours, ids, averages, and how others are joined to them."""
    maps = [params.label_map(what) for what in ("source", "target", "box")]
    told = [repr(params.space_of(what)) for what in ("source", "target", "box")]
    return digest([repr(params.space), *told, *(table is not None and table.tolist() for table in maps)])


def _inputs(run, name: str, stage: Stage) -> dict[str, str | None]:
    params, found = run.params, {}
    truth = stage.name in ("data", "source", "oracle", "evaluation")
    for part in PARTS if stage.name == "data" else stage.data:
        found[f"{part} images"] = data_digest(params, part, "digests")
        found[f"{part} labels"] = data_digest(params, part, "label_digests") if truth else None
    if stage.is_training:
        found["curve"] = digest([data_digest(params, stage.scored_on, k) for k in ("digests", "label_digests")])
    if stage.start:
        found["first weights"] = _first_weights(run, stage)
    if stage.name == "labels":
        found["source"] = content(run, "source") if params.box == "model" else None
        files = delivered(params) if params.box == "folder" else None
        found["delivery"] = files and digest(files)
    elif "labels" in stage.after:
        found["labels"] = content(run, "labels", stage.data or ("target_train",))
    if stage.name == "stage2":
        number = int(name.rpartition("-")[2]) if "/" in name else max(params.rounds, 1)
        before = "stage1" if number == 1 else f"stage2/round-{number - 1}"
        found |= {before: content(run, before), "patches": content(run, "patches")}
    if stage.name == "evaluation":
        found |= {each: content(run, each) for each in trainings_of(run) if each != "source"}
    return found


def data_digest(params: Params, part: str, kind: str) -> str | None:
    """Of a prepared part's names and images (``digests``) or labels (``label_digests``); None where it is not there."""
    index = _index(params, part)
    return digest([index["names"], index[kind]]) if index and index[kind] else None


def delivered(params: Params) -> dict[str, list] | None:
    """Name of each target image -> the label files that a vendor delivered for it, with digests; None without a folder.

    They lie in the folder itself or in folders of it.
    """
    root = PROJECT / (params.box_root or "")
    if not root.is_dir():
        return None
    indices = [_index(params, part) for part in PARTS if part.startswith("target_")]
    names = {name for index in indices if index for name in index["names"]}
    found = {name: [] for name in sorted(names)}
    for path in sorted([*root.glob("*.*"), *root.glob("*/*.*")]):
        if path.suffix.lower() == ".png" and path.stem in names:
            found[path.stem].append([str(path.relative_to(root)), file_digest(path)])
    return found


def _index(params: Params, part: str) -> dict | None:
    path = PROJECT / "data" / base_study(params.study) / part / "index.json"
    index = _read(path, path.stat().st_mtime_ns) if path.is_file() else {}
    return index if "label_digests" in index else None  # an older version: 00_data makes it anew


@cache
def _read(path: Path, _: int) -> dict:
    return json.loads(path.read_text())


def content(run, name: str, parts: tuple[str, ...] = PARTS) -> str | None:
    """Digest of what a stage has left in the run's folder; None where there is nothing.

    Args:
        run: the run.
        name: the stage's.
        parts: of the data, whose pseudo labels count.
    """
    if name == "labels":
        folders = [run.path("labels", part + suffix) for part in parts for suffix in ("", "_votes", "_confidence")]
        files = [file for folder in folders for file in sorted(folder.glob("*.png"))]
        files += [f for f in (run.path("labels", f"{part}_steadiness.json") for part in parts) if f.is_file()]
        return digest([[f.parent.name, f.name, file_digest(f)] for f in files]) if files else None
    if name == "patches":
        return file_digest(run.path("patches", "index.json"))
    return file_digest(run.path(*name.split("/"), f"{'source' if name == 'source' else 'student'}.safetensors"))


def _first_weights(run, stage: Stage) -> str | None:
    start = getattr(run.params, stage.start)
    if start == "scratch" or (start == "source" and stage.name == "oracle"):
        return None
    if start == "source":
        return content(run, "source")
    return file_digest(_weights_file(run.params, stage))


def _weights_file(params: Params, stage: Stage) -> Path:
    """The file that a training starts from, be it torchvision's; it need not exist."""
    start = getattr(params, stage.start)
    if start != "imagenet":
        return PROJECT / start
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    network = params.source_network if stage.name == "source" else params.target_network
    return Path(home, "hub", "checkpoints", IMAGENET_FILES.get(network, network)).expanduser()


def answered(run, part: str, names: list[str]) -> dict[str, str]:
    """Name of an image -> digest of what its pseudo label is made from: image, box and, for a vendor's, delivered file.

    A box that is neither the run's own model nor a folder is asked again for another image alone.
    """
    params, index = run.params, _index(run.params, part)
    images = index and list(zip(index["digests"], index["label_sizes"] or index["digests"], strict=True))
    box, files = [params_of(params, "labels")], {}
    if params.box == "model":
        box += [content(run, "source"), code_digests(*stage_named("labels").code)]
    elif params.box == "folder":
        box.append(code_digests(*stage_named("labels").code))
        files = delivered(params) or {}
    return {name: digest([box, images and images[i], files.get(name)]) for i, name in enumerate(names)}


def trainings_of(run) -> list[str]:
    """The trainings that a run has finished, or has saved a step of, in order."""
    names = ["source", "stage1", *(f"stage2/round-{n}" for n in range(1, run.params.rounds + 1)), "oracle"]
    return [n for n in names if any((run.path(n) / f).is_file() for f in ("history.json", "progress.pt"))]


def changes(before: dict | None, now: dict) -> list[str]:
    """What differs between two answers of :func:`made_from`, a line each; before: what was kept, None: nothing was.

    Inputs that are gone do not count, nor does what a curve is drawn from.
    """
    if before is None:
        return ["what it was made from was not kept"]
    then, params = before["params"], now["params"]
    lines = [
        f"{k}: {then.get(k)!r} -> {params.get(k)!r}" for k in sorted({*then, *params}) if then.get(k) != params.get(k)
    ]
    lines += [
        f"{key}: other content" for key, value in now["inputs"].items()
        if key != "curve" and before["inputs"].get(key, value) != value
    ]  # fmt: skip
    modules = {*before["code"], *now["code"]}
    lines += [f"b2ma_core/{module.replace('.', '/')}.py: other code" for module in sorted(modules)
              if before["code"].get(module) != now["code"].get(module)]  # fmt: skip
    return lines


def kept(run, name: str) -> dict | None:
    """What a stage was made from, as it was kept then: beside a training, in the record of any other stage."""
    stage = stage_named(name)
    if stage.is_training:
        path = run.path(name, MADE_FROM)
        return json.loads(path.read_text()) if path.is_file() else None
    path = run.path("records", f"{stage.notebook}.json")
    return json.loads(path.read_text()).get("made_from") if path.is_file() else None


def refuse(run, name: str, lines: list[str]) -> None:
    """Raise ValueError, naming what changed and the way out, if anything did."""
    if not lines:
        return
    stage, study = stage_named(name), run.params.study
    if stage.is_training:
        what = "with other parameters" if all(" -> " in line for line in lines) else "from something else"
        raise ValueError(
            f"{run.path(name)} was made {what}:\n  " + "\n  ".join(lines) + "\n"
            f"Take that back, give the new study a name of its own (copy params/{base_study(study)}.yaml), or remove "
            f"this stage and all that came of it: make clean STUDY={study} FROM={stage.notebook}"
        )
    raise ValueError(
        f"{stage.notebook} was made from something else:\n  " + "\n  ".join(lines) + "\n"
        f"Run the notebook {stage.notebook} first (or all in order: make study STUDY={study})"
    )


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
    told = json.loads(path.read_text()) if begun and path.is_file() else {"seconds": 0.0, "sessions": []}
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
        history = json.loads((folder / "history.json").read_text())
        write_json(folder / "history.json", {**history, "miou": [], "best": None})
        (folder / "best.safetensors").unlink(missing_ok=True)
        write_json(folder / MADE_FROM, now)


def trained(run, notebook: str) -> dict[str, dict]:
    """Where each training that a notebook shows ran, as it was kept then: folder -> code and provenance.

    The evaluation shows them all.
    """
    found = {}
    for name in trainings_of(run):
        path = run.path(name, PROVENANCE)
        if path.is_file() and notebook in (stage_named(name).notebook, EVALUATION):
            found[name] = {"code": kept(run, name)["code"], **json.loads(path.read_text())}
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
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def on_disk(run, notebook: str) -> dict:
    """What tells cheaply, without reading any picture, that a notebook has to be executed again.

    Returns:
        ``params``, ``classes``, ``code``, and ``files``: a digest of names, sizes and times for each folder or file
        outside the project that it reads.
    """
    params, stages = run.params, stages_of(notebook)
    values = {k: v for k, v in params.model_dump().items() if k not in NO_EFFECT_ON_RESULTS}
    if notebook != "00_data":  # which checks them all
        values = {k: v for k, v in values.items() if any(stage.read(k) for stage in stages)}
    outside = {"00_data": (params.source_root, params.target_root), "02_pseudo_labels": (params.box_root,)}
    paths = [PROJECT / root for root in outside.get(notebook, ()) if root]
    paths += [_weights_file(params, stage) for stage in stages if stage.start]
    files = [_stamps(path) for path in paths if path.exists()]
    code = code_digests(*(entry for stage in stages for entry in stage.code))
    return {"params": values, "classes": _classes(params), "code": code, "files": files}


def look_at_disk(run, notebook: str) -> None:
    """Write ``on_disk/<notebook>.json``, an input of the notebook's rule, if it has to be executed again: if what
    :func:`on_disk` tells has changed, or the record says that it was made by other code or with other parameters."""
    path, record = (run.path(folder, f"{notebook}.json") for folder in ("on_disk", "records"))
    before = json.loads(record.read_text()).get("made_from", {}) if record.is_file() else {}
    stage, now = stages_of(notebook)[-1], on_disk(run, notebook)
    made = {"params": params_of(run.params, stage.name), "code": code_digests(*stage.code)}
    other = any(before.get(key, value) != value for key, value in made.items())
    stored = json.loads(path.read_text()) if path.is_file() else {}
    if other:
        write_json(path, {**now, "again": time.time()})  # other bytes: Snakemake passes over a file of the same ones
    elif {key: stored.get(key) for key in now} != now:
        write_json(path, now)


@cache
def _stamps(root: Path) -> str:
    """Digest of the names, sizes and times of a file or of all files in a folder, but of what studies prepare there."""
    if root.is_file():
        return digest(stamp(root))
    found = []
    for folder, names, files in os.walk(root, followlinks=True):
        if "images.npy" in files or Path(folder).name == "outbox":
            names.clear()
            continue
        names[:] = sorted(name for name in names if name[0] != ".")
        files = sorted(name for name in files if name[0] != "." and name != "problems.txt")
        found += [[os.path.relpath(folder, root), name, stamp(Path(folder, name))] for name in files]
    return digest(found)

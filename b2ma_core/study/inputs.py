"""What a stage is made from: the parameters that it reads, its code, and the content of what it reads, by digests."""

import os
from functools import cache
from pathlib import Path

from b2ma_core.data.datasets import PARTS
from b2ma_core.digests import code_digests, digest, file_digest
from b2ma_core.files import PROJECT, read_json
from b2ma_core.params import NO_EFFECT_ON_RESULTS, Params, base_study
from b2ma_core.study.pipeline import Stage, stage_named, trainings

IMAGENET_FILES = {  # torchvision's names in its cache; a test holds them together
    "deeplab_mobilenet_v2": "mobilenet_v2-b0353104.pth",
    "deeplabv2_resnet101": "resnet101-63fe2227.pth",
    "deeplabv2_resnet101_full": "resnet101-63fe2227.pth",
}

MARK = "made.txt"  # in the folder of a service's answers: another text whenever the folder is made


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
        found["classes"] = params.space.num_classes if stage.is_training else classes_of(params)
    return found


def classes_of(params: Params) -> str:
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
        white_box = params.init == "source" and stage.name == "stage1"  # scratch: no such file, nothing to tell
        found["first weights"] = content(run, "source") if white_box else file_digest(weights_file(params, stage))
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
    return read_json(path)


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
    return file_digest(run.path(name, f"{'source' if name == 'source' else 'student'}.safetensors"))


def weights_file(params: Params, stage: Stage) -> Path:
    """The file that a training starts from, be it torchvision's; it need not exist."""
    start = getattr(params, stage.start)
    if start != "imagenet":
        return PROJECT / start
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    network = params.source_network if stage.name == "source" else params.target_network
    return Path(home, "hub", "checkpoints", IMAGENET_FILES.get(network, network)).expanduser()


def answered(run, part: str, names: list[str]) -> dict[str, str]:
    """Name of an image -> digest of what its pseudo label is made from: image, box and, for a vendor's, delivered file.

    A service is asked again for another image alone, or when the folder of its answers was removed.
    """
    params, index = run.params, _index(run.params, part)
    images = index and list(zip(index["digests"], index["label_sizes"] or index["digests"], strict=True))
    box, files = [params_of(params, "labels")], {}
    if params.box == "model":
        box += [content(run, "source"), code_digests(*stage_named("labels").code)]
    elif params.box == "folder":
        box.append(code_digests(*stage_named("labels").code))
        files = delivered(params) or {}
    else:
        box.append(file_digest(PROJECT / "data" / base_study(params.study) / "answers" / MARK))
    return {name: digest([box, images and images[i], files.get(name)]) for i, name in enumerate(names)}


def trainings_of(run) -> list[str]:
    """The trainings that a run has finished, or has saved a step of, in order."""
    names = ["source", *trainings(run.params).values()]
    return [n for n in names if any((run.path(n) / f).is_file() for f in ("history.json", "progress.pt"))]

"""What tells Snakemake, without reading any picture, that a notebook has to be executed again."""

import os
import time
from functools import cache
from pathlib import Path

from b2ma_core.digests import code_digests, digest, stamp
from b2ma_core.files import PROJECT, read_json, write_json
from b2ma_core.params import NO_EFFECT_ON_RESULTS
from b2ma_core.study.inputs import classes_of, params_of, weights_file
from b2ma_core.study.pipeline import stages_of


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
    weights = [weights_file(params, stage) for stage in stages if stage.start]
    files = [_stamps(p) for p in (*filter(Path.exists, paths), *filter(Path.is_file, weights))]
    code = code_digests(*(entry for stage in stages for entry in stage.code))
    return {"params": values, "classes": classes_of(params), "code": code, "files": files}


def look_at_disk(run, notebook: str) -> None:
    """Write ``on_disk/<notebook>.json``, an input of the notebook's rule, if it has to be executed again: if what
    :func:`on_disk` tells has changed, or the record says that it was made by other code or with other parameters."""
    path, record = (run.path(folder, f"{notebook}.json") for folder in ("on_disk", "records"))
    before, stored = read_json(record, {}).get("made_from", {}), read_json(path, {})
    stage, now = stages_of(notebook)[-1], on_disk(run, notebook)
    made = {"params": params_of(run.params, stage.name), "code": code_digests(*stage.code)}
    other = any(before.get(key, value) != value for key, value in made.items())
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

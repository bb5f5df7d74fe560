"""What is tried before any training: networks, weights files, the box, the machine, and how batches are shared out."""

import numpy as np
import torch

from b2ma_core.black_box import LabelFolder
from b2ma_core.files import PROJECT
from b2ma_core.params import Params
from b2ma_core.study.asking import open_box
from b2ma_core.study.records import Run
from b2ma_core.study.stages import new_model
from b2ma_core.study.training import make_fabric


def preflight(run: Run) -> None:
    """Build what the run will build, so that a network or weights file that does not fit shows before any training.

    Raises:
        ValueError, FileNotFoundError, OSError: naming the parameter or file.
    """
    params = run.params
    _share_out(params)
    if params.box == "folder":
        LabelFolder(PROJECT / params.box_root)
    elif params.box == "service":
        _try_service(run)
    else:
        new_model(run, "source", params.source_start)
    if params.init != "source":
        new_model(run, "target", params.init)
    elif params.source_network != params.target_network:
        raise ValueError("init: 'source' needs target_network to be source_network, their weights must fit")
    cuda = params.accelerator == "cuda" or (params.accelerator == "auto" and torch.cuda.is_available())
    if cuda and torch.cuda.device_count() < params.devices:
        raise ValueError(f"devices: {params.devices} asked for, this machine has {torch.cuda.device_count()} CUDA "
                         "devices: lower devices, or set accelerator to 'cpu'")  # fmt: skip
    make_fabric(params)


def _share_out(params: Params) -> None:
    """Refuse batches that cannot be shared out among the processes."""
    batches = {"batch_size": params.batch_size}
    if params.box == "model" and params.source_steps > 0 and params.source_batch_size:
        batches["source_batch_size"] = params.source_batch_size
    if params.rounds and params.hard_patch_weight > 0 and not params.paste_patches:
        batches["hard_patch_batch"] = params.hard_patch_batch
    for name, batch in batches.items():
        if batch < params.devices:
            raise ValueError(f"{name}: {batch} samples a step cannot be shared by {params.devices} processes: raise "
                             f"{name} to {params.devices} at least, or lower devices to {batch}")  # fmt: skip


def _try_service(run: Run) -> None:
    """Ask a service for a grey image of the study's size, unless all its answers are there already."""
    if run.path("records", "02_pseudo_labels.json").is_file():
        return
    box = open_box(run)
    box.kept, box.pauses = None, box.pauses[:3]  # seven seconds: it may be just starting
    box.predict(np.full((1, *run.params.image_size, 3), 128, np.uint8), ["a grey trial image"])

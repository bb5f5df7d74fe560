"""Segmentation networks by name, and their weights.

Every network takes ``(N, 3, H, W)`` float32 RGB in [0, 1], normalises by itself and returns
``(N, num_classes, H, W)`` logits.
"""

from functools import partial
from pathlib import Path

import torch
import torchvision.models as tv
from safetensors.torch import load_file, save
from torch import Tensor, nn

from b2ma_core.files import write_bytes
from b2ma_core.models.deeplab_v2 import DeepLabV2
from b2ma_core.models.networks import DeepLabMobileNetV2, DeepLabSmall

# How the names of a classifier's parameters begin: it has a learning rate of its own.
CLASSIFIERS = ("head.", "layer5.", "classifier.")


# Name -> network, by the number of classes; and the weights that torchvision has for its backbone (imagenet=True).
MODELS = {
    "deeplab_small": (DeepLabSmall, None),
    "deeplab_mobilenet_v2": (DeepLabMobileNetV2, tv.MobileNet_V2_Weights.IMAGENET1K_V1),
    "deeplabv2_resnet101": (partial(DeepLabV2, branches=2), tv.ResNet101_Weights.IMAGENET1K_V1),
    "deeplabv2_resnet101_full": (partial(DeepLabV2, branches=4), tv.ResNet101_Weights.IMAGENET1K_V1),
}

# What public checkpoints keep their weights under, the first that is there counts.
_KEPT_UNDER = ("state_dict", "model_state_dict", "model", "net")
_AVERAGES = ("student", "teacher", "ema", "ema_model", "model_ema")  # several networks in one file
_PREFIXES = ("module", "Scale", "net", "model", *_AVERAGES)


def build_model(name: str, num_classes: int, weights: str | Path | None = None) -> nn.Module:
    """Build a network.

    Args:
        name: one of ``MODELS``.
        num_classes: number of classes.
        weights: None for random weights, ``"imagenet"`` for torchvision's ImageNet weights of the backbone,
            or a file for :func:`load_weights`.

    Returns:
        The network in training mode.

    Raises:
        ValueError: for an unknown name, or ImageNet weights where there are none.
        OSError: if the ImageNet weights are neither in torchvision's cache nor can be downloaded, or the file there is
            broken.
    """
    if name not in MODELS:
        raise ValueError(f"unknown network {name!r}, allowed are {', '.join(MODELS)}")
    imagenet, (network, pretrained) = weights == "imagenet", MODELS[name]
    if imagenet and pretrained is None:
        raise ValueError(f"{name} has no ImageNet weights here: set the weights to a file, or start from scratch")
    try:
        model = network(num_classes, imagenet=True) if imagenet else network(num_classes)
    except Exception as error:  # a broken file has as many errors as it has readers
        if not imagenet:
            raise
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(pretrained.url).name
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if file.is_file():
            raise OSError(
                f"{file}: broken, it cannot be read as the ImageNet weights for {name} ({reason[:200]}). Remove the "
                "file; the next start fetches it again"
            ) from error
        raise OSError(
            f"ImageNet weights for {name}: {file.name} is not in {file.parent} and the download failed ({reason}). Set "
            "TORCH_HOME to a folder that has it, or connect once to the internet"
        ) from error
    if weights is not None and not imagenet:
        load_weights(model, weights)
    return model


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load weights into a network, in place; code in the file is never run.

    Reads safetensors and torch files, plain or inside ``{"state_dict": ...}`` (or ``model_state_dict`` and the like),
    with the prefixes of public checkpoints: ``module.``, ``Scale.``, ``net.``, ``model.``, ``student.``, ``teacher.``,
    ``ema.``, torch.compile's ``_orig_mod.``. A file with both student and teacher is refused: which one is meant is
    not in it. Of a multi-level DeepLabV2 (layer5 on layer3, layer6 on layer4) layer6 becomes the classifier.

    Args:
        model: the network; unchanged if the file does not fit.
        path: ``.safetensors``, or anything that ``torch.load(weights_only=True)`` reads.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file and why it does not fit: truncated, pickled code, missing, left-over or
            misshapen weights, several networks, or a value that is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    state = _match_names(read_tensors(path), model, path)
    expected = model.state_dict()
    # A counter of batches that old checkpoints lack; nothing here reads it.
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in expected]
    shapes = [
        f"{k} is {tuple(state[k].shape)}, needed {tuple(expected[k].shape)}"
        for k in expected
        if k in state and state[k].shape != expected[k].shape
    ]
    if missing or extra or shapes:
        parts = [f"{what} {len(v)} ({', '.join(v[:3])})" for what, v in
                 (("missing", missing), ("left over", extra), ("other shape", shapes)) if v]  # fmt: skip
        raise ValueError(
            f"{path}: these weights do not fit {type(model).__name__}: {'; '.join(parts)}. "
            "Choose the network that they were trained for"
        )
    for name, value in state.items():
        if value.is_meta or value.layout != torch.strided or value.is_complex():
            raise ValueError(f"{path}: {name} is no tensor of plain numbers but {value.layout}, {value.dtype}, on "
                             f"{value.device}. Save the network's own state_dict()")  # fmt: skip
        value = value.to(expected[name].dtype)
        if not value.isfinite().all():
            raise ValueError(
                f"{path}: {name} holds {int((~value.isfinite()).sum())} values that are not finite (NaN or infinite): "
                "the training behind it has diverged. Lower its learning rate, or take an earlier checkpoint"
            )
    model.load_state_dict({**expected, **state})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of a weights file, never unpickling code; ValueError names a file that cannot be read so."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader has its own errors for a broken file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path}: cannot be read as weights: truncated, not a checkpoint, or holding pickled code, which is never "
            f"run here ({reason[:200]}). Fetch the file again, or save the plain state_dict as safetensors"
        ) from error
    for _ in range(9):  # a file may hold itself
        inside = [k for k in (*_KEPT_UNDER, *_AVERAGES) if isinstance(state, dict) and isinstance(state.get(k), dict)]
        if len(inside) > 1 and inside[0] in _AVERAGES:
            raise _several(path, inside)
        state = state[inside[0]] if inside else state
    found = state.items() if isinstance(state, dict) else ()
    tensors = {name: value for name, value in found if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path}: holds no state_dict. Save the network's state_dict() and nothing else")
    return tensors


def _several(path: Path, which: list[str]) -> ValueError:
    return ValueError(f"{path}: holds several networks ({', '.join(which)}). Save the state_dict of the one that is "
                      "meant as a file of its own")  # fmt: skip


def _match_names(state: dict[str, Tensor], model: nn.Module, path: Path) -> dict[str, Tensor]:
    own = {name.split(".")[0] for name in model.state_dict()}
    renamed, dropped = {}, {}
    for name, value in state.items():
        parts = [part for part in name.split(".") if part != "_orig_mod"]
        while len(parts) > 1 and parts[0] in _PREFIXES and parts[0] not in own:
            parts = parts[1:]
        short = ".".join(parts)
        if short in renamed:
            raise _several(path, [dropped[short], name.removesuffix(short)])
        renamed[short], dropped[short] = value, name.removesuffix(short)
    renamed.pop("n_averaged", None)  # a counter of torch's AveragedModel
    if isinstance(model, DeepLabV2):
        first = renamed.get("layer5.conv2d_list.0.weight")
        multi_level = first is not None and first.shape[1] != 2048
        classifier, other = ("layer6.", "layer5.") if multi_level else ("layer5.", "layer6.")
        renamed = {k.replace(classifier, "layer5."): v for k, v in renamed.items() if not k.startswith(other)}
    return renamed


def save_weights(state: dict[str, Tensor], path: Path) -> None:
    """Write a state_dict as safetensors; the same weights give the same bytes, and the file appears whole."""
    write_bytes(path, save({name: value.detach().cpu().contiguous() for name, value in state.items()}))


def freeze_batch_norm(model: nn.Module) -> None:
    """Put every batch norm into eval mode: running statistics are used and stay as they are."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()

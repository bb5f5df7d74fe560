"""The parameters of a study: one flat YAML file, checked before anything runs.

Every name, type, range and source stands here once; ``params/*.yaml`` hold the values.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from b2ma_core.files import PROJECT, load_yaml
from b2ma_core.labels import LabelSpace, label_map, label_space, nearest
from b2ma_core.published import PUBLISHED

STUDY_NAME = r"[A-Za-z0-9_-]+(\+[A-Za-z0-9_]+)?"  # study or study+arm, see study/arms.py
VIEWS = 6  # len(queries.VIEWS), which imports torch; a test holds them together

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
MIXES = ("none", "spatial", "cutmix", "classmix")  # those of mixes.py, which imports torch; a test holds them together
Size = Annotated[list[Annotated[int, Field(ge=16)]], Field(min_length=2, max_length=2)]
Space = Annotated[str, AfterValidator(lambda name: label_space(name).name)]  # ValueError where there is none

# They change how fast or how closely watched a run is, not what comes out of it.
NO_EFFECT_ON_RESULTS = ("workers", "save_every", "box_token_variable", "box_timeout", "box_requests")

GONE = {  # parameters of earlier revisions: what has become of them
    "box_flip": "it is gone: the model's logits are averaged with those of the mirror image",
    "box_label_map": "it is gone: a map is params/label_spaces/<box_label_space>_to_<label_space>.yaml",
    "consistency_weight": "it is gone: every pixel of an image weighs the image's share of sure pixels",
    "mix_blur_probability": "it is gone: stage 2 blurs as published, with probability 0.5",
    "mix_images": "it is stage2_mix now: auto, none, spatial, cutmix, classmix",
    "mix_jitter": "it is gone: stage 2 changes colours as published, by 0.25",
    "mix_jitter_probability": "it is gone: stage 2 changes colours as published, with probability 0.8",
    "plain_agreement": "it is learn_from now: auto, plain, votes",
    "prior_correction": "it is share_alignment now, the alignment of the teacher's class distribution",
    "rare_k": "it is gone: rare_by 'pixels' takes five classes of each ranking, as published",
    "share_exponent": "it is gone: class_shares.ClassShares has it, 0.8",
    "share_limit": "it is gone: class_shares.ClassShares has it, 3.0",
    "source_random_scale": "it is gone: the source model learns from views enlarged up to 1.25 times",
    "stage2_calibration": "it is gone: stage 2 has no temperature scaling any more",
    "stage2_class_weights": "it is gone: stage 2 does not weigh classes",
    "stage2_label_smoothing": "it is gone: stage 2 does not smooth labels",
    "teacher_votes": "it is teacher_box_share now",
}


class ParamsError(ValueError):
    """The parameters are wrong; the message names the file, each key and what is allowed."""


class Params(BaseModel):
    """Everything that a study can be told. Sizes are (height, width) in pixels."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    study: Annotated[str, Field(pattern=f"^{STUDY_NAME}$")]
    label_space: Space  # the student's classes: cityscapes | camvid | a file in params/label_spaces/
    method: Literal["corrected", "published"] = "corrected"  # published: the defaults are those of published.py
    image_size: Size  # all images are brought to this size; labels are scored at their own

    # --- data: what is read (dataset), where (root), which part of it (split), how many (images; None: all)
    world_seed: Annotated[int, Field(ge=0)] = 0  # MiniCity: which world
    source_dataset: Literal["minicity", "camvid", "folder", "cityscapes", "gta5", "synthia", "none"]  # none: kept
    source_root: str | None = None
    source_image_size: Size | None = None  # None: image_size
    source_domain: Literal["game", "camera"] = "game"  # MiniCity
    source_label_space: Space | None = None  # of a folder's label maps; None: label_space. Others have their own
    source_sequences: list[str] | None = None  # CamVid: file names begin so; None: all
    source_train_split: str = "train"  # several are joined by +
    source_train_images: Count | None = None
    source_val_split: str | None = "val"  # None: the source model is shown on its training images
    source_val_images: Count | None = None
    target_dataset: Literal["minicity", "camvid", "folder", "cityscapes", "gta5", "synthia"]
    target_root: str | None = None
    target_domain: Literal["game", "camera"] = "camera"
    target_label_space: Space | None = None
    target_sequences: list[str] | None = None
    target_train_split: str = "train"
    target_train_images: Count | None = None
    target_val_split: str | None = "val"  # labels for scores alone; None: nothing is scored
    target_val_images: Count | None = None
    target_test_split: str | None = None  # without labels: predicted and drawn
    target_test_images: Count | None = None

    # --- the owner's side
    box: Literal["model", "folder", "service"] = "model"  # folder: label PNGs that a vendor delivered; service: HTTP
    box_root: str | None = None
    box_label_space: Space | None = None  # the classes that the box's answers speak of; None: label_space
    box_address: str | None = None  # of a service, http://.. or https://..
    box_token_variable: str | None = None  # NAME of the environment variable with its token, never the token
    box_timeout: Annotated[float, Field(gt=0, le=3600)] = 60.0  # seconds for one answer
    box_requests: Annotated[int, Field(ge=1, le=64)] = 4  # requests at once
    # Test-time augmentation (queries.py): the box answers views of an image, and a majority vote joins its answers.
    box_queries: Annotated[int, Field(ge=1, le=VIEWS)] = VIEWS  # views of an image that are answered; a flat folder: 1
    vote_exponent: NotNegative = 4.0  # an answer's weight: (its agreement with the plain majority vote) ** this
    # What is learnt from: the plain answers, to the images as they are, or the votes. auto: the votes if answers change
    # more when images are exposed anew than when they are resized (queries.steadiness); plain without all six views.
    learn_from: Literal["auto", "plain", "votes"] = "auto"
    box_confidence: bool = False  # the owner publishes confidences too (then it is no label-only box)
    source_network: str = "deeplab_small"
    source_start: str = "scratch"  # scratch | imagenet | a weights file
    source_steps: Annotated[int, Field(ge=0)] = 1200  # 0 with a weights file: use it as it is
    source_learning_rate: Positive = 2.0e-3
    # sgd: momentum 0.9, polynomial decay, classifier at ten times the rate, as AdaptSegNet trains (Tsai et al., 2018)
    source_optimizer: Literal["adamw", "sgd"] = "adamw"
    source_weight_decay: NotNegative = 1.0e-4  # AdaptSegNet 5e-4
    source_warmup_steps: Annotated[int, Field(ge=0)] = 50  # of adamw
    source_batch_size: Count | None = None  # None: batch_size

    # --- every training; what is called target_ and what stands beside it is of stage 1, stage 2 and the oracle
    target_network: str = "deeplab_small"
    init: str = "scratch"  # start of stage 1: scratch | imagenet | a weights file | source (the white box)
    batch_size: Count = 8  # images a step, of all processes together
    learn_images: Count | None = None  # stages 1 and 2 learn from so many of the target's training images; None: all
    accumulate: Count = 1  # parts that a batch is computed in, one after another, where memory is short
    target_optimizer: Literal["adamw", "adam"] = "adamw"  # adam: as published
    weight_decay: NotNegative = 1.0e-4  # adam has it in the gradient
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    crop: Size | None = None  # None: the image's size
    backbone_rate: Positive = 1.0  # learning rate of all but the head, as a share; a pretrained network wants less
    random_scale: Annotated[list[Positive], Field(min_length=2, max_length=2)] = [1.0, 2.0]
    predict_scale: Annotated[float, Field(ge=1, le=4)] = 1.5  # students predict on images enlarged so
    average_weights: bool = True  # a training gives the mean of its weights; False: the last, as published
    source_jitter: Share = 0.25  # colour jitter and blur of the source model's training
    target_jitter: Share = 0.25  # the same of stage 1 and the oracle
    target_noise: Share = 0.05  # largest standard deviation of pixel noise in stage 1 and the oracle (published 0)

    # --- stage 1: cross-domain distillation
    stage1_steps: Count = 1200
    stage1_learning_rate: Positive = 2.0e-3
    stage1_class_weights: Literal["none", "sqrt"] = "sqrt"  # sqrt: 1 / sqrt(frequency in the pseudo labels)
    stage1_label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    stage1_mix: Literal[*MIXES] = "none"  # of images and pseudo labels

    # --- stage 2: self-distillation
    rounds: Annotated[int, Field(ge=0)] = 1  # published: several
    stage2_steps: Count = 200
    stage2_learning_rate: Positive = 8.0e-4
    stage2_views: bool = True  # images are cut, enlarged and mirrored as in stage 1; False: whole, as published
    # Distribution alignment (class_shares.py): the teacher's class shares are drawn to those of the pseudo labels.
    share_alignment: Share = 1.0  # how far (published 0)
    teacher_box_share: Share = 0.3  # of the box's labels beside the teacher's probabilities (published 0)
    stage2_mix: Literal["auto", *MIXES] = "auto"  # auto: none where patches are given, else cutmix (published spatial)
    position_beta: float = 0.25  # SpatialMix: Beta(b, b) of the cut; <= 0: the centre
    ema_alpha: Share = 0.99
    confidence_threshold: float = 0.7  # published 0.968
    confidence: Literal["probability", "logit"] = "probability"  # logit: the published fault
    teacher_mode: Literal["eval", "train"] = "eval"  # train: the published fault
    ema_buffers: Literal["average", "skip"] = "average"  # skip: the published fault
    student_batch_norm: Literal["frozen", "batch"] = "frozen"  # batch: the published fault
    hard_patch_weight: NotNegative = 0.1  # of the loss of patches that stand alone; 0: no patches, see stage2_mix
    hard_patch_batch: Count = 8
    paste_patches: bool = True  # enlarged, over the mixed images, at their own place; False: alone, as published
    hard_patch_draw: Literal["class", "patch"] = "class"  # class: rare classes alike; patch: as published
    grid: Count = 4
    rare_classes: list[Annotated[int, Field(ge=0)]] | None = None  # None: found from the labels
    rare_by: Literal["images", "pixels"] = "images"  # held by few images; or by two rankings of five, as published

    # --- evaluation
    oracle_steps: Annotated[int, Field(ge=0)] = 1200  # 0: no oracle
    evaluate_every: Count = 100  # steps between two points of the mIoU curve

    # --- the machine
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: Count = 1
    compile: bool = False  # torch.compile; where it does not work the run says so and goes on without
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"  # auto: bf16 where the device has units for it
    workers: Annotated[int, Field(ge=0)] = 0  # loader processes
    save_every: Count = 50  # steps between two checkpoints

    @model_validator(mode="after")
    def _data_are_there(self):
        for side in ("source", "target"):
            kind, root = getattr(self, f"{side}_dataset"), getattr(self, f"{side}_root")
            if kind not in ("minicity", "none") and not root:
                raise ValueError(f"{side}_root: {side}_dataset is {kind!r}, so name its folder here")
            if kind != "folder" and getattr(self, f"{side}_label_space"):
                raise ValueError(f"{side}_label_space: is for the data set 'folder', {kind!r} has classes of its own")
            if kind != "none":
                try:
                    self.label_map(side)
                except ValueError as error:
                    native = self.space_of(side).name
                    raise ValueError(
                        f"label_space: {side}_dataset {kind!r} has the classes of {native!r}, and a map "
                        f"has to join them to those of {self.label_space!r}: {error}"
                    ) from None
            for part in ("train", "val", "test"):
                split = getattr(self, f"{side}_{part}_split", None)
                if kind == "minicity" and split and not getattr(self, f"{side}_{part}_images"):
                    raise ValueError(f"{side}_{part}_images: MiniCity is endless, say how many scenes to draw")
                if kind == "minicity" and split not in (None, "train", "val", "test"):
                    raise ValueError(f"{side}_{part}_split: MiniCity has train, val and test, got {split!r}")
        return self

    @model_validator(mode="after")
    def _box_can_be_asked(self):
        if self.box == "model":
            if self.box_label_space:
                raise ValueError("box_label_space: box 'model' has the classes of label_space, to which the source's "
                                 "labels are joined as they are read; a model of other classes answers as box "
                                 "'service' (python -m b2ma_core.serve)")  # fmt: skip
            if self.source_dataset == "none" and self.source_steps > 0:
                raise ValueError("source_dataset: 'none' leaves nothing to train on; set box to 'folder' or 'service', "
                                 "or source_start to a weights file and source_steps to 0")  # fmt: skip
        elif self.init == "source":
            raise ValueError(f"init: 'source' needs the owner's weights, and a {self.box} gives labels alone")
        if self.box == "folder" and not self.box_root:
            raise ValueError("box_root: box is 'folder', so name the folder of label PNGs here")
        if self.box == "service":
            _check_address(self.box_address)
        try:
            self.label_map("box")
        except ValueError as error:
            raise ValueError(f"box_label_space: {error}") from None
        if self.box_confidence and (self.box != "model" or self.box_queries > 1):
            raise ValueError("box_confidence: the owner's confidence belongs to the model's one answer to the image as "
                             "it is: set box to 'model' and box_queries to 1, or leave it out; of several answers the "
                             "vote agreement is the confidence")  # fmt: skip
        if self.learn_from == "votes" and self.box_queries == 1:
            raise ValueError("learn_from: 'votes' needs answers to several views: box_queries of 2 or more")
        if self.box_token_variable is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.box_token_variable):
            raise ValueError("box_token_variable: must be the NAME of an environment variable (capitals, digits, _), "
                             "such as BOX_TOKEN; the token itself belongs into that variable alone")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _trainings_fit(self):
        if self.confidence == "logit" and self.teacher_box_share > 0:
            raise ValueError("teacher_box_share: must be 0 with confidence 'logit', labels are added to probabilities")
        if self.box == "model" and self.source_image_size and self.crop:
            raise ValueError("crop: the source's images have a size of their own (source_image_size), so none is cut")
        if self.crop and (self.crop[0] > self.image_size[0] or self.crop[1] > self.image_size[1]):
            raise ValueError(f"crop: {self.crop} is larger than image_size {self.image_size}")
        lowest, highest = self.random_scale
        if not 1 <= lowest <= highest:
            raise ValueError(f"random_scale: needs 1 <= lowest <= highest, got {[lowest, highest]}")
        if min(self.image_size) // self.grid < 16:
            raise ValueError(f"grid: {self.grid} x {self.grid} cells of {self.image_size} are under 16 pixels")
        classes = self.space.num_classes
        if self.rare_classes is not None and any(c >= classes for c in self.rare_classes):
            raise ValueError(f"rare_classes: {self.rare_classes} leave 0 .. {classes - 1} of {self.label_space}")
        if self.stage1_steps <= self.warmup_steps:
            raise ValueError(f"warmup_steps: {self.warmup_steps} must be less than stage1_steps")
        return self

    @property
    def space(self) -> LabelSpace:
        """The classes of the study."""
        return label_space(self.label_space)

    def space_of(self, what: str) -> LabelSpace:
        """The classes that the label maps of "source" or "target" hold on disk, or those of the "box"'s answers."""
        kind = getattr(self, f"{what}_dataset", "folder")
        own = {"folder": getattr(self, f"{what}_label_space"), "camvid": "camvid", "none": None}.get(kind, "cityscapes")
        return label_space(own or self.label_space)

    def label_map(self, what: str) -> np.ndarray | None:
        """``(256,)`` uint8 table from the train ids of :meth:`space_of` to the study's; None where they are the same.

        Raises:
            ValueError: if there is no such map in ``params/label_spaces/``; or listing what is wrong with it.
        """
        own = self.space_of(what)
        return None if own.name == self.label_space else label_map(own, self.space)


def _check_address(address: str | None) -> None:
    """Refuse what is no address of a service, without repeating a password that it may hold."""
    try:
        url = urlsplit(address or "")
        fits = url.scheme in ("http", "https") and url.hostname and url.port != 0 and not re.search(r"\s", address)
    except ValueError:  # a port that is no number, or a broken IPv6 address
        fits = False
    if not fits:
        raise ValueError("box_address: box is 'service', so name its address here, such as http://127.0.0.1:8765")
    if re.search(r"(key|token|secret|passw|sig)[^=&]*=", url.query, re.I):
        raise ValueError("box_address: its query seems to hold a key, and parameters are written into every record; "
                         "put it into an environment variable and name that in box_token_variable")  # fmt: skip
    if url.username is not None or url.password is not None:
        raise ValueError("box_address: holds a name or password, and parameters are written into every record; put the "
                         "token into an environment variable and name that in box_token_variable")  # fmt: skip


def unlike(params: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the parameters with an effect on results that two runs were told otherwise, sorted.

    A parameter that one of them does not have is younger than that run, which was made as by its default.
    """
    fields = Params.model_fields
    defaults = {name: fields[name].default for name in {*params} ^ {*other} if name in fields}
    params, other = defaults | dict(params), defaults | dict(other)
    return [
        name
        for name in sorted({*params, *other})
        if name not in NO_EFFECT_ON_RESULTS and params.get(name) != other.get(name)
    ]


def check_params(values: Mapping[str, Any], where: str) -> Params:
    """Values to checked parameters.

    Args:
        values: name -> value.
        where: what the message calls their origin, for example the file's name.

    Raises:
        ParamsError: one message with every unknown name (and the nearest known one), wrong type and value
            out of range.
    """
    # YAML 1.1 reads 1e-4 as text (it wants 1.0e-4); nobody means the text.
    values = {
        k: float(v) if isinstance(v, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", v) else v
        for k, v in values.items()
    }
    if values.get("method") == "published":
        values = {**PUBLISHED, **values}
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        lines = [_explain(e) for e in error.errors()]
    raise ParamsError(f"{where}: {len(lines)} wrong parameter{'s' * (len(lines) > 1)}\n  " + "\n  ".join(lines))


def base_study(study: str) -> str:
    """The study that an arm of the ablation stems from; its own name for any other."""
    return study.partition("+")[0]


def study_file(study: str) -> Path:
    """``params/<study>.yaml``, which need not be there; ParamsError for what is no name, as a path to it."""
    if not re.fullmatch(STUDY_NAME, study):
        raise ParamsError(f"study: {study!r} is no name; say what its file in params/ is called, without .yaml")
    return PROJECT / "params" / f"{study}.yaml"


def load_params(path: str | Path) -> Params:
    """Read and check ``params/<study>.yaml``."""
    return check_params(read_yaml(Path(path)), str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """A study's flat YAML file as a dictionary; ParamsError names one that is missing, broken or misnamed.

    ``<study>+<arm>.yaml`` is no file: it is ``<study>.yaml`` with what that arm of ``ablation.yaml`` switches.
    """
    base, plus, arm = path.stem.partition("+")
    if plus:
        arms = _read(path.with_name("ablation.yaml"))["arms"]
        if arm not in arms:
            raise ParamsError(f"{path.with_name('ablation.yaml')}: no arm {arm!r} (there are: {', '.join(arms)})")
        switches = arms[arm] or {}
        if switches.get("method") == "published":  # all of it, also where the study's file sets something else
            switches = {**PUBLISHED, **switches}
        return {**read_yaml(path.with_name(f"{base}.yaml")), **switches, "study": path.stem}
    values = _read(path)
    if values.setdefault("study", path.stem) != path.stem:
        raise ParamsError(f"{path}: study is {values['study']!r}, the file is named {path.stem!r}: make them the same")
    return values


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.yaml") if p.stem != "ablation")
        raise ParamsError(f"{path}: no such study{nearest(path.stem, known)} (there are: {', '.join(known) or 'none'})")
    try:
        return load_yaml(path)
    except ValueError as error:
        raise ParamsError(str(error)) from None


def _explain(error: dict) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        hint = f"; {GONE[name]}" if name in GONE else nearest(name, Params.model_fields)
        return f"{name}: unknown parameter{hint}"
    if error["type"] == "missing":
        return f"{name}: has to be given"
    message = error["msg"].removeprefix("Value error, ")
    if name == "box_token_variable":  # it may be a token, by mistake
        return f"{name}: {message[0].lower()}{message[1:]}"
    return message if not error["loc"] else f"{name}: {message[0].lower()}{message[1:]}, got {error['input']!r}"

"""The study's stages in ONE table: what each reads, leaves in the run's folder, and is made from.

Snakefile, notebooks, arms of the ablation, evaluation and provenance all read it. It imports no torch.
"""

from dataclasses import dataclass

from b2ma_core.data.datasets import PARTS
from b2ma_core.params import Params


@dataclass(frozen=True)
class Stage:
    """One thing that a study makes.

    Attributes:
        name: how other stages call it.
        notebook: the notebook that makes it.
        reads: the parameters that it reads; one that ends in _ stands for all whose names begin so.
        data: the parts of the data that it learns from or answers.
        scored_on: the part that its curve is drawn from; it steers nothing.
        after: the stages whose output it reads.
        start: the parameter that names the weights it begins with.
        folder: where in the run it lies; a round of stage 2 in a folder of its own inside.
        code: the functions (or whole modules) of the core that make it.
    """

    name: str
    notebook: str
    reads: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    scored_on: str | None = None
    after: tuple[str, ...] = ()
    start: str | None = None
    folder: str | None = None
    code: tuple[str, ...] = ()

    def read(self, name: str) -> bool:
        """Whether it reads a parameter."""
        return any(name == read or (read[-1] == "_" and name.startswith(read)) for read in self.reads)

    @property
    def is_training(self) -> bool:
        """Whether it takes long and goes on where it was stopped: it is never thrown away unasked."""
        return self.scored_on is not None


_DATA = ("label_space", "image_size", "world_seed", *(
    f"{side}_{what}" for side in ("source", "target") for what in
    ("dataset", "root", "image_", "domain", "sequences", "train_", "val_", "test_",
     "label_space")))  # fmt: skip
_DEVICE = ("accelerator", "devices", "precision", "compile")
_TRAINING = ("label_space", "image_size", "batch_size", "accumulate", "crop", "evaluate_every", *_DEVICE)
_STUDENT = ("target_network", "target_optimizer", "weight_decay", "warmup_steps", "backbone_rate", "random_scale",
            "predict_scale", "average_weights", "ema_alpha")  # fmt: skip
_TARGET = (*_STUDENT, "target_jitter", "target_noise", "stage1_learning_rate", "init")
_LOSS = ("stage1_class_weights", "stage1_label_smoothing")
_TARGET_PARTS = PARTS[2:]

PIPELINE = (
    Stage("data", "00_data", reads=_DATA, code=("data.conversion.prepare", "minicity")),
    Stage(
        "source", "01_source_model", after=("data",), folder="source", start="source_start",
        reads=(*_TRAINING, "box", "source_network", "source_start", "source_steps", "source_learning_rate",
               "source_jitter", "source_optimizer", "source_weight_decay", "source_warmup_steps",
               "source_batch_size"),
        data=("source_train",), scored_on="source_val", code=("study.stages.train_source",),
    ),
    Stage(
        "labels", "02_pseudo_labels", after=("data", "source"), folder="labels", data=_TARGET_PARTS,
        reads=("label_space", "box", "box_", "vote_exponent", "learn_from", "source_network", *_DEVICE),
        code=("study.asking.ask_for_labels", "study.asking.open_box"),
    ),
    Stage(
        "stage1", "03_cross_domain", after=("data", "labels"), folder="stage1", start="init",
        reads=(*_TRAINING, *_TARGET, "stage1_", "position_beta", "learn_from", "learn_images"),
        data=("target_train",), scored_on="target_val", code=("study.stages.train_stage1",),
    ),
    Stage(
        "patches", "04_hard_patches", after=("data", "labels"), folder="patches",
        reads=("label_space", "grid", "rare_", "learn_from", "learn_images"),
        code=("study.mining.rare_of", "hard_patches.mine"),
    ),
    Stage(
        "stage2", "05_self_distill", after=("data", "labels", "stage1", "patches"), folder="stage2",
        reads=(*_TRAINING, *_STUDENT, "stage2_", "rounds", "share_", "teacher_", "position_beta", "ema_",
               "confidence", "confidence_threshold", "student_", "hard_patch_", "paste_patches",
               "grid", "learn_from", "learn_images"),
        data=("target_train",), scored_on="target_val", code=("study.stages.train_stage2",),
    ),
    Stage(
        "oracle", "06_evaluation", after=("data",), folder="oracle", start="init",
        reads=(*_TRAINING, *_TARGET, "oracle_", *_LOSS),
        data=("target_train",), scored_on="target_val", code=("study.stages.train_oracle",),
    ),
    Stage(
        "evaluation", "06_evaluation", after=("data", "labels", "stage1", "stage2", "oracle"), folder="predictions",
        reads=("label_space", "rounds", "target_network", "predict_scale", "box", "box_queries", "oracle_steps",
               "method", *_DEVICE),
        data=_TARGET_PARTS,  # a method is read as the parameters that it sets; the evaluation's record names it
        code=("report.evaluation.evaluate_run", "report.evaluation.predict_part"),
    ),
    Stage("figures", "07_figures", after=("evaluation",), code=("report.figures", "report.results")),
    Stage("findings", "08_findings", after=("evaluation",),
          code=("report.figures", "report.paper_figures", "report.results", "report.ablation")),
)  # fmt: skip
STAGES = tuple(dict.fromkeys(stage.notebook for stage in PIPELINE))  # the notebooks, in order
EVALUATION = "06_evaluation"


def stage_named(name: str) -> Stage:
    """A row of the table; a round's name ``stage2/round-1`` means ``stage2``."""
    return next(stage for stage in PIPELINE if stage.name == name.partition("/")[0])


def stages_of(notebook: str) -> list[Stage]:
    """What a notebook makes, in order."""
    return [stage for stage in PIPELINE if stage.notebook == notebook]


def notebooks_before(notebook: str) -> list[str]:
    """The notebooks whose records a notebook needs, in order."""
    needed = {stage_named(name).notebook for stage in stages_of(notebook) for name in stage.after}
    return [other for other in STAGES if other in needed - {notebook}]


def made_by(name: str) -> set[str]:
    """The names of a stage and of all that it is made from."""
    stage = stage_named(name)
    return {stage.name}.union(*map(made_by, stage.after))


def trainings(params: Params) -> dict[str, str]:
    """The trained rows of a run's table, in order: row -> folder of its weights inside the run."""
    rounds = {f"round {n}": f"stage2/round-{n}" for n in range(1, params.rounds + 1)}
    return {"stage 1": "stage1", **rounds, "oracle": "oracle"}

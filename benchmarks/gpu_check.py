"""What a GPU does to the method, in one command of under eight minutes: the same results, how fast, how much memory.

::

    python benchmarks/gpu_check.py --out benchmarks/results/<card>.json
    python benchmarks/gpu_check.py --small --device cpu        # the same checks, small, where there is no GPU

It needs PyTorch 2.11 and torchvision 0.26 (which bring numpy and Pillow) and this folder; no notebook, no internet.
What else the core imports may be carried: where a package is missing, the wheels in ``benchmarks/wheels/`` that fit
this Python are unpacked and used. On a machine with internet, of the same system (Linux, x86-64), this makes them,
14 MB for four versions of Python; pydantic-core, PyYAML and safetensors are compiled, all others pure Python::

    pip download --dest benchmarks/wheels --no-deps lightning-fabric lightning-utilities packaging fsspec tqdm
    for v in 3.10 3.11 3.12 3.13; do pip download --dest benchmarks/wheels --only-binary=:all: \\
        --platform manylinux2014_x86_64 --python-version $v pydantic safetensors pyyaml; done

The exit code is 0 if every bound held that was tried. References are computed on the CPU in float64.
"""

import argparse
import atexit
import contextlib
import copy
import importlib.util
import io
import json
import logging
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic cuBLAS asks for, before CUDA starts


def add_wheels() -> None:
    """Use the carried wheels if a package of the core is missing here; also in processes started from here."""
    needed = ("yaml", "pydantic", "lightning_fabric", "safetensors", "tqdm")
    if all(importlib.util.find_spec(name) for name in needed):
        return
    folder = tempfile.mkdtemp(prefix="wheels-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    version = f"cp3{sys.version_info.minor}"
    for wheel in sorted((HERE / "wheels").glob("*.whl")):
        python, abi, _ = wheel.stem.split("-")[-3:]
        if python.startswith("py") or abi == "abi3" or (python, abi) == (version, version):
            zipfile.ZipFile(wheel).extractall(folder)
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    missing = [name for name in needed if not importlib.util.find_spec(name)]
    if missing:
        sys.exit(f"gpu_check: {', '.join(missing)} missing, and {HERE / 'wheels'} has no wheel for Python "
                 f"{platform.python_version()}: see the head of {Path(__file__).name}")  # fmt: skip
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])


add_wheels()

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402
from stage2_step import time_steps  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from b2ma_core import minicity  # noqa: E402
from b2ma_core.augmentations import jitter_and_blur  # noqa: E402
from b2ma_core.class_shares import ClassShares, class_frequencies  # noqa: E402
from b2ma_core.data import conversion  # noqa: E402
from b2ma_core.distillation import (  # noqa: E402
    SelfDistillation,
    Sharing,
    consistency_loss,
    ema_update,
    label_loss,
    make_teacher,
    mix_batch,
    self_distillation_step,
    teach,
)
from b2ma_core.files import PROJECT, write_json  # noqa: E402
from b2ma_core.hard_patches import Patches, mine  # noqa: E402
from b2ma_core.models import build_model  # noqa: E402
from b2ma_core.params import Params, check_params, read_yaml  # noqa: E402
from b2ma_core.report.evaluation import evaluate_run  # noqa: E402
from b2ma_core.study import mining, stages, training  # noqa: E402
from b2ma_core.study.asking import ask_for_labels, open_box  # noqa: E402
from b2ma_core.study.batches import generator_for  # noqa: E402
from b2ma_core.study.pseudo_labels import read_confidences, read_pseudo_labels  # noqa: E402
from b2ma_core.study.records import Run, stored_run  # noqa: E402
from b2ma_core.study.training import make_fabric  # noqa: E402

CLASSES = 19


@dataclass
class Case:
    """Where the checks run and how large.

    Attributes:
        device: what is checked.
        small: networks and sizes that a CPU bears.
        deadline: time.time() at which to be done.
        folder: for runs, removed at the end.
    """

    device: torch.device
    small: bool
    deadline: float
    folder: Path

    @property
    def networks(self) -> tuple[str, ...]:
        names = ("deeplab_small", "deeplab_mobilenet_v2", "deeplabv2_resnet101")
        return names[:2] if self.small else names

    @property
    def size(self) -> tuple[int, int]:
        return (64, 128) if self.small else (128, 256)


@dataclass
class Row:
    """What a check found.

    Attributes:
        measured: numbers and words by name.
        bound: what was asked for, in words; "" for a measurement alone.
        holds: whether it did; None for a measurement, or what was not tried.
    """

    measured: dict = field(default_factory=dict)
    bound: str = ""
    holds: bool | None = None
    check: str = ""
    seconds: float = 0.0


def within(measured: dict[str, float], most: float) -> Row:
    """A row whose every number has the same upper bound."""
    return Row(measured, f"<= {most:g}", all(value <= most for value in measured.values()))


def scenes(count: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """``(N, H, W, 3)`` uint8 images and ``(N, H, W)`` uint8 train ids of MiniCity."""
    images, labels = zip(*(minicity.render(i, "camera", "train", size=size) for i in range(count)), strict=True)
    return np.stack(images), np.stack(labels)


def batch(count: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The same as a network's input, float64 in [0, 1], and int64 train ids, on the CPU."""
    images, labels = scenes(count, size)
    return torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255, torch.from_numpy(labels).long()


def pair(name: str, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """One network twice, in eval mode: on the CPU in float64, and on the device in float32 and channels last."""
    torch.manual_seed(0)
    model = build_model(name, CLASSES).eval()
    return copy.deepcopy(model).double(), model.to(device, memory_format=torch.channels_last)


def on(device: torch.device, tensor: Tensor) -> Tensor:
    """Floats as float32, channels last where they are images."""
    tensor = tensor.to(device, torch.float32 if tensor.is_floating_point() else None)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def apart(values: Tensor, reference: Tensor) -> float:
    """Largest difference, as a share of the largest value of the reference."""
    difference = (values.detach().cpu().double() - reference.detach().double()).abs().max()
    return float(difference / reference.detach().abs().max().clamp(min=1e-12))


def gradients_apart(model: nn.Module, reference: nn.Module) -> float:
    """Length of the difference of two networks' gradients, as a share of the reference's."""
    pairs = [(a.grad, b.grad) for a, b in zip(model.parameters(), reference.parameters(), strict=True)]
    pairs = [(a.cpu().double(), b.double()) for a, b in pairs if b is not None]
    difference = sum(float((a - b).square().sum()) for a, b in pairs)
    return (difference / sum(float(b.square().sum()) for _, b in pairs)) ** 0.5


@contextmanager
def exact_float32() -> Iterator[None]:
    """float32 as it is written: no TF32 in convolutions."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


# --- the same results


@torch.no_grad()
def logits(case: Case) -> Row:
    images, _ = batch(2, case.size)
    found = {}
    for name in case.networks:
        reference, model = pair(name, case.device)
        with exact_float32():
            found[name] = apart(model(on(case.device, images)), reference(images))
    return within(found, 1e-4)


@torch.no_grad()
def logits_tf32(case: Case) -> Row:
    """As PyTorch computes float32 convolutions by default."""
    images, _ = batch(2, case.size)
    pairs = {name: pair(name, case.device) for name in case.networks}
    return within({n: apart(model(on(case.device, images)), ref(images)) for n, (ref, model) in pairs.items()}, 2e-2)


def losses(case: Case) -> Row:
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(2, CLASSES, *case.size, generator=generator)
    labels = torch.randint(CLASSES, (2, *case.size), generator=generator)
    sure, weights = torch.rand(2, *case.size, generator=generator), torch.rand(CLASSES, generator=generator)
    void = labels.masked_fill(torch.rand(2, *case.size, generator=generator) < 0.1, 255)
    calls = {
        "labels": lambda d: label_loss(on(d, scores), void.to(d), weights.to(d), 0.1),
        "consistency": lambda d: consistency_loss(on(d, scores), labels.to(d), sure.to(d), 0.7),
    }
    cpu = torch.device("cpu")
    return within({name: apart(call(case.device), call(cpu)) for name, call in calls.items()}, 1e-5)


def gradients(case: Case) -> Row:
    images, labels = batch(2, case.size)
    found = {}
    for name in case.networks:
        reference, model = pair(name, case.device)
        label_loss(reference(images), labels).backward()
        with exact_float32():
            label_loss(model(on(case.device, images)), labels.to(case.device)).backward()
        found[name] = gradients_apart(model, reference)
    return within(found, 1e-3)


def mix(case: Case) -> Row:
    """SpatialMix, mirror, jitter and blur from the same draws."""
    images, labels = batch(4, case.size)
    confidence = images.mean(1).float()
    on_cpu, on_device = (
        mix_batch(on(d, images), labels.to(d), confidence.to(d), SelfDistillation(), generator_for(0, "mix", 0))
        for d in (torch.device("cpu"), case.device)
    )
    same = [torch.equal(a.cpu(), b) for a, b in zip(on_device[:3], on_cpu[:3], strict=True)]
    seen, expected = (jitter_and_blur(mixed.images, mixed.changes) for mixed in (on_device, on_cpu))
    changed = apart(seen, expected)
    return Row({"mixed alike": all(same), "jitter and blur": changed}, "alike, <= 1e-05", all(same) and changed <= 1e-5)


def teacher(case: Case) -> Row:
    """Labels and confidences with class shares and the box's labels beside them, in two steps."""
    images, labels = batch(4, case.size)
    frequencies = class_frequencies(labels.numpy(), CLASSES)
    reference, model = pair(case.networks[-1], case.device)
    answers = []
    for network, device, tensor in ((model, case.device, on(case.device, images)), (reference, "cpu", images)):
        shares = ClassShares(frequencies, 1.0, 0.8, 1.0).to(device)
        with exact_float32():
            said = [teach(network, part, "probability", shares, on(device, ids), 0.3)
                    for part, ids in zip(tensor.split(2), labels.split(2), strict=True)]  # fmt: skip
        answers.append([*(torch.cat(parts).cpu() for parts in zip(*said, strict=True)), shares.running.cpu()])
    (ids, sure, running), (true_ids, true_sure, true_running) = answers
    found = {"other labels": float((ids != true_ids).float().mean()), "confidence": apart(sure, true_sure),
             "class shares": apart(running, true_running)}  # fmt: skip
    return within(found, 1e-3)


def average(case: Case) -> Row:
    """Three updates of the mean teacher, buffers too, against float32 on the CPU."""
    networks = {}
    for device in (torch.device("cpu"), case.device):
        _, student = pair("deeplab_small", device)
        mean = make_teacher(student)
        generator = torch.Generator().manual_seed(0)
        for step in range(3):
            with torch.no_grad():
                for value in (*student.parameters(), *student.buffers()):
                    if value.is_floating_point():
                        value += 0.1 * torch.randn(value.shape, generator=generator).to(device)
            ema_update(mean, student, step + 5)
        networks[device] = torch.cat([v.cpu().flatten() for v in mean.state_dict().values() if v.is_floating_point()])
    return within({"weights and buffers": apart(networks[case.device], networks[torch.device("cpu")])}, 1e-6)


RECIPE = SelfDistillation(confidence_threshold=0.1, box_share=0.3)


def self_distillation(case: Case) -> Row:
    """A step of stage 2, SpatialMix, the box's labels, class shares and hard patches included: the loss, and gradients
    in 1 and 4 parts."""
    images, labels = batch(4, case.size)
    rows, columns = (side // 4 for side in case.size)
    name, frequencies = case.networks[-1], class_frequencies(labels.numpy(), CLASSES)
    reference, _ = pair(name, torch.device("cpu"))

    def step(network: nn.Module, device: torch.device, images: Tensor, sharing: Sharing) -> Tensor:
        hard = Patches(
            images[:3, :, -rows:, :columns], labels[:3, -rows:, :columns].to(device), torch.zeros(3, 2).long()
        )
        shares, recipe = ClassShares(frequencies, 1.0, 0.8, 1.0).to(device), RECIPE
        total = torch.zeros((), device=device)
        for loss in self_distillation_step(network, make_teacher(network), images, labels.to(device), hard, recipe,
                                           generator_for(0, "mix", 0), shares, sharing):  # fmt: skip
            loss.backward()
            total += loss.detach()
        return total

    expected, found = step(reference, torch.device("cpu"), images, Sharing()), {}
    for count in (1, 4):
        _, model = pair(name, case.device)
        with exact_float32():
            loss = step(model, case.device, on(case.device, images), Sharing(count))
        found[f"loss, {count} parts"] = apart(loss, expected)
        found[f"gradient, {count} parts"] = gradients_apart(model, reference)
    return within(found, 1e-2)


@torch.no_grad()
def bf16(case: Case) -> Row:
    """Logits under bf16 autocast, as a root mean square; what follows them stays float32."""
    images, labels = batch(2, case.size)
    found = {}
    for name in case.networks:
        reference, model = pair(name, case.device)
        with torch.autocast(case.device.type, torch.bfloat16):
            answer = model(on(case.device, images))
        right = reference(images)
        found[name] = float((answer.cpu().double() - right).square().mean().sqrt() / right.square().mean().sqrt())
    row = within(found, 5e-2)
    loss = label_loss(answer, labels.to(case.device))
    confidence = teach(lambda _: answer, on(case.device, images))[1]
    row.measured |= {"loss": str(loss.dtype), "confidence": str(confidence.dtype)}
    row.bound += ", float32"
    row.holds &= loss.dtype == confidence.dtype == torch.float32
    return row


def precision(case: Case) -> Row:
    """What precision: auto takes; bf16 only where the card has units for it (compute capability 8.0 on)."""
    chosen = make_fabric(params_of(case, "smoke"))._precision.precision
    if case.device.type != "cuda":
        return Row({"auto": chosen})
    capability = torch.cuda.get_device_capability()
    return Row({"auto": chosen, "capability": "{}.{}".format(*capability)}, "bf16 from 8.0 on",
               (chosen == "bf16-mixed") == (capability >= (8, 0)))  # fmt: skip


def training_in_bf16(case: Case) -> Row:
    """A short training in bf16 against float32: the mean loss of its last quarter."""
    images, labels = batch(4, case.size)
    images, labels, steps, last = on(case.device, images), labels.to(case.device), 12 if case.small else 80, {}
    for name in ("float32", "bf16"):
        _, model = pair("deeplab_small", case.device)
        optimizer, history = torch.optim.AdamW(model.train().parameters(), lr=2e-3), []
        for _ in range(steps):
            with torch.autocast(case.device.type, torch.bfloat16, enabled=name == "bf16"):
                answer = model(images)
            loss = label_loss(answer, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            history.append(loss.item())
        last[name] = statistics.fmean(history[-steps // 4 :])
    ratio = last["bf16"] / last["float32"]
    return Row({**last, "first": history[0]}, "within 20%, and falling",
               0.8 <= ratio <= 1.25 and last["bf16"] < history[0])  # fmt: skip


# --- stop and go on


def resume(case: Case, deterministic: bool = False) -> Row:
    """Stage 2 killed at a step and gone on with, against the same in one go."""
    steps, save_every = (12, 3) if case.small else (120, 5)
    params = params_of(case, "smoke", stage2_steps=steps, save_every=save_every, rounds=1, warmup_steps=2,
                       source_steps=4, stage1_steps=4, oracle_steps=0, evaluate_every=1000)  # fmt: skip
    base = Run(params, 0, case.folder / "runs")
    if not base.folder.is_dir():
        for _ in until_stage2(base):
            pass
    whole, cut = (Run(params, 0, case.folder / f"{name}-{deterministic}") for name in ("whole", "cut"))
    for run in (whole, cut):
        shutil.copytree(base.folder, run.folder)
    progress = cut.path("stage2", "round-1", "progress.pt")
    command = [sys.executable, __file__, "--killed", str(cut.folder), *["--deterministic"] * deterministic]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not progress.is_file() and child.poll() is None:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    if not progress.is_file():
        return Row({"the process to be killed": f"ended by itself, {child.returncode}"}, "killed at a step", False)
    step = torch.load(progress, map_location="cpu", weights_only=True)["step"]
    with deterministic_algorithms(deterministic) as undetermined:
        for run in (whole, cut):
            stages.TRAININGS["stage2"](run, 1)
    files = [run.path("stage2", "round-1", "student.safetensors").read_bytes() for run in (whole, cut)]
    histories = [json.loads(run.path("stage2", "round-1", "history.json").read_text())["loss"] for run in (whole, cut)]
    furthest = max(abs(a - b) for a, b in zip(*histories, strict=True))
    measured = {"killed after step": step, "same bits": files[0] == files[1], "losses apart": furthest}
    if undetermined:
        measured["no deterministic form"] = ", ".join(sorted(undetermined))
    if deterministic or case.device.type == "cpu":
        return Row(measured, "same bits", files[0] == files[1])
    return Row(measured)  # CUDA adds in no fixed order: nothing is promised


def resume_deterministic(case: Case) -> Row:
    """The same with PyTorch's deterministic algorithms."""
    return resume(case, True)


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[set[str]]:
    """Use deterministic algorithms where there are some; gives the names of operators that have none."""
    without: set[str] = set()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.use_deterministic_algorithms(wanted, warn_only=True)
        try:
            yield without
        finally:
            torch.use_deterministic_algorithms(False)
            texts = (str(warning.message) for warning in caught)
            without |= {text.split()[0] for text in texts if "does not have a deterministic" in text}


# --- time and memory


def compiled(case: Case) -> Row:
    """torch.compile as a study uses it: the same logits, and a training step's time beside the network as it is."""
    images, labels = batch(4, case.size)
    images, labels = on(case.device, images), labels.to(case.device)
    _, model = pair("deeplab_small", case.device)
    fabric = make_fabric(params_of(case, "smoke", precision="32-true"))
    fast = training.compiled(model, fabric, case.size)
    if fast is model:
        return Row({"compile": "does not work here, trainings go on without"})
    with torch.no_grad(), exact_float32():
        error = apart(fast(images), model(images).cpu())

    def step(network: nn.Module) -> None:
        label_loss(network(images), labels).backward()

    times = {f"{name}, ms": milliseconds(lambda n=network: step(n), case.device, 10)
             for name, network in (("eager", model), ("compiled", fast))}  # fmt: skip
    return Row({"logits": error, **times}, "logits <= 0.001", error <= 1e-3)


def milliseconds(work: Callable[[], None], device: torch.device, repeats: int) -> float:
    """Median time of ``work``, after three turns that are not counted."""
    times = []
    for _ in range(repeats + 3):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[3:])


def paper_step(case: Case) -> Row:
    """A step of stage 2 at the paper's size, with SpatialMix, votes and hard patches, against the bare passes of both
    networks over as many pixels."""
    params = paper_params(case)
    data = conversion.prepare(params)["target_train"]
    found = time_steps(params, data.images, np.array(data.labels), 3 if case.small else 20)
    size = "{} x {}".format(*params.image_size)
    return Row({"network": params.target_network, "size": size, "batch": params.batch_size, **found})


def paper_params(case: Case) -> Params:
    """The published study's, on drawn scenes; or small ones."""
    base, changes = "smoke", {"image_size": [64, 128]}
    changes |= {"stage2_mix": "spatial", "paste_patches": False, "stage2_views": False}  # the step as published
    if not case.small:
        base, changes = "gta5_cityscapes", {**changes, "target_network": "deeplabv2_resnet101", "workers": 4}
        del changes["image_size"]
    return params_of(
        case, base, source_dataset="minicity", source_train_split="train", source_train_images=1, source_val_split=None,
        source_image_size=None, target_dataset="minicity", target_train_images=16, target_val_split=None,
        target_test_split=None, **changes,
    )  # fmt: skip


def default_study(case: Case) -> Row:
    """The default study's work without its notebooks: seconds of each part, and its table."""
    quick = dict(source_steps=4, stage1_steps=4, stage2_steps=3, oracle_steps=4, warmup_steps=2) if case.small else {}
    params = params_of(case, "smoke" if case.small else "minicity", **quick)
    run, measured = Run(params, 0, case.folder / "study"), {}

    def parts() -> Iterator[str]:
        yield from until_stage2(run)
        for number in range(1, params.rounds + 1):
            stages.train(run, "stage2", number)
            yield f"round {number}"
        run.record("05_self_distill", {})
        stages.train(run, "oracle")
        yield "oracle"
        rows = evaluate_run(run, True)["rows"]
        measured["mIoU, %"] = ", ".join(f"{name} {100 * row['miou']:.1f}" for name, row in rows.items())
        yield "evaluation"

    started = before = time.time()
    try:
        for name in parts():
            measured[f"{name}, s"], before = time.time() - before, time.time()
    except TimeIsOut:
        return Row({**measured, "stopped": "the time is out"})
    return Row({**measured, "all, s": time.time() - started})


# --- a study without notebooks


def params_of(case: Case, study: str, **changes) -> Params:
    """The parameters of ``params/<study>.yaml`` for this device, some changed, under a name of their own."""
    values = {**read_yaml(PROJECT / "params" / f"{study}.yaml"), **changes}
    return check_params({**values, "study": f"gpu_check_{study}", "accelerator": case.device.type}, study)


def until_stage2(run: Run) -> Iterator[str]:
    """What the notebooks 00 to 04 do, by the same calls; gives the name of each part as it is done."""
    params = run.params
    run.claim()
    parts = conversion.prepare(params)
    run.record("00_data", {})
    yield "data"
    stages.train(run, "source")
    run.record("01_source_model", {})
    yield "source model"
    box = open_box(run)
    for name in ("target_val", "target_train"):
        if name in parts:
            ask_for_labels(run, box, parts[name])
    run.record("02_pseudo_labels", {})
    yield "pseudo labels"
    stages.train(run, "stage1")
    run.record("03_cross_domain", {})
    yield "stage 1"
    labels, confidences = (read(run, parts["target_train"]) for read in (read_pseudo_labels, read_confidences))
    rare, least = mining.rare_of(params, labels, confidences)
    mining.write_patches(run, mine(labels, rare, params.grid, least))
    run.record("04_hard_patches", {})
    yield "hard patches"


def be_killed(folder: Path, deterministic: bool) -> None:
    """The process that is killed: stage 2 of a run."""
    run = stored_run(folder)
    with deterministic_algorithms(deterministic):
        stages.TRAININGS["stage2"](run, 1)


# The checks in order, with the seconds to have left for each at full size.
CHECKS: tuple[tuple[Callable[[Case], Row], float], ...] = (
    (logits, 15), (logits_tf32, 15), (losses, 5), (gradients, 30), (mix, 5), (teacher, 10), (average, 5),
    (self_distillation, 30), (bf16, 15), (precision, 1), (training_in_bf16, 15), (paper_step, 60),
    (resume, 30), (resume_deterministic, 30), (default_study, 60), (compiled, 60),
)  # fmt: skip


class TimeIsOut(Exception):
    """The deadline is here."""


@contextmanager
def until(deadline: float) -> Iterator[None]:
    """Raise TimeIsOut inside, wherever it is, at the deadline."""

    def stop(*_) -> None:
        raise TimeIsOut

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(deadline - time.time(), 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def run_check(check: Callable[[Case], Row], expected: float, case: Case) -> Row:
    """A check's row; what it raises is a bound that did not hold, and what no longer fits is not tried."""
    started = time.time()
    left = case.deadline - started
    if left < (1 if case.small else expected):
        row = Row({"skipped": f"{max(left, 0):.0f} s are left, it may take {expected:.0f}"})
    else:
        try:
            with until(case.deadline), contextlib.redirect_stderr(io.StringIO()):  # progress bars
                row = check(case)
        except TimeIsOut:
            row = Row({"stopped": "the time is out"})
        except Exception as error:  # whatever a card, driver or kernel raises must not stop the other checks
            row = Row({"failed": f"{type(error).__name__}: {str(error)[:300]}"}, "runs", False)
    row.check, row.seconds = check.__name__, time.time() - started
    return row


def line(row: Row) -> str:
    """A row as a person reads it."""
    shown = ", ".join(f"{n} {v:.3g}" if isinstance(v, float) else f"{n} {v}" for n, v in row.measured.items())
    verdict = {True: "ok", False: "NO", None: "-"}[row.holds]
    return f"{row.check:21s} {verdict:3s} {row.seconds:6.1f} s  {shown}" + (f"  [{row.bound}]" if row.bound else "")


def machine(device: torch.device) -> dict:
    """What the numbers belong to."""
    found = {"torch": torch.__version__, "torchvision": torchvision.__version__, "python": platform.python_version(),
             "threads": torch.get_num_threads(), "device": str(device)}  # fmt: skip
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= {"card": card.name, "GiB": round(card.total_memory / 2**30, 1), "cuda": torch.version.cuda,
                  "cudnn": torch.backends.cudnn.version()}  # fmt: skip
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="small networks and images, for a CPU")
    parser.add_argument("--seconds", type=float, default=480, help="what no longer fits is skipped")
    parser.add_argument("--only", nargs="+", choices=[check.__name__ for check, _ in CHECKS], help="some checks alone")
    parser.add_argument("--out", type=Path, help="the rows as JSON")
    parser.add_argument("--killed", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--deterministic", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.killed:
        be_killed(args.killed, args.deterministic)
        return 0
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    device = torch.device(args.device)
    about, rows = machine(device), []
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        case = Case(device, args.small, time.time() + args.seconds, Path(folder))
        try:
            for check, expected in CHECKS:
                if args.only and check.__name__ not in args.only:
                    continue
                rows.append(run_check(check, expected, case))
                print(line(rows[-1]), flush=True)
                if args.out:  # after each: a machine may be taken away
                    write_json(args.out, {"machine": about, "small": args.small, "rows": [asdict(r) for r in rows]})
        finally:
            for data in (PROJECT / "data").glob("gpu_check_*"):
                shutil.rmtree(data, ignore_errors=True)
    broken = [row.check for row in rows if row.holds is False]
    print(f"{len(rows)} checks: " + (f"NOT within bounds: {', '.join(broken)}" if broken else "all bounds held"))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

"""The whole pipeline at Cityscapes' size, on drawn images: seconds an image and a step, memory of every process.

Run by hand, on Linux, from the project's folder::

    .venv/bin/python benchmarks/drill.py --count 60 20 --out runs/small.json      # a try, some minutes
    .venv/bin/python benchmarks/drill.py --against runs/small.json                # 2975 + 500 images, an hour and more

It draws sixty scenes of 1024 x 2048, lays them out as Cityscapes does, hard-linked under as many names as are asked
for, and a vendor's delivery of labels beside them; then it runs the notebooks as ``make study`` does, in a copy of the
project that is removed at the end. Three studies:

- ``drill``: all images, a small network, so that 06 can score every image.
- ``drill_paper``: all training images, brought to a size that a CPU bears; deeplabv2_resnet101 at batch 4, a few steps
  of each stage, 8 loaders; again with two processes.
- ``drill_owner``: the source model's training on all images, and its answers to a few; again with two processes.

The memory of a process is what it holds beside files: anonymous and shared pages, each page divided by the processes
that share it. Pages of files, such as the memory-mapped images, are given back when others need them and are listed
apart. Sampled, so that shorter peaks are missed.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from b2ma_core import minicity  # noqa: E402
from b2ma_core.files import PROJECT, write_json  # noqa: E402
from b2ma_core.labels import CITYSCAPES  # noqa: E402
from b2ma_core.params import load_params  # noqa: E402

DRAWN, SIZE = 60, (1024, 2048)  # pictures, and what they are hard links of
CROP = [128, 256]  # what the networks learn from
COPIED = ("b2ma_core", "notebooks", "params", "pyproject.toml")
EVERY = 0.5  # seconds between two samples of memory
LEAST_FREE = 2.0  # GiB that the machine keeps
# As the Makefile sets them for every study.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "2000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000", "THP_MEM_ALLOC_ENABLE": "1"}
STEPS = {"source": "source_steps", "stage1": "stage1_steps", "round-1": "stage2_steps", "oracle": "oracle_steps"}
BAR = re.compile(r"\]\s+(.+?):\s.*?(\d+)/(\d+) \[")  # "[drill 0]   stage1:  50%|#####     | 3/6 [00:10<00:10, .."


class Failed(RuntimeError):
    """A stage failed, or a process passed the limit."""


def draw(index: int, folder: Path) -> None:
    """One scene: the photograph, its label ids and the vendor's train ids."""
    image, train_ids = minicity.render(index, "camera", "train", size=SIZE)
    ids = np.zeros(256, np.uint8)
    ids[:19] = CITYSCAPES.label_ids
    for name, array in (("image", image), ("ids", ids[train_ids]), ("delivered", train_ids)):
        Image.fromarray(array).save(folder / f"{index}_{name}.png", compress_level=1)


def lay_out(folder: Path, counts: dict[str, int]) -> None:
    """``cityscapes/`` and ``delivered/`` in the folder, hard links all."""
    drawn = folder / "drawn"
    drawn.mkdir(parents=True)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        list(pool.map(draw, range(DRAWN), [drawn] * DRAWN))
    (folder / "delivered").mkdir()
    for split, count in counts.items():
        for i in range(count):
            city, k = f"{split}city{i // 200:02d}", i % DRAWN
            name = f"{city}_{i:06d}_000019"
            images, labels = (folder / "cityscapes" / kind / split / city for kind in ("leftImg8bit", "gtFine"))
            for path in (images, labels):
                path.mkdir(parents=True, exist_ok=True)
            os.link(drawn / f"{k}_image.png", images / f"{name}_leftImg8bit.png")
            os.link(drawn / f"{k}_ids.png", labels / f"{name}_gtFine_labelIds.png")
            os.link(drawn / f"{k}_delivered.png", folder / "delivered" / f"{name}_leftImg8bit.png")


def studies(folder: Path, size: list[int], network: str) -> dict[str, dict]:
    """The parameters of the three studies, by name."""
    shared = {
        "label_space": "cityscapes", "batch_size": 4, "accumulate": 2, "workers": 8, "evaluate_every": 100,
        "target_dataset": "cityscapes", "target_root": str(folder / "cityscapes"), "warmup_steps": 1, "rounds": 1,
        "source_steps": 6, "stage1_steps": 6, "stage2_steps": 4, "oracle_steps": 4,
    }  # fmt: skip
    delivered = {"source_dataset": "none", "box": "folder", "box_root": str(folder / "delivered")}
    # Whole images of the size that a CPU bears.
    paper = {"source_network": network, "target_network": network, "image_size": CROP,
             "target_val_images": 8}  # fmt: skip
    return {
        "drill": {**shared, **delivered, "image_size": size, "crop": CROP, "oracle_steps": 0},
        "drill_paper": {**shared, **delivered, **paper},
        "drill_owner": {
            **shared, **paper, "source_dataset": "cityscapes", "source_root": str(folder / "cityscapes"),
            "source_val_split": None, "box_queries": 1, "target_train_images": 8,
        },
    }  # fmt: skip


# study, devices, notebooks; the second seed of a study is its run on two processes and shares the data.
TRAINED = ("02_pseudo_labels", "03_cross_domain", "04_hard_patches", "05_self_distill", "06_evaluation")
PLAN = (
    ("drill", 1, ("00_data", "01_source_model", *TRAINED)),
    ("drill_paper", 1, ("00_data", "01_source_model", *TRAINED)),
    ("drill_paper", 2, ("00_data", "01_source_model", *TRAINED)),
    ("drill_owner", 1, ("00_data", "01_source_model", "02_pseudo_labels")),
    ("drill_owner", 2, ("00_data", "01_source_model")),
)


def kind(process: psutil.Process) -> str | None:
    """What a process of a study is, by its command line; None: not worth a line."""
    command = " ".join(process.cmdline())
    kinds = {
        "resource_tracker": None, "spawn_main": "loader or reader", "b2ma_core.study.stages": "training",
        "ipykernel": "kernel", "run.py": "run.py",
    }  # fmt: skip
    return next((name for part, name in kinds.items() if part in command), None)


def memory(pid: int) -> tuple[float, float]:
    """GiB that a process holds beside files, and of files, shared pages divided by those who share them."""
    fields = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M))
    own, files = int(fields["Pss_Anon"]) + int(fields["Pss_Shmem"]), int(fields["Pss_File"])
    return own / 2**20, files / 2**20


class Watch:
    """Peaks of all processes below this one while it is open, by kind."""

    def __init__(self, limit: float):
        self.limit, self.peaks, self.together, self.failed = limit, {}, 0.0, None
        self._done, self._thread = threading.Event(), threading.Thread(target=self._watch)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(EVERY):
            self._sample()

    def _sample(self) -> None:
        total = 0.0
        for process in psutil.Process().children(recursive=True):
            try:
                what, (own, files) = kind(process), memory(process.pid)
            except (psutil.Error, OSError, KeyError):  # it has just ended
                continue
            if what is None:
                continue
            total += own
            seen = self.peaks.setdefault(what, {}).setdefault((process.pid, process.create_time()), [0.0, 0.0])
            seen[:] = max(seen[0], own), max(seen[1], files)
            if own > self.limit and not self.failed:
                self.failed = f"a process ({what}) holds {own:.1f} GiB beside files, the limit is {self.limit:g}"
        self.together = max(self.together, total)
        free = psutil.virtual_memory().available / 2**30
        if free < LEAST_FREE and not self.failed:
            self.failed = f"{free:.1f} GiB of the machine's memory are left; all processes together hold {total:.1f}"

    def table(self) -> dict[str, dict]:
        """By kind: how many processes, and the peaks of the largest in GiB."""
        return {
            what: {"processes": len(seen), "own": max(p[0] for p in seen.values()),
                   "files": max(p[1] for p in seen.values())}
            for what, seen in self.peaks.items()
        }  # fmt: skip


def run_notebook(project: Path, study: str, seed: int, notebook: str, limit: float) -> dict:
    """Run one notebook as ``make study`` does.

    Returns:
        Its seconds, seconds an item of each progress bar, and memory.

    Raises:
        Failed: with the notebook's own last lines, or what passed the limit.
    """
    threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    command = [sys.executable, "notebooks/run.py", notebook, "--study", study, "--seed", str(seed)]
    started, lines, bars = time.time(), [], {}
    with Watch(limit) as watch:
        process = subprocess.Popen(
            command, cwd=project, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, **MALLOC, "PYTHONPATH": str(project), "OMP_NUM_THREADS": threads},
        )  # fmt: skip

        def read() -> None:
            for line in process.stdout:
                lines.append(line.rstrip())
                if found := BAR.search(line):
                    name, done, of = found.group(1).strip(), int(found.group(2)), int(found.group(3))
                    bars.setdefault(name, {"of": of, "seen": []})["seen"].append((done, time.time()))

        reader = threading.Thread(target=read)
        reader.start()
        try:
            while process.poll() is None and not watch.failed:
                time.sleep(0.1)
        finally:  # also when this is stopped itself
            end(process)
            reader.join()
    where = f"{study} {notebook} (seed {seed})"
    if watch.failed:
        raise Failed(f"{where}: {watch.failed}")
    if process.returncode:
        raise Failed(f"{where}:\n" + "\n".join(lines[-15:]))
    return {
        "study": study, "devices": seed + 1, "notebook": notebook, "seconds": time.time() - started,
        "bars": {name: {"of": bar["of"], "seconds_each": pace(name, bar)} for name, bar in bars.items()},
        "processes": watch.table(), "together": watch.together,
    }  # fmt: skip


def pace(name: str, bar: dict) -> float | None:
    """Seconds an item, from the first item seen done: processes start before it. A training's last step is left out,
    which scores too, and its pace is not known where steps pass faster than the bar tells (5 s)."""
    later = [(done, when) for done, when in bar["seen"] if 0 < done < bar["of"]]
    first, last = (later[0], later[-1]) if len(later) > 1 else (bar["seen"][0], bar["seen"][-1])
    if last[0] == first[0] or (name in STEPS and len(later) < 2):
        return None
    return (last[1] - first[1]) / (last[0] - first[0])


def end(process: subprocess.Popen) -> None:
    """Stop a notebook and all that it started, if it still runs."""
    if process.poll() is not None:
        return
    everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.terminate()
    for left in psutil.wait_procs(everyone, timeout=10)[1]:
        left.kill()
    process.wait()


@contextmanager
def empty_folder(folder: Path) -> Iterator[Path]:
    """A new folder, removed at the end."""
    if folder.exists():
        raise Failed(f"--folder: {folder} is there already; remove it, or name another")
    folder.mkdir(parents=True)
    try:
        yield folder.resolve()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def drill(args: argparse.Namespace) -> list[dict]:
    """Draw, run all, print each stage as it ends.

    Returns:
        One row a notebook; all up to the one that failed are printed before Failed is raised.
    """
    rows = []
    with empty_folder(args.folder) as folder:
        project, started = folder / "project", time.time()
        lay_out(folder, dict(zip(("train", "val"), args.count, strict=True)))
        print(f"drew {DRAWN} scenes, linked {sum(args.count)}: {time.time() - started:.0f} s", flush=True)
        for name in COPIED:
            copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
            project.mkdir(exist_ok=True)
            copy(PROJECT / name, project / name)
        values = studies(folder, args.size, args.network)
        for study, devices, notebooks in PLAN:
            if study not in args.studies:
                continue
            text = yaml.safe_dump({"study": study, **values[study], "devices": devices}, sort_keys=False)
            (project / "params" / f"{study}.yaml").write_text(text)
            for notebook in notebooks:
                rows.append(run_notebook(project, study, devices - 1, notebook, args.limit))
                print_row(rows[-1])
            shutil.rmtree(project / "runs" / study / str(devices - 1))
    return rows


def print_row(row: dict) -> None:
    print(f"{row['study']:12s} {row['devices']} {row['notebook']:16s} {row['seconds']:7.1f} s", end="")
    for what, peak in row["processes"].items():
        print(f"  {what} x{peak['processes']} {peak['own']:.2f}+{peak['files']:.2f}", end="")
    print()
    for name, bar in row["bars"].items():
        if bar["seconds_each"] is not None:
            print(f"{'':32s} {name}: {bar['seconds_each']:.3f} s each, {bar['of']}")
    sys.stdout.flush()


def growth(rows: list[dict], count: list[int], size: list[int], smaller: dict) -> list[str]:
    """Print what grew with the number of images against a smaller drill: of the validation part in 06, else of the
    training part.

    Returns:
        What grew by more than half a label map of ``drill`` an image, and by more than 100 MiB, more than peaks vary by
        from run to run.
    """
    before = {(r["study"], r["devices"], r["notebook"]): r["processes"] for r in smaller["rows"]}
    grown = []
    print(f"\nmemory beside files, against {smaller['count']} images: KiB an image more")
    for row in rows:
        part = int(row["notebook"] == "06_evaluation")
        more = count[part] - smaller["count"][part]
        for what, peak in row["processes"].items():
            then = before.get((row["study"], row["devices"], row["notebook"]), {}).get(what)
            if then is None or row["study"] != "drill" and part:  # the others score a few images alone
                continue
            each = (peak["own"] - then["own"]) * 2**20 / more
            line = f"{row['study']} {row['devices']} {row['notebook']} {what}: {each:.0f}"
            print("  " + line)
            if each > size[0] * size[1] / 2**11 and each * more > 100 * 2**10:
                grown.append(line)
    return grown


def extrapolate(rows: list[dict], count: list[int]) -> None:
    """The published study's cost, at the pace of this machine and this crop."""
    params = load_params(PROJECT / "params" / "gta5_cityscapes.yaml")
    seconds = {row["notebook"]: row["seconds"] for row in rows if row["study"] == "drill"}
    each, hours = {}, {}
    if seconds:
        each = {"conversion": seconds["00_data"] / sum(count), "reading labels": seconds["02_pseudo_labels"] / count[0],
                "evaluation": seconds["06_evaluation"] / count[1]}  # fmt: skip
        print("\nseconds an image, the notebook's start included: "
              + ", ".join(f"{name} {value:.3f}" for name, value in each.items()))  # fmt: skip
        hours = {"conversion of 24966 + 2975 + 500 images": each["conversion"] * 28441 / 3600,
                 "labels of 2975 images": each["reading labels"] * 2975 / 3600}  # fmt: skip
    steps = {name: getattr(params, parameter) for name, parameter in STEPS.items()}
    steps["round-1"] *= params.rounds
    for row in rows:
        for name, bar in row["bars"].items():
            if row["devices"] == 1 and row["study"] != "drill" and name in steps and bar["seconds_each"]:
                hours[f"{steps[name]} steps of {name}, on this CPU and at {CROP[0]} x {CROP[1]}"] = (
                    bar["seconds_each"] * steps[name] / 3600
                )
    print("the published study by extrapolation, not measured:")
    for name, value in hours.items():
        print(f"  {name}: {value:.1f} h")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, nargs=2, default=[2975, 500], metavar=("TRAIN", "VAL"))
    parser.add_argument("--size", type=int, nargs=2, default=[256, 512], help="image_size (published 512 1024)")
    parser.add_argument("--network", default="deeplabv2_resnet101", help="of drill_paper and drill_owner")
    parser.add_argument(
        "--studies", nargs="+", default=[*dict.fromkeys(study for study, *_ in PLAN)], help="some alone"
    )
    parser.add_argument("--limit", type=float, default=6.0, help="GiB that a process may hold beside files")
    parser.add_argument("--folder", type=Path, default=PROJECT / "runs" / "drill", help="is made, and removed")
    parser.add_argument("--out", type=Path, help="the rows as JSON")
    parser.add_argument("--against", type=Path, help="--out of a smaller drill: what grows with the number of images")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up either way
    print(f"{platform.machine()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB; count "
          f"{args.count}, image_size {args.size}; memory in GiB of the largest process, own + files")  # fmt: skip
    try:
        rows = drill(args)
        if args.out:
            write_json(args.out, {"count": args.count, "size": args.size, "rows": rows})
        extrapolate(rows, args.count)
        if args.against:
            grown = growth(rows, args.count, args.size, json.loads(args.against.read_text()))
            if grown:
                raise Failed("grows with the number of images, KiB an image:\n  " + "\n  ".join(grown))
    except Failed as error:
        print(f"\ndrill: {error}\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndrill: stopped", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Kill the smoke study at random moments, and look at what is left: ``python benchmarks/kills.py --kills 20``.

Each time make, Snakemake, run.py or the notebook's kernel gets SIGKILL. Nothing of the study may run five seconds
after make has ended, and in the end weights, labels and metrics are those of a study that nobody disturbed, bit by bit.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

PROJECT = Path(__file__).resolve().parent.parent
MARK = "B2MA_KILLS"  # environment variable: this process, for all that comes of it
COPIED = ("b2ma_core", "notebooks", "params", "Snakefile", "Makefile", "pyproject.toml", "requirements.lock")
LIMIT = 5  # seconds
VICTIMS = {"make": "make -o", "snakemake": "-m snakemake", "run.py": "notebooks/run.py", "kernel": "ipykernel_launcher"}


def copy_project(root: Path) -> None:
    """The project without its runs; the environment is a link."""
    for name in COPIED:
        (shutil.copytree if (PROJECT / name).is_dir() else shutil.copy)(PROJECT / name, root / name)


def start(root: Path, study: str) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", MARK: str(os.getpid())}
    command = ["make", "-o", ".venv/ready", "study", f"STUDY={study}", "CORES=1"]
    return subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def at_work() -> list[psutil.Process]:
    """Every process that :func:`start` is behind, whoever its parent is by now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == str(os.getpid()):
                found.append(process)
        except (psutil.Error, OSError):
            pass  # it ended meanwhile, or is somebody else's
    return found


def kill_one(wanted: str) -> str | None:
    """Kill the process wanted, or the one that would have started it; its name."""
    names = list(VICTIMS)
    for name in names[names.index(wanted) :: -1]:
        for process in at_work():
            try:
                if VICTIMS[name] in " ".join(process.cmdline()):
                    process.kill()
                    return name
            except psutil.Error:
                pass
    return None


def differences(root: Path, study: str) -> list[str]:
    """Files of a study that are not those of the smoke study."""
    first, second = (root / "runs" / name / "0" for name in ("smoke", study))

    def content(path: Path) -> object:
        return json.loads(path.read_text())["metrics"] if path.suffix == ".json" else path.read_bytes()

    files = [*first.rglob("*.safetensors"), *first.glob("labels/**/*.png"), *first.glob("records/0[0-6]*.json")]
    names = [path.relative_to(first) for path in files]
    return [str(n) for n in names if not (second / n).is_file() or content(first / n) != content(second / n)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of who is killed")
    parser.add_argument("--longest", type=float, default=40.0, help="seconds from start to kill, at the most")
    parser.add_argument("--project", type=Path, help="a copy of the project whose smoke study has run")
    args = parser.parse_args()
    root, draw = (args.project or Path(tempfile.mkdtemp())).resolve(), random.Random(args.seed)
    if not args.project:
        copy_project(root)
    if not (root / ".venv").exists():
        (root / ".venv").symlink_to(sys.prefix)
    if start(root, "smoke").wait():
        raise SystemExit("the undisturbed study failed")
    text = (root / "params" / "smoke.yaml").read_text()
    (root / "params" / "killed.yaml").write_text(text.replace("study: smoke", "study: killed"))
    kills, bad = 0, []
    while kills < args.kills:
        process, wanted = start(root, "killed"), draw.choice(list(VICTIMS))
        try:
            process.wait(draw.uniform(0.5, args.longest))
        except subprocess.TimeoutExpired:
            killed, kills = kill_one(wanted), kills + 1
            process.wait()  # a kernel that was done already lets the study go on
            since = time.monotonic()
            while at_work() and time.monotonic() < since + LIMIT:
                time.sleep(0.1)
            print(
                f"{kills:3d}  {killed}: the last process ended {time.monotonic() - since:.1f} s after make", flush=True
            )
            bad += [f"kill {kills} of {killed} left {' '.join(p.cmdline())}" for p in at_work()]
        if process.wait() == 0:
            bad += differences(root, "killed")
            shutil.rmtree(root / "runs" / "killed")
            shutil.rmtree(root / "data" / "killed")
    if start(root, "killed").wait():
        bad.append("the study does not end after the kills")
    bad += differences(root, "killed")
    print("\n".join(bad) or f"{kills} kills: nothing left running, every bit as in the undisturbed study")
    if not args.project:
        shutil.rmtree(root)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())

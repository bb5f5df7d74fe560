#!/usr/bin/env python3
"""SLURM's commands, as far as Snakemake uses them: jobs run at once, on this machine, in the order they come.

Called as sbatch, srun, sacct, sinfo or scancel, as the link says that it is called by. ``$FAKE_SLURM`` is a folder of
``<job>.args``, ``<job>.state`` and ``<job>.pid``. ``$FAKE_SLURM_STOP`` names a file: the job that writes it is stopped
twice, as a cluster does that first wants its machine back, then finds the time used up.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

folder, name, args = Path(os.environ["FAKE_SLURM"]), Path(sys.argv[0]).name, sys.argv[1:]


def value(option: str) -> str:
    return args[args.index(option) + 1]


def run(job: int, command: str, output: str) -> str:
    """The job itself, in processes of its own; how it ended."""
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    started = time.time()
    with open(output, "a") as log:
        process = subprocess.Popen(["sh", "-c", command], stdout=log, stderr=log, start_new_session=True,
                                   env={**os.environ, "SLURM_JOB_ID": str(job)})  # fmt: skip
    (folder / f"{job}.pid").write_text(str(process.pid))
    written = Path(os.environ.get("FAKE_SLURM_STOP", "/nothing"))
    while process.poll() is None:
        stops = [path.name for path in folder.glob("stopped-*")]
        if len(stops) < 2 and written.exists() and written.stat().st_mtime > started:
            (folder / f"stopped-{len(stops)}").touch()
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            return "TIMEOUT" if stops else "PREEMPTED"
        time.sleep(0.05)
    return "COMPLETED" if process.returncode == 0 else "FAILED"


if name == "sbatch":
    job = len(list(folder.glob("*.args"))) + 1
    (folder / f"{job}.args").write_text(shlex.join(args))
    (folder / f"{job}.state").write_text("RUNNING")
    command = next(a.split("=", 1)[1] for a in args if a.startswith("--wrap="))
    if os.fork() == 0:
        os.setsid()
        for stream in (0, 1, 2):
            os.dup2(os.open(os.devnull, os.O_RDWR), stream)
        state = run(job, command, value("--output").replace("%j", str(job)))
        if state == "PREEMPTED" and "--requeue" in args:
            (folder / f"{job}.state").write_text(state)
            time.sleep(2)
            state = run(job, command, value("--output").replace("%j", str(job)))
        (folder / f"{job}.state").write_text(state)
    else:
        print(job)
elif name == "srun":
    while args and args[0].startswith("-"):
        args.pop(0)
    os.execvp(args[0], args)
elif name == "sacct":
    for path in sorted(folder.glob("*.state")):
        print(f"{path.stem}|{path.read_text()}")
elif name == "scancel":
    for path in folder.glob("*.pid"):
        try:
            os.killpg(int(path.read_text()), signal.SIGTERM)
        except ProcessLookupError:
            pass

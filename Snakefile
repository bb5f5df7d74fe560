# The order of the notebooks. Use it through make, or: snakemake --nolock --cores 2 --config study=minicity seeds="0 1"
import fcntl
import logging
import os
import shlex
import signal
import sys
from functools import cache
from pathlib import Path

import psutil
from snakemake.logging import logger

from b2ma_core.params import STUDY_NAME, base_study, load_params, study_file
from b2ma_core.processes import end_with_parent
from b2ma_core.study.arms import first_stage, switched
from b2ma_core.study.check import check_study, count_of, seeds_of
from b2ma_core.study.on_disk import look_at_disk
from b2ma_core.study.pipeline import EVALUATION, STAGES, notebooks_before, stages_of
from b2ma_core.study.records import Run

try:
    STUDY = str(config.get("study", "minicity"))
    SEEDS = seeds_of(str(config.get("seeds", 0)))
    JOBS = count_of("JOBS", str(config.get("jobs", 1)))
    check_study(STUDY, str(config.get("arms", "")))
except ValueError as error:
    sys.exit(f"\n{error}\n")
PY = shlex.quote(sys.executable)
ARMS = [f"{STUDY}+{arm}" for arm in str(config.get("arms", "")).replace(",", " ").split()]
NOTEBOOKS = STAGES[: STAGES.index(EVALUATION) + 1]

# One study at a time in this folder. The system drops this lock with the process, so that a killed run leaves
# nothing to unlock (Snakemake's own lock, switched off by --nolock, would stay).
if workflow.is_main_process:
    Path("runs").mkdir(exist_ok=True)
    lock = open("runs/.lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("another make study is running in this folder: wait for it or stop it")
    except OSError as error:
        sys.exit(f"runs: files cannot be locked there ({error.strerror}): make it a link to where they can (flock)")

# A killed make takes this process with it, this one its notebooks. A job of a cluster ends as its scheduler says.
if not workflow.is_main_process:
    os.environ.pop("B2MA_PARENT", None)
end_with_parent(signal.SIGKILL)

# Quiet means: what goes wrong, once. A notebook that fails has said why.
if workflow.output_settings.quiet:
    logger.setLevel(logging.ERROR)
    logger.addFilter(lambda record: "returned non-zero exit status 1." not in record.getMessage())


onstart:
    finish = signal.getsignal(signal.SIGTERM)  # Snakemake's: no further job, but the present one to its end

    def stop(*received):
        finish(*received)
        for notebook in psutil.Process().children():
            notebook.terminate()

    signal.signal(signal.SIGTERM, stop)


params_of = cache(lambda study: load_params(study_file(study)))
start_of = cache(lambda arm: first_stage(switched(arm)))


# What a notebook is made from, as far as it can be told without reading a picture: parameters, code, and dates and
# sizes of the files outside. A file that changes when one of them does is an input of its rule; the notebook then finds
# out by content what there is to be made again.
if workflow.is_main_process:
    try:
        for study in (STUDY, *ARMS):
            for seed in SEEDS:
                for name in (*NOTEBOOKS, "07_figures"):
                    look_at_disk(Run(params_of(study), seed), name)
    except (ValueError, OSError) as error:
        sys.exit(f"\n{error}\n")


def gpus(name):
    """GPUs that a scheduler is asked for: the study's devices, for the stages that compute on them."""

    def needed(wildcards):
        params = params_of(wildcards.study)
        computes = any(stage.read("accelerator") for stage in stages_of(name))
        return params.devices if params.accelerator != "cpu" and computes else 0

    return needed


wildcard_constraints:
    study=STUDY_NAME,
    seed=r"\d+",


def records_before(name):
    """An arm of the ablation begins where its first switch is read, from the finished run that it stems from."""

    def needed(wildcards):
        study, seed, before = wildcards.study, wildcards.seed, notebooks_before(name)
        if "+" in study:
            finished = f"runs/{base_study(study)}/{seed}/records/{EVALUATION}.json"
            return [finished, *(f"runs/{study}/{seed}/records/{b}.json" for b in before if b >= start_of(study))]
        return [f"runs/{study}/{seed}/records/{b}.json" for b in before]

    return needed


# All of them by name: a record that is missing (its notebook refused once) is made again even where those that come
# after it stand.
ALL = expand("runs/{study}/{seed}/records/{name}.json", study=STUDY, seed=SEEDS, name=NOTEBOOKS)


rule all:
    input:
        ALL,
        f"runs/{STUDY}/{SEEDS[0]}/records/07_figures.json",


for name in NOTEBOOKS:

    rule:
        name:
            name
        input:
            f"notebooks/{name}.ipynb",
            f"runs/{{study}}/{{seed}}/on_disk/{name}.json",
            records_before(name),
        output:
            f"runs/{{study}}/{{seed}}/records/{name}.json",
        log:
            f"runs/{{study}}/{{seed}}/notebooks/{name}.ipynb",
        params:
            notebook=name,
        threads: max(1, (workflow.resource_settings.cores or JOBS) // JOBS)
        resources:
            gpu=gpus(name),
        shell:
            "exec {PY} notebooks/run.py {params.notebook} --study {wildcards.study} --seed {wildcards.seed}"


rule figures:
    input:
        "notebooks/07_figures.ipynb",
        f"runs/{STUDY}/{SEEDS[0]}/on_disk/07_figures.json",
        expand(f"runs/{{study}}/{{seed}}/records/{EVALUATION}.json", study=STUDY, seed=SEEDS),
    output:
        f"runs/{STUDY}/{SEEDS[0]}/records/07_figures.json",
    log:
        f"runs/{STUDY}/{SEEDS[0]}/notebooks/07_figures.ipynb",
    params:
        study=STUDY,
        seed=SEEDS[0],
        seeds=str(SEEDS).replace(" ", ""),
    shell:
        "exec {PY} notebooks/run.py 07_figures --study {params.study} --seed {params.seed} -p seeds={params.seeds}"


rule ablation:
    input:
        ALL,
        expand(f"runs/{{study}}/{{seed}}/records/{EVALUATION}.json", study=ARMS, seed=SEEDS),

"""The study as jobs of a cluster, by the profile in the repository and a SLURM that runs its jobs here."""

import json
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from conftest import Project

from b2ma_core.files import PROJECT
from b2ma_core.study.records import STAGES

PROFILE = PROJECT / "profiles" / "slurm" / "config.yaml"


@pytest.fixture
def cluster(tmp_path):
    """A copy of the project whose PATH leads to the commands of the fake SLURM."""
    copy = Project(tmp_path / "copy")
    commands, jobs = tmp_path / "commands", tmp_path / "jobs"
    commands.mkdir()
    jobs.mkdir()
    script = (Path(__file__).parent / "fake_slurm.py").read_text().replace("/usr/bin/env python3", sys.executable, 1)
    for name in ("sbatch", "srun", "sacct", "sinfo", "scancel"):
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)
    copy.env |= {"PATH": f"{commands}:{Path(sys.executable).parent}:{copy.env['PATH']}", "FAKE_SLURM": str(jobs)}
    copy.jobs = jobs
    return copy


def snakemake(copy: Project, *words: str) -> tuple[int, str]:
    return copy.python("-m", "snakemake", "--nolock", "--profile", "profiles/slurm", "--latency-wait", "5",
                       "--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1",
                       *words)  # fmt: skip


def test_the_profile_names_every_stage_and_the_jobs_ask_for_gpus(cluster):
    profile = yaml.safe_load(PROFILE.read_text())
    assert {entry.split("=")[0] for entry in profile["set-threads"]} == set(STAGES[:7])
    path = cluster.root / "params" / "minicity.yaml"
    path.write_text(path.read_text() + "devices: 4\n")
    code, output = snakemake(cluster, "--dry-run", "--config", "study=minicity", "seeds=0 1", "--", "all")
    assert code == 0, output
    for stage in STAGES[:7]:
        jobs = [text for text in output.split("\nrule ") if text.startswith(f"{stage}:")]
        assert len(jobs) == 2, output  # one a seed
        needs = next(line for line in jobs[0].splitlines() if "resources:" in line)
        assert ("gpu=4" in needs) == (stage not in ("00_data", "04_hard_patches")), needs
        assert "runtime=" in needs and "mem_mb=" in needs


def test_jobs_run_in_order_and_a_stopped_one_goes_on_where_it_was(cluster):
    run = cluster.root / "runs" / "smoke" / "0"
    path = cluster.root / "params" / "smoke.yaml"
    values = {**yaml.safe_load(path.read_text()), "source_steps": 400, "save_every": 5, "accelerator": "cpu"}
    path.write_text(yaml.safe_dump(values))
    profile = cluster.root / PROFILE.relative_to(PROJECT)  # more threads than cores would wait for each other
    profile.write_text(profile.read_text().replace("01_source_model=8", "01_source_model=1"))
    cluster.env["FAKE_SLURM_STOP"] = str(run / "source" / "progress.pt")
    code, output = snakemake(cluster, "--config", "study=smoke", "--", "runs/smoke/0/records/01_source_model.json")
    assert code == 0, output
    stages, states = [], []
    for job in sorted(cluster.jobs.glob("*.args")):
        words = shlex.split(job.read_text())
        stages.append(words[words.index("--comment") + 1].split("_wildcards")[0])
        states.append(job.with_suffix(".state").read_text())
    # Job 2 was preempted and queued again by SLURM, then ran out of time; Snakemake sent job 3.
    assert stages == ["rule_00_data", "rule_01_source_model", "rule_01_source_model"], output
    assert states == ["COMPLETED", "TIMEOUT", "COMPLETED"]
    log = (cluster.root / ".snakemake" / "slurm_logs").rglob("2.log")
    assert "01_source_model" in next(log).read_text()
    assert len(json.loads((run / "source" / "history.json").read_text())["loss"]) == 400

"""What several tests share: small parameters, a small data set on disk, and a copy of the project to run studies in."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from b2ma_core import minicity
from b2ma_core.files import PROJECT
from b2ma_core.params import check_params, read_yaml
from b2ma_core.study.records import Run

TRACKED = (
    "b2ma_core",
    "notebooks",
    "params",
    "profiles",
    "Snakefile",
    "Makefile",
    "pyproject.toml",
    "requirements.lock",
)


@pytest.fixture(scope="session")
def smoke_params():
    return check_params({"study": "smoke", **read_yaml(PROJECT / "params" / "smoke.yaml")}, "smoke")


@pytest.fixture
def run(smoke_params, tmp_path):
    return Run(smoke_params, 0, tmp_path / "runs")


@pytest.fixture
def street_folder(tmp_path) -> Path:
    """Six labelled images in the SegNet layout, ``train`` of four and ``val`` of two."""
    root = tmp_path / "streets"
    for split, count in (("train", 4), ("val", 2)):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for i in range(count):
            image, labels = minicity.render(i, "camera", split, size=(64, 128))
            Image.fromarray(image).save(root / split / f"seq_{i}.png")
            Image.fromarray(labels).save(root / f"{split}annot" / f"seq_{i}.png")
    return root


@pytest.fixture
def distinct_names(street_folder) -> None:
    """The images of ``val`` get names of their own, as splits that are joined need."""
    for folder in ("val", "valannot"):
        for i in (1, 0):
            (street_folder / folder / f"seq_{i}.png").rename(street_folder / folder / f"seq_{i + 4}.png")


@pytest.fixture
def folder_params(smoke_params, street_folder):
    values = {
        **smoke_params.model_dump(), "study": "folder", "target_dataset": "folder", "target_root": str(street_folder),
        "target_train_images": None, "target_val_images": None, "target_test_split": None, "target_test_images": None,
    }  # fmt: skip
    return check_params(values, "folder")


class Project:
    """A copy of the project in which studies run without touching this one."""

    def __init__(self, root: Path):
        self.root = root
        for name in TRACKED:
            source = PROJECT / name
            if source.is_dir():
                shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, root / name)
        self.env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}

    def start(self, *words: str, **options) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, *words], cwd=self.root, env=self.env, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True, **options)  # fmt: skip

    def python(self, *words: str) -> tuple[int, str]:
        process = self.start(*words)
        output, _ = process.communicate()
        return process.returncode, output

    def make(self, *words: str, **environment: str) -> tuple[int, str]:
        """``make``, with the environment that runs this test in place of one that it would set up."""
        if not (self.root / ".venv").exists():
            (self.root / ".venv").symlink_to(sys.prefix)
        done = subprocess.run(["make", "-o", ".venv/ready", *words], cwd=self.root, env={**self.env, **environment},
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
        return done.returncode, done.stdout

    def notebook(self, name: str, study: str = "smoke", seed: int = 0, *more: str) -> tuple[int, str]:
        return self.python("notebooks/run.py", name, "--study", study, "--seed", str(seed), *more)

    def study(self, study: str = "smoke", seeds: str = "0") -> tuple[int, str]:
        return self.python(*self.snakemake(study, seeds))

    @staticmethod
    def snakemake(study: str = "smoke", seeds: str = "0") -> list[str]:
        return ["-m", "snakemake", "--nolock", "--rerun-incomplete", "--cores", "1", "--config", f"study={study}",
                f"seeds={seeds}", "-q", "all"]  # fmt: skip

    def metrics(self, study: str, seed: int, stage: str) -> dict:
        path = self.root / "runs" / study / str(seed) / "records" / f"{stage}.json"
        return json.loads(path.read_text())["metrics"]

    def write_study(self, name: str, **values) -> None:
        import yaml

        base = read_yaml(self.root / "params" / "smoke.yaml")
        (self.root / "params" / f"{name}.yaml").write_text(yaml.safe_dump({**base, "study": name, **values}))


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Project:
    """One project in which the smoke study has run; tests leave ``runs/smoke/0`` as it is."""
    project = Project(tmp_path_factory.mktemp("project"))
    code, output = project.study()
    assert code == 0, output
    return project


def same_tree(a: Path, b: Path, pattern: str) -> None:
    """Assert that two folders hold the same files, byte for byte."""
    files = sorted(p.relative_to(a) for p in a.rglob(pattern))
    assert files and files == sorted(p.relative_to(b) for p in b.rglob(pattern))
    for file in files:
        assert (a / file).read_bytes() == (b / file).read_bytes(), file


def photo(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))

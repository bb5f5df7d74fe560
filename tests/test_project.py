"""What holds the project together: two lists of packages, the lock, the README's commands."""

import ast
import json
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from b2ma_core.files import PROJECT

PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]


def names(lines) -> set[str]:
    return {re.match(r"[A-Za-z0-9_.-]+", line).group().lower().replace("_", "-") for line in lines}


def test_environment_yml_lists_the_packages_of_pyproject():
    environment = yaml.safe_load((PROJECT / "environment.yml").read_text())["dependencies"]
    by_pip = next(d["pip"] for d in environment if isinstance(d, dict))
    conda = {d for d in environment if isinstance(d, str)} - {"pip", "make"}
    listed = {d for d in [*conda, *by_pip] if not d.startswith(("python>=", "-e"))}
    assert listed == {*PYPROJECT["dependencies"], *PYPROJECT["optional-dependencies"]["test"]}


def test_the_lock_pins_every_package_of_pyproject():
    lines = (PROJECT / "requirements.lock").read_text().split()
    assert all("==" in line for line in lines)
    assert names([*PYPROJECT["dependencies"], *PYPROJECT["optional-dependencies"]["test"]]) <= names(lines)


def test_the_readme_names_targets_that_exist():
    readme, makefile = (PROJECT / "README.md").read_text(), (PROJECT / "Makefile").read_text()
    assert len(readme.splitlines()) < 150
    targets = set(re.findall(r"make ([a-z]+)", readme))
    assert {"study", "test", "lab", "figures", "clean"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target
    for path in re.findall(r"`((?:notebooks|b2ma_core|params|figures|benchmarks|tests)/[\w./-]+\.\w+)`", readme):
        assert (PROJECT / path).exists(), path


LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)[^)]*\)")


def test_every_link_leads_somewhere():
    pages = [PROJECT / "README.md", *PROJECT.glob("docs/*.md"), *PROJECT.glob("figures/*.md")]
    links = [(page, link) for page in pages for link in LINK.findall(page.read_text())]
    assert len(links) > 10
    assert [f"{page}: {link}" for page, link in links if not (page.parent / link).exists()] == []
    # A notebook is read in notebooks/, in runs/ and in figures/notebooks/: a link would be dead in two of them.
    for notebook in PROJECT.glob("notebooks/*.ipynb"):
        cells = json.loads(notebook.read_text())["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        assert LINK.findall(text) == [], notebook


def test_the_method_is_lifted_out_in_six_files(tmp_path):
    """As docs/extending.md says."""
    told = (PROJECT / "docs" / "extending.md").read_text().partition("**Lifting the method.**")[2]
    files = re.findall(r"`(\w+\.py)`", told.partition("need torch")[0])
    (tmp_path / "mine").mkdir()
    for file in files:
        text = (PROJECT / "b2ma_core" / file).read_text().replace("b2ma_core", "mine")
        (tmp_path / "mine" / file).write_text(text)
    script = """if True:
        import sys, torch
        from mine.distillation import SelfDistillation, make_teacher, self_distillation_step
        student = torch.nn.Conv2d(3, 2, 1)
        batch = torch.rand(2, 3, 16, 16), torch.zeros(2, 16, 16, dtype=torch.long)
        recipe, generator = SelfDistillation(confidence_threshold=0.0), torch.Generator()
        losses = self_distillation_step(student, make_teacher(student), *batch, None, recipe, generator)
        print(sum(losses).item() > 0, "b2ma_core" in " ".join(sys.modules))"""
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert len(files) == 6 and result.stdout == "True False\n", result.stderr


def test_make_study_says_what_it_would_do():
    result = subprocess.run(["make", "-n", "study", "STUDY=camvid", "SEEDS=0 1", "JOBS=2"], cwd=PROJECT,
                            capture_output=True, text=True)  # fmt: skip
    assert result.returncode == 0 and 'study=camvid seeds="0 1" jobs=2' in result.stdout


# The floors of the core, from the bottom. A file imports from its own floor or from below; on the top level of the
# package lies the method, which knows no run, no Fabric and no folder layout.
FLOORS = [
    {"files", "processes", "digests", "published"},
    {"spatial_mix", "mixes", "hard_patches", "queries", "metrics", "labels", "augmentations", "class_shares"},
    {"minicity"},
    {"params", "models", "black_box", "service"},
    {"data", "distillation"},
    {"study"},
    {"report", "serve"},
]


def imports(path) -> set[str]:
    """The rooms of the core that a file imports from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "b2ma_core":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("b2ma_core."):
            found.add(node.module.split(".")[1])
    return found


def test_imports_run_downwards_only():
    core = PROJECT / "b2ma_core"
    floor = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
    for path in sorted(core.rglob("*.py")):
        room = path.relative_to(core).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for other in imports(path) - {room}:
            assert floor[other] < floor[room] or (floor[other] == floor[room] == 1), f"{path}: imports {other}"


@pytest.mark.parametrize(
    "module",
    ["b2ma_core.params", "b2ma_core.study.arms", "b2ma_core.study.check", "b2ma_core.data.conversion"],
)
def test_what_make_asks_first_and_what_converts_images_import_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0

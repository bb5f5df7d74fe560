"""A study's executed notebooks, figures and tables as pages: ``python -m b2ma_core.report.site STUDY SEED``."""

import argparse
import re
import shutil
import sys
from pathlib import Path

from nbconvert import HTMLExporter  # comes with JupyterLab
from nbconvert.filters import markdown2html

from b2ma_core.files import PROJECT, whole_folder
from b2ma_core.params import study_file
from b2ma_core.processes import run_command
from b2ma_core.study.check import seeds_of

PAGE = """<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>body {{ font: 16px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }}
img {{ max-width: 100% }} table {{ border-collapse: collapse }} td, th {{ padding: .2em .8em }}</style>
<h1>{title}</h1>
{body}
"""


def write_site(study: str, seed: int, into: Path, runs: Path = PROJECT / "runs") -> list[str]:
    """Write ``<into>/index.html`` and a page for each executed notebook of a run.

    Args:
        study, seed: which run.
        into: the folder; an older one is replaced as a whole.
        runs: the folder of all runs.

    Returns:
        The names of the pages.

    Raises:
        FileNotFoundError: if no notebook of the run was executed.
    """
    run = runs / study / str(seed)
    executed = sorted(run.glob("notebooks/[0-9]*.ipynb"))
    if not executed:
        raise FileNotFoundError(f"{run}: no executed notebook; make study STUDY={study} SEEDS={seed}")
    names = [path.stem for path in executed]
    with whole_folder(into) as folder:
        for path, before, after in zip(executed, ["", *names], [*names[1:], ""], strict=False):
            page, _ = HTMLExporter(theme="light").from_filename(str(path))
            ways = [f'<a href="index.html">{study}, seed {seed}</a>']
            ways += [f'<a href="{name}.html">{name}</a>' for name in (before, after) if name]
            bar = f'<nav style="padding:.6em 1em">{" | ".join(ways)}</nav>'
            page = re.sub("<body[^>]*>", lambda tag, bar=bar: tag[0] + bar, page, count=1)
            (folder / f"{path.stem}.html").write_text(page, encoding="utf-8")
        (folder / "index.html").write_text(_index(study, seed, names, folder), encoding="utf-8")
    return names


def _index(study: str, seed: int, names: list[str], folder: Path) -> str:
    """The notebooks, the study's tables and its pictures, which are copied; all of it is Markdown before."""
    parts = ["\n".join(f"{i}. [{name}]({name}.html)" for i, name in enumerate(names))]
    figures = PROJECT / "figures" / study
    if (figures / "table.md").is_file():
        parts.append((figures / "table.md").read_text(encoding="utf-8"))
    for picture in sorted(figures.glob("*.png")):
        shutil.copy(picture, folder / picture.name)
        parts.append(f"## {picture.stem.replace('_', ' ')}\n![{picture.stem}]({picture.name})")
    return PAGE.format(title=f"{study}, seed {seed}", body=markdown2html("\n\n".join(parts)))


def main(study: str, seed: str) -> None:
    study_file(study)
    (number,) = seeds_of(seed)
    into = PROJECT / "site" / study / str(number)
    names = write_site(study, number, into)
    print(f"{len(names)} notebooks: {(into / 'index.html').relative_to(PROJECT)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study")
    parser.add_argument("seed")
    args = parser.parse_args()
    sys.exit(run_command("site", lambda: main(args.study, args.seed)))

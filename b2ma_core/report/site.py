"""A study's executed notebooks, figures and tables as pages: ``python -m b2ma_core.report.site STUDY SEED``."""

import argparse
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
    executed = sorted((runs / study / str(seed) / "notebooks").glob("[0-9]*.ipynb"))
    if not executed:
        raise FileNotFoundError(
            f"{runs / study / str(seed)}: no executed notebook; make study STUDY={study} SEEDS={seed}"
        )
    names = [path.stem for path in executed]
    with whole_folder(into) as folder:
        for i, path in enumerate(executed):
            page, _ = HTMLExporter(theme="light").from_filename(str(path))
            ways = [f'<a href="{n}.html">{n}</a>' for n in (names[i - 1] if i else None, *names[i + 1 : i + 2]) if n]
            ways = [f'<a href="index.html">{study}, seed {seed}</a>', *ways]
            bar = f'<nav style="padding:.6em 1em">{" | ".join(ways)}</nav>'
            head, body, rest = page.partition("<body")
            tag, end, content = rest.partition(">")
            (folder / f"{path.stem}.html").write_text(head + body + tag + end + bar + content, encoding="utf-8")
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

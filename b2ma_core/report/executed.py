"""Executed notebooks, clean and small: ``python -m b2ma_core.report.executed STUDY SEED FOLDER``."""

import argparse
import base64
import copy
import io
import platform
import re
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from PIL import Image

from b2ma_core.files import PROJECT, read_json, write_bytes
from b2ma_core.params import study_file
from b2ma_core.processes import run_command
from b2ma_core.study.check import seeds_of
from b2ma_core.study.records import STAGES

LIMIT = 400_000  # bytes of a notebook
QUALITIES = (90, 80, 70, 60, 50, 40, 30)  # of JPEG; the best that keeps a notebook under the limit
ABSOLUTE = re.compile(r"(?<![\w.<:/])/(?:[\w.+-]+/)+")  # folders from the root of a disk, not </td> or http://
MARKUP = re.compile(r"<style.*?</style>|<[^>]*>", re.DOTALL)


def clean(book: NotebookNode) -> NotebookNode:
    """An executed notebook without what is of one machine and one moment, its pictures as small as they must be.

    Removed are red lines (standard error: progress bars, messages of libraries, warnings), what papermill and Jupyter
    note of times and paths, and of absolute paths in outputs all but the name; of those in this project what is above
    it. Pictures become JPEG, plots PNG with a palette; what is clean stays as it is.
    """
    book = copy.deepcopy(book)
    book.metadata = {key: book.metadata[key] for key in ("kernelspec", "language_info") if key in book.metadata}
    for cell in book.cells:
        cell.metadata = {key: cell.metadata[key] for key in ("tags",) if key in cell.metadata}
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" and o.get("text", "x").strip()]
    for output in _outputs(book):
        if "text/html" in output.get("data", {}):
            output.data.pop("text/latex", None)  # the same again, for print
    for texts, kind in _texts(book):
        texts[kind] = ABSOLUTE.sub("", texts[kind].replace(f"{PROJECT}/", ""))
    full = [(o.data, o.data.pop("image/png")) for o in _outputs(book) if "image/png" in o.get("data", {})]
    for quality in QUALITIES:
        for data, png in full:
            data |= smaller(png, quality)
        if _size(book) <= LIMIT:
            break
    return book


def _size(book: NotebookNode) -> int:
    return len(nbformat.writes(book).encode())


def _outputs(book: NotebookNode) -> list[NotebookNode]:
    return [output for cell in book.cells for output in cell.get("outputs", [])]


def _texts(book: NotebookNode) -> list[tuple[NotebookNode, str]]:
    """Where outputs hold text: a mapping and its key each."""
    places = [(output, "text") for output in _outputs(book) if "text" in output]
    data = [output.data for output in _outputs(book) if "data" in output]
    return places + [(each, kind) for each in data for kind in each if kind.startswith("text/")]


def smaller(png: str, quality: int) -> dict[str, str]:
    """A PNG in base64 as what suits it: a plot of few colours gets a palette, a photograph becomes a JPEG.

    Returns:
        The kind, ``image/png`` or ``image/jpeg``, and the picture in base64.
    """
    picture = Image.open(io.BytesIO(base64.b64decode(png)))
    if picture.mode == "P":  # done before
        return {"image/png": png}
    white = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    buffer = io.BytesIO()
    if picture.getcolors(4096):
        picture.quantize(64, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        return {"image/png": base64.b64encode(buffer.getvalue()).decode()}
    picture.save(buffer, "JPEG", quality=quality, optimize=True, progressive=True)
    return {"image/jpeg": base64.b64encode(buffer.getvalue()).decode()}


def refuse(name: str, book: NotebookNode) -> None:
    """ValueError if a cleaned notebook is too large to be committed, holds an error, or names this machine."""
    if _size(book) > LIMIT:
        raise ValueError(f"{name}: {_size(book) / 1e3:.0f} kB, more than {LIMIT / 1e3:.0f}: show fewer or smaller "
                         "pictures")  # fmt: skip
    if any(output.output_type == "error" for output in _outputs(book)):
        raise ValueError(f"{name}: ended with an error; run it again")
    host, sources = platform.node(), " ".join(cell.source for cell in book.cells)
    said = "\n".join(MARKUP.sub(" ", texts[kind]) for texts, kind in _texts(book))
    found = re.search(rf".*\b{re.escape(host)}\b.*", said) if host and host not in sources else None
    if found:
        raise ValueError(f"{name}: an output names this machine, {host}: {found[0][:80]!r}")


def publish(study: str, seed: int, folder: Path, runs: Path = PROJECT / "runs") -> list[str]:
    """Write a run's executed notebooks into a folder, clean and small enough to be committed.

    Returns:
        Their names.

    Raises:
        FileNotFoundError: naming the notebook that was not executed.
        ValueError: if the target is photographs, which stay where their licence keeps them, or see :func:`refuse`.
    """
    run, books = runs / study / str(seed), {}
    for stage in STAGES[:7]:
        if not run.joinpath("records", f"{stage}.json").is_file():
            raise FileNotFoundError(f"{run}: no record of {stage}; make study STUDY={study} SEEDS={seed}")
        books[stage] = clean(nbformat.read(run / "notebooks" / f"{stage}.ipynb", 4))
        refuse(stage, books[stage])
    params = read_json(run / "params.json")
    if {params["source_dataset"], params["target_dataset"]} != {"minicity"}:
        raise ValueError(f"{study}: its notebooks show photographs, which stay where their licence keeps them")
    for stage, book in books.items():
        write_bytes(folder / f"{stage}.ipynb", nbformat.writes(book).encode() + b"\n")
    return list(books)


def main(study: str, seed: str, folder: Path) -> None:
    study_file(study)
    (number,) = seeds_of(seed)
    print(f"{folder}:", *publish(study, number, folder))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study")
    parser.add_argument("seed")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    sys.exit(run_command("notebooks", lambda: main(args.study, args.seed, args.folder)))

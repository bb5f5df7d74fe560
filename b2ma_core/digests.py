"""Digests of values, of files and of the code that makes a result: equal digests, equal content."""

import ast
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

CORE = Path(__file__).resolve().parent
# They carry values and files about, and make none: what they say is compared as it is.
_CARRIERS = (
    "params", "files", "digests", "minicity", "study.records", "study.inputs", "study.provenance", "study.pipeline",
    "study.arms",
)  # fmt: skip


def digest_of(content: Any) -> str:
    """16 hex digits of bytes or of a contiguous array's."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def digest(value: Any) -> str:
    """16 hex digits of a JSON value."""
    return digest_of(json.dumps(value, sort_keys=True).encode())


def stamp(path: Path) -> list[int] | None:
    """What changes when a file does, without reading it: a copy with the old date has another time of change (ctime).
    None without the file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def file_digest(path: Path) -> str | None:
    """16 hex digits of a file's content; None without the file."""
    if not path.is_file():
        return None
    return _of_file(path, *stamp(path))


@cache
def _of_file(path: Path, *_: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


@cache
def code_digests(*entries: str) -> dict[str, str]:
    """Module -> digest of those of its definitions that some functions (or whole modules) of the core lead to.

    Comments, docstrings and annotations of arguments do not count; nor does what carries values about (``params``,
    records, files) or draws the data, whose values are compared themselves, unless it is an entry.

    Args:
        entries: for example ``"study.stages.train_source"``.
    """
    todo = [_split(entry) for entry in entries]
    passed_over = set(_CARRIERS) - {module for module, _ in todo}
    reached: dict[str, dict[str, str]] = {}
    while todo:
        module, name = todo.pop()
        if module in passed_over or name in reached.setdefault(module, {}):
            continue
        definitions, imported = _definitions(module)
        if name is None:
            todo += [(module, each) for each in definitions]
        elif name in definitions:
            text, names = definitions[name]
            reached[module][name] = text
            todo += [imported[n] if n in imported else (module, n) for n in names]
        elif name in imported:
            todo.append(imported[name])
    return {module: digest(names) for module, names in sorted(reached.items()) if names}


@cache
def _definitions(module: str) -> tuple[dict[str, tuple[str, set[str]]], dict[str, tuple[str, str | None]]]:
    """A module's top-level names -> (plain text of what binds them, names used there), and names that it imports."""
    definitions: dict[str, tuple[str, set[str]]] = {}
    imported: dict[str, tuple[str, str | None]] = {}
    for node in ast.parse(_file(module).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "b2ma_core":
            for alias in node.names:
                imported[alias.asname or alias.name] = _split(f"{node.module}.{alias.name}".partition(".")[2])
            continue
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound = [node.name]
        else:
            bound = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        used = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        for name in bound:
            text, names = definitions.get(name, ("", set()))
            definitions[name] = (text + _plain(node), names | used - {name})
    return definitions, imported


def _plain(node: Any) -> str:
    """A syntax tree in words that are the same in every version of Python, without docstrings and annotations."""
    if isinstance(node, list):
        return "[" + " ".join(map(_plain, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    left_out = {"ctx", "kind", "type_comment", "type_params", "type_ignores", "returns"}
    if isinstance(node, ast.arg):
        left_out.add("annotation")
    fields = {name: value for name, value in ast.iter_fields(node) if name not in left_out and value not in (None, [])}
    if "body" in fields and isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        fields["body"] = [n for i, n in enumerate(node.body) if i or ast.get_docstring(node, False) is None]
    return f"{type(node).__name__}({' '.join(f'{name}={_plain(value)}' for name, value in fields.items())})"


def _file(module: str) -> Path:
    path = CORE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _split(entry: str) -> tuple[str, str | None]:
    """``study.stages.train`` -> (``study.stages``, ``train``); a whole module has no name behind it."""
    if _file(entry).is_file():
        return entry, None
    return tuple(entry.rsplit(".", 1))

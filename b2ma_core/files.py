"""Whole or not at all: files and folders that appear complete, and locks that end with their process."""

import fcntl
import io
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

PROJECT = Path(__file__).resolve().parent.parent


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write into that appears whole: it has another name first, and is then renamed.

    Raises:
        OSError: naming the file and the way out; what stood there before still stands.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except Exception as error:
        try:
            part.unlink(missing_ok=True)
        except OSError:
            pass  # the folder itself cannot be written; the first error says so
        if not isinstance(error, OSError) or error.errno is None:
            raise
        raise OSError(
            error.errno,
            f"{path}: cannot be written ({os.strerror(error.errno)}). Nothing that was there is lost: free some space "
            "or make the folder writable, and start again",
        ) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole, see :func:`whole_file`."""
    with whole_file(path) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole; NaN becomes null."""
    write_bytes(path, (json.dumps(_plain(value), indent=1, allow_nan=False) + "\n").encode())


def write_png(path: Path, array: np.ndarray) -> None:
    """Write an 8-bit grey or RGB picture whole."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Fill a folder under another name and rename it at the end; an older one is replaced.

    Two processes may do so at once: each fills its own, the first to finish stays.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if path.exists():
            shutil.rmtree(path)
        os.replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def only_one(folder: Path, patience: float = 20.0) -> Iterator[None]:
    """Hold a folder for this process; the system lets go of it when the process ends, however it ends.

    Args:
        folder: is made when missing.
        patience: seconds to wait for another process, say one that is just being stopped.

    Raises:
        RuntimeError: if another process keeps the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{folder}: another process is working here; wait for it or stop it") from None
                time.sleep(0.2)
        yield


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch to Python's, NaN to None."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return None if isinstance(value, float) and value != value else value

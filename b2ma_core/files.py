"""Whole or not at all: files and folders that appear complete, and locks that end with their process."""

import fcntl
import io
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import yaml
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from pydantic_core import to_jsonable_python

PROJECT = Path(__file__).resolve().parent.parent

# Pillow refuses more than 13377 x 13377 pixels, and aerial images are larger. These take 1.6 GB as RGB.
MOST_PIXELS = 2**29
Image.MAX_IMAGE_PIXELS = MOST_PIXELS


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
    """Write JSON whole; NaN and infinity become null, and a list of plain numbers takes one line."""
    plain = to_jsonable_python(value, inf_nan_mode="null", fallback=lambda numbers: numbers.tolist())
    text = json.dumps(plain, indent=1)
    text = re.sub(r"\[\n[^][{}\"]*\]", lambda numbers: f"[{' '.join(numbers[0][1:-1].split())}]", text)
    write_bytes(path, (text + "\n").encode())


def read_json(path: Path, otherwise: Any = None) -> Any:
    """What a JSON file holds; ``otherwise`` where there is no such file."""
    return json.loads(path.read_text()) if path.is_file() else otherwise


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error; by itself the last one wins."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if isinstance(key.value, str) and key.value in seen:  # a list or a mapping as a key is refused below
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of named values.

    Raises:
        ValueError: naming the file, and the line that is no YAML or a key that stands twice.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must hold lines of the form 'name: value'")
    strange = [key for key in values if not isinstance(key, str)]
    if strange:
        raise ValueError(f"{path}: {strange[0]!r} is no name: must hold lines of the form 'name: value', and what YAML "
                         "takes for a number or for yes and no needs quotes")  # fmt: skip
    return values


def start_npy(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Write what an ``.npy`` file of uint8 begins with; its values are then written one after another."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def png_bytes(array: np.ndarray, title: str = "") -> bytes:
    """An 8-bit grey or RGB picture as a PNG, which may bear a title."""
    buffer, told = io.BytesIO(), PngInfo()
    if title:
        told.add_text("Title", title)
    Image.fromarray(array).save(buffer, "PNG", pnginfo=told)
    return buffer.getvalue()


def write_png(path: Path, array: np.ndarray) -> None:
    """Write an 8-bit grey or RGB picture whole."""
    write_bytes(path, png_bytes(array))


def read_picture(path: str | Path) -> Image.Image:
    """A decoded picture in its own mode, turned as its EXIF orientation says.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is a link to nothing, empty, broken, too large, or may not be read.
    """
    path = Path(path)
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise Image.DecompressionBombError(f"{picture.width} x {picture.height} pixels")
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)
        return picture
    except Exception as error:  # a broken file makes Pillow raise nearly anything
        if path.is_symlink() and not path.exists():
            raise ValueError(f"{path}: is a link to {os.readlink(path)}, which is not there") from None
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(f"{path}: no such file") from None
        if isinstance(error, Image.DecompressionBombError):
            raise ValueError(f"{path}: has more than {MOST_PIXELS:,} pixels ({error}): cut it into tiles") from None
        if isinstance(error, OSError) and error.errno is not None:
            raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
        if path.stat().st_size == 0:
            raise ValueError(f"{path}: cannot be read as a picture, it is empty (0 bytes); fetch it again") from None
        raise ValueError(f"{path}: cannot be read as a picture ({error}); fetch it again") from None


def png_header(path: str | Path) -> tuple[int, int]:
    """Bits a channel and colour type of a PNG: 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGBA."""
    with open(path, "rb") as file:
        return tuple(file.read(26)[24:])


def check_sums(path: str | Path) -> None:
    """Raise ValueError, naming the file, if a PNG was damaged on its way: reading passes over most checksums."""
    try:
        with Image.open(path) as picture:
            picture.verify()
    except Exception as error:  # a broken file makes Pillow raise nearly anything
        raise ValueError(f"{path}: was damaged on its way ({error}); fetch it again") from None


def read_label_map(path: str | Path) -> np.ndarray:
    """``(H, W)`` uint8 values of a PNG with one channel, exactly as they are stored: of a palette the indices. A map
    with an EXIF orientation is turned by it, as its image is.

    The format counts, not the name: JPEG changes values.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file that is no PNG, has several channels or values above 255, or see
            :func:`read_picture`.
    """
    picture = read_picture(path)
    if picture.format != "PNG":
        raise ValueError(f"{path}: holds {picture.format}, whatever its name says; labels must be an 8-bit PNG with "
                         "one channel, since other formats may change values")  # fmt: skip
    depth, kind = png_header(path)
    if kind not in (0, 3):  # grey, palette
        raise ValueError(f"{path}: labels must be an 8-bit PNG with one channel, not {picture.mode!r}: is this the "
                         "image itself, or its classes as colours? Write one id a pixel")  # fmt: skip
    values = np.asarray(picture)
    if values.max(initial=0) > 255:
        raise ValueError(f"{path}: labels must be an 8-bit PNG with one channel, this one has {depth} bits and values "
                         f"up to {values.max()}")  # fmt: skip
    # Pillow stretches grey of few bits to 0 .. 255: 85 stands for a 1 of two bits, 17 for a 1 of four.
    stretched = {2: 85, 4: 17}.get(depth, 1) if kind == 0 else 1
    return (values // stretched if stretched > 1 else values).astype(np.uint8)


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

    What :func:`write_bytes` and :func:`whole_folder` left half-done there, when a process that held it was killed, is
    removed.

    Args:
        folder: is made when missing.
        patience: seconds to wait for another process, say one that is just being stopped.

    Raises:
        RuntimeError: if another process keeps the folder.
        OSError: naming the folder, if its file system has no locks.
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
            except OSError as error:  # as of some network file systems
                raise OSError(
                    f"{folder}: files cannot be locked there ({error.strerror}), so that two processes could spoil "
                    "each other's work; make it a link to a folder on a file system with locks (flock)"
                ) from None
        for left in folder.glob("*.part"):
            if left.suffixes[-2:-1] and left.suffixes[-2][1:].isdigit():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield

"""A box behind an address: images go out by HTTP as PNGs, label PNGs come back, and each answer is kept at once.

The exchange is ``POST <address>`` with an 8-bit RGB PNG as the body and ``Authorization: Bearer <token>`` where there
is a token. The answer is status 200 and a PNG of the same size with one channel of 8 bits: the train ids.
:mod:`b2ma_core.serve` is such a server.
"""

import hashlib
import io
import logging
import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote, quote_plus, urlsplit

import httpx
import numpy as np
from PIL import Image

from b2ma_core.files import only_one, png_bytes, write_bytes
from b2ma_core.labels import LabelSpace

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # seconds between tries: a server that restarts is back by then
LONGEST_PAUSE = 600.0  # seconds that a service may ask for (Retry-After); above that the study stops and says so

logger = logging.getLogger(__name__)


class TryAgain(Exception):  # noqa: N818
    """A failure that may pass; ``pause`` are the seconds that the service asked for."""

    def __init__(self, reason: str, pause: float = 0.0):
        super().__init__(reason)
        self.pause = pause


class LabelService:
    """A box that answers by HTTP.

    Args:
        address: where images are posted, ``http://..`` or ``https://..``.
        space: the label space that it answers in.
        kept: folder of the answers, ``<xx>/<digest of address and image>-<bytes sent>.png``; what is there is not asked
            for again, by this process or another: one at a time asks. None: nothing is kept.
        token_variable: name of the environment variable that holds the token; None: no token is sent.
        timeout: seconds for one answer.
        requests: requests at once.
        pauses: seconds between the tries of one image; there is one try more than pauses.

    Raises:
        ValueError: if the environment variable holds no token; the message never holds one.
    """

    def __init__(
        self, address: str, space: LabelSpace, kept: Path | None = None, token_variable: str | None = None,
        timeout: float = 60.0, requests: int = 4, pauses: Sequence[float] = PAUSES,
    ):  # fmt: skip
        self.address, self.space, self.kept, self.token_variable = address, space, kept, token_variable
        self.timeout, self.requests, self.pauses = timeout, requests, tuple(pauses)
        self._token = os.environ.get(token_variable, "").strip() if token_variable else ""
        if token_variable and not (self._token.isascii() and self._token.isprintable() and self._token):
            raise ValueError(f"box_token_variable: the environment variable {token_variable} is not set here, or holds "
                             "no token: export it in this shell, then start again")  # fmt: skip
        headers = {"Content-Type": "image/png", "Accept": "image/png", "Accept-Encoding": "identity"}
        headers |= {"Authorization": f"Bearer {self._token}"} if self._token else {}
        here = urlsplit(address).hostname in ("127.0.0.1", "localhost", "::1")  # no proxy leads back to this machine
        self._client = httpx.Client(headers=headers, timeout=timeout, trust_env=not here)
        self._told: set[str] = set()

    def predict(self, images: np.ndarray, names: Sequence[str] | None = None) -> np.ndarray:
        """``(N, H, W, 3)`` uint8 RGB images to ``(N, H, W)`` uint8 train ids.

        Raises:
            ValueError: if the service refuses an image or its answer is no label map of it.
            ConnectionError: if there was no answer after all tries. Both name the address and the image.
        """
        digests = [self._digest(image) for image in images]
        different = {digest: i for i, digest in enumerate(digests)}  # the same image is asked about once
        stop = threading.Event()

        def answer(digest: str, i: int) -> np.ndarray:
            return self._answer(digest, images[i], i if names is None else names[i], stop)

        alone = only_one(self.kept, patience=math.inf) if self.kept else nullcontext()
        with alone, ThreadPoolExecutor(self.requests) as pool:
            try:
                answers = dict(zip(different, pool.map(answer, different, different.values()), strict=True))
            finally:
                stop.set()  # after an error or an interrupt the other threads shall not go on trying
        return np.stack([answers[digest] for digest in digests])

    def counts(self) -> dict[str, int]:
        """Answers that are kept, and the bytes of the images sent and of the labels received for them."""
        paths = list(self.kept.glob("??/*-*.png"))
        sent = sum(int(path.stem.partition("-")[2]) for path in paths)
        return {"answers": len(paths), "bytes_sent": sent, "bytes_received": sum(p.stat().st_size for p in paths)}

    def _anew(self) -> str:
        return f"remove {self.kept}, and all is asked for again"

    def _digest(self, image: np.ndarray) -> str:
        return hashlib.sha256(f"{self.address} {image.shape} ".encode() + image.tobytes()).hexdigest()

    def _answer(self, digest: str, image: np.ndarray, name: str | int, stop: threading.Event) -> np.ndarray:
        """The labels of one image: as they were kept, or asked for and then kept."""
        folder = self.kept and self.kept / digest[:2]  # 256 folders: a look into one takes no time
        for path in folder.glob(f"{digest}-*.png") if folder else ():
            with suppress(TryAgain):  # a damaged file is asked for again
                try:
                    return read_answer(path.read_bytes(), image.shape[:2], self.space, str(path))
                except ValueError as error:
                    raise ValueError(
                        f"{error}. It was kept when the box spoke of other classes: set box_label_space "
                        f"back to them. If the box itself has changed, {self._anew()}"
                    ) from None
        sent, who = png_bytes(image), f"the box at {self.address}, image {name!r}"
        try:
            received, labels = self._ask(sent, image.shape[:2], who, stop)
        except ValueError as error:
            wrong = f". If they are wrong, too, {self._anew()}" if self.kept else ""
            raise ValueError(f"{error}. The answers so far are kept: start the same command when the service is "
                             f"mended, or box_label_space names its classes{wrong}") from None  # fmt: skip
        if folder:
            write_bytes(folder / f"{digest}-{len(sent)}.png", received)
        return labels

    def _ask(self, sent: bytes, size: tuple[int, int], who: str, stop: threading.Event) -> tuple[bytes, np.ndarray]:
        """An answer and its labels; ConnectionError after the last try, or where somebody else has stopped."""
        for number, pause in enumerate((*self.pauses, math.inf), start=1):
            try:
                received = self._in_time(self._post, sent, size, who)
                return received, read_answer(received, size, self.space, who)
            except TryAgain as error:
                pause = max(pause, error.pause)
                if pause > LONGEST_PAUSE or stop.is_set():
                    wish = f", it asks for a pause of {error.pause:.0f} s" if error.pause else ""
                    raise ConnectionError(
                        f"{who}: {error}{wish} (tried {number} times). The answers so far are kept: when the service "
                        "works again, start the same command and it goes on from here. One that computes an image at "
                        "a time and is slow needs a longer box_timeout, or box_requests: 1"
                    ) from None
                if str(error) not in self._told:  # once a reason, not once an image
                    self._told.add(str(error))
                    logger.warning("note: %s: %s; tried again after %g s", who, error, pause)
                stop.wait(pause)

    def _in_time(self, function: Callable, *arguments: Any) -> Any:
        """What a function gives, or TryAgain when the timeout is over: httpx limits the time between two bytes alone,
        and a server may send them for ever. Such a connection is left to itself."""
        outcome: Future = Future()

        def run() -> None:
            try:
                outcome.set_result(function(*arguments))
            except BaseException as error:
                outcome.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        try:
            return outcome.result(self.timeout + 1)
        except TimeoutError:
            raise TryAgain(f"no answer (it does not end, box_timeout is {self.timeout:g} s)") from None

    def _post(self, sent: bytes, size: tuple[int, int], who: str) -> bytes:
        """The body of an answer with status 200; ValueError or TryAgain for any other."""
        most = 8 * size[0] * size[1] + 2**20  # bytes: no PNG of this size needs more
        received, answer = bytearray(), None
        try:
            with self._client.stream("POST", self.address, content=sent) as answer:
                for chunk in answer.iter_bytes():
                    received += chunk
                    if len(received) > most:
                        raise ValueError(f"{who}: the answer has more than {most} bytes")
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ValueError(f"{who}: is box_address right? ({error})") from None
        except httpx.RequestError as error:
            limit = f", box_timeout is {self.timeout:g} s" if isinstance(error, httpx.TimeoutException) else ""
            said = self._plain(str(error) or type(error).__name__)
            if "location header" in said:
                raise ValueError(f"{who}: a redirect that leads nowhere ({said}); is box_address the box's?") from None
            if answer is None or answer.status_code == 200:  # a refusal may break off
                raise TryAgain(f"no answer ({said}{limit})") from None
        if answer.status_code == 200 and b"\x89PNG".startswith(received[:4]):
            return bytes(received)
        self._refuse(answer, self._plain(received.decode("utf-8", "replace")), size, who)

    def _refuse(self, answer: httpx.Response, said: str, size: tuple[int, int], who: str) -> NoReturn:
        """TryAgain for a status that may pass, else a ValueError that says what to look at."""
        status, reason = answer.status_code, f"status {answer.status_code} ({said[:200]})"
        if status in (408, 425, 429) or status >= 500:
            wish = answer.headers.get("Retry-After", "")  # seconds; as a date it is passed over
            raise TryAgain(reason, float(wish) if wish.isdecimal() else 0.0)
        if status == 200:
            kind = self._plain(answer.headers.get("Content-Type", "none"))
            raise ValueError(f"{who}: the answer is no PNG (Content-Type {kind}), it begins {said[:60]!r}")
        if status in (401, 403) and self._token:
            hint = f"the token in {self.token_variable} is wrong"
        elif status in (401, 403):
            hint = "it wants a token: name its environment variable in box_token_variable"
        elif answer.is_redirect:
            there = self._plain(answer.headers.get("Location", "nowhere"))[:200]
            hint = f"it points to {there}, which is not followed: is that to be box_address?"
        else:
            hint = (f"is box_address the box's, and does it take a PNG of {size[1]} x {size[0]} pixels by POST? With "
                    "box_queries: 4 all images sent are of one size")  # fmt: skip
        raise ValueError(f"{who}: {reason}; {hint}")

    def _plain(self, said: str) -> str:
        """What a service says in one line, without our token, which some repeat, and without control characters."""
        for form in {self._token, quote(self._token), quote(self._token, safe=""), quote_plus(self._token)} - {""}:
            said = said.replace(form, "***")
        return "".join(c if c.isprintable() else "?" for c in " ".join(said.split()))


def read_answer(content: bytes, size: tuple[int, int], space: LabelSpace, who: str) -> np.ndarray:
    """The bytes of a label PNG to ``(H, W)`` uint8 train ids; of a palette the indices are the ids.

    Raises:
        ValueError: naming ``who``, for another size, more than one channel or ids outside the space.
        TryAgain: for a PNG that is cut short or damaged.
    """
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            picture.verify()  # the checksum of every part, which loading passes over
        picture, (depth, kind) = Image.open(io.BytesIO(content)), content[24:26]
        if picture.size == size[::-1]:  # a small file may stand for a picture that fills the memory
            picture.load()
    except Exception:  # a broken file makes Pillow raise nearly anything
        raise TryAgain(f"the answer is a broken PNG of {len(content)} bytes") from None
    if picture.size != size[::-1]:
        raise ValueError(f"{who}: the answer is {picture.size[::-1]}, the image is {size} (H x W)")
    if kind != 3 and (kind, depth) != (0, 8):  # 3: palette, 0: grey
        raise ValueError(f"{who}: the answer is a PNG of mode {picture.mode!r} and {depth} bits, needed is one channel "
                         "of 8 bits, one train id a pixel")  # fmt: skip
    labels = np.array(picture, np.uint8)
    space.check(labels, who)
    return labels

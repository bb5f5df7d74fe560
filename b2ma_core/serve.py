"""A box as an HTTP service: ``POST`` an 8-bit RGB PNG, get a PNG of train ids of the same size.

``python -m b2ma_core.serve vendor:predict`` serves the function ``predict`` of ``vendor.py``, ``(1, H, W, 3)`` uint8
RGB to ``(1, H, W)`` uint8 train ids; ``python -m b2ma_core.serve --study minicity --seed 0`` a run's source model.
"""

import argparse
import asyncio
import hmac
import importlib
import io
import logging
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler, stream_request_body

from b2ma_core.files import png_bytes

MOST = 2**26  # bytes and pixels of an image, unless the owner says otherwise


@stream_request_body
class Labels(RequestHandler):
    """One image in, its labels out; an error is one line of text. The settings are those of :func:`application`."""

    def initialize(self) -> None:
        self.content, self.size, self.known, self.gone = bytearray(), 0, False, False
        self.work: asyncio.Future | None = None

    def prepare(self) -> None:
        given, token = self.request.headers.get("Authorization", ""), self.settings["token"]
        self.known = not token or hmac.compare_digest(given.encode(), f"Bearer {token}".encode())

    def data_received(self, chunk: bytes) -> None:
        self.size += len(chunk)  # dropped or not, all is read: who is still sending hears no answer
        if self.known and self.size <= self.settings["most_bytes"]:
            self.content += chunk

    async def post(self) -> None:
        if not self.known:
            raise HTTPError(401, "Wrong or missing token")
        if self.size > self.settings["most_bytes"]:
            raise HTTPError(413, f"The image has {self.size} bytes, at most {self.settings['most_bytes']} are taken")
        self.work = asyncio.get_running_loop().run_in_executor(self.settings["pool"], self.labels)
        try:
            answer = await self.work
        except asyncio.CancelledError:
            if self.gone:
                return  # nobody waits for it any more
            raise HTTPError(503, "The service is being stopped") from None
        self.set_header("Content-Type", "image/png")
        self.finish(answer)

    def labels(self) -> bytes:
        """The answer, in the one thread that computes; HTTPError says what is wrong with image or model."""
        image = read_image(bytes(self.content), self.settings["most_pixels"])
        try:
            answer = self.settings["predict"](image[None])
        except BaseException:  # of somebody else's function, sys.exit and StopIteration included
            logging.exception("the model failed on an image of %s", image.shape)  # for the owner alone
            raise HTTPError(500, "The model failed on this image: its owner's log says why") from None
        found = f"{getattr(answer, 'dtype', type(answer).__name__)} {getattr(answer, 'shape', '')}"
        needed = f"uint8 {(1, *image.shape[:2])}"
        if not isinstance(answer, np.ndarray) or found != needed:
            raise HTTPError(500, f"The model gave {found}, needed is a numpy array of train ids, {needed}")
        return png_bytes(answer[0])

    def on_connection_close(self) -> None:
        """Who asked has given up: what has not begun is not computed, or a slow model would never catch up."""
        self.gone = True
        if self.work:
            self.work.cancel()
        super().on_connection_close()  # ends the wait for the rest of the body

    def write_error(self, status_code: int, **error) -> None:
        text = "POST an 8-bit RGB PNG here" if status_code == 405 else "The service failed, its owner's log says why"
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish((getattr(error["exc_info"][1], "log_message", None) or text) + "\n")


def read_image(content: bytes, most_pixels: int) -> np.ndarray:
    """The body of a request to an ``(H, W, 3)`` uint8 RGB image; HTTPError says what is wrong with it."""
    if not content:
        raise HTTPError(400, "No image: the body of the request is empty")
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            pixels = picture.width * picture.height
            if pixels > most_pixels:  # a small file may stand for a picture that fills the memory
                raise Image.DecompressionBombError(f"{pixels} pixels")
            picture.load()
    except Image.DecompressionBombError as error:
        raise HTTPError(413, f"The image has too many pixels ({error}), at most {most_pixels} are taken") from None
    except Exception:  # a broken file makes Pillow raise nearly anything
        raise HTTPError(400, "The body of the request is no PNG that can be read") from None
    if picture.mode != "RGB" or content[24] != 8:
        raise HTTPError(400, f"The image must be RGB with 8 bits, it is {picture.mode} with {content[24]}")
    return np.array(picture)


def application(predict: Callable, token: str = "", most_bytes: int = MOST, most_pixels: int = MOST) -> Application:
    """The service as a tornado application, which computes one image at a time."""
    return Application([(".*", Labels)], predict=predict, token=token, most_bytes=most_bytes, most_pixels=most_pixels,
                       pool=ThreadPoolExecutor(1))  # fmt: skip


def function_named(name: str) -> Callable:
    """``module:function`` to the function; the module may lie in the present folder."""
    module, _, function = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{name}: {error}; name module:function, vendor:predict for predict in vendor.py") from None


def source_model(study: str, seed: int) -> Callable:
    """The source model of a run as a function; an error says what has to be there first."""
    from b2ma_core.study.records import open_run

    run = open_run(study, seed)
    if run.params.box != "model":
        raise ValueError(f"box: {study} has {run.params.box!r}; serve the owner's study, which has 'model'")
    run.require("01_source_model")
    run.claim()  # the parameters are still those that it was trained with
    from b2ma_core.study.asking import open_box  # torch, which takes its time

    return open_box(run).predict


async def serve(app: Application, host: str, port: int) -> None:
    sockets = bind_sockets(port, host)
    HTTPServer(app, max_body_size=2**40).add_sockets(sockets)  # the handler has the limit, and says so
    print(f"answering at http://{host}:{sockets[0].getsockname()[1]}", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m b2ma_core.serve", description=__doc__.splitlines()[0])
    parser.add_argument("predict", nargs="?", metavar="module:function", help="the function to serve")
    parser.add_argument("--study", help="or the study whose source model to serve")
    parser.add_argument("--seed", type=int, default=0, help="of its run; default: %(default)s")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s, for this machine alone")
    parser.add_argument("--port", type=int, default=8765, help="default: %(default)s; 0: any that is free")
    parser.add_argument("--token-variable", metavar="NAME", help="environment variable with the token to ask for")
    parser.add_argument("--most-bytes", type=int, default=MOST, help="of an image; default: %(default)s")
    parser.add_argument("--most-pixels", type=int, default=MOST, help="of an image; default: %(default)s")
    args = parser.parse_args()
    if bool(args.predict) == bool(args.study):
        parser.error("name a module:function or a --study, one of them")
    token = os.environ.get(args.token_variable or "", "").strip()
    if args.token_variable and not token:
        parser.error(f"--token-variable: the environment variable {args.token_variable} is not set here")
    if args.host != "127.0.0.1" and not token:
        parser.error(f"--host {args.host}: other machines could ask, so name a token with --token-variable")
    try:
        predict = source_model(args.study, args.seed) if args.study else function_named(args.predict)
        asyncio.run(serve(application(predict, token, args.most_bytes, args.most_pixels), args.host, args.port))
    except (ValueError, OSError) as error:
        sys.exit(f"serve: {error}")
    except KeyboardInterrupt:
        pass  # how it is stopped


if __name__ == "__main__":
    main()

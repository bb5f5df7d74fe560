"""A box behind an address: the client against a real server that misbehaves as told, the server asked by hand."""

import asyncio
import gc
import http.client
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from urllib.parse import quote

import httpx
import numpy as np
import pytest
import torch
from conftest import Project, same_tree
from PIL import Image
from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from b2ma_core import serve
from b2ma_core.data import conversion, datasets
from b2ma_core.files import PROJECT
from b2ma_core.labels import CAMVID, CITYSCAPES, label_map
from b2ma_core.models import build_model, save_weights
from b2ma_core.params import check_params
from b2ma_core.serve import application
from b2ma_core.service import LabelService
from b2ma_core.study.asking import ask_for_labels, open_box
from b2ma_core.study.preflight import preflight
from b2ma_core.study.records import STAGES, Run

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 16, 32, 3), dtype=np.uint8)
NAMES = [f"street {i}" for i in range(len(IMAGES))]
LABELS = IMAGES[..., 0] % 19  # what the box of these tests says
TOKEN = "a-secret-that-nobody-may-read"


def png(array: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


class Answer(RequestHandler):
    """Answers as the script says, a word a request; then rightly."""

    def initialize(self, owner):
        self.owner = owner

    async def post(self):
        self.owner.asked.append(self.request)
        image = np.asarray(Image.open(io.BytesIO(self.request.body)))
        labels = (image[..., 0] % 19).astype(np.uint8)
        word = self.owner.script.pop(0) if self.owner.script else "right"
        await getattr(self, "do_" + word.replace(" ", "_"))(labels)

    async def do_right(self, labels):
        self.finish(png(labels))

    async def do_palette(self, labels):
        picture = Image.fromarray(labels, "P")
        picture.putpalette([value for color in CITYSCAPES.colors for value in color])
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        self.finish(buffer.getvalue())

    async def do_together(self, labels):
        """Answers when three requests are there at once, so that a client that sends fewer gets none."""
        self.owner.here += 1
        self.owner.most = max(self.owner.most, self.owner.here)
        if self.owner.here == 3:
            self.owner.three.set()
        await self.owner.three.wait()
        self.owner.here -= 1
        self.finish(png(labels))

    async def do_html(self, labels):
        self.set_header("Content-Type", "text/html")
        self.finish("<html>Please log in</html>")

    async def do_json(self, labels):
        self.finish({"labels": labels.tolist()})

    async def do_jpeg(self, labels):
        self.finish(png(labels, "JPEG"))

    async def do_rgb(self, labels):
        self.finish(png(labels[..., None].repeat(3, 2)))

    async def do_deep(self, labels):
        self.finish(png(labels.astype(np.uint16)))

    async def do_other_size(self, labels):
        self.finish(png(labels[:, 1:]))

    async def do_other_ids(self, labels):
        self.finish(png(labels + np.uint8(100)))

    async def do_void(self, labels):
        self.finish(png(np.full_like(labels, 255)))

    async def do_flood(self, labels):
        try:
            while True:
                self.write(bytes(100_000))
                await self.flush()
        except StreamClosedError:
            pass

    async def do_redirect(self, labels):
        self.redirect(f"http://127.0.0.1:1/?key={TOKEN}")

    async def do_wrong_token(self, labels):
        self.set_status(401)
        self.finish(f"{self.request.headers['Authorization']} is not known here")

    async def do_forbidden(self, labels):
        self.set_status(403)

    async def do_not_found(self, labels):
        self.set_status(404)

    async def do_nothing(self, labels):
        pass

    async def do_half(self, labels):
        self.finish(png(labels)[: len(png(labels)) // 2])

    async def do_flipped_bit(self, labels):
        content = bytearray(png(labels))
        content[-20] ^= 1  # in the checksum or the last pixels
        self.finish(bytes(content))

    async def do_cut(self, labels):
        self.set_header("Content-Length", len(png(labels)))
        self.write(png(labels)[:30])
        await self.flush()
        self.detach().close()

    async def do_drop(self, labels):
        self.detach().close()

    async def do_gibberish(self, labels):
        stream = self.detach()
        await stream.write(b"0 what?\r\n\r\n")
        stream.close()

    async def do_too_many(self, labels):
        self.set_status(429)
        self.set_header("Retry-After", "0")

    async def do_long_pause(self, labels):
        self.set_status(429)
        self.set_header("Retry-After", "86400")

    async def do_error(self, labels):
        raise RuntimeError("as told")

    async def do_busy(self, labels):
        self.set_status(503)
        self.finish(f"busy with {TOKEN}")

    async def do_hang(self, labels):
        await asyncio.Event().wait()

    async def do_drip(self, labels):
        """A byte now and then: no single wait is long, and the answer never ends."""
        try:
            while True:
                self.write(b"\x89")
                await self.flush()
                await asyncio.sleep(0.02)
        except StreamClosedError:
            pass


class Server:
    """A tornado application on the loopback, in a thread of its own."""

    def __init__(self, app=None):
        self.asked, self.script, self.here, self.most, self.three = [], [], 0, 0, asyncio.Event()
        self.loop = asyncio.new_event_loop()
        (self.socket,) = bind_sockets(0, "127.0.0.1")
        self.address = f"http://127.0.0.1:{self.socket.getsockname()[1]}/labels"
        self.thread = threading.Thread(target=self.serve, args=[app or Application([(".*", Answer, {"owner": self})])])
        self.thread.start()

    def serve(self, app):
        asyncio.set_event_loop(self.loop)
        HTTPServer(app).add_sockets([self.socket])
        self.loop.run_forever()

    def stop(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.socket.close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def client(server, tmp_path):
    return lambda **more: LabelService(
        server.address,
        CITYSCAPES,
        tmp_path / "answers",
        **{"timeout": 10, "requests": 1, "pauses": (0.001,) * 3, **more},
    )


def test_right_answers_come_back_in_order_and_are_kept(server, client, tmp_path):
    server.script = ["right", "palette"]
    box = client(requests=3)
    np.testing.assert_array_equal(box.predict(IMAGES, NAMES), LABELS)
    assert [r.headers.get("Authorization") for r in server.asked] == [None] * 6
    sent, received = sum(len(r.body) for r in server.asked), sum(p.stat().st_size for p in tmp_path.rglob("*.png"))
    assert box.counts() == {"answers": 6, "bytes_sent": sent, "bytes_received": received}
    server.stop()
    again = client()
    np.testing.assert_array_equal(again.predict(IMAGES[::-1]), LABELS[::-1])  # nobody is there to be asked
    assert again.counts() == box.counts()
    server.__init__()  # for the fixture to stop


def test_an_image_is_asked_about_once_and_another_or_a_damaged_answer_again(server, client, tmp_path):
    twice = np.concatenate([IMAGES[:2], IMAGES[:2]])
    np.testing.assert_array_equal(client(requests=4).predict(twice, NAMES[:4]), np.concatenate([LABELS[:2]] * 2))
    assert len(server.asked) == 2
    client().predict(IMAGES[:1] + np.uint8(1), NAMES[:1])  # another image of the same name
    assert len(server.asked) == 3
    for path in (tmp_path / "answers").glob("*/*.png"):
        path.write_bytes(path.read_bytes()[:50])
    np.testing.assert_array_equal(client().predict(IMAGES[:2]), LABELS[:2])
    assert len(server.asked) == 5
    other = LabelService(server.address + "2", CITYSCAPES, tmp_path / "answers")
    np.testing.assert_array_equal(other.predict(IMAGES[:2]), LABELS[:2])  # another box may say otherwise
    assert len(server.asked) == 7


def test_several_requests_are_under_way_at_once_and_no_more(server, client):
    server.script = ["together"] * 6
    np.testing.assert_array_equal(client(requests=3).predict(IMAGES, NAMES), LABELS)
    assert server.most == 3


@pytest.mark.parametrize(
    "word, said",
    [
        ("html", "the answer is no PNG .Content-Type text/html.*Please log in"),
        ("json", "the answer is no PNG .Content-Type application/json"),
        ("jpeg", "the answer is no PNG"),
        ("rgb", "the answer is a PNG of mode 'RGB' and 8 bits, needed is one channel of 8 bits"),
        ("deep", "the answer is a PNG of mode 'I;16' and 16 bits"),
        ("other size", r"the answer is \(16, 31\), the image is \(16, 32\) \(H x W\)"),
        ("other ids", "holds .*train ids of 'cityscapes' are 0 .. 18"),
        ("flood", "the answer has more than .* bytes"),
        ("redirect", "status 302 .*it points to http://127.0.0.1:1/.*is that to be box_address"),
        ("forbidden", "status 403 .*it wants a token: .*box_token_variable"),
        ("not found", "status 404 .*box_address"),
    ],
)
def test_a_wrong_answer_is_one_error_that_names_address_and_image(server, client, word, said):
    server.script = ["right", "right", word]
    with pytest.raises(ValueError, match=f"{server.address}, image 'street 2': .*{said}"):
        client().predict(IMAGES, NAMES)
    asked = len(server.asked)
    bodies = {r.body for r in server.asked}
    assert asked == len(bodies), "an image was tried again"
    np.testing.assert_array_equal(client().predict(IMAGES, NAMES), LABELS)
    assert len(server.asked) == len(IMAGES) + 1, "an answer that was there was asked for again"


@pytest.mark.parametrize(
    "word", ["nothing", "half", "flipped bit", "cut", "drop", "gibberish", "too many", "error", "busy", "hang", "drip"]
)
def test_a_failure_that_may_pass_is_tried_again(server, client, word):
    patience = 0.3 if word in ("hang", "drip") else 10
    server.script = ["right", word, word]
    np.testing.assert_array_equal(client(timeout=patience).predict(IMAGES[:3], NAMES), LABELS[:3])
    assert len(server.asked) == 5


def test_a_failure_that_stays_is_one_error_and_loses_no_answer(server, client, tmp_path):
    server.script = ["right", "right", *["busy"] * 4, "right"]
    with pytest.raises(
        ConnectionError, match=f"{server.address}, image 'street 2': status 503.*tried 4 times.*goes on"
    ):
        client().predict(IMAGES[:3], NAMES)
    server.script = ["hang"] * 4
    with pytest.raises(ConnectionError, match="image 'street 2': no answer .timed out, box_timeout is 0.2 s"):
        client(timeout=0.2).predict(IMAGES[:3], NAMES)
    assert len(list(tmp_path.rglob("*.png"))) == 2 and not list(tmp_path.rglob("*.part"))
    asked = len(server.asked)
    client().predict(IMAGES[:3], NAMES)
    assert len(server.asked) == asked + 1


def test_a_pause_of_a_day_is_said_and_not_waited_for(server, client):
    server.script = ["long pause"]
    with pytest.raises(ConnectionError, match="status 429.*asks for a pause of 86400 s .tried 1 times"):
        client().predict(IMAGES[:1], NAMES)
    assert len(server.asked) == 1


def test_nobody_there_is_said(server, client):
    box = client()
    server.stop()
    with pytest.raises(ConnectionError, match=f"{server.address}, image 'street 0': no answer.*refused.*tried 4 times"):
        box.predict(IMAGES[:1], NAMES)
    server.__init__()  # for the fixture to stop


def test_the_token_comes_from_the_environment_and_stays_out_of_messages(server, client, monkeypatch, caplog):
    monkeypatch.delenv("BOX_TOKEN", raising=False)
    with pytest.raises(ValueError, match="box_token_variable: the environment variable BOX_TOKEN is not set"):
        client(token_variable="BOX_TOKEN")
    for broken in (f"{TOKEN}\nX-Other: 1", f"{TOKEN}é"):
        monkeypatch.setenv("BOX_TOKEN", broken)
        with pytest.raises(ValueError, match="BOX_TOKEN .* holds no token") as caught:
            client(token_variable="BOX_TOKEN")
        assert TOKEN not in str(caught.value)
    monkeypatch.setenv("BOX_TOKEN", TOKEN + "\n")
    box = client(token_variable="BOX_TOKEN")
    box.predict(IMAGES[:1])
    assert server.asked[-1].headers["Authorization"] == f"Bearer {TOKEN}"
    for word, said in (("wrong token", "status 401.*token in BOX_TOKEN is wrong"), ("redirect", "points to")):
        asked, server.script = len(server.asked), [word]
        with pytest.raises(ValueError, match=said) as caught:
            box.predict(IMAGES[1:2])
        assert TOKEN not in str(caught.value) and len(server.asked) == asked + 1
    server.script = ["busy"] * 4
    with pytest.raises(ConnectionError, match="busy with ...") as caught:
        box.predict(IMAGES[1:2])
    assert TOKEN not in str(caught.value) and TOKEN not in caplog.text and "tried again" in caplog.text


class Raw:
    """A server that says bytes as they are, whatever HTTP wants: ``say(connection)`` to each connection."""

    def __init__(self, say):
        self.say, self.asked = say, 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.socket.getsockname()[1]}/labels"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        with suppress(OSError):  # closed
            while True:
                connection, _ = self.socket.accept()
                self.asked += 1
                threading.Thread(target=self.answer, args=[connection], daemon=True).start()

    def answer(self, connection):
        with connection, connection.makefile("rb") as request, suppress(OSError):  # the other side has gone
            request.readline()
            length = int(http.client.parse_headers(request)["Content-Length"])
            request.read(length)  # all of it: to close with bytes unread sends a reset, which can overtake the answer
            self.say(connection)


@pytest.fixture
def raw():
    servers = []

    def start(say) -> Raw:
        servers.append(Raw(say))
        return servers[-1]

    yield start
    for server in servers:
        server.socket.close()


@pytest.mark.parametrize("start, again", [
    (b"HTTP/1.1 200 OK\r\n", b"X-More: to come\r\n"),
    (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1", b";extension"),
])  # fmt: skip
def test_an_answer_that_never_ends_is_given_up(raw, start, again):
    def say(connection):
        connection.sendall(start)
        for _ in range(2000):
            connection.sendall(again)
            time.sleep(0.02)

    server = raw(say)
    with pytest.raises(ConnectionError, match=r"no answer .*box_timeout is 0.3 s.*\(tried 2 times\)"):
        LabelService(server.address, CITYSCAPES, timeout=0.3, pauses=(0.001,)).predict(IMAGES[:1])
    assert server.asked == 2


@pytest.mark.parametrize("answer, said", [
    (b"HTTP/1.1 200 OK\r\nBearer %s\r\n\r\n", "illegal header"),
    (b"HTTP/1.1 401 No\r\nConnection: close\r\n\r\n" + b" " * 972 + b"%s", "status 401"),
    (b"HTTP/1.1 302 Found\r\nLocation: http://x/?t=%s\r\nContent-Length: 0\r\n\r\n", "points to"),
    (b"HTTP/1.1 302 Found\r\nLocation: http://[::%s/\r\nContent-Length: 0\r\n\r\n", "a redirect that leads nowhere"),
    (b"HTTP/1.1 418 Tea\r\nConnection: close\r\n\r\n\x1b[31m\x07 %s", "status 418"),
    (b"HTTP/1.1 413 Too Large\r\nContent-Length: 1000\r\n\r\nat most 1 MB, %s", "status 413 .at most 1 MB"),
])  # fmt: skip
def test_no_answer_brings_the_token_or_control_characters_into_a_message(raw, answer, said, monkeypatch, caplog):
    token = "a+secret/that=nobody-may-read"
    monkeypatch.setenv("BOX_TOKEN", token)
    for form in (token, quote(token, safe="")):
        server = raw(lambda connection, form=form: connection.sendall(answer.replace(b"%s", form.encode())))
        with pytest.raises((ValueError, ConnectionError), match=said) as caught:
            LabelService(server.address, CITYSCAPES, token_variable="BOX_TOKEN", pauses=()).predict(IMAGES[:1])
        told = str(caught.value) + caplog.text
        assert token[:-1] not in told and quote(token, safe="")[:-3] not in told and "\x1b" not in told


def test_seeds_side_by_side_ask_once(server, client):
    with ThreadPoolExecutor(2) as pool:
        for labels in pool.map(lambda _: client(requests=2).predict(IMAGES), range(2)):
            np.testing.assert_array_equal(labels, LABELS)
    assert len(server.asked) == len(IMAGES)


def test_a_kept_answer_is_not_blamed_for_another_label_space(server, client, tmp_path):
    client().predict(IMAGES)
    other = LabelService(server.address, CAMVID, tmp_path / "answers")
    with pytest.raises(
        ValueError, match="train ids of 'camvid'.*kept when the box spoke of other classes: set box_label"
    ):
        other.predict(IMAGES)
    assert len(server.asked) == len(IMAGES)


def test_a_reason_to_wait_is_told_once(server, client, caplog):
    server.script = ["too many", "too many", "right", "too many"]
    client().predict(IMAGES)
    assert [each.getMessage() for each in caplog.records if each.name.startswith("b2ma_core")] == [
        f"note: the box at {server.address}, image 0: status 429 (); tried again after 0.001 s"
    ]


# --- the server


def broken(images):
    raise RuntimeError("weights of layer 7")


@pytest.fixture
def serving():
    """Starts :func:`serve.application` on the loopback; returns its address."""
    servers = []

    def start(predict, **more) -> str:
        servers.append(Server(application(predict, **more)))
        return servers[-1].address

    yield start
    for server in servers:
        server.stop()


def test_the_server_answers_a_png_with_a_png(serving, tmp_path):
    address = serving(lambda images: images[..., 0] % 19)
    np.testing.assert_array_equal(LabelService(address, CITYSCAPES, requests=3).predict(IMAGES, NAMES), LABELS)
    with pytest.raises(ValueError, match=f"{address}, image 'street 0': holds .*train ids of 'camvid'.*are kept"):
        LabelService(address, CAMVID).predict(IMAGES, NAMES)
    answer = httpx.post(address, content=png(IMAGES[0]))
    assert answer.headers["Content-Type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).mode == "L"


def test_the_server_says_in_a_line_what_is_wrong(serving):
    address = serving(lambda images: images[..., 0] % 19, token=TOKEN, most_bytes=4000)
    right = {"Authorization": f"Bearer {TOKEN}"}
    large = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    for content, headers, status, said in (
        (png(IMAGES[0]), {}, 401, "Wrong or missing token"),
        (png(IMAGES[0]), {"Authorization": "Bearer no"}, 401, "Wrong or missing token"),
        (b"", right, 400, "No image: the body of the request is empty"),
        (b"<html>", right, 400, "The body of the request is no PNG that can be read"),
        (png(IMAGES[0], "JPEG"), right, 400, "The body of the request is no PNG that can be read"),
        (png(IMAGES[0])[:300], right, 400, "The body of the request is no PNG that can be read"),
        (png(LABELS[0]), right, 400, "The image must be RGB with 8 bits, it is L with 8"),
        (png(large), right, 413, f"The image has {len(png(large))} bytes, at most 4000 are taken"),
    ):
        answer = httpx.post(address, content=content, headers=headers)
        assert (answer.status_code, answer.text) == (status, said + "\n")
    for method in ("GET", "PUT", "HEAD"):
        assert httpx.request(method, address, headers=right).status_code == 405
    assert httpx.get(address).text == "POST an 8-bit RGB PNG here\n"
    assert httpx.post(address, content=png(IMAGES[0]), headers=right).status_code == 200


@pytest.mark.parametrize(
    "predict, said",
    [
        (broken, "The model failed on this image: its owner's log says why"),
        (lambda images: images[..., 0].astype(np.int64), "The model gave int64 (1, 16, 32), needed is a numpy array"),
        (lambda images: images[:, ::2, :, 0], "The model gave uint8 (1, 8, 32), needed is a numpy array of train ids, uint8 (1, 16, 32)"),
        (lambda images: None, "The model gave NoneType"),
        (lambda images: next(iter([])), "The model failed on this image"),
        (lambda images: sys.exit(3), "The model failed on this image"),
    ],
)  # fmt: skip
def test_a_model_that_fails_is_said_without_its_secrets(serving, predict, said, caplog):
    answer = httpx.post(serving(predict), content=png(IMAGES[0]))
    assert answer.status_code == 500 and answer.text.startswith(said) and answer.text.count("\n") == 1
    assert "layer" not in answer.text and ("layer 7" in caplog.text) == (predict is broken)


def test_what_nobody_waits_for_any_more_is_not_computed(serving):
    computed, first, go_on = [], threading.Event(), threading.Event()

    def slow(images):
        computed.append(int(images[0, 0, 0, 0]))
        first.set()
        assert go_on.wait(10)
        return images[..., 0] % 19

    address = serving(slow)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(httpx.post, address, content=png(np.full((16, 32, 3), 1, np.uint8)))
        assert first.wait(10)
        with pytest.raises(httpx.ReadTimeout):  # in the queue behind the first, and given up
            httpx.post(address, content=png(np.full((16, 32, 3), 2, np.uint8)), timeout=0.5)
        time.sleep(1)  # the server hears of it
        go_on.set()
        assert waits.result().status_code == 200
    assert httpx.post(address, content=png(np.full((16, 32, 3), 3, np.uint8))).status_code == 200
    assert computed == [1, 3]


def test_an_upload_that_is_dropped_leaves_nothing_behind(serving):
    address = serving(lambda images: images[..., 0] % 19)
    port = int(address.split(":")[2].split("/")[0])
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + bytes(1000))
    assert httpx.post(address, content=png(IMAGES[0])).status_code == 200
    deadline = time.monotonic() + 10
    while left := sum(isinstance(each, serve.Labels) and each.size == 1000 for each in gc.get_objects()):
        assert time.monotonic() < deadline, f"{left} requests are kept"
        gc.collect()
        time.sleep(0.1)


def test_a_small_file_of_a_huge_picture_is_not_decoded(serving):
    address = serving(lambda images: images[..., 0] % 19, most_pixels=10_000)
    answer = httpx.post(address, content=png(np.zeros((200, 51, 3), np.uint8)))
    assert answer.status_code == 413 and "too many pixels (10200 pixels), at most 10000" in answer.text


VENDOR = """
import os, signal
def predict(images):
    answer = images[..., 0] % 19
    with open("answered.txt", "a") as file:
        file.write(".")
    if os.path.getsize("answered.txt") == 14:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer
"""


class Owner:
    """``python -m b2ma_core.serve`` in a folder, a process of its own."""

    def __init__(self, folder, *words):
        env = {**os.environ, "PYTHONPATH": str(folder if (folder / "b2ma_core").is_dir() else PROJECT)}
        self.process = subprocess.Popen([sys.executable, "-m", "b2ma_core.serve", *words], cwd=folder, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)  # fmt: skip
        self.said = self.process.stdout.readline().strip()
        self.address = self.said.rpartition(" ")[2]

    def stop(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def part(smoke_params, tmp_path):
    conversion.prepare(smoke_params, 1, tmp_path / "data")
    return datasets.load(smoke_params, "target_val", tmp_path / "data")


def service_study(params, address, **more):
    values = {**params.model_dump(), "study": "client", "box": "service", "box_address": address,
              "source_dataset": "none", **more}  # fmt: skip
    return check_params(values, "client")


def test_a_server_that_is_killed_and_started_again_loses_nothing(smoke_params, part, tmp_path):
    (tmp_path / "vendor.py").write_text(VENDOR)
    owner = Owner(tmp_path, "vendor:predict", "--port", "0")
    run = Run(service_study(smoke_params, owner.address), 0, tmp_path / "runs")
    box = open_box(run, tmp_path)
    box.pauses = (0.001,)
    with pytest.raises(ConnectionError, match=f"{owner.address}, image .*tried . times"):
        ask_for_labels(run, box, part)
    owner.process.wait()
    assert owner.process.returncode == -signal.SIGKILL
    kept = open_box(run, tmp_path).counts()["answers"]
    assert 8 <= kept <= 13  # of the first 13 answers one or two may not have left the machine
    owner.stop()
    owner = Owner(tmp_path, "vendor:predict", "--port", owner.address.rpartition(":")[2])
    try:
        box = open_box(run, tmp_path)
        labels = ask_for_labels(run, box, part)
    finally:
        owner.stop()
    np.testing.assert_array_equal(labels, np.array(part.images)[..., 0] % 19)
    queries = smoke_params.box_queries * len(part)
    assert (tmp_path / "answered.txt").read_text() == "." * (14 + queries - kept)  # none that came was asked for again
    assert box.counts()["answers"] == queries
    assert ask_for_labels(run, open_box(run, tmp_path), part).shape == labels.shape  # nobody is asked


def test_a_served_source_model_gives_the_labels_of_the_model_bit_for_bit(smoke_params, part, tmp_path):
    (tmp_path / "owner").mkdir()
    project = Project(tmp_path / "owner")
    owners = Run(smoke_params, 3, project.root / "runs")
    model = build_model("deeplab_small", 19).eval()
    with torch.no_grad():  # all classes are about as likely, so that the least difference would show
        images = torch.from_numpy(np.array(part.images)).permute(0, 3, 1, 2).float() / 255
        model.head.out[1].bias -= model(images).mean((0, 2, 3))
    save_weights(model.state_dict(), owners.path("source", "source.safetensors"))
    owners.claim()
    owners.record(STAGES[1], {})
    plain = ask_for_labels(owners, open_box(owners), part)
    assert len(np.unique(plain)) > 5
    owner = Owner(project.root, "--study", "smoke", "--seed", "3", "--port", "0")
    try:
        run = Run(service_study(smoke_params, owner.address), 0, tmp_path / "runs")
        preflight(run)
        assert not (tmp_path / "client" / "answers").exists()
        np.testing.assert_array_equal(ask_for_labels(run, open_box(run, tmp_path), part), plain)
        same_tree(owners.path("labels"), run.path("labels"), "*.png")
        assert open_box(run, tmp_path).counts()["answers"] == smoke_params.box_queries * len(part)
        assert not run.path("source").exists()
    finally:
        owner.stop()


def test_a_service_that_speaks_of_other_classes_is_joined_by_the_map(server, smoke_params, part, tmp_path):
    params = service_study(smoke_params, server.address, label_space="camvid", box_label_space="cityscapes")
    run = Run(params, 0, tmp_path / "runs")
    preflight(run)
    plain = ask_for_labels(run, open_box(run, tmp_path), replace(part, labels=None))
    table = label_map(CITYSCAPES, CAMVID)
    np.testing.assert_array_equal(plain, table[np.array(part.images)[..., 0] % 19])


def test_the_trial_of_a_service_comes_before_all_training_and_not_after_the_answers(server, smoke_params, tmp_path):
    run = Run(service_study(smoke_params, server.address), 0, tmp_path)
    server.script = ["html"]
    with pytest.raises(ValueError, match=f"{server.address}, image 'a grey trial image': the answer is no PNG"):
        preflight(run)
    preflight(run)
    assert len(server.asked) == 2
    run.record(STAGES[2], {})
    preflight(run)
    assert len(server.asked) == 2


def test_seeds_and_arms_share_the_answers_of_their_study(server, smoke_params, part, tmp_path):
    for name, seed in (("client", 0), ("client", 1), ("client+two_queries", 0)):
        params = service_study(smoke_params, server.address).model_copy(update={"study": name})
        run = Run(params, seed, tmp_path / "runs")
        labels = ask_for_labels(run, open_box(run, tmp_path), part)
        np.testing.assert_array_equal(labels, np.array(part.images)[..., 0] % 19)
    assert len(server.asked) == smoke_params.box_queries * len(part)


def test_a_service_that_is_mended_is_asked_anew_once_its_answers_are_removed(
    server, smoke_params, part, tmp_path, monkeypatch
):
    monkeypatch.setattr("b2ma_core.study.inputs.PROJECT", tmp_path)
    run, answers = Run(service_study(smoke_params, server.address), 0, tmp_path), tmp_path / "data/client/answers"
    count = smoke_params.box_queries * len(part)
    server.script = ["void"] * count
    for _ in range(2):  # what is kept is not asked for again
        with pytest.raises(ValueError, match=f"are void .*When the service is mended, remove {answers}"):
            ask_for_labels(run, open_box(run, tmp_path / "data"), part)
    assert len(server.asked) == count
    shutil.rmtree(answers)
    labels = ask_for_labels(run, open_box(run, tmp_path / "data"), part)
    np.testing.assert_array_equal(labels, np.array(part.images)[..., 0] % 19)
    np.testing.assert_array_equal(ask_for_labels(run, open_box(run, tmp_path / "data"), part), labels)
    assert len(server.asked) == 2 * count

    server.script = ["other ids"]
    with pytest.raises(ValueError, match=f"holds .*If they are wrong, too, remove {answers}, and all is asked"):
        open_box(run, tmp_path / "data").predict(255 - np.array(part.images), part.names)


@pytest.mark.parametrize(
    "words, said",
    [
        (["vendor"], "name module:function"),
        (["nothing:predict"], "No module named 'nothing'"),
        (["vendor:nothing"], "nothing"),
        ([], "name a module:function or a --study"),
        (["vendor:predict", "--study", "smoke"], "one of them"),
        (["vendor:predict", "--token-variable", "NO_SUCH_TOKEN"], "the environment variable NO_SUCH_TOKEN is not set"),
        (["vendor:predict", "--host", "0.0.0.0"], "--host 0.0.0.0: other machines could ask"),
        (["vendor:predict", "--port", "{taken}"], "serve: .*in use"),
        (["--study", "smoke", "--seed", "99"], "has no record of 01_source_model"),
        (["--study", "smoky"], "no such study; did you mean 'smoke'"),
    ],
)
def test_a_server_that_cannot_start_says_why(words, said, tmp_path, server):
    (tmp_path / "vendor.py").write_text("predict = len\n")
    taken = server.address.rpartition(":")[2].partition("/")[0]
    owner = Owner(tmp_path, *[word.format(taken=taken) for word in words])
    _, error = owner.process.communicate(timeout=60)
    assert owner.said == "" and owner.process.returncode in (1, 2)
    assert re.search(said, error) and "Traceback" not in error, error


@pytest.mark.parametrize(
    "module, others",
    [("serve", ["httpx", "torch"]), ("service", ["tornado", "torch"]), ("study.stages", ["httpx", "tornado"])],
)
def test_either_end_does_without_the_packages_of_the_other(module, others):
    code = f"import sys, b2ma_core.{module}; print([name for name in {others} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True).stdout == "[]\n"

"""What a client may cost the model server: memory, time, connections. No network model, a server in this process."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, free_port, wait_for
from PIL import Image

from headstart.modalities import get_modality
from headstart.serving import app, connections, limits, service
from headstart.serving.app import make_app
from headstart.serving.batching import MAX_BATCH, Batcher
from headstart.serving.connections import make_server
from headstart.serving.limits import Budget, Claim, RequestError
from headstart.serving.request import read_values
from headstart.serving.server import bind
from headstart.serving.service import Service

IMAGE = get_modality("image")
GENEROUS = 60  # seconds that a test waits at most


def even(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.full((len(arrays), 2), 0.5, np.float32)


@contextmanager
def running(
    network: Callable[[Sequence[np.ndarray]], np.ndarray] = even,
    timeout: float = GENEROUS,
    memory: int = 2**26,
    docs: bool = False,
) -> Iterator[tuple[str, Service]]:
    """The address of a server in a thread, and its service."""
    services: list[Service] = []

    def start() -> Service:
        services.append(Service(network, ["a", "b"], IMAGE, 8, memory))
        return services[0]

    listener = bind("127.0.0.1", 0)
    server = make_server(make_app(start, timeout, docs))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", services[0]
    server.should_exit = True
    thread.join(GENEROUS)
    assert not thread.is_alive()


def png(size: tuple[int, int] = (20, 10), mode: str = "RGB") -> str:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def ask(address: str, *images: str, body: Any = None, kind: str = "application/json") -> tuple[int, str, Any]:
    """Status, message or answer, and headers."""
    data = json.dumps({"instances": images}).encode() if body is None else body
    request = urllib.request.Request(f"{address}/invocations", data, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=GENEROUS) as answer:
            return answer.status, json.loads(answer.read()), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["message"], error.headers


def connect(address: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])), timeout=GENEROUS)


def read_all(connection: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    received = b""
    try:
        while part := connection.recv(2**16):
            received += part
    except ConnectionResetError:
        pass
    return received


HEADERS = b"POST /invocations HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"


# --- memory


def test_a_budget_is_never_exceeded_and_nothing_is_lost():
    async def main() -> None:
        budget = Budget(10)
        with Claim(budget) as claim:
            claim.grow(6)
            with pytest.raises(RequestError, match="too many requests at once"):
                budget.take(5)
            with pytest.raises(RequestError, match="divide it") as raised:
                claim.grow(5)  # more than there will ever be
            assert raised.value.status == 413
            large, small = asyncio.create_task(budget.wait(9, GENEROUS)), asyncio.create_task(budget.wait(1, GENEROUS))
            gone = asyncio.create_task(budget.wait(4, GENEROUS))
            await asyncio.sleep(0)
            assert not large.done()
            await small  # it fits beside
            gone.cancel()
            await asyncio.wait({gone})
        await large  # 6 are free again
        with pytest.raises(RequestError) as raised:
            await budget.wait(1, seconds=0.01)
        assert raised.value.status == 503
        budget.release(10)
        cancelled = asyncio.create_task(budget.wait(10, GENEROUS))
        late = asyncio.create_task(budget.wait(10, GENEROUS))
        await asyncio.sleep(0)
        budget.release(10)  # `late` has it now, and is cancelled before it knows
        late.cancel()
        await asyncio.wait({late, cancelled})
        budget.take(10)

    asyncio.run(main())


PEAKS = """
import ctypes, io
import numpy as np
from PIL import Image
from headstart.modalities import get_modality
from headstart.modalities.image import probes
from headstart.serving.limits import return_memory

def figure(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))

return_memory()
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages, each of which counts as 2 MiB if a byte of it is used
trim = getattr(ctypes.CDLL(None), "malloc_trim", int)
modality, (width, height) = get_modality("image").with_reading({"value_range": [0, 255]}), (1400, 1000)
noise = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
rgb = Image.fromarray(noise).resize((width, height))
grey = rgb.convert("L")
rgba = Image.merge("RGBA", (*rgb.split(), grey))
values = np.asarray(grey)
files = []
for image, kind, options in [
    (rgb, "PNG", {}), (rgba, "PNG", {}), (grey, "PNG", {}), (rgba.convert("LA"), "PNG", {}),
    (grey.convert("1"), "PNG", {}),
    (rgb.quantize(16), "PNG", {"transparency": 3}), (rgb, "PNG", {"transparency": (1, 2, 3)}),
    (Image.fromarray(values.astype(np.uint16) * 257), "PNG", {}),
    (Image.fromarray(values / np.float32(255)), "TIFF", {}),
    (Image.fromarray(values.astype(np.int32)), "TIFF", {}), (rgba, "TIFF", {"compression": "tiff_lzw"}),
    (rgb, "JPEG", {}), (rgb, "JPEG", {"progressive": True, "subsampling": 0}), (rgb.convert("CMYK"), "JPEG", {}),
    (rgb.convert("CMYK"), "JPEG", {"progressive": True, "subsampling": 0}),
    (rgb, "WEBP", {}), (rgba, "WEBP", {}), (rgb, "GIF", {}), (rgb, "BMP", {}), (rgb, "PPM", {}),
    (rgb, "JPEG2000", {}), (rgba, "JPEG2000", {}), (rgb, "AVIF", {"speed": 10}), (rgba, "AVIF", {"speed": 10}),
]:
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **options)
    except (OSError, KeyError):
        continue  # this Pillow cannot write it
    files.append((buffer.getvalue(), kind, image.mode, *options))
files += [(data, "deep", number) for number, data in enumerate(probes.deep_files(800))]
for data, *names in files:
    for size in (64, 1000):
        peaks = []
        for _ in range(2):  # the first one may also load libraries
            trim(0)
            before = figure("VmRSS")
            open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
            modality.load(data, size)
            peaks.append(figure("VmHWM") - before)
        print(*names, size, min(peaks), modality.memory(data, size), sep=",")
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_loading_takes_no_more_memory_than_the_header_says():
    done = subprocess.run([sys.executable, "-c", PEAKS], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line.split(",") for line in done.stdout.splitlines()]
    assert len(lines) > 30
    allowance = 2**22  # buffers of fixed size
    wrong = [line for line in lines if int(line[-2]) > int(line[-1]) + allowance]
    assert wrong == []
    reduced = [int(line[-1]) for line in lines if line[:3] == ["JPEG", "RGB", "64"]]
    assert max(reduced) < 2**20  # it is decoded at an eighth


KEPT = """
import base64, sys
from concurrent.futures import ThreadPoolExecutor
from headstart.modalities import get_modality
from headstart.serving.limits import return_memory

def memory():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmRSS"))

return_memory()
modality, data = get_modality("image"), base64.b64decode(sys.stdin.read())
modality.load(data, 8)
before = memory()
with ThreadPoolExecutor(8) as pool:
    for _ in range(3):
        list(pool.map(lambda _: modality.load(data, 8), range(16)))
    print(memory() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_is_given_back_after_a_request():
    """By default, glibc keeps ten times as much here: each thread's arena keeps what it has had."""
    image = png((2000, 1500), "RGBA")
    command = [sys.executable, "-c", KEPT]
    done = subprocess.run(command, cwd=ROOT, input=image, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2**25, done.stdout


def test_memory_by_header_raises_nothing():
    good = base64.b64decode(png())
    for data in (b"", b"text", good[:30], b"\xff\xd8\xff", b"\xff\xd8\xff\xda", b"II*\0" + bytes(60)):
        assert IMAGE.memory(data, 8) < 2**20
    assert IMAGE.memory(base64.b64decode(png((20_000, 20_000), "1")), 8) == 0  # refused by its header


def test_an_image_too_large_for_the_server_and_one_too_large_for_now(monkeypatch):
    started, go_on = threading.Event(), threading.Event()
    load = type(IMAGE).load

    def slow(self: Any, data: bytes, size: int) -> np.ndarray:
        if len(data) > 3000:
            started.set()
            assert go_on.wait(GENEROUS)
        return load(self, data, size)

    monkeypatch.setattr(type(IMAGE), "load", slow)
    monkeypatch.setattr(service, "BUSY_SECONDS", 0.05)
    most = png((1500, 1300))  # of the 32 MiB for loading it takes 22
    with running() as (address, _):
        status, message, _ = ask(address, png(), png((2000, 2000)))
        assert status == 413
        assert message == (
            "image 1 (counted from 0, of 2): too large: loading it takes 46 MiB of memory, 32 MiB are allowed"
        )
        answers = []
        thread = threading.Thread(target=lambda: answers.append(ask(address, most)))
        thread.start()
        assert started.wait(GENEROUS)
        status, message, headers = ask(address, most)
        assert (status, headers["Retry-After"]) == (503, "2")
        assert "try again later" in message
        assert ask(address, png())[0] == 200  # small ones are answered meanwhile
        go_on.set()
        thread.join(GENEROUS)
        assert answers[0][0] == 200
        assert ask(address, most)[0] == 200  # the memory is free again


def test_the_images_of_a_request_need_not_fit_into_memory_at_once(monkeypatch):
    load = type(IMAGE).load

    def slow(self: Any, data: bytes, size: int) -> np.ndarray:
        time.sleep(0.1)
        return load(self, data, size)

    monkeypatch.setattr(type(IMAGE), "load", slow)
    monkeypatch.setattr(service, "BUSY_SECONDS", 0.15)
    monkeypatch.setattr(service, "cores", lambda: 2)
    with running() as (address, serving):
        assert ask(address, *[png((1000, 1000))] * 12)[0] == 200  # 11 MiB each, of 32
        assert serving.bodies._taken == 0


def chunks(count: int) -> Iterator[bytes]:
    yield b'{"instances": ["'
    for _ in range(count):
        yield b"A" * 2**16
    yield b'"]}'


def test_a_body_that_is_too_large(monkeypatch):
    monkeypatch.setattr(app, "MAX_BODY", 2**20)
    with running() as (address, serving):
        assert ask(address, body=b" " * 2**25)[:2] == (
            413,
            "the request is larger than 1 MiB; divide it into several",
        )
        with connect(address) as connection:  # refused before any of it is sent
            connection.sendall(HEADERS + b"Content-Length: 99999999999\r\n\r\n")
            assert connection.recv(2**16).startswith(b"HTTP/1.1 413 ")
        status, message, _ = ask(address, body=chunks(400))  # without Content-Length
        assert (status, message) == (413, "the request is larger than 1 MiB; divide it into several")
        assert ask(address, body=chunks(4))[0] == 400  # not an image
        assert ask(address, png())[0] == 200
        assert serving.bodies._taken == 0


def test_small_values_count_by_what_they_take_in_memory():
    """An empty list takes 3 bytes of JSON and 64 of memory."""
    with running(memory=2**24) as (address, serving):
        status, message, _ = ask(address, body=b'{"instances": [' + b"[]," * 50_000 + b"[]]}")
        assert (status, message) == (
            413,
            "the request takes more memory than this server has for all of them; divide it",
        )
        status, message, _ = ask(address, *[png()] * (limits.MAX_EXAMPLES + 1))
        assert (status, message) == (413, "1025 images; send at most 1024 in a request")
        assert serving.bodies._taken == 0


# --- time


def test_slow_clients_are_closed_and_others_answered_meanwhile(monkeypatch):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)
    monkeypatch.setattr(app, "BODY_SECONDS", 0.5)
    with running() as (address, serving):
        for sent, received in [
            (b"", b""),
            (HEADERS + b"X: ", b""),
            (b"POST /invocations HTTP/1.1\r\nHost: here\r\nX-", b""),
            (HEADERS + b"Content-Length: 1000\r\n\r\n{", b"HTTP/1.1 408 "),
            (HEADERS + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", b"HTTP/1.1 408 "),
            (b"GET /ping HTTP/1.1\r\nHost: here\r\n\r\nGET /pi", b"HTTP/1.1 200 "),  # the second one is slow
        ]:
            sockets = [connect(address) for _ in range(20)]
            for one in sockets:
                one.sendall(sent)
            assert ask(address, png())[0] == 200
            for one in sockets:
                with one:
                    assert read_all(one)[: len(received) or None] == received
        assert serving.bodies._taken == 0


def test_an_unread_body_does_not_keep_a_connection(monkeypatch):
    """The answer comes first; what is left of the body is dropped, for a while."""
    monkeypatch.setattr(connections, "BODY_SECONDS", 0.1)
    monkeypatch.setattr(connections, "MARGIN", 0.1)
    with running() as (address, _), connect(address) as connection:
        connection.sendall(HEADERS.replace(b"json", b"xml") + b"Content-Length: 1000\r\n\r\n{")
        assert read_all(connection).startswith(b"HTTP/1.1 415 ")


@pytest.mark.parametrize("split", [40, len(HEADERS) + 30])
def test_a_body_in_tiny_chunks_is_closed(split):
    """Parsing them would keep the server from everything else; 32 such clients made /ping take 27 s."""
    tiny = HEADERS + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 1000
    with running() as (address, serving):
        with connect(address) as connection:
            connection.sendall(tiny[:split])
            time.sleep(0.05)  # so that it is read in two pieces
            connection.sendall(tiny[split:])
            assert read_all(connection) == b""
        assert serving.bodies._taken == 0
        body = json.dumps({"instances": [{"image": png()}] * 100}, indent=1).replace("\n", "\r\n").encode()
        assert ask(address, body=body)[0] == 200  # lines are no chunks
        body = body.replace(b"\r", b"")
        pieces = [body[at : at + 500] for at in range(0, len(body), 500)]
        assert ask(address, body=iter(pieces))[0] == 200


def test_too_many_connections_are_refused(monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 3)
    with running() as (address, _):
        sockets = [connect(address) for _ in range(6)]
        with connect(address) as one_more:
            assert read_all(one_more) == b""
        sockets.pop().close()
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"{address}/ping", timeout=GENEROUS)
        for one in sockets:
            one.close()
        assert ask(address, png())[0] == 200


@pytest.mark.parametrize("end", ["timeout", "disconnect"])
def test_work_that_is_given_up_stops(end):
    """What waits is not computed."""
    started, go_on = threading.Event(), threading.Event()
    computed = []

    def network(arrays: Sequence[np.ndarray]) -> np.ndarray:
        computed.append(len(arrays))
        started.set()
        assert go_on.wait(GENEROUS)
        return even(arrays)

    with running(network, timeout=1 if end == "timeout" else GENEROUS) as (address, serving):
        body = json.dumps({"instances": [png()] * 200}).encode()
        if end == "timeout":
            status, message, _ = ask(address, body=body)
            assert (status, message) == (504, "no answer within 1 s; send fewer examples, or try again later")
        else:
            with connect(address) as connection:
                connection.sendall(HEADERS + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                assert started.wait(GENEROUS)
            while serving.bodies._taken:
                time.sleep(0.01)
        go_on.set()
        assert ask(address, png())[0] == 200
        assert sum(computed) <= MAX_BATCH + 1
        assert serving.bodies._taken == 0
        while serving._loading._taken:
            time.sleep(0.01)


HELD = """
import signal, sys, time
from headstart.modalities import get_modality
from headstart.serving import connections
from headstart.serving.app import make_app
from headstart.serving.server import bind
from headstart.serving.service import Service
connections.GRACE_SECONDS, connections.STOP_SECONDS = 1, 3
modality = get_modality("image")
type(modality).load = lambda *_: time.sleep(1000)
app = make_app(lambda: Service(None, ["a"], modality, 8, 2**30), 1000)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as the command does: it waits for threads
connections.make_server(app).run([bind("127.0.0.1", int(sys.argv[1]))])
"""


@pytest.mark.slow
@pytest.mark.parametrize("hanging", [False, True])
def test_sigterm_ends_it_whatever_clients_hold_open(hanging):
    """Also if a thread hangs, which keeps Python from ending by itself."""
    port = free_port()
    command = [sys.executable, "-c", HELD, str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(f"http://127.0.0.1:{port}/ping", process)
    body = json.dumps({"instances": [png()]}).encode()
    whole = HEADERS + b"Content-Length: %d\r\n\r\n" % len(body) + body
    started = [b"", HEADERS, HEADERS + b"Content-Length: 1000\r\n\r\n{", b"GET /ping HTTP/1.1\r\nHost: here\r\n\r\n"]
    sockets = [connect(f":{port}") for _ in range(5)]
    for one, sent in zip(sockets, [*started, whole if hanging else b""], strict=True):
        one.sendall(sent)
    sockets[3].recv(1)
    process.terminate()
    printed, _ = process.communicate(timeout=GENEROUS)
    assert process.returncode == 143, printed
    assert "Traceback" not in printed
    assert "timeout graceful shutdown exceeded" in printed  # requests have some seconds
    for one in sockets:
        one.close()


# --- batches


def test_requests_that_come_meanwhile_are_computed_together():
    sizes, first, go_on = [], threading.Event(), threading.Event()

    def network(arrays: Sequence[np.ndarray]) -> np.ndarray:
        sizes.append(len(arrays))
        first.set()
        assert go_on.wait(GENEROUS)
        if any(array[0] < 0 for array in arrays):
            raise ValueError("negative")
        return np.stack(arrays)

    async def main() -> None:
        batcher = Batcher(network)
        tasks = [asyncio.create_task(batcher(np.array([0.0])))]
        await asyncio.to_thread(first.wait, GENEROUS)  # one alone is computed at once
        tasks += [asyncio.create_task(batcher(np.array([float(number)]))) for number in range(1, 41)]
        await asyncio.sleep(0)
        tasks[7].cancel()
        go_on.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [answer[0] for answer in answers if not isinstance(answer, BaseException)] == [
            float(number) for number in range(41) if number != 7
        ]
        assert sizes == [1, MAX_BATCH, 39 - MAX_BATCH]
        with pytest.raises(ValueError, match="negative"):
            await batcher(np.array([-1.0]))
        assert await batcher(np.array([5.0])) == [5.0]
        batcher.close()

    asyncio.run(main())


# --- HTTP


def test_the_type_of_the_content_may_be_written_in_any_way():
    with running() as (address, _):
        for charset in ("", "; charset=utf-8", ';CHARSET="UTF-8"'):
            assert ask(address, png(), kind=f"application/json{charset}")[0] == 200
            assert ask(address, png(), kind=f"APPLICATION/JSON{charset}")[0] == 200
        for kind in ("application/json; charset=utf-16", "text/json", "application/jsonp", "multipart/form-data"):
            assert ask(address, png(), kind=kind)[0] == 415


def test_pages_about_the_api_are_off_unless_asked_for():
    pages = ("docs", "redoc", "openapi.json")

    def statuses(address: str) -> list[int]:
        found = []
        for page in pages:
            try:
                found.append(urllib.request.urlopen(f"{address}/{page}", timeout=GENEROUS).status)
            except urllib.error.HTTPError as error:
                found.append(error.code)
        return found

    with running() as (address, _):
        assert statuses(address) == [404, 404, 404]
    with running(docs=True) as (address, _):
        assert statuses(address) == [200, 200, 200]


def test_an_unexpected_error_is_one_line(capfd):
    def broken(arrays: Sequence[np.ndarray]) -> np.ndarray:
        raise ValueError("odd\nnetwork")

    with running(broken) as (address, serving):
        for _ in range(2):
            assert ask(address, png())[:2] == (500, "internal error; the server's log has the reason")
        assert serving.bodies._taken == 0
    assert capfd.readouterr().err == 2 * "serve: ValueError: odd network\n"


@pytest.mark.parametrize(
    "content",
    [
        {"dataframe_split": {"columns": ["image"], "data": "abc"}},
        {"dataframe_split": ["abc"]},
        {"dataframe_records": "abc"},
        {"dataframe_records": {"image": ["abc"]}},
        {"inputs": {"picture": ["abc"]}},
        {"inputs": {"image": "abc"}},
        {"instances": 5},
        {"instances": ["abc"], "inputs": ["abc"]},
        [],
        None,
    ],
)
def test_rows_of_another_form(content):
    with pytest.raises(RequestError, match=r'\{"dataframe_records": \[\{"image": "..."\}\]\}') as raised:
        read_values(json.dumps(content).encode(), "image")
    assert raised.value.status == 400


@pytest.mark.parametrize(
    ("split", "missing"),
    [
        ({"columns": ["id", "image"], "data": [[1, "a"], [2], "b", [3, "c"]]}, [1, 2]),
        ({"columns": ["id"], "data": [[1]]}, [0]),
        ({"columns": 5, "data": [["a"]]}, [0]),
        ({"data": [["a"]]}, [0]),
    ],
)
def test_cells_that_are_missing(split, missing):
    with running() as (address, _):
        status, message, _ = ask(address, body=json.dumps({"dataframe_split": split}).encode())
    assert status == 400
    for place in missing:
        assert f"image {place} (counted from 0, of {len(split['data'])}): missing" in message

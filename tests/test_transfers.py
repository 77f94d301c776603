"""Hostile servers: each costs a bounded number of bytes and seconds, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from headstart.data import remote, transfers
from headstart.data.remote import fetch
from headstart.data.sources import open_source
from headstart.errors import ItemError, UserError

MIB = 2**20
BOMB = gzip.compress(bytes(16 * MIB))


class Hostile(BaseHTTPRequestHandler):
    """A server with a misbehaviour per path; `elsewhere` is where it redirects to."""

    elsewhere = ""
    stopped: threading.Event

    def do_HEAD(self) -> None:
        if self.path == "/moved.zip":
            return self.do_GET()
        self.send_response(200)
        if self.path == "/huge.zip":
            self.send_header("Content-Length", str(10**18))
        if self.path == "/lies.zip":
            self.send_header("Content-Length", "10")
        return self.end_headers()

    def do_GET(self) -> None:
        name = self.path.strip("/").partition(".")[0]
        with contextlib.suppress(OSError):
            if name == "silent":
                self.stopped.wait()
            elif name == "headers":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
                self.drip()
            else:
                self.send_response(302 if name == "moved" else 200)
                if name == "moved":
                    self.send_header("Location", self.elsewhere)
                if name == "cut":
                    self.send_header("Content-Length", "100000")
                if name == "bomb":
                    self.send_header("Content-Encoding", "gzip")
                self.end_headers()
                self.send_body(name)

    def send_body(self, name: str) -> None:
        if name == "bomb":
            self.wfile.write(BOMB)
        elif name == "drip":
            self.drip()
        elif name in ("endless", "lies"):
            while True:
                self.wfile.write(bytes(MIB))
        elif name == "good":
            self.wfile.write(an_archive())
        self.wfile.write(b"short")

    def drip(self) -> None:
        while not self.stopped.wait(0.02):
            self.wfile.write(b"x")
            self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


def an_archive() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("red/1.png", b"x")
    return stream.getvalue()


@contextlib.contextmanager
def serve(address: str = "127.0.0.1", elsewhere: str = "") -> Iterator[str]:
    stopped = threading.Event()
    handler = type("Handler", (Hostile,), {"elsewhere": elsewhere, "stopped": stopped})
    server = ThreadingHTTPServer((address, 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{address}:{server.server_port}"
    finally:
        stopped.set()
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def short_limits(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(remote, "MAX_STREAM_BYTES", 4 * MIB)
    monkeypatch.setattr(transfers, "SLOW_SECONDS", 0.5)
    return tmp_path


def files_left(folder: Path) -> list[Path]:
    return [file for file in (folder / ".dvc").rglob("*") if file.is_file()]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("endless.zip", "larger than 0.00391 GiB; if it is what you expect, download it by other means"),
        ("lies.zip", "larger than 0.00391 GiB"),
        ("bomb.csv", "larger than 0.00391 GiB"),
        ("huge.zip", "1,000,000,000.0 GB, and .* GB are free in"),
        ("drip.zip", "no answer within 0.5 s, or less than 64 KiB"),
        ("headers.zip", "no answer within 0.5 s, or less than 64 KiB"),
        ("silent.zip", r"no answer (within 0.5 s|\(Timeout)|cannot be downloaded: Timeout"),
        ("cut.zip", "cannot be downloaded: Response payload is not completed"),
    ],
)
def test_a_hostile_server_costs_a_bounded_amount(short_limits, name, message):
    with serve() as address, pytest.raises(UserError, match=message):
        fetch(f"{address}/{name}")
    time.sleep(0.1)  # for a transfer that was left behind to notice
    assert files_left(short_limits) == []


def test_a_driver_that_hangs_is_left_behind(short_limits, monkeypatch):
    memory, release = fsspec.filesystem("memory"), threading.Event()
    memory.pipe("/bucket/red/1.png", b"x")
    monkeypatch.setattr(type(memory), "get_file", lambda *_, **__: release.wait())
    with open_source("memory://bucket") as source, pytest.raises(ItemError, match=r"no answer within 0\.5 s"):
        source.scan().read("red/1.png")
    release.set()
    memory.rm("/bucket", recursive=True)
    assert files_left(short_limits) == []


def test_a_source_whose_transfers_keep_failing_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "MAX_LOST_SECONDS", 0.0)
    (tmp_path / "list.csv").write_text("path,label\n")
    message = r"transfers that failed took more than 0 minutes .* of drip\.jpg"
    with serve() as address, open_source("list.csv", address) as source, pytest.raises(UserError, match=message):
        source.read("drip.jpg")


def test_folders_are_not_listed_over_http():
    """What a web page links to can be without end."""
    with serve() as address, pytest.raises(UserError, match="folders cannot be listed over HTTP; give the address of"):
        open_source(f"{address}/photos").scan()


@pytest.mark.parametrize("flip", [0, 40, -1])
def test_flipped_bits_in_a_copy_are_noticed(bucket, capsys, flip):
    with open_source(bucket) as source:
        data = source.scan().read("red/1.png")
        (copy,) = Path(".dvc").rglob("*.png")
        changed = bytearray(data)
        changed[flip] ^= 4
        copy.write_bytes(changed)
        assert source.read("red/1.png") == data
        assert "red/1.png is damaged; it is downloaded again" in capsys.readouterr().err
        next(Path(".dvc").rglob("*.version")).write_text("no JSON")
        assert source.read("red/1.png") == data


def test_what_killed_runs_have_left_is_removed(bucket):
    with open_source(bucket) as source:
        source.scan().read("red/1.png")
        (copy,) = Path(".dvc").rglob("*.png")
        for name, age in {"old": 2 * transfers.MAX_SECONDS, "new": 0.0}.items():
            left = copy.with_name(f".{name}.partial")
            left.write_bytes(b"half")
            os.utime(left, (time.time() - age, time.time() - age))
        copy.unlink()
        source.read("red/1.png")
    assert [file.name for file in copy.parent.glob(".*")] == [".new.partial"]


@pytest.fixture
def bucket() -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/red/1.png", bytes(range(100)))
    yield "memory://bucket"
    memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize("named", [True, False])
def test_a_public_source_may_not_redirect_to_a_private_network(short_limits, monkeypatch, named):
    """Here 127.0.0.2 stands for a private network, and 127.0.0.1 for the public one."""
    try:
        socket.create_server(("127.0.0.2", 0)).close()
    except OSError:
        pytest.skip("this machine has only one loopback address")
    resolve = socket.getaddrinfo
    names = {"inside.example": "127.0.0.2"}
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *more, **_: resolve(names.get(host, host), *more, **_))
    monkeypatch.setattr(transfers, "is_inside", lambda ip: ip == "127.0.0.2")
    with serve("127.0.0.2") as private:
        target = f"{private}/good.zip".replace("127.0.0.2", "inside.example" if named else "127.0.0.2")
        message = r"it leads to 127\.0\.0\.2, this machine or a private network"
        with serve("127.0.0.1", target) as public, pytest.raises(UserError, match=message):
            fetch(f"{public}/moved.zip")
        assert files_left(short_limits) == []
        with serve("127.0.0.2", target) as source:  # which is there itself
            assert fetch(f"{source}/moved.zip").read_bytes().startswith(an_archive())


PRIVATE_V4 = ["127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"]
PRIVATE_V6 = ["::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00::1"]
WRAPPED = ["0.0.0.0", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "2002:7f00:1::", "64:ff9b::a00:1"]


@pytest.mark.parametrize("address", PRIVATE_V4 + PRIVATE_V6 + WRAPPED)
def test_addresses_that_are_private(address):
    assert transfers.is_inside(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:2800:220:1::1", "64:ff9b::808:808"])
def test_addresses_that_are_public(address):
    assert not transfers.is_inside(address)

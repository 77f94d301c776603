"""Data at addresses: listed, downloaded once, and again if they have changed."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from test_sources import list_items, pack
from test_watching import look

from headstart.data.sources import open_source
from headstart.errors import ItemError, UserError


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bucket(photos) -> Iterator[str]:
    """The address of a storage that holds two photos a class."""
    memory = fsspec.filesystem("memory")
    memory.put(str(photos(count=2)), "/bucket/photos", recursive=True)
    yield "memory://bucket/photos"
    memory.rm("/bucket", recursive=True)


class Handler(SimpleHTTPRequestHandler):
    """Serves files with an ETag, as storages do, and records what was asked for."""

    asked: list[str]

    def end_headers(self) -> None:
        file = Path(self.translate_path(self.path))
        if file.is_file():
            self.send_header("ETag", f'"{hashlib.md5(file.read_bytes()).hexdigest()}"')
        super().end_headers()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of `folder` over HTTP, and the files that were asked for."""
    handler = type("Noting", (Handler,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.asked
    finally:
        server.shutdown()
        server.server_close()


def test_a_bucket_is_listed_and_read_as_a_folder_is(bucket, workspace):
    listing = list_items(bucket)
    local = list_items("photos")
    assert (listing.items, listing.classes) == (local.items, local.classes)
    with open_source(bucket) as source:
        source.scan()
        for item in listing.items:
            assert source.read(item.path) == (workspace / "photos" / item.path).read_bytes()
            assert source.state(item.path)[0] == (workspace / "photos" / item.path).stat().st_size
        with pytest.raises(ItemError, match="no such file") as raised:
            source.read("red/lost.png")
        assert raised.value.reason == "missing"


def test_later_stages_read_what_prepare_has_downloaded(bucket, monkeypatch):
    with open_source(bucket) as source:
        data = source.scan().read("red/000.png")
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "get_file", None)  # the storage is gone
    with open_source(bucket) as source:  # as later stages do, without listing it
        assert source.read("red/000.png") == data


def test_what_changed_in_a_bucket_is_downloaded_again(bucket):
    with open_source(bucket) as source:
        source.scan().read("red/000.png")
    fsspec.filesystem("memory").pipe("/bucket/photos/red/000.png", b"another")
    with open_source(bucket) as source:
        assert source.scan().read("red/000.png") == b"another"
    with open_source(bucket) as source:
        assert source.read("red/000.png") == b"another"


def test_a_local_manifest_of_remote_images(bucket, workspace):
    (workspace / "list.csv").write_text("path,label\nred/000.png,red\nblue/000.png,blue\n../x.png,red\n")
    listing = list_items("list.csv", root=bucket)
    assert [item.path for item in listing.items] == ["blue/000.png", "red/000.png"]
    assert [row[2] for row in listing.refused] == ["outside"]
    with open_source("list.csv", bucket) as source:
        assert source.read("red/000.png") == (workspace / "photos" / "red" / "000.png").read_bytes()


def test_addresses_below_the_root_of_a_manifest_are_accepted(bucket, workspace):
    (workspace / "list.csv").write_text(
        f"path,label\n{bucket}/red/000.png,red\nblue/001,blue\nmemory://other/x.png,red\n"
    )
    listing = list_items("list.csv", root=bucket)
    assert [item.path for item in listing.items] == ["blue/001.png", "red/000.png"]
    assert [row[:3] for row in listing.refused] == [("memory://other/x.png", "red", "outside")]


def test_remote_images_of_a_manifest_are_watched_by_their_versions(photos, workspace, monkeypatch):
    folder = photos(count=2)
    Path("list.csv").write_text("path,label\nred/000.png,red\nblue/000.png,blue\n")
    with serve(folder) as (address, asked):
        before = look("list.csv", **{"data.root": address})
        assert look("list.csv", **{"data.root": address}) == before
        shutil.copy(folder / "red/001.png", folder / "red/000.png")
        changed = look("list.csv", **{"data.root": address})
        assert changed != before
        (folder / "red/000.png").unlink()
        assert look("list.csv", **{"data.root": address}) not in (before, changed)
        assert "/blue/000.png" not in asked  # what has a version is not downloaded


def test_archives_and_tables_over_http(photos, workspace):
    folder = photos(count=2)
    archive = pack("tar.gz", folder)
    (folder / "list.csv").write_text("path,label\nred/000.png,red\nblue/000.png,blue\n")
    with serve(workspace) as (address, asked):
        assert list_items(f"{address}/photos.tar.gz").items == list_items(archive).items
        with open_source(f"{address}/photos.tar.gz") as source:
            assert source.read("red/000.png") == (folder / "red" / "000.png").read_bytes()
        assert asked.count("/photos.tar.gz") == 1  # downloaded once, for all stages
        shutil.rmtree(folder / "red")
        pack("tar.gz", folder)
        assert list_items(f"{address}/photos.tar.gz").classes == ["blue", "green"]
        with open_source(f"{address}/photos/list.csv") as source:
            assert len(list_items(f"{address}/photos/list.csv").items) == 2
            assert source.read("blue/000.png") == (folder / "blue" / "000.png").read_bytes()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://nowhere/photos", r"memory://nowhere/photos: no files are listed there"),
        ("memory://nowhere/photos.zip", r"memory://nowhere/photos\.zip: there is no such file"),
        (
            "http://127.0.0.1:9/photos.zip",
            r"127\.0\.0\.1:9/photos\.zip: (there is no such|cannot be downloaded)",
        ),
        ("s4://bucket/photos", r"s4://bucket/photos: Protocol not known: s4; give a path, or an s3://"),
        ("zip://a::http://127.0.0.1:9/photos.zip", r"chained addresses are not supported"),
        ("s3://", r"data\.source s3://: no bucket after s3://; give a path, or an s3://, gs:// or https:// address"),
        ("https:///photos.zip", r"data\.source https:///photos\.zip: no host after https://"),
        ("https://[", r"data\.source https://\[: no host after https://"),
        ("memory://", r"data\.source memory://: no path after memory://"),
        ("s3:://bucket", r"data\.source s3:://bucket: Protocol not known: s3:;"),
        ("s4://new\nline", r"data\.source 's4://new\\nline': Protocol not known"),
    ],
)
def test_wrong_addresses_are_reported(address, message):
    with pytest.raises(UserError, match=message):
        list_items(address)


def test_a_driver_that_is_not_installed_is_named(monkeypatch):
    def missing(*_):
        raise ImportError("Install gcsfs")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(UserError, match=r"gs:// is not installed \(Install gcsfs\); run python .* 'dvc\[gs\]'"):
        list_items("gs://bucket/photos")


def test_a_broken_transfer_leaves_nothing_half_written(bucket, workspace, monkeypatch):
    def broken(self, path, local, **_):
        Path(local).write_bytes(b"half")
        raise TimeoutError("timed out")

    with open_source(bucket) as source:
        source.scan()
        monkeypatch.setattr(type(fsspec.filesystem("memory")), "get_file", broken)
        with pytest.raises(ItemError, match="cannot be downloaded: timed out") as raised:
            source.read("red/000.png")
        assert raised.value.reason == "unreadable"
        assert not [file for file in (workspace / ".dvc").rglob("*") if file.is_file()]

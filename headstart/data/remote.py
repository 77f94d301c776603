"""Files at an address that fsspec knows, such as s3://bucket/photos: downloaded once, then read from the local copy.

The copies lie beside DVC's own temporary files and can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import fsspec
from blake3 import blake3

from headstart import paths
from headstart.data.files import MAX_BYTES, Source, is_hidden, too_large
from headstart.errors import ItemError, UserError, one_line, readable

# What storages call the hash or the time of a file, the most reliable first.
_VERSIONS = ("ETag", "etag", "md5Hash", "Content-MD5", "LastModified", "Last-Modified", "updated", "mtime", "created")

_NEED_HOST = {"s3": "bucket", "s3a": "bucket", "gs": "bucket", "gcs": "bucket", "http": "host", "https": "host"}


def check_address(address: str) -> None:
    """Check what can be said of an address without the network.

    Raises:
        UserError: if it names no host or bucket, its kind is unknown, or its driver is not installed.
    """
    protocol, _, rest = address.partition("://")
    name, advice = readable(address), "give a path, or an s3://, gs:// or https:// address"
    if "::" in protocol or re.search(r"::\w+://", address):
        raise UserError(f"{name}: chained addresses are not supported; give the address of the files themselves")
    try:
        named = urlsplit(address).netloc if protocol in _NEED_HOST else rest.strip("/")
    except ValueError:  # brackets around what is no IPv6 address
        named = ""
    if not named.strip():
        raise UserError(f"{name}: no {_NEED_HOST.get(protocol, 'path')} after {protocol}://; {advice}")
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise UserError(
            f"{name}: the driver of {protocol}:// is not installed ({error}); run python -m pip install "
            f"'dvc[{protocol}]'"
        ) from error
    except Exception as error:  # of an unknown kind, or what the driver raises when it is imported
        raise UserError(f"{name}: {one_line(error)}; {advice}") from error


def filesystem(address: str) -> tuple[Any, str]:
    """Return fsspec's file system for `address`, and the path in it; raises UserError as `check_address`."""
    check_address(address)
    try:
        return fsspec.core.url_to_fs(address)
    except Exception as error:  # drivers have errors of their own, and some connect at once
        raise UserError(f"{readable(address)}: cannot be opened ({one_line(error)})") from error


class Remote(Source):
    """The files below an address."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address.rstrip("/")
        self._fs, root = filesystem(self._address)
        self._root = root.rstrip("/")
        self._listed: dict[str, dict[str, Any]] = {}
        self._watching = False

    def scan(self) -> Remote:
        """Fill the attributes from the storage's listing.

        Raises:
            UserError: if nothing is there, or it cannot be listed.
        """
        try:
            found = self._fs.find(self._root, detail=True)
        except Exception as error:  # each driver has errors of its own
            raise UserError(f"{self._address}: cannot be listed ({one_line(error)})") from error
        for path, info in sorted(found.items()):
            name = path[len(self._root) :].lstrip("/")
            if not name or name.endswith("/") or not path.startswith(self._root):
                continue  # markers that storages without folders keep for them
            if is_hidden(name):
                self.ignored.append((name, "hidden"))
            else:
                self.files.append(name)
                self._listed[name] = info
        if not self.files:
            advice = "over https:// give the address of an archive or a manifest"
            raise UserError(f"{self._address}: no files are listed there; {advice}")
        self.folders = sorted({str(folder) for name in self.files for folder in PurePosixPath(name).parents[:-1]})
        return self

    def watch(self) -> None:
        with contextlib.suppress(UserError):
            self.scan()
        self._watching = True

    def read(self, name: str, count: int = -1) -> bytes:
        if self._watching and self.state(name)[1] is None:
            with contextlib.suppress(Exception):  # the download reports what is wrong
                self._listed[name] = self._fs.info(f"{self._root}/{name}")
        size, version = self.state(name)
        if size > MAX_BYTES:
            raise too_large()
        with _download(self._fs, f"{self._root}/{name}", version).open("rb") as stream:
            return stream.read(count)

    def state(self, name: str) -> tuple[int, str | None]:
        info = self._listed.get(name, {})
        size = info.get("size") or 0
        versions = (info.get(key) for key in _VERSIONS)
        # With the address: the same name and time can belong to another file elsewhere.
        return size, next((f"{self._address} {size} {value}" for value in versions if value), None)


def fetch(address: str) -> Path:
    """Return a local copy of the one file at `address`, with the same suffixes; downloaded again if it has changed.

    Raises:
        UserError: if it cannot be downloaded.
    """
    fs, path = filesystem(address)
    try:
        info = fs.info(path)
        version = secrets.token_hex()  # if the storage has no versions, only a download shows whether it has changed
        if any(info.get(key) for key in _VERSIONS):
            version = json.dumps([info.get(key) for key in ("size", *_VERSIONS)], default=str)
        return _download(fs, path, version)
    except FileNotFoundError as error:
        raise UserError(f"{address}: there is no such file, or no answer ({one_line(error)})") from error
    except ItemError as error:
        raise UserError(f"{address}: {error}") from error
    except Exception as error:  # each driver has errors of its own
        raise UserError(f"{address}: cannot be downloaded ({one_line(error)})") from error


def _download(fs: Any, path: str, version: str | None) -> Path:
    """Return the local copy of a file; download it if there is none of this version. None: any version will do."""
    name = PurePosixPath(path.split("?")[0])
    key = blake3(f"{fs.protocol}\0{path}".encode("utf-8", "surrogateescape")).hexdigest(length=16)
    copy = paths.cache_path("fetched") / key[:2] / (key + "".join(name.suffixes[-2:])[-20:])
    note = copy.with_name(f"{key}.version")
    if copy.is_file() and (version is None or (note.is_file() and note.read_text(encoding="utf-8") == version)):
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=copy.parent, prefix=".")
    os.close(handle)
    try:
        fs.get_file(path, partial)
        os.replace(partial, copy)
        note.write_text(version or "", encoding="utf-8")
    except FileNotFoundError as error:
        raise ItemError("missing", "no such file") from error
    except Exception as error:  # each driver has errors of its own
        if getattr(error, "errno", None) is not None and not isinstance(error, (ConnectionError, TimeoutError)):
            raise  # this disk is full, or read-only
        raise ItemError("unreadable", f"cannot be downloaded: {one_line(error)}") from error
    finally:
        Path(partial).unlink(missing_ok=True)
    return copy

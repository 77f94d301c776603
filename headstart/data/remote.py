"""Files at an address that fsspec knows, such as s3://bucket/photos: downloaded once, then read from the local copy.

The copies lie beside DVC's own temporary files and can be deleted at any time. A hash of each notices damage.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import fsspec
from blake3 import blake3

from headstart import paths
from headstart.data.files import MAX_BYTES, Source, is_hidden, too_large
from headstart.data.transfers import MAX_SECONDS, MAX_STREAM_BYTES, bounded, http_options
from headstart.errors import ItemError, UserError, one_line, readable

# What storages call the hash or the time of a file, the most reliable first.
_VERSIONS = ("ETag", "etag", "md5Hash", "Content-MD5", "LastModified", "Last-Modified", "updated", "mtime", "created")
MAX_LISTING_SECONDS = 7200.0
MAX_LOST_SECONDS = 600.0  # that transfers of one source may take which fail in the end
_PARTIAL = ".partial"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # this disk is full, or read-only

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


def _is_http(address: str) -> bool:
    return address.startswith(("http://", "https://"))


def filesystem(address: str) -> tuple[Any, str]:
    """Return fsspec's file system for `address`, and the path in it; raises UserError as `check_address`.

    Over HTTP a server may redirect to this machine or a private network only if `address` is there itself.
    """
    check_address(address)
    try:
        return fsspec.core.url_to_fs(address, **(http_options(address) if _is_http(address) else {}))
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
        self._lost = 0.0  # seconds

    def _scan(self) -> None:
        """Fill the attributes from the storage's listing.

        Raises:
            UserError: if nothing is there, or it cannot be listed.
        """
        if _is_http(self._address):  # a listing would be guessed from the links of web pages
            raise UserError(
                f"{self._address}: folders cannot be listed over HTTP; give the address of an archive or a manifest"
            )
        try:
            found = bounded(lambda _: self._fs.find(self._root, detail=True), MAX_LISTING_SECONDS)
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
            raise UserError(f"{self._address}: no files are listed there; give the address of a folder that has some")
        self.folders += sorted({str(folder) for name in self.files for folder in PurePosixPath(name).parents[:-1]})

    def watch(self) -> None:
        with contextlib.suppress(UserError):
            self.scan()
        self._watching = True

    def origin_version(self, name: str) -> str | None:
        if self.state(name)[1] is None:
            with contextlib.suppress(Exception):  # the download reports what is wrong
                self._listed[name] = bounded(lambda _: self._fs.info(f"{self._root}/{name}"))
        return self.state(name)[1]

    def read(self, name: str, count: int = -1) -> bytes:
        if self._watching:
            self.origin_version(name)
        size, version = self.state(name)
        if size > MAX_BYTES:
            raise too_large()
        start = time.monotonic()
        try:
            with _download(self._fs, f"{self._root}/{name}", version, MAX_BYTES).open("rb") as stream:
                return stream.read(count)
        except ItemError as error:
            self._lost += time.monotonic() - start
            if self._lost > MAX_LOST_SECONDS:
                raise UserError(
                    f"{self._address}: transfers that failed took more than {MAX_LOST_SECONDS / 60:g} minutes in all, "
                    f"the last one of {readable(name)} ({error}); try again when it answers"
                ) from error
            raise

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
        info = bounded(lambda _: fs.info(path))
        version = secrets.token_hex()  # if the storage has no versions, only a download shows whether it has changed
        if any(info.get(key) for key in _VERSIONS):
            version = json.dumps([info.get(key) for key in ("size", *_VERSIONS)], default=str)
        size = info.get("size") or 0
        return _download(fs, path, version, max(size, MAX_STREAM_BYTES), size)
    except FileNotFoundError as error:  # over HTTP also if a server refuses, or none answers
        said = one_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        raise UserError(f"{address}: there is no such file, or no answer ({said})") from error
    except ItemError as error:
        raise UserError(
            f"{address}: {error}; if it is what you expect, download it by other means and give its path"
        ) from error
    except Exception as error:  # each driver has errors of its own
        raise UserError(f"{address}: cannot be downloaded ({one_line(error)})") from error


def _download(fs: Any, path: str, version: str | None, limit: int, size: int = 0) -> Path:
    """Return the local copy of a file; download it if there is none of this version. None: any version will do.

    Args:
        limit: bytes that may arrive.
        size: bytes that are announced, 0 if unknown.
    """
    name = PurePosixPath(path.split("?")[0])
    key = blake3(f"{fs.protocol}\0{path}".encode("utf-8", "surrogateescape")).hexdigest(length=16)
    copy = paths.cache_path("fetched") / key[:2] / (key + "".join(name.suffixes[-2:])[-20:])
    note = copy.with_name(f"{key}.version")
    if copy.is_file():
        known, digest = _read_note(note)
        if digest and version in (None, known):
            if digest == _hash(copy):
                return copy
            print(f"{copy}: the copy of {readable(path)} is damaged; it is downloaded again", file=sys.stderr)
    copy.parent.mkdir(parents=True, exist_ok=True)
    for left in copy.parent.glob(f".*{_PARTIAL}"):  # by runs that were killed
        with contextlib.suppress(FileNotFoundError):  # another thread or run has just finished it
            if time.time() - left.stat().st_mtime > MAX_SECONDS:
                left.unlink()
    if size > (free := shutil.disk_usage(copy.parent).free):
        raise ItemError("too_large", f"{size / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free in {copy.parent.parent}")
    handle, partial = tempfile.mkstemp(_PARTIAL, ".", copy.parent)
    os.close(handle)
    try:
        bounded(lambda progress: fs.get_file(path, partial, callback=progress), limit=limit)
        note.write_text(json.dumps([version, _hash(Path(partial))]), encoding="utf-8")
        os.replace(partial, copy)
    except FileNotFoundError as error:
        raise ItemError("missing", "no such file") from error
    except ItemError:
        raise
    except Exception as error:  # each driver has errors of its own
        if getattr(error, "errno", None) in _DISK:
            raise
        raise ItemError("unreadable", f"cannot be downloaded: {one_line(error)}") from error
    finally:
        Path(partial).unlink(missing_ok=True)
    return copy


def _read_note(note: Path) -> tuple[Any, Any]:
    """Return the version of a copy and its hash; None for both if they are unknown."""
    try:
        version, digest = json.loads(note.read_bytes())
        return version, digest
    except (OSError, ValueError, TypeError):
        return None, None


def _hash(file: Path) -> str:
    return blake3(max_threads=blake3.AUTO).update_mmap(file).hexdigest(length=16)

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

import fsspec
from blake3 import blake3

from headstart import paths
from headstart.data.files import MAX_BYTES, Source, is_hidden, too_large
from headstart.errors import ItemError, UserError

# What storages call the hash or the time of a file, the most reliable first.
_VERSIONS = ("ETag", "etag", "md5Hash", "Content-MD5", "LastModified", "Last-Modified", "updated", "mtime", "created")


def filesystem(address: str) -> tuple[Any, str]:
    """Return fsspec's file system for `address`, and the path in it.

    Raises:
        UserError: if the kind of address is unknown, or its driver is not installed.
    """
    protocol = address.split("://")[0]
    if re.search(r"::\w+://", address):
        raise UserError(f"{address}: chained addresses are not supported; give the address of the files themselves")
    try:
        return fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise UserError(
            f"{address}: the driver of {protocol}:// is not installed ({error}); run "
            f"python -m pip install 'dvc[{protocol}]'"
        ) from error
    except Exception as error:  # drivers have errors of their own, and some connect at once
        raise UserError(
            f"{address}: {_first_line(error)}; give a path, or an s3://, gs:// or https:// address"
        ) from error


class Remote(Source):
    """The files below an address."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address.rstrip("/")
        self._fs, self._root = filesystem(self._address)
        self._root = self._root.rstrip("/")
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
            raise UserError(f"{self._address}: cannot be listed ({_first_line(error)})") from error
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
            raise UserError(
                f"{self._address}: no files are listed there; over https:// give the address of an archive or a "
                "manifest"
            )
        self.folders = sorted({str(folder) for name in self.files for folder in PurePosixPath(name).parents[:-1]})
        return self

    def watch(self) -> None:
        with contextlib.suppress(UserError):
            self.scan()
        self._watching = True

    def _read(self, name: str, count: int) -> bytes:
        with self.copy(name).open("rb") as stream:
            return stream.read(count)

    def state(self, name: str) -> tuple[int, str | None]:
        info = self._listed.get(name, {})
        size = info.get("size") or 0
        versions = (info.get(key) for key in _VERSIONS)
        # With the address: the same name and time can belong to another file elsewhere.
        return size, next((f"{self._address} {size} {value}" for value in versions if value), None)

    def copy(self, name: str) -> Path:
        """Return the local copy of a file, downloaded if there is none of this version.

        Raises:
            ItemError: if it cannot be downloaded.
        """
        if self._watching and self.state(name)[1] is None:
            with contextlib.suppress(Exception):  # the download reports what is wrong
                self._listed[name] = self._fs.info(f"{self._root}/{name}")
        size, version = self.state(name)
        if size > MAX_BYTES:
            raise too_large()
        return _download(self._fs, f"{self._root}/{name}", version)


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
        raise UserError(f"{address}: there is no such file, or no answer ({_first_line(error)})") from error
    except ItemError as error:
        raise UserError(f"{address}: {error}") from error
    except Exception as error:  # each driver has errors of its own
        raise UserError(f"{address}: cannot be downloaded ({_first_line(error)})") from error


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
    except OSError as error:
        if error.errno is not None and not isinstance(error, (ConnectionError, TimeoutError)):
            raise  # this disk is full, or read-only
        raise ItemError("unreadable", f"cannot be downloaded: {_first_line(error)}") from error
    except Exception as error:  # each driver has errors of its own
        raise ItemError("unreadable", f"cannot be downloaded: {_first_line(error)}") from error
    finally:
        Path(partial).unlink(missing_ok=True)
    return copy


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200] or type(error).__name__

"""Where the bytes of the images come from: a folder, a .zip, or a .tar, read in place and by many threads.

Names are relative to the source, with `/` between their parts.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import re
import shutil
import tarfile
import tempfile
import threading
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pipeline.errors import UserError
from pipeline.images import ImageError

MANIFESTS = (".csv", ".parquet")
MAX_BYTES = 2**30  # of one image file: anything larger is no photograph
SUPPORTED = "a folder, a .zip, a .tar (also .gz, .bz2, .xz), a .csv or a .parquet manifest"
_HIDDEN = {"__macosx", "thumbs.db", "desktop.ini"}
_DRIVE = re.compile(r"[A-Za-z]:$")
_COMPRESSION = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


def hidden(name: str) -> bool:
    """Whether `name` is a file or folder that systems leave behind: `.DS_Store`, `__MACOSX/...`, `Thumbs.db`."""
    return any(part.startswith(".") or part.lower() in _HIDDEN for part in name.split("/"))


class Source(ABC):
    """A context manager that gives out the bytes of its files.

    Attributes:
        files: names of its files that are not hidden.
        folders: names of its folders that are not hidden; archives may not list all of theirs.
        refused: name and reason of what is neither.
    """

    def __init__(self) -> None:
        self.files: list[str] = []
        self.folders: list[str] = []
        self.refused: list[tuple[str, str]] = []

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of a file; safe to call from several threads.

        Raises:
            ImageError: where it cannot be read.
        """

    def close(self) -> None:  # noqa: B027  a folder holds nothing open
        """Let go of open files."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Folder(Source):
    """The files below `root`. Links are followed, as DVC's own checkouts may consist of them."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root

    def scan(self) -> Folder:
        """Fill `files` and `folders`."""
        seen = {os.path.realpath(self._root)}
        for folder, subfolders, names in os.walk(self._root, followlinks=True):
            below = Path(folder).relative_to(self._root).as_posix()
            prefix = "" if below == "." else f"{below}/"
            subfolders[:] = sorted(name for name in subfolders if not hidden(name))
            for name in list(subfolders):
                real = os.path.realpath(os.path.join(folder, name))
                if os.path.islink(os.path.join(folder, name)) and real in seen:
                    subfolders.remove(name)  # a link back up, or to a folder that was seen
                seen.add(real)
            self.folders += (prefix + name for name in subfolders)
            self.files += (prefix + name for name in sorted(names) if not hidden(name))
        return self

    def read(self, name: str) -> bytes:
        path = self._root / name
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ImageError(f"larger than {MAX_BYTES >> 20} MiB")
            if not path.is_file():
                raise ImageError("not a file")
            return path.read_bytes()
        except OSError as error:
            raise ImageError((error.strerror or str(error)).lower()) from error


class _Archive(Source):
    """What .zip and .tar share: members by name, read one at a time."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file
        self._members: dict[str, Any] = {}
        self._reading = threading.Lock()

    def _add(self, name: str, member: Any, size: int) -> None:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or (parts and _DRIVE.match(parts[0])):
            raise UserError(
                f"{self._file}: the member {name!r} leads out of the archive; make the archive anew without it"
            )
        plain = "/".join(parts)
        if hidden(plain):
            return
        if size > MAX_BYTES:
            self.refused.append((plain, f"larger than {MAX_BYTES >> 20} MiB"))
        elif plain in self._members:
            raise UserError(f"{self._file}: holds {name!r} twice; make the archive anew with one of them")
        else:
            self._members[plain] = member
            self.files.append(plain)

    def _add_folder(self, name: str) -> None:
        plain = "/".join(PurePosixPath(name).parts)
        if plain and not hidden(plain):
            self.folders.append(plain)


class Zip(_Archive):
    """A .zip."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        try:
            self._zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise UserError(f"{file}: not a readable .zip archive ({error}); make it anew") from error
        for info in self._zip.infolist():
            name = info.filename.replace("\\", "/")  # as some programs on Windows write it, against the standard
            if name.endswith("/"):
                self._add_folder(name)
            elif info.flag_bits & 1:
                raise UserError(f"{file}: {info.filename!r} is encrypted; make the archive anew without a password")
            elif (info.external_attr >> 28) == 0o12:
                self.refused.append((name, "a link"))
            else:
                self._add(name, info, info.file_size)

    def read(self, name: str) -> bytes:
        try:
            with self._reading:
                return self._zip.read(self._members[name])
        except KeyError as error:
            raise ImageError("not in the archive") from error
        except (
            zipfile.BadZipFile,
            OSError,
            EOFError,
            NotImplementedError,
            zipfile.zlib.error,
            lzma.LZMAError,
        ) as error:
            raise ImageError(f"damaged in the archive: {error}") from error

    def close(self) -> None:
        self._zip.close()


class Tar(_Archive):
    """A .tar; a compressed one is first unpacked, as one file, since it cannot be read from the middle."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        try:
            self._plain = _uncompressed(file)
            self._tar = tarfile.open(fileobj=self._plain, mode="r:")  # noqa: SIM115  close() closes it
            members = self._tar.getmembers()
            self._plain.seek(self._tar.offset)
            end = self._plain.read(tarfile.BLOCKSIZE)
        except (tarfile.TarError, OSError, EOFError, lzma.LZMAError, gzip.zlib.error) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise UserError(
                    f"{file}: no space to unpack it in {tempfile.gettempdir()}; free some, or name another folder "
                    "in the environment variable TMPDIR"
                ) from error
            raise UserError(f"{file}: not a readable .tar archive ({error}); make it anew") from error
        if not end or end.strip(b"\0"):  # tarfile takes a header that it cannot read for the end
            raise UserError(f"{file}: cut off or damaged after its {len(members)} first members; make it anew")
        for member in members:
            if member.isdir():
                self._add_folder(member.name)
            elif not member.isreg() and not member.islnk():  # a hard link is another name of a member
                self.refused.append((member.name, "a link" if member.issym() else "a device"))
            else:
                self._add(member.name, member, member.size)

    def read(self, name: str) -> bytes:
        try:
            with self._reading, self._tar.extractfile(self._members[name]) as content:
                return content.read()
        except KeyError as error:
            raise ImageError("not in the archive") from error
        except (tarfile.TarError, OSError) as error:
            raise ImageError(f"damaged in the archive: {error}") from error

    def close(self) -> None:
        self._tar.close()
        self._plain.close()


def _uncompressed(file: Path) -> IO[bytes]:
    stream = file.open("rb")
    start = stream.read(5)
    stream.seek(0)
    for magic, opener in _COMPRESSION.items():
        if start.startswith(magic):
            unpacked = tempfile.TemporaryFile()  # noqa: SIM115  close() closes it
            with stream, opener(stream) as content:
                shutil.copyfileobj(content, unpacked, 1 << 20)
            unpacked.seek(0)
            return unpacked
    return stream


def open_source(source: Path) -> Source:
    """Open `source`; a manifest's images are read from the folder that it lies in.

    Raises:
        UserError: where there is none, or it is of no supported kind, or damaged.
    """
    if source.is_dir():
        return Folder(source)
    if not source.is_file():
        raise UserError(f"params.yaml: data.source {str(source)!r} does not exist; give the path of {SUPPORTED}")
    if source.suffix.lower() in MANIFESTS:
        return Folder(source.parent)
    name = source.name.lower()
    if name.endswith(".zip"):
        return Zip(source)
    if name.endswith(".tgz") or ".tar" in PurePosixPath(name).suffixes:
        return Tar(source)
    raise UserError(f"params.yaml: data.source {str(source)!r} is of no supported kind; give {SUPPORTED}")

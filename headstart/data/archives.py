"""Images in a .zip or a .tar, read in place and by many threads."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import re
import tarfile
import tempfile
import threading
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from headstart.data.files import MAX_BYTES, Folder, Source, hidden, too_large
from headstart.errors import ItemError, UserError

# Photographs do not compress: what does, this well and to this size, is there to fill a memory or a disk.
BOMB_RATIO, BOMB_MEMBER_BYTES = 200, 2**25
BOMB_ARCHIVE_BYTES = 2**30
_DRIVE = re.compile(r"[A-Za-z]:$")
_COMPRESSION: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_DAMAGES = (
    *(zipfile.BadZipFile, tarfile.TarError, OSError, EOFError, NotImplementedError),
    *(zlib.error, lzma.LZMAError, ValueError, OverflowError, RuntimeError),
)


class _Archive(Source):
    """What .zip and .tar share: members by name, read one at a time."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file
        self._plain_file = file  # where it can be read without unpacking it first
        self._members: dict[str, Any] = {}
        self._twice: set[str] = set()
        self._reading = threading.Lock()

    @abstractmethod
    def _open(self, member: Any) -> IO[bytes]:
        """The content of a member."""

    def _add(self, name: str, member: Any, size: int, refusal: tuple[str, str] | None = None) -> None:
        """Take a member, or note why not: `refusal` is reason and detail."""
        parts = PurePosixPath(name).parts
        plain = "/".join(parts)
        if leads_out(name):
            self.refused.append((name, "outside", "leads out of the archive"))
        elif hidden(plain):
            self.ignored.append((plain, "hidden"))
        elif refusal:
            self.refused.append((plain, *refusal))
        elif size > MAX_BYTES:
            error = too_large()
            self.refused.append((plain, error.reason, str(error)))
        elif plain in self._members or plain in self._twice:
            if plain in self._members:  # which of the two is meant cannot be known
                del self._members[plain]
                self._twice.add(plain)
                self.refused.append((plain, "repeated", "the archive holds another member of this name"))
            self.refused.append((plain, "repeated", "the archive holds another member of this name"))
        else:
            self._members[plain] = member

    def _add_folder(self, name: str) -> None:
        plain = "/".join(PurePosixPath(name).parts)
        if plain and not hidden(plain) and not leads_out(name):
            self.folders.append(plain)

    def opener(self) -> Callable[[], Source] | None:
        unpacked = self._plain_file != self._file
        return None if unpacked and os.name == "nt" else partial(type(self), self._plain_file)

    def _read(self, name: str, count: int) -> bytes:
        try:
            with self._reading, self._open(self._members[name]) as content:
                return content.read(count)
        except KeyError as error:
            raise ItemError("missing", "not in the archive") from error
        except _DAMAGES as error:
            raise ItemError("unreadable", f"damaged in the archive: {error}") from error


class Zip(_Archive):
    """A .zip."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        try:
            self._zip = zipfile.ZipFile(file)
            self._state = Folder(file.parent).state(file.name)[1]
        except _DAMAGES as error:
            raise UserError(f"{file}: not a readable .zip archive ({error}); make it anew") from error
        for info in self._zip.infolist():
            name = info.filename.replace("\\", "/")  # as some programs on Windows write it, against the standard
            refusal = None
            if info.flag_bits & 1:
                refusal = ("encrypted", "encrypted in the archive")
            elif (info.external_attr >> 28) == 0o12:
                refusal = ("link", "a link in the archive")
            elif info.file_size > max(BOMB_MEMBER_BYTES, BOMB_RATIO * info.compress_size):
                refusal = ("bomb", f"{info.compress_size} bytes in the archive that claim to be {info.file_size}")
            if name.endswith("/"):
                self._add_folder(name)
            else:
                self._add(name, info, info.file_size, refusal)
        self.files = list(self._members)

    def _open(self, member: zipfile.ZipInfo) -> IO[bytes]:
        return self._zip.open(member)

    def state(self, name: str) -> tuple[int, str | None]:
        member = self._members.get(name)
        # What the archive says of a member is not trusted for its content: the archive itself must be the same.
        if member is None:
            return 0, None
        return member.file_size, self._state and f"{self._state} {member.CRC}"

    def close(self) -> None:
        self._zip.close()


class Tar(_Archive):
    """A .tar; a compressed one is first unpacked, as one file, since it cannot be read from the middle."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        try:
            self._plain = _uncompressed(file)
            self._plain_file = Path(self._plain.name)
            self._tar = tarfile.open(fileobj=self._plain, mode="r:")  # noqa: SIM115  close() closes it
            members = self._tar.getmembers()
            self._plain.seek(self._tar.offset)
            end = self._plain.read(tarfile.BLOCKSIZE)
        except _DAMAGES as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise UserError(
                    f"{file}: no space to unpack it in {tempfile.gettempdir()}; free some, or name another folder "
                    "in the environment variable TMPDIR"
                ) from error
            raise UserError(f"{file}: not a readable .tar archive ({error}); make it anew") from error
        if not end or end.strip(b"\0"):  # tarfile takes a header that it cannot read for the end
            raise UserError(f"{file}: cut off or damaged after its {len(members)} first members; make it anew")
        for member in members:
            refusal = None
            if member.issym():
                refusal = ("link", "a link in the archive")
            elif member.issparse():  # a few bytes can claim to be gigabytes of zeros
                refusal = ("bomb", "a sparse file in the archive")
            elif not member.isreg() and not member.islnk():  # a hard link is another name of a member
                refusal = ("unreadable", "a device in the archive")
            if member.isdir():
                self._add_folder(member.name)
            else:
                self._add(member.name, member, member.size, refusal)
        self.files = list(self._members)

    def _open(self, member: tarfile.TarInfo) -> IO[bytes]:
        content = self._tar.extractfile(member)
        if content is None:
            raise tarfile.ReadError("a link to what is no file")
        return content

    def state(self, name: str) -> tuple[int, str | None]:
        return (self._members[name].size if name in self._members else 0), None

    def close(self) -> None:
        self._tar.close()
        self._plain.close()


def leads_out(name: str) -> bool:
    """Whether a relative name, read by a careless program, would reach out of its folder."""
    parts = PurePosixPath(name).parts
    return name.startswith("/") or ".." in parts or bool(parts and _DRIVE.match(parts[0]))


def _uncompressed(file: Path) -> IO[bytes]:
    stream = file.open("rb")
    start = stream.read(5)
    stream.seek(0)
    for magic, opener in _COMPRESSION.items():
        if start.startswith(magic):
            unpacked = tempfile.NamedTemporaryFile(suffix=".tar")  # noqa: SIM115  close() closes it
            limit = max(BOMB_ARCHIVE_BYTES, BOMB_RATIO * file.stat().st_size)
            with stream, opener(stream) as content:
                while block := content.read(1 << 20):
                    unpacked.write(block)
                    if unpacked.tell() > limit:
                        unpacked.close()
                        raise UserError(
                            f"{file}: unpacks to more than {limit >> 20} MiB, over {BOMB_RATIO} times its size, as no "
                            "archive of images does; unpack it yourself and give the folder if you trust it"
                        )
            unpacked.seek(0)
            return unpacked
    return stream

"""Examples in a .zip or a .tar, read in place and by many threads."""

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

from headstart.data.files import MAX_BYTES, Folder, Source, is_hidden, too_large
from headstart.data.zip_names import decoded_names
from headstart.errors import ItemError, UserError
from headstart.zips import open_zip

# Files of examples hardly compress: what compresses this well, to this size, is made to fill the memory or the disk.
BOMB_RATIO, BOMB_MEMBER_BYTES = 200, 2**25
BOMB_ARCHIVE_BYTES = 2**30
MAX_MEMBERS = 5_000_000  # they are listed in memory, at a kilobyte each
MAX_HEADER_BYTES = 2**16  # of the name and the attributes of a member of a .tar
_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
_DRIVE = re.compile(r"[A-Za-z]:$")
_COMPRESSION: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_DAMAGES = (
    *(zipfile.BadZipFile, tarfile.TarError, OSError, EOFError, NotImplementedError),
    *(zlib.error, lzma.LZMAError, ValueError, OverflowError, RuntimeError),
)


class _Archive(Source):
    """What .zip and .tar have in common: members by name, read one at a time."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file
        self._plain_file = file  # the file to read from, uncompressed
        self._version = Folder(file.parent).state(file.name)[1]
        self._members: dict[str, tuple[Any, int, object]] = {}  # by name: member, size, what distinguishes it
        self._repeated: set[str] = set()
        self._lock = threading.Lock()

    @abstractmethod
    def _open(self, member: Any) -> IO[bytes]:
        """Open the content of a member."""

    def state(self, name: str) -> tuple[int, str | None]:
        if name not in self._members:
            return 0, None
        _, size, mark = self._members[name]
        # What the archive says about a member proves nothing: the archive itself must be unchanged.
        return size, self._version and f"{self._version} {mark}"

    def _add(self, name: str, member: Any, size: int, mark: object, refusal: tuple[str, str] | None) -> None:
        """Add a folder (no member) or a member, or refuse it; `refusal` is reason and detail."""
        plain = "/".join(PurePosixPath(name).parts)
        if member is None:
            if plain and not is_hidden(plain) and not leads_out(name):
                self.folders.append(plain)
        elif leads_out(name):
            self.refused.append((name, "outside", "leads out of the archive"))
        elif is_hidden(plain):
            self.ignored.append((plain, "hidden"))
        elif refusal:
            self.refused.append((plain, *refusal))
        elif size > MAX_BYTES:
            error = too_large()
            self.refused.append((plain, error.reason, str(error)))
        elif plain in self._members or plain in self._repeated:  # which one is meant is unknown: all are refused
            first = self._members.pop(plain, None) is not None
            self._repeated.add(plain)
            refused = (plain, "repeated", "the archive holds another member of this name")
            self.refused += [refused, refused] if first else [refused]
        else:
            self._members[plain] = member, size, mark

    def opener(self) -> Callable[[], Source] | None:
        unpacked = self._plain_file != self._file
        return None if unpacked and os.name == "nt" else partial(type(self), self._plain_file)

    def read(self, name: str, count: int = -1) -> bytes:
        try:
            with self._lock, self._open(self._members[name][0]) as content:
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
            self._zip = open_zip(file, MAX_MEMBERS)
        except _DAMAGES as error:
            raise UserError(f"{file}: not a readable .zip archive ({error}); create it again") from error
        infos = self._zip.infolist()
        for info, name in zip(infos, decoded_names(infos), strict=True):
            name = name.replace("\\", "/")  # as some programs on Windows write it, against the standard
            refusal = None
            if info.flag_bits & 1:
                refusal = ("encrypted", "encrypted in the archive")
            elif (info.external_attr >> 28) == 0o12:
                refusal = ("link", "a link in the archive; pack what it leads to: zip without --symlinks")
            elif info.file_size > max(BOMB_MEMBER_BYTES, BOMB_RATIO * info.compress_size):
                refusal = ("bomb", f"{info.compress_size} bytes in the archive that claim to be {info.file_size}")
            self._add(name, None if name.endswith("/") else info, info.file_size, info.CRC, refusal)
        self.files = list(self._members)

    def _open(self, member: zipfile.ZipInfo) -> IO[bytes]:
        return self._zip.open(member)

    def close(self) -> None:
        self._zip.close()


class _Header(tarfile.TarInfo):
    """A member whose name and attributes, which tarfile reads into memory, are not huge."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _HEADERS and header.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a name or attributes of {header.size:,} bytes")
        return header


class Tar(_Archive):
    """A .tar; a compressed one is unpacked to a temporary .tar first, since it cannot be read from the middle."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        try:
            self._plain = _uncompressed(file)
            self._plain_file = Path(self._plain.name)
            self._tar = tarfile.open(fileobj=self._plain, mode="r:", tarinfo=_Header)  # noqa: SIM115  close() does
            members = []
            for member in self._tar:
                member.pax_headers = {}  # each has a copy of what the archive says about all
                members.append(member)
                if len(members) > MAX_MEMBERS:
                    raise tarfile.ReadError(f"more than {MAX_MEMBERS:,} members")
            self._plain.seek(self._tar.offset)
            end = self._plain.read(tarfile.BLOCKSIZE)
        except _DAMAGES as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise UserError(
                    f"{file}: no space to unpack it in {tempfile.gettempdir()}; free some, or set the environment "
                    "variable TMPDIR to another folder"
                ) from error
            raise UserError(f"{file}: not a readable .tar archive ({error}); create it again") from error
        if not end or end.strip(b"\0"):  # tarfile takes a header that it cannot read for the end
            raise UserError(f"{file}: cut off or damaged after its first {len(members)} members; create it again")
        earlier: dict[str, tarfile.TarInfo] = {}
        for member in members:
            # A hard link is another name of an earlier member, and is judged by what it leads to.
            content = earlier.get(member.linkname, member) if member.islnk() else member
            earlier[member.name] = content
            refusal = None
            if content.issym():
                refusal = ("link", "a link in the archive; pack what it leads to: tar --dereference")
            elif content.issparse():  # a few bytes can claim to be gigabytes of zeros
                refusal = ("bomb", "a sparse file in the archive")
            elif content.islnk():
                refusal = ("missing", "a link to a file that is not in the archive")
            elif not content.isreg():
                refusal = ("unreadable", "a device in the archive")
            self._add(member.name, None if member.isdir() else content, content.size, content.offset_data, refusal)
        self.files = list(self._members)

    def _open(self, member: tarfile.TarInfo) -> IO[bytes]:
        content = self._tar.extractfile(member)
        if content is None:
            raise tarfile.ReadError("a link to something that is not a file")
        return content

    def close(self) -> None:
        self._tar.close()
        self._plain.close()


def leads_out(name: str) -> bool:
    """Whether a relative name, opened by a careless program, would reach out of its folder."""
    parts = PurePosixPath(name).parts
    return name.startswith("/") or ".." in parts or bool(parts and _DRIVE.match(parts[0]))


def _uncompressed(file: Path) -> IO[bytes]:
    """Open a .tar, unpacked to a temporary file if it is compressed."""
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
                            f"{file}: unpacks to more than {limit >> 20} MiB, over {BOMB_RATIO} times its size, which "
                            "archives of examples do not; if you trust it, unpack it yourself and give the folder"
                        )
            unpacked.seek(0)
            return unpacked
    return stream

"""Sources of examples: the interface of all of them, and the simplest one, a folder.

Names are relative to the source, with `/` between their parts.
"""

from __future__ import annotations

import os
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from blake3 import blake3

from headstart.errors import ItemError, UserError, readable

MAX_BYTES = 2**30  # of one file
HEAD = 64  # bytes, enough to recognize a file format
SETTLED = 2.0  # seconds until a file's modification time is trusted: the clocks of file systems are coarse
_HIDDEN = {"__macosx", "thumbs.db", "desktop.ini"}


def is_hidden(name: str) -> bool:
    """Whether `name` is a file or folder that operating systems create: `.DS_Store`, `__MACOSX/...`, `Thumbs.db`."""
    return any(part.startswith(".") or part.lower() in _HIDDEN for part in name.split("/"))


class Source(ABC):
    """A context manager that reads the files of a data source.

    Attributes:
        files: names of its files that are not hidden.
        folders: names of its folders that are not hidden; archives may not list all of theirs.
        linked: those of its folders that are links to folders elsewhere, which DVC does not look behind.
        refused: name, reason and detail of files that may have been meant as examples but are not read.
        ignored: name and reason of what is skipped; a hidden folder stands for everything in it.
        inline: whether `data.source` is one file that holds the examples, instead of naming theirs.
    """

    inline = False

    def __init__(self) -> None:
        self.files: list[str] = []
        self.folders: list[str] = []
        self.linked: list[str] = []
        self.refused: list[tuple[str, str, str]] = []
        self.ignored: list[tuple[str, str]] = []
        self._scanned = False

    def scan(self) -> Source:
        """Fill the attributes if nothing has yet; `read` does not need them."""
        if not self._scanned:
            self._scan()
            self._scanned = True
        return self

    def _scan(self) -> None:  # noqa: B027  archives are listed when they are opened
        """Fill the attributes."""

    @abstractmethod
    def read(self, name: str, count: int = -1) -> bytes:
        """Read a file, or its first `count` bytes; threads may call this at once.

        Raises:
            ItemError: if it cannot be read: missing, unreadable, too_large.
        """

    @abstractmethod
    def state(self, name: str) -> tuple[int, str | None]:
        """Return the size and the version of a file without reading it.

        Returns:
            How many bytes `read` will return, 0 if unknown; and a text that changes if the file changes, None if
            nothing cheap shows that.
        """

    def names_in(self, folder: str) -> Iterable[str]:
        """Return the names of the files in a folder, without it; none at an address that lists nothing."""
        prefix = f"{folder}/" if folder else ""
        rests = (name[len(prefix) :] for name in self.files if name.startswith(prefix))
        return [rest for rest in rests if "/" not in rest]

    def origin_version(self, name: str) -> str | None:
        """Ask the origin of a file for its version, None if there is no other origin than this disk, or no version."""
        return None

    def watch(self) -> None:  # noqa: B027  files on this disk are always looked at
        """From now on notice changes at the origin of the files, not only in local copies."""

    def opener(self) -> Callable[[], Source] | None:
        """Return a function that opens the same files in another process, or None if that is too expensive."""
        return None

    def close(self) -> None:  # noqa: B027  a folder holds nothing open
        """Close open files."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Folder(Source):
    """The files below `root`. Links are followed, since DVC's own checkouts may consist of links."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root

    def _scan(self) -> None:
        top = os.path.realpath(self._root)
        seen = {top}
        for folder, subfolders, names in os.walk(self._root, followlinks=True):
            below = Path(folder).relative_to(self._root).as_posix()
            prefix = "" if below == "." else f"{below}/"
            visible = []  # links to folders only if they lead out of the root, each target once
            for name in sorted(subfolders):
                path = os.path.join(folder, name)
                real = os.path.realpath(path)
                if is_hidden(name):
                    self.ignored.append((f"{prefix}{name}/", "hidden"))
                elif os.path.islink(path) and (real in seen or Path(real).is_relative_to(top)):
                    self.ignored.append((f"{prefix}{name}/", "a link to a folder that is listed elsewhere"))
                else:
                    visible.append(name)
                    seen.add(real)
                    if os.path.islink(path):
                        self.linked.append(prefix + name)
            subfolders[:] = visible
            self.folders += (prefix + name for name in visible)
            for name in sorted(names):
                if is_hidden(name):
                    self.ignored.append((prefix + name, "hidden"))
                else:
                    self.files.append(prefix + name)

    def names_in(self, folder: str) -> Iterable[str]:
        try:
            return os.listdir(self._root / folder)
        except OSError:  # whoever reads the files reports it
            return []

    def opener(self) -> Callable[[], Source] | None:
        return partial(Folder, self._root)

    def read(self, name: str, count: int = -1) -> bytes:
        try:
            state = os.stat(f"{self._root}/{name}")
            if not stat.S_ISREG(state.st_mode):  # opening a pipe would wait forever
                raise ItemError("unreadable", "not a file")
            if count < 0 and state.st_size > MAX_BYTES:
                raise too_large()
            with open(f"{self._root}/{name}", "rb", buffering=0) as stream:
                return stream.read(count)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ItemError("missing", "no such file") from error
        except OSError as error:
            raise ItemError("unreadable", (error.strerror or str(error)).lower()) from error

    def state(self, name: str) -> tuple[int, str | None]:
        try:
            state = os.stat(f"{self._root}/{name}")
        except OSError:
            return 0, None
        settled = time.time() - state.st_mtime >= SETTLED
        version = f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_ino}"
        return state.st_size, version if settled else None


def file_hash(data: bytes) -> str:
    """Return the BLAKE3 hash of a file's bytes, 32 hexadecimal digits."""
    return blake3(data).hexdigest(length=16)


def read_unchanged(source: Source, path: str, expected: str) -> bytes:
    """Read the file whose `file_hash` is `expected`.

    Raises:
        UserError: if the file has changed.
    """
    try:
        data = source.read(path)
        if file_hash(data) == expected:
            return data
        reason = "its content is different"
    except ItemError as error:
        reason = str(error)
    raise UserError(
        f"{readable(path)} has changed since prepare ran ({reason}); run `dvc repro --force prepare`, then `dvc repro`"
    )


def too_large() -> ItemError:
    """Return the error for a file that is too large to be an example."""
    return ItemError("too_large", f"larger than {MAX_BYTES >> 20} MiB")

"""Where the bytes of images come from: what every kind of source gives, and the simplest kind, a folder.

Names are relative to the source, with `/` between their parts.
"""

from __future__ import annotations

import os
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path

from blake3 import blake3

from headstart.errors import ItemError, UserError

MAX_BYTES = 2**30  # of one image file: anything larger is no photograph
HEAD = 64  # bytes that tell of what kind a file is
SETTLED = 2.0  # seconds after which a file's time tells whether it was changed: clocks of file systems are coarse
_HIDDEN = {"__macosx", "thumbs.db", "desktop.ini"}


def hidden(name: str) -> bool:
    """Whether `name` is a file or folder that systems leave behind: `.DS_Store`, `__MACOSX/...`, `Thumbs.db`."""
    return any(part.startswith(".") or part.lower() in _HIDDEN for part in name.split("/"))


class Source(ABC):
    """A context manager that gives out the bytes of its files.

    Attributes:
        files: names of its files that are not hidden.
        folders: names of its folders that are not hidden; archives may not list all of theirs.
        refused: name, reason and detail of what may have been meant as an image but is not read.
        ignored: name and reason of what is passed over; a hidden folder stands for all that is in it.
    """

    def __init__(self) -> None:
        self.files: list[str] = []
        self.folders: list[str] = []
        self.refused: list[tuple[str, str, str]] = []
        self.ignored: list[tuple[str, str]] = []

    def scan(self) -> Source:
        """Fill the attributes, where opening has not done so; reading by name needs none of them."""
        return self

    def read(self, name: str) -> bytes:
        """The bytes of a file; safe to call from several threads.

        Raises:
            ItemError: where it cannot be read: missing, unreadable, too_large.
        """
        return self._read(name, -1)

    def head(self, name: str) -> bytes:
        """The first HEAD bytes of a file, fewer of a shorter one.

        Raises:
            ItemError: as `read`.
        """
        return self._read(name, HEAD)

    @abstractmethod
    def _read(self, name: str, count: int) -> bytes:
        """The first `count` bytes, all where it is negative."""

    @abstractmethod
    def state(self, name: str) -> tuple[int, str | None]:
        """What is known of a file without reading it; cheap.

        Returns:
            How many bytes `read` will give, 0 where that is not known; and its version, another text once it has
            changed, or None where nothing cheap tells that.
        """

    def watch(self) -> None:  # noqa: B027  files on this disk are looked at anyway
        """From now on see what has changed at the place where the files come from, not only what is here already."""

    def opener(self) -> Callable[[], Source] | None:
        """What opens the same files again in another process, or None where that would cost too much."""
        return None

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
        top = os.path.realpath(self._root)
        seen = {top}
        for folder, subfolders, names in os.walk(self._root, followlinks=True):
            below = Path(folder).relative_to(self._root).as_posix()
            prefix = "" if below == "." else f"{below}/"
            visible = []  # of links to folders those that lead out of the root, once each
            for name in sorted(subfolders):
                path = os.path.join(folder, name)
                real = os.path.realpath(path)
                if hidden(name):
                    self.ignored.append((f"{prefix}{name}/", "hidden"))
                elif os.path.islink(path) and (real in seen or Path(real).is_relative_to(top)):
                    self.ignored.append((f"{prefix}{name}/", "a link to a folder that is seen elsewhere"))
                else:
                    visible.append(name)
                    seen.add(real)
            subfolders[:] = visible
            self.folders += (prefix + name for name in visible)
            for name in sorted(names):
                if hidden(name):
                    self.ignored.append((prefix + name, "hidden"))
                else:
                    self.files.append(prefix + name)
        return self

    def opener(self) -> Callable[[], Source] | None:
        return partial(Folder, self._root)

    def _read(self, name: str, count: int) -> bytes:
        try:
            state = os.stat(f"{self._root}/{name}")
            if not stat.S_ISREG(state.st_mode):  # opening a pipe would wait for ever
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
        return (
            state.st_size,
            f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_ino}" if settled else None,
        )


def file_hash(data: bytes) -> str:
    """A name of a file by its bytes: BLAKE3, 32 hexadecimal digits."""
    return blake3(data).hexdigest(length=16)


def read_unchanged(source: Source, path: str, expected: str) -> bytes:
    """The bytes of the file whose `file_hash` is `expected`.

    Raises:
        UserError: if the file is not that one any more.
    """
    try:
        data = source.read(path)
        if file_hash(data) == expected:
            return data
        reason = "its content is different"
    except ItemError as error:
        reason = str(error)
    raise UserError(
        f"{path} has changed since prepare ran ({reason}); run `dvc repro --force prepare`, then `dvc repro`"
    )


def too_large() -> ItemError:
    """The error for a file that no photograph is as large as."""
    return ItemError("too_large", f"larger than {MAX_BYTES >> 20} MiB")

"""Images that a user names: files, folders, patterns, addresses, or a list of them on standard input."""

from __future__ import annotations

import glob
import os
import queue
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from headstart.data.files import Folder
from headstart.data.remote import filesystem
from headstart.errors import ItemError, UserError
from headstart.modalities.image.decode import SUFFIXES
from headstart.modalities.image.pixels import load, pixels, resize
from headstart.paths import is_address

STDIN = "-"
MAX_BYTES, SECONDS = 2**26, 30.0  # of an image at an address: how large, and how long it may take
_CHUNK = 2**20
_NO_IMAGE = f"no image in this folder ({', '.join(sorted(SUFFIXES))})"


def find_images(given: Sequence[str]) -> list[str]:
    """The names of all images that are meant, those of a folder or pattern sorted.

    Args:
        given: paths of images; of folders, for the images below them; patterns, as `photos/**/*.jpg`; addresses of
            images; `-`: lines of standard input, each a path or an address.

    Returns:
        Each name once. What is listed and gone by now, or a folder without images, is among them: it is told with the
        other images that cannot be read, and the rest of a long list is answered.

    Raises:
        UserError: where a name leads nowhere, or a folder or pattern to no image.
    """
    found: list[str] = []
    for name in given:
        if name == STDIN:
            for line in _listed():
                found += (_images(Path(line)) or [line]) if os.path.isdir(line) else [line]
        elif is_address(name) or os.path.isfile(name):
            found.append(name)
        elif os.path.isdir(name):
            found += _below(Path(name))
        elif os.path.exists(name):
            raise UserError(f"{name} is no file and no folder")
        elif glob.has_magic(name):
            found += _matching(name)
        else:
            raise UserError(f"{name} does not exist; give images, folders with images, patterns in quotes, addresses")
    if not found:
        raise UserError("no image is named: standard input is empty")
    once: dict[str, str] = {}
    for name in found:
        once.setdefault(name if is_address(name) else str(Path(name)), name)  # `./a.png` is the `a.png` of a folder
    return list(once.values())


def _listed() -> list[str]:
    """The lines of standard input that are not blank."""
    listed = os.fsdecode(sys.stdin.buffer.read())
    if "\0" in listed:
        raise UserError("standard input: a NUL among the names; give one a line: find without -print0, git without -z")
    # Nothing but a line feed divides: other letters that str.splitlines knows can be part of a name.
    lines = (line.removesuffix("\r") for line in listed.split("\n"))
    return [line for line in lines if line.strip()]


def _below(folder: Path) -> list[str]:
    below = _images(folder)
    if not below:
        raise UserError(f"{folder}: {_NO_IMAGE}")
    return below


def _images(folder: Path) -> list[str]:
    return sorted(str(folder / name) for name in Folder(folder).scan().files if Path(name).suffix.lower() in SUFFIXES)


def _matching(pattern: str) -> list[str]:
    matches = sorted(glob.glob(pattern, recursive=True))
    found = [name for name in matches if Path(name).suffix.lower() in SUFFIXES and os.path.isfile(name)]
    if not found:
        raise UserError(f"{pattern}: no image matches this pattern ({', '.join(sorted(SUFFIXES))})")
    return found


def load_given(name: str, size: int) -> np.ndarray:
    """The image as the networks see it: (size, size, 3) uint8.

    Raises:
        ItemError: where it cannot be read.
    """
    if is_address(name):
        return resize(pixels(fetch(name), size), size)
    if os.path.isdir(name):
        raise ItemError("missing", _NO_IMAGE)
    return load(Path(name), size)


def fetch(address: str) -> bytes:
    """The file at an address, never more than MAX_BYTES of it, for SECONDS at most.

    Raises:
        ItemError: missing, unreadable or too_large.
    """
    answers: queue.SimpleQueue[bytes | ItemError] = queue.SimpleQueue()
    # In a thread that is left behind where it hangs: not every driver has a limit of its own.
    threading.Thread(target=lambda: answers.put(_fetch(address)), daemon=True).start()
    try:
        answer = answers.get(timeout=SECONDS)
    except queue.Empty:
        raise ItemError("unreadable", f"not here within {SECONDS:g} s") from None
    if isinstance(answer, ItemError):
        raise answer
    return answer


def _fetch(address: str) -> bytes | ItemError:
    try:
        fs, path = filesystem(address)
        # Over HTTP in one piece: not every server gives parts of a file.
        with fs.open(path, "rb", **({"block_size": 0} if address.startswith("http") else {})) as stream:
            data = bytearray()
            while len(data) <= MAX_BYTES and (chunk := stream.read(_CHUNK)):
                data += chunk
    except FileNotFoundError as error:  # over HTTP also where a server refuses, or none answers
        status = getattr(error.__cause__, "status", None)
        if status not in (None, 404):
            return ItemError("unreadable", f"the server answers with status {status}")
        cause = " ".join(str(error.__cause__ or "").split())[:200]
        return ItemError("missing", "no such file" if status or not cause else f"no such file, or no answer ({cause})")
    except Exception as error:  # each driver has errors of its own; a UserError's line tells what to do
        return ItemError("unreadable", " ".join(str(error).split())[:200] or type(error).__name__)
    return bytes(data) if len(data) <= MAX_BYTES else ItemError("too_large", f"larger than {MAX_BYTES >> 20} MiB")

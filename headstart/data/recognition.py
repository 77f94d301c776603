"""Which files of a source are examples: one rule for training and for predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

from headstart.data.files import HEAD
from headstart.data.listing import Kind, printable
from headstart.errors import ItemError


class SortedFiles(NamedTuple):
    """Each file is in one of these.

    Attributes:
        names: of files that are read as examples, by their suffix or content.
        refused: name, reason and detail of files that are meant as examples and cannot be read.
        ignored: name and reason of what is not meant as an example.
    """

    names: list[str]
    refused: list[tuple[str, str, str]]
    ignored: list[tuple[str, str]]


def sort_files(names: Iterable[str], read: Callable[[str, int], bytes], kind: Kind) -> SortedFiles:
    """Sort files by their suffixes; if a suffix is not one of `kind`, the first bytes decide.

    Args:
        read: returns the first bytes of a file, as `Source.read` does.
    """
    found = SortedFiles([], [], [])
    for name in names:
        suffix = PurePosixPath(name).suffix.lower()
        other = suffix in kind.unsupported or (suffix and suffix not in kind.suffixes)
        if not other or _is_recognized(read, name, suffix, kind):
            found.names.append(name)
        elif suffix in kind.unsupported:
            advice = f"{suffix} files are not supported; {kind.unsupported[suffix]}"
            found.refused.append((name, "unsupported", advice))
        else:
            reason = f"not {kind.noun} data by its suffix ({printable(suffix)}) and content"
            found.ignored.append((name, reason))
    return found


def _is_recognized(read: Callable[[str, int], bytes], name: str, suffix: str, kind: Kind) -> bool:
    try:
        return kind.recognizes(read(name, HEAD), suffix)
    except ItemError:
        return False

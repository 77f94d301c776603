"""Zip archives, whose members are counted before they are listed: fifty bytes of a file become a kilobyte of memory."""

from __future__ import annotations

import zipfile
from pathlib import Path

_BLOCK = 2**20
_MEMBER = b"PK\1\2"  # before each entry of the list of members
_ZIP64_END = 76  # bytes between that list and its end record, in large archives


def open_zip(file: Path, most: int) -> zipfile.ZipFile:
    """Open an archive of at most `most` members.

    Raises:
        zipfile.BadZipFile: if it has more, or is damaged; other exceptions as zipfile.ZipFile.
    """
    with file.open("rb") as stream:
        end = zipfile._EndRecData(stream)  # type: ignore[attr-defined]  # what ZipFile itself goes by
        count, before = 0, b""
        if end:
            size, place = end[5], end[9]  # of the list of members; of the end record
            stream.seek(max(0, place - size - _ZIP64_END))
            while count <= most and stream.tell() < place and (block := stream.read(_BLOCK)):
                count += (before + block).count(_MEMBER)
                before = block[-len(_MEMBER) + 1 :]
    if count > most:
        raise zipfile.BadZipFile(f"more than {most:,} members")
    return zipfile.ZipFile(file)

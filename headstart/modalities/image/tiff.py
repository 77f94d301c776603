"""Which TIFF files are read right: in some, Pillow leaves out bands and pages, or mixes bytes, without a word."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice
from typing import Any

from PIL.TiffImagePlugin import COMPRESSION_INFO, ImageFileDirectory_v2

from headstart.errors import ItemError

MAGIC = (b"II*\0", b"MM\0*", b"II+\0")  # the last one: BigTIFF
MAX_PAGES = 1000  # that are counted
_KINDS = {1: "integers", 2: "signed integers", 3: "floats", 5: "complex integers", 6: "complex numbers"}
_COLOURS = {2: 3, 5: 4, 6: 3}  # channels of RGB, CMYK and YCbCr; grey and palettes have one
_USUAL, _LAB = (1, 2, 3, 5, 6, 8, 9, 10), (8, 9, 10)
_ASSOCIATED, _ALPHA, _COREL = 1, 2, 999  # kinds of an extra band that are transparency
_REDUCED, _MASK = 1, 4  # kinds of pages that are no images of their own


def check_tiff(data: bytes) -> None:
    """Check that a TIFF file holds one image, of bands that are read right.

    Raises:
        ItemError: unsupported, saying what it holds. Of a damaged header nothing is said.
    """
    try:
        pages = list(islice(_pages(data), MAX_PAGES))
        problem = _problem(pages)
    except Exception:  # of many kinds on damaged bytes, about which Pillow will say something
        return
    if problem:
        raise ItemError("unsupported", problem)


def describe_tiff(data: bytes) -> str:
    """Return what a TIFF file holds, in words; empty if its header is damaged."""
    try:
        tags = next(_pages(data))
        return _description(tags) if {256, 257, 262} <= set(tags) else ""
    except Exception:  # as above
        return ""


def _pages(data: bytes) -> Iterator[dict[int, Any]]:
    """Yield the tags of each page."""
    stream = io.BytesIO(data)
    directory = ImageFileDirectory_v2(stream.read(16 if data[2] == 43 else 8))
    seen: set[int] = set()
    while directory.next and directory.next not in seen:
        seen.add(directory.next)
        stream.seek(directory.next)
        directory.load(stream)
        yield dict(directory)


def _problem(pages: list[dict[int, Any]]) -> str:
    images = [page for page in pages if not page.get(254, 0) & (_REDUCED | _MASK)]
    if len(images) > 1:
        return f"a TIFF of {len(images)} pages, of which one alone would be seen; save each as a file of its own"
    tags, extra = pages[0], pages[0].get(338, ())
    what = _description(tags)
    deep, several = max(tags.get(258, (1,))) > 8, tags.get(277, 1) > 1
    if tags.get(262) in _LAB:
        return f"{what} in CIELAB colours is not supported; save it as RGB"
    if len(extra) > 1 or not {*extra} <= {_ASSOCIATED, _ALPHA, _COREL}:
        return (
            f"{what}: only grey, RGB and CMYK are read, and transparency of grey and RGB, so bands would be lost; save "
            "those that matter as RGB, or each as a file of its own"
        )
    if deep and several and tags.get(284, 1) == 2:
        return f"{what}, each in a plane of its own, is not supported; save it with the bands interleaved"
    if deep and several and _ASSOCIATED in extra:
        return f"{what}, multiplied by transparency, is not supported; save it without transparency"
    return ""


def _description(tags: dict[int, Any]) -> str:
    colours = _COLOURS.get(tags.get(262, 1), 1)
    bands = tags.get(277, colours)
    bits, kinds = (" and ".join(map(str, dict.fromkeys(tags.get(tag, (1,))))) for tag in (258, 339))
    kind = _KINDS.get(int(kinds), "values of an unknown kind") if kinds.isdigit() else "values of several kinds"
    odd = [f"compression {tags[259]}"] if tags.get(259, 1) not in COMPRESSION_INFO else []
    odd += [f"photometric interpretation {tags[262]}"] if tags.get(262, 1) not in _USUAL else []
    return f"a TIFF of {bands} band{'s' if bands > 1 else ''} of {bits}-bit {kind}{' in ' * bool(odd)}{', '.join(odd)}"

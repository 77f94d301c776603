"""TIFF files of any kind, also such that no library here writes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np

KINDS = {"u": 1, "i": 2, "f": 3}  # of values, as tag 339 has them


def tiff_file(
    values: np.ndarray,
    order: str = "<",
    photometric: int | None = None,
    planar: bool = False,
    compressed: bool = False,
    extra: Sequence[int] = (),
    pages: Sequence[int] = (0,),
    tags: dict[int, list[int]] | None = None,
    text: Sequence[int] = (),
) -> bytes:
    """Encode (height, width) or (height, width, bands) of any dtype.

    Args:
        order: of bytes, < or >.
        photometric: tag 262; None: black is zero, or RGB.
        planar: whether each band has a plane of its own.
        extra: kinds of the bands after the colours.
        pages: the kind of each page, tag 254; all have the same pixels.
        tags: further ones, or others.
        text: those of them that are text, each number a character.
    """
    values = values[..., None] if values.ndim == 2 else values
    height, width, bands = values.shape
    ordered = values.astype(values.dtype.newbyteorder(order))
    strips = [ordered[..., band].tobytes() for band in range(bands)] if planar else [ordered.tobytes()]
    strips = [zlib.compress(strip) for strip in strips] if compressed else strips
    colour = photometric if photometric is not None else 2 if bands - len(extra) == 3 else 1
    file = bytearray((b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 0))
    link = 4  # where the place of the next page is written

    def append(content: bytes) -> int:
        place = len(file)
        file.extend(content + b"\0" * (len(content) % 2))
        return place

    for kind in pages:
        fields = {
            **{254: [kind], 256: [width], 257: [height], 258: [8 * values.dtype.itemsize] * bands},
            **{259: [8 if compressed else 1], 262: [colour], 273: [append(strip) for strip in strips]},
            **{277: [bands], 278: [height], 279: [len(strip) for strip in strips], 284: [2 if planar else 1]},
            **{339: [KINDS[values.dtype.kind]] * bands, **({338: list(extra)} if extra else {}), **(tags or {})},
        }
        entries = b""
        for tag, numbers in sorted(fields.items()):
            content = bytes(numbers) if tag in text else struct.pack(f"{order}{len(numbers)}I", *numbers)
            if len(content) > 4:
                content = struct.pack(order + "I", append(content))
            entries += struct.pack(order + "HHI", tag, 2 if tag in text else 4, len(numbers)) + content.ljust(4, b"\0")
        place = append(struct.pack(order + "H", len(fields)) + entries + bytes(4))
        file[link : link + 4] = struct.pack(order + "I", place)
        link = place + 2 + len(entries)
    return bytes(file)

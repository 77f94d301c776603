"""How much memory decoding an image takes, by its header."""

from __future__ import annotations

import io

from PIL import Image

from headstart.modalities.image.decode import FORMATS, MAX_PIXELS

# Bytes per pixel, which tests/test_serving_limits.py measures: the pixels in Pillow and as arrays, copies of them with
# transparency, buffers of some decoders, and values of more than 8 bits.
PLAIN, TRANSPARENCY, DEEP = 12, 12, 36
BUFFERS = {"AVIF": 10, "HEIF": 10, "JPEG2000": 16, "WEBP": 10}
COEFFICIENTS = 8  # of a JPEG in several scans: all of its coefficients are kept, at any scale
TILE = 322, 323  # TIFF's tags for the sides of a tile


def decoding_memory(data: bytes, size: int) -> int:
    """Return how many bytes it takes at most to load an image; 0 if that refuses the file by its header.

    Args:
        size: of the array that networks take; a JPEG may be decoded at a reduced scale.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
        full = image.width * image.height
        if full > MAX_PIXELS:
            return 0
        image.draft(None, (size, size))
        count, several = image.width * image.height, 0
        if image.format in ("JPEG", "MPO"):
            several = COEFFICIENTS * full * _has_several_scans(data)
        elif image.format == "TIFF":
            width, height = (int(image.tag_v2.get(tag, 1)) for tag in TILE)  # type: ignore[attr-defined]
            count = max(count, width * height)
    except Exception:  # of many kinds, on damaged bytes: decoding says what is wrong
        return 0
    deep = image.mode.startswith(("I", "F")) or (bool(image.tile) and ";16" in str(image.tile[0].args))
    per_pixel = PLAIN + TRANSPARENCY * image.has_transparency_data + DEEP * deep + BUFFERS.get(image.format or "", 0)
    return per_pixel * count + several + 3 * size**2


def _has_several_scans(data: bytes) -> bool:
    """Whether a JPEG is progressive, or its first scan lacks a component: decoders keep all coefficients then."""
    place, components, progressive = 2, 0, False
    while place + 9 < len(data):
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if data[place] != 0xFF or marker == 0xFF:  # fill bytes, or damage
            place += 1
        elif marker == 0xDA:  # start of scan
            return progressive or data[place + 4] < components
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            components, progressive = data[place + 9], marker in (0xC2, 0xC6, 0xCA, 0xCE)
            place += 2 + length
        else:
            place += 2 + length
    return True

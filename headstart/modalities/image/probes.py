"""Known image files of many kinds, the same on every machine: they show whether decoding has changed."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def files(size: int) -> list[bytes]:
    """Make JPEG, PNG, TIFF and WebP files of several modes, with about `size` pixels per side."""
    image = Image.fromarray(pattern(3 * size, 2 * size))  # halved by JPEG, and its width averaged down by the resize
    rotated = Image.Exif()
    rotated[0x0112] = 6
    alpha = image.getchannel(0)
    images: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (image, "JPEG", {"quality": 90}),
        (image.resize((size, size)), "JPEG", {"quality": 75, "progressive": True}),
        (image.resize((size, 2 * size)), "JPEG", {"exif": rotated, "subsampling": 0}),
        (image.convert("L"), "JPEG", {}),
        (image.convert("CMYK"), "JPEG", {}),
        (image.resize((size // 2 + 1, size // 3 + 1)), "PNG", {}),
        (Image.merge("RGBA", (*image.split(), alpha)), "PNG", {}),
        (image.quantize(16), "PNG", {"transparency": 3}),
        (Image.fromarray(np.asarray(alpha).astype(np.uint16) * 257), "PNG", {}),
        (Image.fromarray(np.asarray(alpha) / np.float32(255)), "TIFF", {}),
        (image, "WEBP", {"quality": 80}),
    ]
    return [_encode(*image) for image in images]


def deep_files(size: int) -> list[bytes]:
    """Make PNG and TIFF files with 16 bits in several channels, and with signs."""
    values = pattern(size, size).astype(np.uint16) * 257
    signed = Image.fromarray(values[..., 0].astype(np.int32) - 32768)
    return [png(values), png(values[..., :2]), _encode(signed, "TIFF", {})]


def png(values: np.ndarray) -> bytes:
    """Encode (height, width, channels) uint16 as PNG, which Pillow does for grey ones alone."""
    height, width, channels = values.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = np.pad(values.astype(">u2").view(np.uint8).reshape(height, -1), ((0, 0), (1, 0)))  # 0: rows are not filtered
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def _encode(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pattern(width: int, height: int) -> np.ndarray:
    """Draw waves, edges and some noise, (height, width, 3) uint8, by integers only: the same on every machine."""
    y, x = np.mgrid[:height, :width]
    channels = (x * y // 16 + 2 * x, (x // 8 + y // 8) % 2 * 180 + y // 4, (x * x + y * y) // max(width, 1))
    noise = np.random.default_rng(1).integers(0, 32, (height, width, 3))
    return np.uint8((np.stack(channels, axis=-1) + noise) % 256)

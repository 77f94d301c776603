"""Image files of many kinds, made of whole numbers alone: what they decode to shows whether decoding has changed."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image


def files(size: int) -> list[bytes]:
    """JPEG, PNG, TIFF and WebP files of several modes, of about `size` pixels a side."""
    image = Image.fromarray(pattern(3 * size, 2 * size))  # halved by JPEG, averaged down across by the resize
    turned = Image.Exif()
    turned[0x0112] = 6
    alpha = image.getchannel(0)
    made: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (image, "JPEG", {"quality": 90}),
        (image.resize((size, size)), "JPEG", {"quality": 75, "progressive": True}),
        (image.resize((size, 2 * size)), "JPEG", {"exif": turned, "subsampling": 0}),
        (image.convert("L"), "JPEG", {}),
        (image.convert("CMYK"), "JPEG", {}),
        (image.resize((size // 2 + 1, size // 3 + 1)), "PNG", {}),
        (Image.merge("RGBA", (*image.split(), alpha)), "PNG", {}),
        (image.quantize(16), "PNG", {"transparency": 3}),
        (Image.fromarray(np.asarray(alpha).astype(np.uint16) * 257), "PNG", {}),
        (Image.fromarray(np.asarray(alpha) / np.float32(255)), "TIFF", {}),
        (image, "WEBP", {"quality": 80}),
    ]
    return [_encode(*file) for file in made]


def _encode(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pattern(width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8: waves, edges and some noise, by whole numbers alone."""
    y, x = np.mgrid[:height, :width]
    channels = (x * y // 16 + 2 * x, (x // 8 + y // 8) % 2 * 180 + y // 4, (x * x + y * y) // max(width, 1))
    noise = np.random.default_rng(1).integers(0, 32, (height, width, 3))
    return np.uint8((np.stack(channels, axis=-1) + noise) % 256)

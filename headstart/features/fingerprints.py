"""Fingerprints of what cannot be listed: how images are decoded, and how an engine rounds, seen in what comes out.

A change of the processor or of this code that changes no bit changes no fingerprint; one that does is seen.
"""

from __future__ import annotations

import io

import numpy as np
from blake3 import blake3
from PIL import Image

from headstart.features.engines import Engine
from headstart.modalities.image.augmentation import Augmentation, view
from headstart.modalities.image.pixels import pixels, resize

IMAGES = 4  # through the network
LARGEST = 256  # pixels: what holds for images of this size holds for larger ones


def decoding(size: int) -> str:
    """Of the pixels that images of many kinds become, 32 hexadecimal digits."""
    size, digest = min(size, LARGEST), blake3()
    for data in _files(size):
        digest.update(np.ascontiguousarray(resize(pixels(data, size), size)))
    return digest.hexdigest(length=16)


def augmenting(size: int, augmentation: Augmentation) -> str:
    """Of augmented views, 32 hexadecimal digits."""
    size, digest = min(size, LARGEST), blake3()
    image = _pattern(3 * size, 2 * size)
    for number in range(1, 4):
        digest.update(np.ascontiguousarray(view(image, size, augmentation, "probe", number)))
    return digest.hexdigest(length=16)


def network(run: Engine, size: int) -> str:
    """Of the features that `run` makes of some images, 32 hexadecimal digits."""
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, size, size, 3), np.uint8)
    images[::2] = _pattern(size, size)  # noise alone leaves parts of a network unused
    digest = blake3()
    for features in run.map(images[start : start + run.batch_size] for start in range(0, IMAGES, run.batch_size)):
        digest.update(features.tobytes())
    return digest.hexdigest(length=16)


def _files(size: int) -> list[bytes]:
    image = Image.fromarray(_pattern(3 * size, 2 * size))  # halved by JPEG, averaged down across by the resize
    turned = Image.Exif()
    turned[0x0112] = 6
    alpha = image.getchannel(0)
    files: list[tuple[Image.Image, str, dict]] = [
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
    return [_encode(*file) for file in files]


def _encode(image: Image.Image, kind: str, options: dict) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _pattern(width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8: waves, edges and some noise, by whole numbers alone."""
    y, x = np.mgrid[:height, :width]
    channels = (x * y // 16 + 2 * x, (x // 8 + y // 8) % 2 * 180 + y // 4, (x * x + y * y) // max(width, 1))
    noise = np.random.default_rng(1).integers(0, 32, (height, width, 3))
    return np.uint8((np.stack(channels, axis=-1) + noise) % 256)

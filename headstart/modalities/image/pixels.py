"""From an image file to the pixels that networks see, in every stage and in predictions. No TensorFlow.

Python's lock is hardly held, so that threads decode on all cores.
"""

from __future__ import annotations

import numpy as np
import simplejpeg
from PIL import Image

from headstart.modalities.image.decode import MAX_PIXELS, decode

JPEG = b"\xff\xd8\xff"  # which all of them begin with; none has more than 8 bits here


def pixels(data: bytes, size: int, value_range: tuple[float, float] | None = None) -> np.ndarray:
    """Decode an image as RGB, (h, w, 3) uint8: upright, transparency on white.

    A JPEG with both sides at least twice `size` is decoded at 1/2, 1/4 or 1/8 by its cosine transform, in a fraction of
    the time. Plain JPEGs, most photographs, are decoded by libjpeg-turbo directly, everything else by Pillow.

    Args:
        value_range: as `decode` takes it.

    Raises:
        ItemError: as `decode`.
    """
    if data.startswith(JPEG):
        try:
            found = _plain_jpeg(data, size)
        except ValueError:  # damaged, or unusual: Pillow knows which
            found = None
        if found is not None:
            return found
    return np.asarray(decode(data, value_range, at_least=size))


def _plain_jpeg(data: bytes, size: int) -> np.ndarray | None:
    """Decode by libjpeg-turbo, (h, w, 3) uint8; None if the image may be rotated, or is neither RGB nor grey."""
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    if colours not in ("YCbCr", "Gray") or height * width > MAX_PIXELS or _may_be_rotated(data):
        return None
    factor = next(factor for factor in (8, 4, 2, 1) if factor == 1 or min(height, width) // size >= factor)
    return simplejpeg.decode_jpeg(
        data, min_factor=factor, min_height=-(-height // factor), min_width=-(-width // factor)
    )


def _may_be_rotated(data: bytes) -> bool:
    """Whether EXIF or XMP may say that the pixels are not stored upright."""
    start = data.find(b"Exif\0\0")
    exif = Image.Exif()
    if start >= 0:
        # One segment of the right kind is read here; Pillow handles several, and other kinds.
        if data[start - 4 : start - 2] != b"\xff\xe1" or data.count(b"Exif\0\0") > 1:
            return True
        try:
            exif.load(data[start : start + 2**16])
        except Exception:  # of many kinds, if it is damaged
            return True
    return exif.get(0x0112, 1) != 1 or b"tiff:Orientation" in data


def resize(image: np.ndarray, size: int, center_crop: float | None = None) -> np.ndarray:
    """Resize what networks see of an image, (h, w, 3) uint8, to (size, size, 3) uint8; the same bits on every machine.

    Bilinear with antialiasing, as the Resizing layer of models/model.keras does it: Pillow computes in whole numbers.

    Args:
        center_crop: as `seen_part` takes it.
    """
    box = seen_part(image.shape[1], image.shape[0], size, center_crop)
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box)
    return np.asarray(resized)


def needed_side(size: int, center_crop: float | None) -> int:
    """Return how many pixels the shorter side of an image needs so that networks see `size` of its own."""
    # As many more or less on both sides of the part that is seen, so that its middle is that of the image.
    return size if center_crop is None else size + 2 * round((size / center_crop - size) / 2)


def seen_part(width: int, height: int, size: int, center_crop: float | None) -> tuple[float, float, float, float]:
    """Return left, upper, right and lower of what networks see of an image, in its pixels.

    Args:
        center_crop: None: all of it. Else the share of the shorter side that the central square has, in (0, 1]: as if
            the shorter side was resized to size / center_crop pixels and a square of `size` cut out of the middle, by
            torchvision's Resize and CenterCrop. Those round to whole pixels of the resized image; here the middle is
            rounded to whole pixels of the image, as models/model.keras does it: up to half a pixel elsewhere.
    """
    if center_crop is None:
        return 0, 0, width, height
    shorter, part = min(width, height), size / needed_side(size, center_crop)
    left, upper = (side // 2 + (1 - part) * shorter / 2 for side in (width - shorter, height - shorter))
    return left, upper, left + part * shorter, upper + part * shorter

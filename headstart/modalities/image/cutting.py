"""Cut boxes out of image files."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image

from headstart.data.boxes import Box, Cut
from headstart.errors import ItemError
from headstart.modalities.image import decode
from headstart.modalities.image.deep import NO_DATA, DeepImage

LEAST_INSIDE = 0.5  # share of a box; annotators draw a little over the border, a box of another image lies anywhere
ORIENTATION = 0x0112  # the EXIF tag


def cutter(data: bytes) -> Cut:
    """Decode an image file, and return what cuts boxes out of it, as files without compression.

    The coordinates of a box are those of the pixels as they are stored, as pycocotools takes them. Annotation tools
    that show photographs upright count in upright pixels: if the size that the box was drawn on is that of the upright
    image alone, it is taken so. What is cut out is upright in both cases.

    Raises:
        ItemError: as `decode.decode`; by what is returned: wrong_size, if the box was drawn on an image of another
            size; box_outside, if most of it is outside of the image.
    """
    image, orientation = decode.read(data), _orientation(data)
    size = image.values.shape[1::-1] if isinstance(image, DeepImage) else image.size
    stored_size = size[::-1] if orientation > 4 else size

    def cut(box: Box, margin: float) -> bytes:
        if box.size in (None, stored_size):
            box = _turn(box, orientation, stored_size)
        elif box.size != size:
            known, found = (" x ".join(map(str, size)) for size in (box.size, stored_size))
            raise ItemError("wrong_size", f"annotated as an image of {known} pixels, the file has {found}")
        place = _place(box, margin, size)
        if isinstance(image, DeepImage):
            return _deep_file(image, *place)
        part = image.crop(place)
        return b"P6 %d %d 255\n" % part.size + part.tobytes()

    return cut


def _deep_file(image: DeepImage, left: int, upper: int, right: int, lower: int) -> bytes:
    """Return a part of an image with more than 8 bits, with all of them."""
    values = image.values[upper:lower, left:right]
    if image.alpha is not None or values.dtype == np.uint32:
        raise ItemError("unsupported", "boxes of images of 32 bits, or of 16 bits with transparency, are not supported")
    if values.ndim == 3:
        return b"P6 %d %d 65535\n" % values.shape[1::-1] + values.astype(">u2").tobytes()
    buffer = io.BytesIO()
    tags: dict[int, int | str] = {262: 0 if image.inverted else 1}
    if image.missing is not None:
        tags[NO_DATA] = repr(image.values[image.missing][0].item())
    Image.fromarray(values).save(buffer, "TIFF", tiffinfo=tags)
    return buffer.getvalue()


def _orientation(data: bytes) -> int:
    """Return the EXIF orientation of an image that can be decoded: 1 upright, 2 to 4 of the same size, 5 to 8 lying."""
    with Image.open(io.BytesIO(data), formats=[name for name in decode.FORMATS if name in Image.OPEN]) as image:
        found = image.getexif().get(ORIENTATION, 1)
    return found if found in range(1, 9) else 1


def _turn(box: Box, orientation: int, size: tuple[int, int]) -> Box:
    """Return where a box of a stored image of `size` is in the upright one, as ImageOps.exif_transpose turns it."""
    x = size[0] - box.x - box.width if orientation in (2, 3, 7, 8) else box.x
    y = size[1] - box.y - box.height if orientation in (3, 4, 6, 7) else box.y
    return Box(y, x, box.height, box.width) if orientation > 4 else Box(x, y, box.width, box.height)


def _place(box: Box, margin: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return left, upper, right and lower of a box with its margin, within an image of `size`.

    Raises:
        ItemError: box_outside.
    """
    sides, inside = [], 1.0
    around = margin * max(box.width, box.height)
    for start, length, end in zip((box.x, box.y), (box.width, box.height), size, strict=True):
        inside *= max(0.0, min(start + length, end) - max(start, 0)) / length
        # Rounded first: 0.1 times 30 is a little more than 3.
        sides.append((max(0.0, round(start - around, 4)), min(float(end), round(start + length + around, 4))))
    if inside < LEAST_INSIDE:
        raise ItemError("box_outside", f"most of the box is outside of the image of {size[0]} x {size[1]} pixels")
    (left, right), (upper, lower) = sides
    return math.floor(left), math.floor(upper), math.ceil(right), math.ceil(lower)

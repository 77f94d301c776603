"""Cut boxes out of image files."""

from __future__ import annotations

import math

from PIL import Image, ImageOps

from headstart.data.boxes import Box, Cut
from headstart.errors import ItemError
from headstart.modalities.image import decode

LEAST_INSIDE = 0.5  # share of a box; annotators draw a little over the border, a box of another image lies anywhere


def cutter(data: bytes) -> Cut:
    """Decode an image file, and return what cuts boxes out of it, as files without compression.

    The coordinates of a box are those of the pixels as they are stored, as pycocotools takes them. Annotation tools
    that show photographs upright count in upright pixels: if the size that the box was drawn on is that of the upright
    image alone, it is taken so. What is cut out is upright in both cases.

    Raises:
        ItemError: as `decode.decode`; by what is returned: wrong_size, if the box was drawn on an image of another
            size; box_outside, if most of it is outside of the image.
    """
    stored = decode.decode(data, turn=False)
    orientation = stored.info.get(decode.ORIENTATION_INFO, 1)
    upright_size = stored.size[::-1] if orientation in (5, 6, 7, 8) else stored.size
    upright: list[Image.Image] = []  # made if it is needed

    def cut(box: Box, margin: float) -> bytes:
        if box.size in (None, stored.size):
            part = _turn(stored.crop(_place(box, margin, stored.size)), orientation)
        elif box.size == upright_size:
            if not upright:
                upright.append(_turn(stored, orientation))
            part = upright[0].crop(_place(box, margin, upright_size))
        else:
            known, found = (" x ".join(map(str, size)) for size in (box.size, stored.size))
            raise ItemError("wrong_size", f"annotated as an image of {known} pixels, the file has {found}")
        return b"P6 %d %d 255\n" % part.size + part.tobytes()

    return cut


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    """Return an image upright, whose EXIF orientation is given."""
    image.info = {}  # what else EXIF says may be damaged
    image.getexif()[decode.ORIENTATION] = orientation
    return ImageOps.exif_transpose(image)


def _place(box: Box, margin: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return left, upper, right and lower of a box with its margin, within an image of `size`."""
    sides = []
    share = 1.0
    for start, length, end in zip((box.x, box.y), (box.width, box.height), size, strict=True):
        around = margin * max(box.width, box.height)
        share *= max(0.0, min(start + length, end) - max(start, 0)) / length
        # Rounded first: 0.1 times 30 is a little more than 3.
        low, high = max(0.0, round(start - around, 4)), min(float(end), round(start + length + around, 4))
        sides.append((low, high))
    if share < LEAST_INSIDE:
        raise ItemError("box_outside", f"most of the box {box} is outside of the image of {size[0]} x {size[1]} pixels")
    (left, right), (upper, lower) = sides
    return math.floor(left), math.floor(upper), math.ceil(right), math.ceil(lower)

"""Small pictures inside the pages: image files as data addresses."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

from markupsafe import Markup
from PIL import Image

from headstart.errors import ItemError
from headstart.modalities.image.decode import decode
from headstart.report.rendering import image_tag

SIDE = 96  # pixels, the longer side
NOT_THERE = Markup('<span class="none">no picture</span>')


def data_address(image: Image.Image, kind: str = "WEBP") -> str:
    """Return `image` as a `data:` URL. WEBP is small, PNG is lossless."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=70)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


class Thumbnails:
    """Makes HTML that shows files, once for each.

    Args:
        read: returns the bytes of a file by its path, or raises ItemError.
    """

    def __init__(self, read: Callable[[str], bytes]) -> None:
        self._read = read
        self._made: dict[str, Markup] = {}

    def __call__(self, path: str) -> Markup:
        """Return the thumbnail of a file, or a note that there is none."""
        if path not in self._made:
            try:
                image = decode(self._read(path))
                image.thumbnail((SIDE, SIDE), reducing_gap=2.0)
                self._made[path] = image_tag(data_address(image))
            except ItemError:
                self._made[path] = NOT_THERE
        return self._made[path]

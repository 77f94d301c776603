"""What pages have in common: one file, no network, names escaped; and small pictures inside it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from headstart.errors import ItemError
from headstart.modalities.image.decode import decode

THUMB = 96  # pixels, the longer side


def render(template: str, **values: Any) -> str:
    """The page that `template`, a path inside pipeline/, makes of `values`; all of them are escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["percent"] = lambda share, digits=1: f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"
    environment.filters["plain"] = lambda value: value if isinstance(value, str) else json.dumps(value)
    return environment.get_template(template).render(values)


def data_address(image: Image.Image, kind: str = "WEBP") -> str:
    """`image` inside its own address: WEBP is small, PNG keeps every pixel."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=70)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


class Thumbnails:
    """Small copies of images as data addresses, made once each.

    Args:
        read: gives the bytes of a file by its path; ItemError where it cannot.
    """

    def __init__(self, read: Callable[[str], bytes]) -> None:
        self._read = read
        self._made: dict[str, str] = {}

    def __call__(self, path: str) -> str:
        """The thumbnail of a file, or an empty text where it has none."""
        if path not in self._made:
            try:
                image = decode(self._read(path))
                image.thumbnail((THUMB, THUMB), reducing_gap=2.0)
                self._made[path] = data_address(image)
            except ItemError:
                self._made[path] = ""
        return self._made[path]

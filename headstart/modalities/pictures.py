"""Pictures in pages, as data: URLs."""

from __future__ import annotations

import base64
import io

from PIL import Image


def as_html(image: Image.Image, title: str = "") -> str:
    """Return an <img>; `title` must be safe to put into a page."""
    named = f' title="{title}"' if title else ""
    return f'<img src="{data_url(image)}" alt=""{named} loading="lazy">'


def data_url(image: Image.Image, kind: str = "WEBP") -> str:
    """Return `image` as a data: URL; WEBP is small, PNG keeps every pixel."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=70)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()

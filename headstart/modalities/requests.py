"""Files in requests to the model server: base64 text."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from headstart.errors import ItemError

MAX_BYTES = 2**25  # of one file


def parse_file(value: Any, what: str) -> bytes:
    """Return the bytes of a file, from base64 text.

    Args:
        what: the file is, for messages, e.g. `an image file`.

    Raises:
        ItemError: not_base64, too_large.
    """
    if not isinstance(value, str):
        raise ItemError("not_base64", f"not text; give the base64 of {what}")
    if len(value) > MAX_BYTES * 4 // 3 + MAX_BYTES // 32:  # with line breaks
        raise ItemError("too_large", f"larger than {MAX_BYTES >> 20} MiB")
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ItemError("not_base64", f"not the base64 of {what}: {error}") from error


def format_file(data: bytes) -> str:
    """Return a file as `parse_file` takes it."""
    return base64.b64encode(data).decode()

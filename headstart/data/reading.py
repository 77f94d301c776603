"""data/prepared/reading.json: what the examples of a data set are, and how they are read. It loads no pandas."""

from __future__ import annotations

import json
from typing import Any

from headstart import paths
from headstart.errors import damaged, one_line


def load_reading() -> dict[str, Any]:
    """Read `kind`, the name of the modality of the data set, and what `Modality.find_reading` returned, in one dict.

    Raises:
        UserError: if it is not as prepare has written it.
    """
    try:
        reading = json.loads(paths.READING.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(paths.READING, f"not readable JSON ({one_line(error)})", "prepare") from error
    if not isinstance(reading, dict) or not isinstance(reading.get("kind"), str):
        raise damaged(paths.READING, "must be an object with the key kind, a text", "prepare")
    return reading

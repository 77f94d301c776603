"""Examples as small pieces of HTML: a picture, a quotation or a player, as their modality shows them."""

from __future__ import annotations

from collections.abc import Callable

from markupsafe import Markup

from headstart.errors import ItemError
from headstart.modalities import Modality

NOT_THERE = Markup('<span class="none">not available</span>')


class Thumbnails:
    """Makes HTML that shows files, once for each.

    Args:
        read: returns the bytes of a file by its path, or raises ItemError.
    """

    def __init__(self, read: Callable[[str], bytes], modality: Modality) -> None:
        self._read, self._modality = read, modality
        self._made: dict[str, Markup] = {}

    def __call__(self, path: str) -> Markup:
        """Return the thumbnail of a file, or a note that there is none."""
        if path not in self._made:
            try:
                self._made[path] = Markup(self._modality.show(self._read(path))) or NOT_THERE
            except ItemError:
                self._made[path] = NOT_THERE
        return self._made[path]

"""Errors that a user can fix, and examples that cannot be used."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the input. The message names the file or key, the rule, and what to do; no traceback is shown."""


class ItemError(Exception):
    """Bytes that are not a usable example, or that cannot be read; the message is the detail.

    Attributes:
        reason: one word to count by, e.g. `truncated`.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'resnet50'?` for the nearest of `known`, or an empty string if none is near."""
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(name) for name in near)}?" if near else ""

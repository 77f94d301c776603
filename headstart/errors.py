"""Errors that a user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the input: the message names the file or key, the rule, and what to do. No traceback is shown."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'resnet50'?` for the nearest of `known`, or an empty string when none is near."""
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(name) for name in near)}?" if near else ""

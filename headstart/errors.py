"""Errors that a user can fix, and examples that cannot be used."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

AUDIO_EXTRA = "the extra `audio`: make setup EXTRAS=audio"  # what recordings need, for messages
RAY_EXTRA = "the extra `ray`: make setup EXTRAS=ray"  # what a cluster needs, for messages
HUB_EXTRA = "the extra `hub`: make setup EXTRAS=hub"  # what texts need, for messages


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


def damaged(file: Path, problem: str, stage: str) -> UserError:
    """Return the error about an output of `stage` that is not what the stage wrote."""
    return UserError(f"{file}: {problem}; delete it, then run `dvc checkout {file}`, or `dvc repro {stage}`")


def one_line(error: Exception) -> str:
    """Return what `error` says in one line of at most 200 characters, or its kind if it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def readable(name: str) -> str:
    """Return a name for a message: as it is, or with quotes and escapes if it holds line breaks or the like."""
    return name if name.isprintable() else repr(name)


def write_home(path: str) -> str:
    """Return what to say of a path that begins with `~`, which only shells understand."""
    return f"~ is not expanded here; give {os.path.expanduser(path)!r}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'resnet50'?` for the nearest of `known`, or an empty string if none is near."""
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(name) for name in near)}?" if near else ""

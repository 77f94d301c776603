"""Figures of a text: its length, and what else is worth knowing about it."""

from __future__ import annotations

from headstart.modalities.text.decode import DecodedText


def measure(text: DecodedText) -> dict[str, float]:
    """Return the numbers of characters and of words."""
    return {"characters": len(text), "words": len(text.split())}

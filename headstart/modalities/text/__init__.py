"""Texts: UTF-8 files or cells of a table become tokens, (t,) int32."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from headstart.config import Prepare
from headstart.errors import ItemError
from headstart.modalities.base import Modality
from headstart.modalities.text import copies, decode, leaks, measures, probes
from headstart.modalities.text.decode import DecodedText

SHOWN = 400  # characters of a text on a page


class TextModality(Modality):
    """Sentences and documents as the tokens of a backbone."""

    name, noun, column, default_backbone = "text", "text", "text", "tinybert"
    suffixes, unsupported = decode.SUFFIXES, decode.UNSUPPORTED
    inline, mixes = True, False
    descriptor_dim, descriptor_dtype = copies.SIZE, "uint16"
    columns = {"characters": "int32", "words": "int32"}  # noqa: RUF012  never changed

    def recognizes(self, head: bytes, suffix: str) -> bool:
        return decode.recognizes(head, suffix)

    def decode(self, data: bytes) -> DecodedText:
        return decode.decode(data)

    def item_id(self, item: DecodedText) -> str:
        return decode.item_id(item)

    def measures(self, item: DecodedText) -> dict[str, float]:
        return measures.measure(item)

    def sketch(self, item: DecodedText) -> np.ndarray:
        return copies.signature(item)

    def describe(self, sketches: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return sketches, {}

    def reject(self, measures: dict[str, float], settings: Prepare) -> tuple[str, str] | None:
        return None if measures["characters"] > 1 else ("too_short", "a single character")

    def find_reading(self, examples: pd.DataFrame, settings: Prepare) -> tuple[dict[str, Any], list[str]]:
        return {}, measures.remarks(examples)

    def find_leaks(self, examples: pd.DataFrame, read: Callable[[str], bytes]) -> list[str]:
        return leaks.find_leaks(examples, read)

    def outlier_measures(self, examples: pd.DataFrame) -> dict[tuple[str, str | None], tuple[pd.Series, float]]:
        return {("short", "long"): (np.log2(examples.characters.astype(float)), 0.5)}

    def histograms(self, examples: pd.DataFrame) -> dict[str, tuple[pd.Series, str]]:
        return {"characters": (examples.characters, "{:.0f}"), "words": (examples.words, "{:.0f}")}

    def categories(self, examples: pd.DataFrame) -> dict[str, pd.Series]:
        return {"script": measures.scripts(examples)}

    def probes(self, size: int) -> list[bytes]:
        return probes.texts(size)

    def show(self, data: bytes) -> str:
        """Return the first SHOWN characters as a quotation."""
        try:
            text = decode.decode(data)
        except ItemError:
            return ""
        more = "\N{HORIZONTAL ELLIPSIS}" if len(text) > SHOWN else ""
        return f'<blockquote dir="auto">{html.escape(text[:SHOWN])}{more}</blockquote>'

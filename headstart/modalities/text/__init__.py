"""Texts: UTF-8 files or cells of a table become tokens, (t,) int32."""

from __future__ import annotations

import numpy as np

from headstart.config import Prepare
from headstart.modalities.base import Modality
from headstart.modalities.text import copies, decode, measures
from headstart.modalities.text.decode import DecodedText


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

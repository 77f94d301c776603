"""Texts: files or cells of a table become tokens, (t,) int32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headstart.errors import ItemError
from headstart.modalities.base import Batch, Modality
from headstart.modalities.text import probes
from headstart.modalities.text.tokens import BYTES_PER_BYTE, KEYS, Tokens

INPUT = "tokens"  # name of the encoder's input


class TextModality(Modality):
    """Sentences and documents as the tokens of a backbone.

    Args:
        tokens: how the backbone reads texts; None, before a backbone is chosen: texts can be decoded, but not loaded.
    """

    name, noun, column, default_backbone = "text", "text", "text", "tinybert"
    suffixes = (".txt",)
    mixes = False
    libraries = ("tokenizers",)
    length = "characters"

    def __init__(self, tokens: Tokens | None = None, reading: dict[str, Any] | None = None) -> None:
        self._tokens, self.reading = tokens, reading or {}

    def decode(self, data: bytes) -> Any:
        return data.decode("utf-8")

    def with_reading(self, reading: dict[str, Any]) -> TextModality:
        return TextModality(Tokens.parse(reading) if set(KEYS) & set(reading) else None, reading)

    def load(self, data: bytes, size: int) -> np.ndarray:
        """Load a text, (t,) int32 tokens with t <= `size`; what is longer is cut."""
        return self._encode(data, size)[0]

    def load_with_remark(self, data: bytes, size: int) -> tuple[np.ndarray, str]:
        tokens, cut = self._encode(data, size)
        return tokens, f"have more than {size} tokens, as many as the model reads; the rest is left out." if cut else ""

    def _encode(self, data: bytes, size: int) -> tuple[np.ndarray, bool]:
        if self._tokens is None:
            raise ValueError("a backbone says how texts become tokens, and there is none yet")
        return self._tokens.encode(self.decode(data), size)

    def whole(self, data: bytes) -> np.ndarray:
        """Return as many tokens of a text as its backbone can take, (t,) int32."""
        return self.load(data, self._tokens.longest if self._tokens else 0)

    def memory(self, data: bytes, size: int) -> int:
        return BYTES_PER_BYTE * len(data)

    def batch(self, arrays: Sequence[np.ndarray]) -> Batch:
        """Fill texts up to the longest, (b, T) int32; the encoder finds the mask by the tokens themselves."""
        assert self._tokens
        return {INPUT: self._tokens.pad_to_longest(arrays)}

    def spec(self, size: int) -> dict[str, tuple[tuple[int | None, ...], str]]:
        return {INPUT: ((None,), "int32")}

    def probes(self, size: int) -> list[bytes]:
        return probes.texts(size)

    def parse_request(self, value: Any) -> bytes:
        """Return the bytes of a text."""
        if not isinstance(value, str):
            raise ItemError("not_text", f"must be a text, got {type(value).__name__}")
        return value.encode("utf-8", "surrogatepass")

"""Texts: files or cells of a table become tokens, (t,) int32."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.config import Extract, Prepare
from headstart.errors import ItemError
from headstart.fine_tune_config import FineTune
from headstart.modalities.base import Augmentation, Modality
from headstart.modalities.batch import Batch
from headstart.modalities.explaining import Evidence, Explanation
from headstart.modalities.text import copies, decode, evidence, leaks, measures, probes
from headstart.modalities.text.augmentation import TextAugmentation, view
from headstart.modalities.text.decode import DecodedText
from headstart.modalities.text.tokens import BYTES_PER_BYTE, EXPORTED, KEYS, Tokens

if TYPE_CHECKING:
    import pandas as pd

INPUT = "tokens"  # name of the encoder's input
SHOWN = 400  # characters of a text on a page


class TextModality(Modality):
    """Sentences and documents as the tokens of a backbone.

    Args:
        reading: with what a backbone has added to it, see `Tokens`; without that texts are decoded, but not loaded.
    """

    name, noun, column, default_backbone = "text", "text", "text", "tinybert"
    suffixes, unsupported = decode.SUFFIXES, decode.UNSUPPORTED
    inline, mixes = True, False
    descriptor_dim, descriptor_dtype = copies.SIZE, "uint16"
    columns = {"characters": "int32", "words": "int32"}  # noqa: RUF012  never changed
    length, estimates = "characters", True
    exported = EXPORTED
    explains = "Which words matter"

    def __init__(self, reading: dict[str, Any] | None = None) -> None:
        self.reading = reading or {}
        self._known = Tokens.parse(self.reading) if set(KEYS) & set(self.reading) else None

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

    def with_reading(self, reading: dict[str, Any]) -> TextModality:
        return TextModality(reading)

    @property
    def _tokens(self) -> Tokens:
        if self._known is None:
            raise ValueError("a backbone says how texts become tokens, and none is chosen yet")
        return self._known

    def load(self, data: bytes, size: int) -> np.ndarray:
        """Load a text, (t,) int32 tokens with t <= `size`; what is longer is cut."""
        return self._tokens.encode(self.decode(data), size)[0]

    def load_with_remark(self, data: bytes, size: int) -> tuple[np.ndarray, str]:
        tokens, cut = self._tokens.encode(self.decode(data), size)
        return tokens, f"have more than {size} tokens, as many as the model reads; the rest is left out." if cut else ""

    def views(
        self, data: bytes, size: int, augmentation: Augmentation | None, key: str, numbers: Iterable[int]
    ) -> Iterator[np.ndarray]:
        """Yield views of a text, as `load` returns it, by their numbers; see `TextAugmentation`."""
        if not isinstance(augmentation, TextAugmentation):
            yield from super().views(data, size, None, key, numbers)
            return
        tokens, words = self._tokens.words(self.decode(data), size)
        for number in numbers:
            yield view(tokens, words, augmentation, key, number)

    def augmentation(self, settings: Extract | FineTune) -> TextAugmentation | None:
        return TextAugmentation(settings.word_dropout) if settings.word_dropout else None

    def whole(self, data: bytes) -> np.ndarray:
        """Return as many tokens of a text as its backbone can take, (t,) int32."""
        return self.load(data, self._tokens.longest)

    def memory(self, data: bytes, size: int) -> int:
        return BYTES_PER_BYTE * len(data)

    def batch(self, arrays: Sequence[np.ndarray]) -> Batch:
        """Fill texts up to the longest, (b, T) int32; the encoder finds the mask by the tokens themselves."""
        return {INPUT: self._tokens.fill(arrays)}

    def spec(self, size: int) -> dict[str, tuple[tuple[int | None, ...], str]]:
        return {INPUT: ((None,), "int32")}

    def probes(self, size: int) -> list[bytes]:
        return probes.texts(size)

    def parse_request(self, value: Any) -> bytes:
        """Return the bytes of a text."""
        if not isinstance(value, str):
            kind = "nothing" if value is None else type(value).__name__
            raise ItemError("not_text", f"must be a text, got {kind}")
        return decode.encode(value)

    def export_files(self, size: int) -> dict[str, str]:
        return self._tokens.export_files(size)

    def show(self, data: bytes) -> str:
        """Return the first SHOWN characters as a quotation."""
        try:
            text = decode.decode(data)
        except ItemError:
            return ""
        more = "\N{HORIZONTAL ELLIPSIS}" if len(text) > SHOWN else ""
        return f'<blockquote dir="auto">{html.escape(text[:SHOWN])}{more}</blockquote>'

    def explain(self, files: Sequence[bytes], size: int, classes: np.ndarray, network: Evidence) -> Explanation:
        def encode(text: str) -> np.ndarray:
            return self._tokens.encode(text, size)[0]

        return evidence.explain([self.decode(data) for data in files], size, encode, network.scores, classes)

"""Texts as the tokens of a backbone: what its tokenizer.json says, by the library `tokenizers`."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headstart.errors import HUB_EXTRA, UserError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

BYTES_PER_BYTE = 200  # of memory that tokenizing a byte of text takes at most: offsets, masks and words of each token
EXACT, STEP = 32, 16  # tokens
EXPORTED = ("tokenizer.json", "reading.json")
KEYS = ("tokenizer", "pad", "prefix", "longest")


class Tokens(NamedTuple):
    """How a backbone reads texts.

    Attributes:
        tokenizer: the content of its tokenizer.json.
        pad: the token that short texts are filled up with.
        prefix: what stands before every text, as the backbone was trained, e.g. `query: `.
        longest: how many tokens it can take.
    """

    tokenizer: str
    pad: int
    prefix: str
    longest: int

    @classmethod
    def parse(cls, reading: dict[str, Any]) -> Tokens:
        """Return the part of a reading that a backbone has added.

        Raises:
            ValueError: if it is something else.
        """
        kinds = dict(zip(KEYS, (str, int, str, int), strict=True))
        wrong = [key for key, kind in kinds.items() if not isinstance(reading.get(key), kind)]
        if wrong:
            raise ValueError(f"{wrong[0]} must be {kinds[wrong[0]].__name__}, got {str(reading.get(wrong[0]))[:80]!r}")
        return cls(*(reading[key] for key in KEYS))

    def encode(self, text: str, size: int) -> tuple[np.ndarray, bool]:
        """Return the tokens of a text, (t,) int32 with t <= `size`, and whether the text was cut for that."""
        encoding, cut = self._encode(text, size)
        return np.array(encoding.ids, np.int32), cut

    def words(self, text: str, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of a text, as `encode` does, and the number of the word of each, (t,) int32.

        It is -1 for those that belong to no word of the text: [CLS], [SEP] and the like, and the prefix.
        """
        encoding, _ = self._encode(text, size)
        places = zip(encoding.word_ids, encoding.offsets, strict=True)
        prefix = len(self.prefix.rstrip())
        numbers = [-1 if number is None or end <= prefix else number for number, (_, end) in places]
        return np.array(encoding.ids, np.int32), np.array(numbers, np.int32)

    def _encode(self, text: str, size: int) -> tuple[Encoding, bool]:
        text = self.prefix + text
        beginning = _first_words(text, size)
        encoding = _open(self.tokenizer, size).encode(beginning)
        return encoding, len(beginning) < len(text) or bool(encoding.overflowing)

    def fill(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Return one array, (b, T) int32, of texts (t,) each, filled up to the longest of them.

        Up to EXACT tokens the bits of features do not depend on T on the processors where that was tried, and beyond
        only on whether T is a multiple of STEP: so many numbers are added up side by side.
        """
        longest = max(map(len, arrays))
        if longest > EXACT:
            longest = max(longest, min(-(-longest // STEP) * STEP, self.longest))
        tokens = np.full((len(arrays), longest), self.pad, np.int32)
        for row, array in zip(tokens, arrays, strict=True):
            row[: len(array)] = array
        return tokens

    def export_files(self, size: int) -> dict[str, str]:
        """Return tokenizer.json, which cuts to `size` tokens and fills up a batch, and reading.json with the rest."""
        tokenizer = _make(self.tokenizer, size)
        tokenizer.enable_padding(pad_id=self.pad, pad_token=tokenizer.id_to_token(self.pad) or "")
        rest = {"prefix": self.prefix, "pad": self.pad, "size": size}
        return dict(zip(EXPORTED, (tokenizer.to_str(), json.dumps(rest) + "\n"), strict=True))


def _first_words(text: str, count: int) -> str:
    """Return the beginning of `text` that has `count` words: no more can matter, since a word has a token or more."""
    words = text.split(None, count)
    return text[: len(text) - len(words[-1])] if len(words) > count else text


@lru_cache(maxsize=8)
def _open(content: str, size: int) -> Tokenizer:
    """Return a tokenizer that cuts texts to `size` tokens; threads may share it."""
    return _make(content, size)


def _make(content: str, size: int) -> Tokenizer:
    if not importlib.util.find_spec("tokenizers"):
        raise UserError(f"texts need the library tokenizers, which is not installed; install {HUB_EXTRA}")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(content)
    tokenizer.no_padding()
    tokenizer.enable_truncation(size)
    return tokenizer

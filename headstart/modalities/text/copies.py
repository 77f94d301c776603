"""Signatures of texts by which near copies are found: MinHash (Broder, SEQUENCES 1997) of their shingles."""

from __future__ import annotations

import re

import numpy as np

from headstart.modalities.text.decode import normalize

SIZE = 128  # values of a signature: the share in which two differ is within 0.08 of the distance, 19 times in 20
SHINGLE = 5  # characters, about a word
WIDE, WIDE_SHINGLE = 0x2E80, 2  # from here on a character is a syllable or a word: Chinese, Japanese and Korean
_MARKS = re.compile(r"[\W_]+")
# Code and formulas have other marks than prose, and of short ones they are what matters: `x += 1` is no `x *= 1`.
_TAG, _SYMBOL = re.compile(r"</?[a-z][^<>]*>"), re.compile(r"[=+*/<>{}\[\]|&^~\\]")
SYMBOLS = 0.05  # share of the characters from which on a text is taken for code
_AT_ONCE = 2**12  # shingles
_ODD = np.random.default_rng(0).integers(2**63, size=2 * SIZE + SHINGLE, dtype=np.uint64) * 2 + 1
_FACTORS, _OFFSETS = _ODD[:SIZE].astype(np.uint32), (_ODD[SIZE : 2 * SIZE] >> np.uint64(32)).astype(np.uint32)
_WEIGHTS = _ODD[2 * SIZE :]


def signature(text: str) -> np.ndarray:
    """Return the MinHash signature of a text, (SIZE,) uint16.

    Two signatures differ in as large a share of their values as two texts do in their shingles (1 - the Jaccard index).
    Shingles are all runs of five characters, without upper case, punctuation and markup between words; in code and
    formulas, with them. Of a text that has no word, such as a smiley, all values are 0, which says that there is
    nothing to compare.
    """
    normal = normalize(text)
    words = _MARKS.sub(" ", normal).strip()
    code = len(_SYMBOL.findall(_TAG.sub("", normal))) > SYMBOLS * (len(normal) - normal.count(" "))
    plain = f" {normal if code and words else words} ".ljust(SHINGLE)
    if plain.isspace():
        return np.zeros(SIZE, np.uint16)
    codes = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    length = WIDE_SHINGLE if 2 * np.count_nonzero(codes >= WIDE) > len(codes) else SHINGLE
    count = len(codes) - length + 1
    hashes = codes[:count] * _WEIGHTS[0]
    for place in range(1, length):
        hashes += codes[place : place + count] * _WEIGHTS[place]
    short = (hashes >> np.uint64(32)).astype(np.uint32)
    parts = (short[start : start + _AT_ONCE, None] for start in range(0, count, _AT_ONCE))
    lowest = np.stack([(part * _FACTORS + _OFFSETS).min(axis=0) for part in parts]).min(axis=0)
    return (lowest ^ (lowest >> np.uint32(16))).astype(np.uint16)

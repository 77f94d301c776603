"""Augmented views of texts: words are left out at random, seeded by text and number.

This is the random deletion of EDA (https://arxiv.org/abs/1901.11196).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from headstart.modalities.base import Augmentation


@dataclass(frozen=True)
class TextAugmentation(Augmentation):
    """How a text may be changed.

    Attributes:
        word_dropout: share of its words that a view leaves out, in [0, 1).
    """

    word_dropout: float


def view(tokens: np.ndarray, words: np.ndarray, augmentation: TextAugmentation, key: str, number: int) -> np.ndarray:
    """Make view `number` of a text, (t,) int32 tokens; 0 is the text as it is. A word or more is left.

    Args:
        tokens, words: see `Tokens.words`; what belongs to no word is in every view.
    """
    if number == 0:
        return tokens
    known = np.unique(words[words >= 0])
    if not len(known):
        return tokens
    seed = blake3(f"{key} {number}".encode()).digest(length=8)
    random = np.random.default_rng(int.from_bytes(seed, "little"))
    dropped, spared = random.random(len(known)) < augmentation.word_dropout, random.integers(len(known))
    dropped[spared] &= not dropped.all()
    return tokens[~np.isin(words, known[dropped])]

"""What `Modality.explain` asks of a trained network, and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np


class Evidence(Protocol):
    """What a network goes by. Evidence for all classes alike decides nothing and is left out."""

    def maps(self, arrays: Sequence[np.ndarray], classes: np.ndarray) -> tuple[np.ndarray, str]:
        """Return what speaks for classes by place, in [0, 1] and with a maximum of 1, or all 0 if nothing does.

        Args:
            arrays: n examples as the modality loads them.
            classes: (n, k) int: the classes in question for each example.

        Returns:
            (n, k, h, w) float32, h and w those of the last feature map or of the patches; and what they show, in words.
        """

    def scores(self, arrays: Sequence[np.ndarray], classes: np.ndarray) -> np.ndarray:
        """Return (n, k) float32: the logit of each class less the mean of all logits; arguments as of `maps`."""


class Explanation(NamedTuple):
    """Examples with what speaks for classes marked, as HTML that is safe to put into a page.

    Attributes:
        shown: for each example k + 1 pieces: the example as it is, or nothing if the others show it well enough; then
            one for each class.
        legend: how to read them, a sentence.
    """

    shown: list[list[str]]
    legend: str

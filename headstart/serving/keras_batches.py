"""The network in Keras, on batches of few sizes, each of which is compiled once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from headstart.training.networks import Classifier

BATCH_SIZES = 2, 32


def predict_padded(classifier: Classifier, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return (n, n_classes) float32 of n <= 32 examples, as the modality loads them, padded to one of BATCH_SIZES."""
    batch_size = next(size for size in BATCH_SIZES if len(arrays) <= size)
    return classifier.predict(classifier.modality.batch(arrays), batch_size)

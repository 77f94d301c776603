"""The network in Keras, on batches of few sizes, each of which is compiled once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from headstart.modalities.batch import Batch, batch_length
from headstart.modalities.lengths import map_batches

if TYPE_CHECKING:
    from headstart.training.networks import Classifier

BATCH_SIZES = 2, 32


def predict_padded(classifier: Classifier, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return (n, n_classes) float32 of n examples, as the modality loads them, in batches padded to BATCH_SIZES."""

    def run(batch: Batch) -> np.ndarray:
        return classifier.predict(batch, next(size for size in BATCH_SIZES if batch_length(batch) <= size))

    return map_batches(run, classifier.modality, arrays, BATCH_SIZES[-1])

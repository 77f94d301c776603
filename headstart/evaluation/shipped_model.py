"""Measure the shipped model as its users call it: its latency, and whole images in place of decoded ones."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from headstart.data.files import Source, read_unchanged
from headstart.framework import keras
from headstart.modalities.loading import prefetch
from headstart.training.networks import PREDICTION_BATCH, Classifier

TIMED_CALLS = 15
MAX_WHOLE = 200  # examples that are tried whole
MAX_LENGTHS = 4  # of the median; longer ones are not


def latency_ms(model: Classifier) -> float:
    """Return the milliseconds from one loaded example to its probabilities, the median of several calls."""
    length = model.size * model.modality.unit  # of the longest example
    batch = {
        name: np.ones((1, *(length if side is None else side for side in shape)), dtype)
        for name, (shape, dtype) in model.modality.spec(model.size).items()
    }
    inputs = batch if isinstance(model.inner.input, dict) else next(iter(batch.values()))
    seconds = []
    for _ in range(1 + TIMED_CALLS):
        start = time.perf_counter()
        model.inner.predict_on_batch(inputs)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[1:])  # the first call compiles


def compare_whole_images(
    model: Classifier, source: Source, examples: pd.DataFrame, probabilities: np.ndarray, seed: int
) -> dict[str, Any]:
    """Return how far the probabilities of `model(images)` are from those that the pipeline's own decoding led to.

    The model's first layers resize whole images; the pipeline decodes JPEGs at a fraction of their size, and resizes
    those.

    Args:
        examples: rows of the manifest with `target`; if there are more than MAX_WHOLE, a random part of them is tried,
            and none that is longer than MAX_LENGTHS times the median.
        probabilities: (N, n_classes), of the same examples by the pipeline's own decoding.

    Returns:
        examples (how many were tried), max_difference and mean_difference of the probabilities, accuracy, and
        pipeline_accuracy on the same examples.
    """
    rows = np.random.default_rng(seed).permutation(len(examples))
    lengths = model.modality.lengths(examples)
    if lengths is not None:  # the longest could take more memory than there is
        rows = rows[lengths[rows] <= MAX_LENGTHS * np.median(lengths)]
    rows = rows[:MAX_WHOLE]
    chosen, expected = examples.iloc[rows], probabilities[rows]
    front = model.modality.front(model.size)

    def load(numbers: range) -> Iterator[np.ndarray]:
        for row in chosen.iloc[numbers.start : numbers.stop].itertuples():
            item = model.modality.whole(read_unchanged(source, row.path, row.file_hash))
            (resized,) = front(keras.tree.pack_sequence_as(front.input, [item[None]])).values()
            yield np.asarray(resized)[0]

    batch_size = PREDICTION_BATCH if lengths is None else 2
    loaded = prefetch(load, len(chosen), batch_size)
    whole = np.concatenate([model.predict(model.modality.batch(arrays), batch_size) for arrays in loaded])
    difference = np.abs(whole - expected)
    return {
        "examples": len(chosen),
        "max_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "accuracy": float((whole.argmax(axis=1) == chosen.target).mean()),
        "pipeline_accuracy": float((expected.argmax(axis=1) == chosen.target).mean()),
    }

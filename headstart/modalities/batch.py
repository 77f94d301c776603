"""Batches: arrays by name."""

from __future__ import annotations

import numpy as np

Batch = dict[str, np.ndarray]  # a batch under the names of the encoder's inputs, the first axis being the examples


def batch_length(batch: Batch) -> int:
    """Return how many examples a batch has."""
    return len(next(iter(batch.values())))


def pad_batch(batch: Batch, size: int) -> Batch:
    """Repeat the last example until the batch has `size` of them: an all-zero example may be an invalid one."""
    missing = size - batch_length(batch)
    if missing <= 0:
        return batch
    return {name: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) for name, array in batch.items()}

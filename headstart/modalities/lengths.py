"""Batches of examples of different lengths, such as texts: all are filled up to the longest one of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from headstart.modalities.base import Modality
from headstart.modalities.batch import Batch

# A group ends where lengths have doubled; below SHORT it does not matter.
SPREAD, SHORT = 2, 32


def map_batches(
    run: Callable[[Batch], np.ndarray], modality: Modality, arrays: Sequence[np.ndarray], batch_size: int
) -> np.ndarray:
    """Return what `run` makes of loaded examples, (n, ...), in their order; it gets at most `batch_size` at once."""
    order = _order(arrays)
    places = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return _run(run, modality, arrays, places)


def map_groups(run: Callable[[Batch], np.ndarray], modality: Modality, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return what `run` makes of loaded examples, (n, ...), in their order; it gets batches of like lengths.

    A batch may be of any size. A single long text does not make all others of its batch long.
    """
    groups: list[list[int]] = []
    for place in _order(arrays):
        if not groups or len(arrays[place]) > max(SPREAD * len(arrays[groups[-1][0]]), SHORT):
            groups.append([])
        groups[-1].append(place)
    return _run(run, modality, arrays, groups)


def _order(arrays: Sequence[np.ndarray]) -> list[int]:
    return sorted(range(len(arrays)), key=lambda place: len(arrays[place]))


def _run(
    run: Callable[[Batch], np.ndarray], modality: Modality, arrays: Sequence[np.ndarray], places: list[list[int]]
) -> np.ndarray:
    found = np.concatenate([run(modality.batch([arrays[place] for place in some])) for some in places])
    return found[np.argsort(np.concatenate(places))]

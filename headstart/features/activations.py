"""The inputs of fine-tuning: examples, or the cached activations of the frozen blocks below the trained ones.

Both return the same view of an example for the same number, up to the rounding of float16 and of the engine.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import pandas as pd

from headstart.backbones.splitting import MIN_WORK, Split
from headstart.errors import UserError
from headstart.features.extraction import Extraction
from headstart.features.views import ViewLoader
from headstart.machine import cores
from headstart.modalities import Batch
from headstart.modalities.loading import prefetch

MAX_BYTES = 20 * 10**9  # of activations that are cached if fine_tune.trunk_cache is auto
STORAGE = "float16"  # half the space of float32, at a relative error of a thousandth
SAMPLE = 200  # examples by which the length of all is estimated
MEASURED = 256  # examples that are measured at once


class Inputs(Protocol):
    """What the trained part of a network takes.

    Attributes:
        workers: how many threads may read at once.
        mixes: whether the arrays of two examples can be averaged, as mixup does.
        lengths: (N,) of the examples, if the second axis of a batch is as long as the longest of them; else None.
    """

    workers: int
    mixes: bool
    lengths: np.ndarray | None

    def read(self, rows: np.ndarray, view: int) -> Batch:
        """Return a batch of that view of the examples in some rows (b,) of the manifest; 0 is the example as it is."""


class RawExamples:
    """The examples themselves, loaded and augmented each time."""

    def __init__(self, manifest: pd.DataFrame, loader: ViewLoader) -> None:
        self._files, self._loader = list(zip(manifest.path, manifest.file_hash, strict=True)), loader
        self.workers, self.mixes = cores(), loader.modality.mixes
        self.lengths = self._measure() if loader.modality.estimates else loader.modality.lengths(manifest)

    def _measure(self) -> np.ndarray:
        loaded = prefetch(lambda rows: self._load(rows, 0), len(self._files), MEASURED)
        return np.array([len(array) for arrays in loaded for array in arrays])

    def _load(self, rows: Iterable[int], view: int) -> list[np.ndarray]:
        return [next(self._loader.load(*self._files[row], [view])) for row in rows]

    def read(self, rows: np.ndarray, view: int) -> Batch:
        return self._loader.modality.batch(self._load(rows, view))

    def batches(self, view: int, batch_size: int) -> Iterator[Batch]:
        """Yield batches of that view of all examples in order, loaded ahead by threads."""
        loaded = prefetch(lambda rows: self._load(rows, view), len(self._files), batch_size)
        return map(self._loader.modality.batch, loaded)


class Activations:
    """The arrays between the parts of a split network, by name, read from the feature store; see `Split.unpack`."""

    workers = 1

    def __init__(self, extraction: Extraction, split: Split, lengths: np.ndarray | None) -> None:
        self._extraction, self._split = extraction, split
        self.mixes, self.lengths = split.mask is None, lengths
        self._lock = threading.Lock()  # Keras reads in threads of its own

    def read(self, rows: np.ndarray, view: int) -> Batch:
        with self._lock:
            found = self._extraction.features(self._extraction.index.first[rows] + view)
        return self._split.unpack(found)


def average_size(split: Split, examples: pd.DataFrame, loader: ViewLoader, seed: int) -> int:
    """Return how many numbers are cached for an example, on average; how long sequences are is found by a sample."""
    if split.mask is None:
        return split.size
    sample = examples.sample(min(SAMPLE, len(examples)), random_state=seed)
    files = zip(sample.path, sample.file_hash, strict=True)
    lengths = [len(array) for path, file_hash in files for array in loader.load(path, file_hash, [0])]
    return round(split.size * float(np.mean(lengths)) / (loader.size * loader.modality.unit))


def choose_cache(
    setting: str, floats: int | None, views: int, passes: int, fast: bool, work: float
) -> tuple[bool, str]:
    """Decide whether to cache activations, and say why. The decision is the same on all machines with the same engine.

    Args:
        setting: auto, on or off.
        floats: how many numbers the frozen blocks return for an example; None if they cannot be run by themselves.
        views: how many views would be cached, including those of val and the examples as they are.
        passes: how many views all epochs take together.
        fast: whether frozen networks have an engine of their own, about twice as fast as training.
        work: the share of the network's multiplications that are in the frozen blocks, in [0, 1].

    Raises:
        UserError: if `setting` is on, and nothing can be cached.
    """
    if floats is None:
        if setting == "on":
            raise UserError(
                "params.yaml: fine_tune.trunk_cache on: no frozen part can be run by itself; use auto, or unfreeze less"
            )
        return False, "no frozen part can be run by itself"
    if setting != "auto":
        return setting == "on", f"fine_tune.trunk_cache is {setting}"
    size = np.dtype(STORAGE).itemsize * floats * views
    what = f"{views:,} views to cache ({f'{size / 1e9:.2g} GB' if size >= 1e8 else f'{size / 1e6:.2g} MB'})"
    if size > MAX_BYTES:
        return False, f"{what}, more than the limit of {MAX_BYTES / 1e9:.0f} GB for auto"
    if work < MIN_WORK:
        return False, f"only {work:.0%} of the work is in the frozen part"
    if views * (0.5 if fast else 1.0) >= passes:
        return False, f"{what}, hardly fewer than the {passes:,} of all epochs"
    return True, f"{what} instead of {passes:,} in all epochs"

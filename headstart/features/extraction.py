"""Complete the feature store: compute what it lacks, then read features from it."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pandas as pd
from blake3 import blake3
from tqdm import tqdm

from headstart import locks
from headstart.data.files import Source, read_unchanged
from headstart.errors import UserError
from headstart.features import fingerprints
from headstart.features.engines import Engine, OutOfMemoryError
from headstart.features.executors import Executor, LocalExecutor
from headstart.features.store import KEY_BYTES, DamagedStoreError, FeatureStore
from headstart.framework import keras
from headstart.modalities import Augmentation, Modality

SECONDS_BETWEEN_PUTS = 0.1  # of work that a kill can lose, besides the batches that are being computed


class ViewIndex:
    """All views that have features: every example as it is, and augmented views of those in train.

    Attributes:
        paths, hashes: path and file_hash of each example, by the manifest's row.
        rows, numbers: the manifest's row and the number of each view; views of an example are next to each other.
        first: the index of view 0 of each example; its augmented views follow.
        keys: of each view in the feature store, made of everything that it depends on.
    """

    def __init__(
        self, manifest: pd.DataFrame, views: int, augmentation: Augmentation | None, modality: Modality, size: int
    ) -> None:
        self.paths, self.hashes = list(manifest.path), list(manifest.file_hash)
        per_example = np.where(manifest.split == "train", 1 + views, 1)
        self.rows = np.repeat(np.arange(len(manifest)), per_example)
        self.first = np.cumsum(per_example) - per_example
        self.numbers = np.arange(len(self.rows)) - np.repeat(self.first, per_example)
        recipe = ""
        if views:
            key = augmentation.key() if augmentation else ""
            recipe = f"{key} {fingerprints.augmenting(modality, size, augmentation)}"
        self.keys = [
            self._key(recipe, self.hashes[row], number) for row, number in zip(self.rows, self.numbers, strict=True)
        ]

    def select(self, examples: pd.Series, augmented: bool) -> np.ndarray:
        """Return the indices of view 0, or of the augmented views, of some examples: a mask over the manifest."""
        return np.flatnonzero(examples.to_numpy()[self.rows] & ((self.numbers > 0) == augmented))

    @staticmethod
    def _key(recipe: str, file_hash: str, number: int) -> bytes:
        if number == 0:
            return bytes.fromhex(file_hash)
        return blake3(f"{recipe} {file_hash} {number}".encode()).digest(length=KEY_BYTES)


def load_views(
    source: Source,
    modality: Modality,
    path: str,
    file_hash: str,
    numbers: Iterable[int],
    size: int,
    augmentation: Augmentation | None,
) -> Iterator[np.ndarray]:
    """Load views of an example by their numbers; it is read and decoded once. 0 is the example as it is.

    Raises:
        UserError: if the file does not have that hash any more.
    """
    return modality.views(read_unchanged(source, path, file_hash), size, augmentation, file_hash, numbers)


def fingerprint_inputs(engine: Engine, recipe: dict[str, Any], modality: Modality, size: int) -> dict[str, Any]:
    """Return everything that shapes features: `recipe`, which names the network, how examples are loaded, rounding."""
    return {
        **recipe,
        "engine": engine.name,
        "weights_sha256": engine.weights_sha256,
        "arithmetic": engine.arithmetic,
        "loading": fingerprints.loading(modality, size),
        "computing": engine.device or fingerprints.computing(engine, modality, size),
    }


class Extraction:
    """Fills the store with the features of views, and reads them from it.

    Args:
        stage: the name of the stage, for progress and messages.

    Attributes:
        computed: how many views went through the network.
        seconds: how long that took.
    """

    def __init__(
        self,
        index: ViewIndex,
        source: Source,
        modality: Modality,
        engine: Engine,
        store: FeatureStore,
        size: int,
        augmentation: Augmentation | None,
        stage: str = "extract",
        executor: Executor | None = None,
    ) -> None:
        self._index, self._source, self._modality = index, source, modality
        self._engine, self._store, self._executor = engine, store, executor or LocalExecutor()
        self._size, self._augmentation, self._stage = size, augmentation, stage
        self.computed, self.seconds = 0, 0.0
        self._since = 0.0

    def _load(self, chosen: Sequence[int]) -> Iterator[np.ndarray]:
        """Load the arrays of views; an example is read once for views next to each other."""
        index, size = self._index, self._size
        for (row, _), group in itertools.groupby(chosen, lambda view: (index.rows[view], index.numbers[view] > 0)):
            numbers = [int(index.numbers[view]) for view in group]
            path, file_hash = index.paths[row], index.hashes[row]
            yield from load_views(self._source, self._modality, path, file_hash, numbers, size, self._augmentation)

    def complete(self) -> None:
        """Compute everything that the store lacks. Of processes that need the same, one computes and the others wait.

        Raises:
            UserError: as `compute`.
        """
        lock = self._store.file.with_suffix(".lock")
        with locks.exclusive_lock(lock, f"{self._stage}: waiting for a run that computes the same"):
            missing = self._store.missing(self._index.keys)
            self.compute(missing, len(self._index.keys) - len(missing))

    def compute(self, chosen: Sequence[int], known: int) -> None:
        """Compute the features of `chosen` views and store them batch by batch; `known` others are stored already.

        Raises:
            UserError: if an example has changed, or its features are not finite.
        """
        self._since = time.perf_counter()
        waiting: list[tuple[list[int], np.ndarray]] = []
        total = known + len(chosen)
        unit = f" {self._modality.noun}s"
        with (
            closing(self._executor.run(chosen, self._load, self._modality.batch, self._engine)) as results,
            tqdm(total=total, initial=known, desc=self._stage, unit=unit, disable=None) as bar,
        ):
            for views, features in results:
                self._check(features, views)
                waiting.append((views, features))
                bar.update(len(views))
                if time.perf_counter() - self._since > SECONDS_BETWEEN_PUTS:
                    self._put(waiting)
            self._put(waiting)
        self.computed += len(chosen)

    def _put(self, waiting: list[tuple[list[int], np.ndarray]]) -> None:
        """Store the views and features that are waiting, with the time since the last put."""
        now = time.perf_counter()
        keys = [self._index.keys[view] for views, _ in waiting for view in views]
        if keys:
            self._store.put(keys, np.concatenate([features for _, features in waiting]), now - self._since)
        self.seconds += now - self._since
        self._since = now
        waiting.clear()

    def _check(self, features: np.ndarray, views: Sequence[int]) -> None:
        with np.errstate(over="ignore"):
            finite = np.isfinite(features.astype(self._store.dtype)).all(axis=1)
        if not finite.all():
            path = self._index.paths[self._index.rows[views[int(np.argmin(finite))]]]
            advice = "use float32 for extract.precision and extract.storage, or other weights"
            if self._stage != "extract":
                advice = "set fine_tune.trunk_cache to off"
            raise UserError(f"{path}: its features are not finite numbers; {advice}")

    def features(self, chosen: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the features of views, (n, feature_dim) of the store's dtype; damaged rows are computed again."""
        keys = [self._index.keys[view] for view in chosen]
        features, bad = self._store.get(keys)
        if bad:
            print(f"{self._stage}: {self._store.file}: {len(bad)} damaged rows are computed again", file=sys.stderr)
            self.compute([chosen[place] for place in bad], 0)
            features, bad = self._store.get(keys)
            if bad:
                raise UserError(f"{self._store.file}: does not contain what was written to it; check the disk")
        return features


def retry_on_oom(stage: str, work: Callable[[int | None], None], batch_size: int | None) -> None:
    """Call `work` with a batch size; again with half of it if it runs out of memory, or if the store was damaged.

    Raises:
        UserError: if two examples do not fit into memory, or a new store is damaged, too.
    """
    damaged = False
    while True:
        try:
            work(batch_size)
            return
        except DamagedStoreError as error:
            if damaged:
                raise UserError(f"{error}; it was new: check the disk") from error
            damaged = True
            print(f"{stage}: {error}: everything in it is computed again", file=sys.stderr)
        except OutOfMemoryError as error:
            if error.batch_size <= 2:
                advice = "lower extract.size" if stage == "extract" else "set fine_tune.trunk_cache to off"
                raise UserError(f"out of memory with a batch of two ({error}); {advice}") from error
            batch_size = error.batch_size // 2
            keras.backend.clear_session()  # frees the network on the device
            print(f"{stage}: out of memory with a batch of {error.batch_size}; trying {batch_size}")

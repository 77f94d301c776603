"""Complete the feature store: compute what it lacks, then read features from it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from headstart import locks
from headstart.errors import UserError
from headstart.features.engines import Engine, OutOfMemoryError
from headstart.features.executors import Executor, LocalExecutor
from headstart.features.store import DamagedStoreError, FeatureStore, open_store
from headstart.features.views import ViewIndex, ViewLoader, Views

SECONDS_BETWEEN_PUTS = 0.1  # of work that a kill can lose, besides the batches that are being computed


class Extraction:
    """Fills the store with the features of views, and reads them from it.

    Args:
        stage: the name of the stage, for progress and messages.

    Attributes:
        loader: of the views.
        computed: how many views went through the network.
        seconds: how long that took.
    """

    def __init__(
        self,
        index: ViewIndex,
        loader: ViewLoader,
        engine: Engine,
        store: FeatureStore,
        stage: str = "extract",
        executor: Executor | None = None,
    ) -> None:
        self.index, self.engine, self.store = index, engine, store
        self.loader, self._views = loader, Views(index, loader)
        self._stage, self._executor = stage, executor or LocalExecutor()
        self.computed, self.seconds, self._since = 0, 0.0, 0.0

    def complete(self) -> None:
        """Compute all that the store lacks. Of processes that need the same, one computes and the others wait."""
        lock = self.store.file.with_suffix(".lock")
        with locks.exclusive_lock(lock, f"{self._stage}: waiting for a run that computes the same"):
            missing = self.store.missing(self.index.keys)
            self.compute(missing, len(self.index.keys) - len(missing))

    def compute(self, chosen: Sequence[int], known: int) -> None:
        """Compute the features of `chosen` views and store them batch by batch; `known` others are stored already.

        Raises:
            UserError: if an example has changed, or its features are not finite.
        """
        self._since, modality = time.perf_counter(), self.loader.modality
        chosen = self.index.sort(chosen)
        waiting: list[tuple[list[int], np.ndarray]] = []
        total, unit = known + len(chosen), f" {modality.noun}s"
        with (
            closing(self._executor.run(chosen, self._views, self.engine)) as results,
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
        keys = [self.index.keys[view] for views, _ in waiting for view in views]
        if keys:
            self.store.put(keys, np.concatenate([features for _, features in waiting]), now - self._since)
        self.seconds += now - self._since
        self._since = now
        waiting.clear()

    def _check(self, features: np.ndarray, views: Sequence[int]) -> None:
        with np.errstate(over="ignore"):
            finite = np.isfinite(features.astype(self.store.dtype)).all(axis=1)
        if not finite.all():
            path = self.index.paths[self.index.rows[views[int(np.argmin(finite))]]]
            advice = "use float32 for extract.precision and extract.storage, or other weights"
            if self._stage != "extract":
                advice = "set fine_tune.trunk_cache to off"
            raise UserError(f"{path}: its features are not finite numbers; {advice}")

    def features(self, chosen: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the features of views, (n, feature_dim) of the store's dtype; damaged rows are computed again."""
        keys = [self.index.keys[view] for view in chosen]
        features, bad = self.store.get(keys)
        if bad:
            print(f"{self._stage}: {self.store.file}: {len(bad)} damaged rows are computed again", file=sys.stderr)
            self.compute([chosen[place] for place in bad], 0)
            features, bad = self.store.get(keys)
            if bad:
                raise UserError(f"{self.store.file}: does not contain what was written to it; check the disk")
        return features


@contextmanager
def open_extraction(
    engine: Engine,
    recipe: dict[str, Any],
    manifest: pd.DataFrame,
    loader: ViewLoader,
    views: int,
    stage: str,
    executor: Executor | None = None,
) -> Iterator[Extraction]:
    """Compute the features that the store lacks: of all examples, and of `views` augmented views of those in train.

    Args:
        recipe: what distinguishes the network from others; `storage` is the dtype of the stored features.
        executor: None: this machine.

    Raises:
        OutOfMemoryError: if a batch does not fit; what was computed until then is in the store.
        UserError: if an example has changed, or its features are not finite.
    """
    index, executor = ViewIndex(manifest, views, loader), executor or LocalExecutor()
    inputs = executor.fingerprint(engine, recipe, loader)
    with open_store(inputs, engine.feature_dim, recipe["storage"]) as store:
        extraction = Extraction(index, loader, engine, store, stage, executor)
        extraction.complete()
        yield extraction


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
            if "headstart.framework" in sys.modules:  # else it ran out of memory on another machine
                from headstart.framework import keras

                keras.backend.clear_session()  # frees the network on the device
            print(f"{stage}: out of memory with a batch of {error.batch_size}; trying {batch_size}")

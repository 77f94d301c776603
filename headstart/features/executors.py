"""Where an encoder runs over examples: on this machine; `ray_executor` has another class with the same methods."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, Protocol

import numpy as np

from headstart.features.engines import Engine
from headstart.features.views import ViewLoader, Views, fingerprint_inputs
from headstart.modalities import Batch
from headstart.modalities.loading import prefetch


class Loads(Protocol):
    """What loads examples by their numbers, such as `Views`; `load` is called from several threads."""

    def load(self, chosen: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the arrays of some of them, in their order."""

    def batch(self, arrays: Sequence[np.ndarray]) -> Batch:
        """Return arrays as a batch."""


class Executor(Protocol):
    """Where an engine runs over views."""

    def fingerprint(self, engine: Engine, recipe: dict[str, Any], loader: ViewLoader) -> dict[str, Any]:
        """Return what shapes the features that it computes, see `fingerprint_inputs`."""

    def run(
        self, chosen: Sequence[int], views: Views, engine: Engine
    ) -> Generator[tuple[list[int], np.ndarray], None, None]:
        """Yield views with their features, (n, feature_dim), as they are computed: in any order, each view once."""


class LocalExecutor:
    """Runs on this machine: threads load, the engine computes."""

    def fingerprint(self, engine: Engine, recipe: dict[str, Any], loader: ViewLoader) -> dict[str, Any]:
        return fingerprint_inputs(engine, recipe, loader)

    def run(
        self, chosen: Sequence[int], views: Loads, engine: Engine
    ) -> Generator[tuple[list[int], np.ndarray], None, None]:
        loaded = prefetch(lambda rows: views.load(chosen[rows.start : rows.stop]), len(chosen), engine.batch_size)
        remaining = iter(chosen)
        with closing(engine.map(map(views.batch, loaded))) as results:
            for features in results:
                yield list(itertools.islice(remaining, len(features))), features

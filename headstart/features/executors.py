"""Where an encoder runs over examples: on this machine; a cluster would be another class with the same method."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from typing import Protocol

import numpy as np

from headstart.features.engines import Engine
from headstart.modalities import Batch
from headstart.modalities.loading import prefetch

Load = Callable[[Sequence[int]], Iterable[np.ndarray]]  # the arrays of some tasks, in their order
MakeBatch = Callable[[Sequence[np.ndarray]], Batch]


class Executor(Protocol):
    """Runs an encoder over many examples."""

    def run(
        self, tasks: Sequence[int], load: Load, make_batch: MakeBatch, encoder: Engine
    ) -> Generator[tuple[list[int], np.ndarray], None, None]:
        """Yield tasks with their features, (n, feature_dim), as they are computed: in any order, each task once.

        Args:
            tasks: numbers that `load` knows.
            load: called from several threads.
        """


class LocalExecutor:
    """Runs on this machine: threads load, the engine computes."""

    def run(
        self, tasks: Sequence[int], load: Load, make_batch: MakeBatch, encoder: Engine
    ) -> Generator[tuple[list[int], np.ndarray], None, None]:
        loaded = prefetch(lambda rows: load(tasks[rows.start : rows.stop]), len(tasks), encoder.batch_size)
        remaining = iter(tasks)
        with closing(encoder.map(map(make_batch, loaded))) as results:
            for features in results:
                yield list(itertools.islice(remaining, len(features))), features

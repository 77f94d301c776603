"""Where the encoder runs over examples: on this machine; a cluster is another executor with the same method."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from typing import Protocol

import numpy as np

from headstart.features.engines import Engine
from headstart.modalities import Batch
from headstart.modalities.loading import prefetch

Load = Callable[[Sequence[int]], Iterable[np.ndarray]]  # the arrays of some pieces of work, in their order
MakeBatch = Callable[[Sequence[np.ndarray]], Batch]


class Executor(Protocol):
    """Runs an encoder over many examples."""

    def run(
        self, work: Sequence[int], load: Load, make_batch: MakeBatch, encoder: Engine
    ) -> Generator[tuple[list[int], np.ndarray], None, None]:
        """Pieces of work with their features, (n, feature_dim), as they come: in any order, each once.

        Args:
            work: numbers that `load` knows.
            load: called from several threads.
        """


class LocalExecutor:
    """This machine: threads load, the engine computes."""

    def run(
        self, work: Sequence[int], load: Load, make_batch: MakeBatch, encoder: Engine
    ) -> Generator[tuple[list[int], np.ndarray], None, None]:
        loaded = prefetch(lambda rows: load(work[rows.start : rows.stop]), len(work), encoder.batch_size)
        left = iter(work)
        with closing(encoder.map(map(make_batch, loaded))) as results:
            for features in results:
                yield list(itertools.islice(left, len(features))), features

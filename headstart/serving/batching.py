"""Gather the examples of several requests into batches for the network."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

MAX_BATCH = 32


class Batcher:
    """Runs a network in a thread of its own, on all examples that have come while the last batch was computed.

    An example alone is not delayed; the busier the server, the larger the batches. To be used from one event loop.

    Args:
        run: computes (n, n_classes) of n <= MAX_BATCH arrays.
    """

    def __init__(self, run: Callable[[Sequence[np.ndarray]], np.ndarray]) -> None:
        self._run = run
        self._waiting: deque[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = deque()
        self._thread = ThreadPoolExecutor(1, "network")
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, array: np.ndarray) -> np.ndarray:
        """Return the probabilities (n_classes,) of an example; if the caller is cancelled before, it is left out."""
        answer: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self._waiting.append((array, answer))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        while batch := self._next():
            try:
                arrays = [array for array, _ in batch]
                rows = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, arrays)
            except Exception as error:
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for (_, answer), row in zip(batch, rows, strict=True):
                if not answer.done():
                    answer.set_result(row)

    def _next(self) -> list[tuple[np.ndarray, asyncio.Future[np.ndarray]]]:
        batch: list[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = []
        while self._waiting and len(batch) < MAX_BATCH:
            array, answer = self._waiting.popleft()
            if not answer.done():
                batch.append((array, answer))
        return batch

    def close(self) -> None:
        """Compute nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

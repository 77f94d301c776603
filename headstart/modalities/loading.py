"""Load batches of examples: threads read and decode ahead, on all cores, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from headstart.data.files import Source, read_unchanged
from headstart.machine import cores
from headstart.modalities.base import Modality
from headstart.modalities.batch import Batch

READ_AHEAD = 2  # batches, or tasks per thread if that is more, that are decoded while a batch is used
TASK_EXAMPLES = 8  # decoded by a thread in one task


def read_batches(
    source: Source,
    modality: Modality,
    paths: Sequence[str],
    file_hashes: Sequence[str],
    size: int,
    batch_size: int,
    workers: int | None = None,
) -> Iterator[Batch]:
    """Load the examples in the order of `paths`, in batches of `batch_size`; the last one may be smaller.

    Args:
        size: of an example, as `extract.size` counts it.
        workers: threads; None: one per core.

    Raises:
        UserError: if a file does not have that hash any more.
    """

    def load(rows: range) -> Iterator[np.ndarray]:
        for row in rows:
            yield modality.load(read_unchanged(source, paths[row], file_hashes[row]), size)

    return map(modality.batch, prefetch(load, len(paths), batch_size, workers))


def prefetch(
    load: Callable[[range], Iterable[np.ndarray]], count: int, batch_size: int, workers: int | None = None
) -> Iterator[list[np.ndarray]]:
    """Yield lists of `batch_size` arrays in order, which threads load ahead.

    Args:
        load: returns the arrays of a range of rows; called from several threads.
        count: of all rows.
    """
    workers = workers or cores()
    task = min(TASK_EXAMPLES, batch_size)
    ahead = max(READ_AHEAD, READ_AHEAD * workers * task // batch_size)
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[list[Future[list[np.ndarray]]]] = deque()
        try:
            for start in range(0, count, batch_size):
                stop = min(start + batch_size, count)
                tasks = [range(row, min(row + task, stop)) for row in range(start, stop, task)]
                pending.append([pool.submit(lambda rows: list(load(rows)), rows) for rows in tasks])
                if len(pending) > ahead:
                    yield _gather(pending.popleft())
            while pending:
                yield _gather(pending.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def _gather(tasks: list[Future[list[np.ndarray]]]) -> list[np.ndarray]:
    return [array for task in tasks for array in task.result()]

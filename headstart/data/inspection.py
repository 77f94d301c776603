"""Find out what there is to know about every file, in one pass on all cores; results are cached from run to run."""

from __future__ import annotations

import itertools
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from typing import Any, Protocol

import numpy as np
from blake3 import blake3

from headstart.data.files import Source, file_hash
from headstart.data.inspection_cache import InspectionCache, ItemInfo
from headstart.errors import ItemError
from headstart.machine import cores

CHUNK_FILES, CHUNK_BYTES = 64, 2**22  # whichever comes first: what is in memory at once
AHEAD = 3  # chunks per worker that are submitted ahead
# Threads share Python's lock, which decoders hold for a part of the time. Processes take half a second to start.
MIN_FILES_FOR_PROCESSES = 5000
PROBE_SIZE = 64


class Inspector(Protocol):
    """What inspection needs of a modality, see `headstart.modalities.base.Modality`."""

    name: str

    def decode(self, data: bytes) -> Any: ...
    def item_id(self, item: Any) -> str: ...
    def measures(self, item: Any) -> dict[str, float]: ...
    def sketch(self, item: Any) -> np.ndarray: ...
    def describe(self, sketches: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]: ...
    def probes(self, size: int) -> list[bytes]: ...


def inspect_contents(files: Sequence[bytes], inspector: Inspector) -> list[ItemInfo]:
    """Return what is known about files by their bytes, in their order; without their hashes."""
    infos: list[ItemInfo | None] = []
    sketches, known = [], []
    for data in files:
        try:
            item = inspector.decode(data)
        except ItemError as error:
            infos.append(ItemInfo(error.reason, str(error)))
            continue
        infos.append(None)
        known.append((inspector.item_id(item), inspector.measures(item)))
        sketches.append(inspector.sketch(item))
    if not sketches:
        return [info for info in infos if info]
    vectors, described = inspector.describe(np.stack(sketches))
    good = (
        ItemInfo(
            item_id=item_id,
            measures=measures | {name: float(values[row]) for name, values in described.items()},
            descriptor=vectors[row].tobytes() if vectors[row].any() else b"",
        )
        for row, (item_id, measures) in enumerate(known)
    )
    return [info or next(good) for info in infos]


def fingerprint(inspector: Inspector) -> str:
    """Return a text by what inspection finds in known files: code with the same results has the same fingerprint."""
    infos = inspect_contents(inspector.probes(PROBE_SIZE), inspector)
    return f"{inspector.name} {blake3(repr(infos).encode()).hexdigest(length=16)}"


def inspect(
    names: Sequence[str], source: Source, cache: InspectionCache, inspector: Inspector, processes: bool | None = None
) -> Iterator[ItemInfo]:
    """Yield what is known about the files of `source`, in the order of `names`; what is cached is not decoded again.

    Args:
        processes: decode in processes instead of threads; by default if there are many new files and `source` can be
            opened by other processes.
    """
    opener = source.opener()
    if processes is None:
        processes = len(names) * (1 - cache.share_known(names)) >= MIN_FILES_FOR_PROCESSES
    workers = cores()
    chunks = _chunks(names, source)
    waiting: deque[_Chunk] = deque()
    executor: Executor
    examine: Callable[[list[str]], list[ItemInfo]]
    if opener and processes:
        executor, examine = _process_pool(workers, opener, cache, inspector), _examine_in_worker
    else:
        executor, examine = ThreadPoolExecutor(workers), partial(_examine, source, cache, inspector)
    with executor:
        try:
            while True:
                for chunk in itertools.islice(chunks, AHEAD * workers - len(waiting)):
                    chunk.known = cache.by_version(chunk.versions)
                    unknown = [name for name in chunk.versions if name not in chunk.known]
                    chunk.found = executor.submit(examine, unknown) if unknown else None
                    waiting.append(chunk)
                if not waiting:
                    return
                yield from waiting.popleft().finish(cache)
        finally:
            executor.shutdown(cancel_futures=True)


class _Chunk:
    """Files that are inspected together.

    Attributes:
        versions: what `Source.state` says of each, by name.
        known: what the cache has, by name.
        found: what is known about the others, in their order; None if there are none.
    """

    def __init__(self, versions: dict[str, str | None]) -> None:
        self.versions = versions
        self.known: dict[str, ItemInfo] = {}
        self.found: Future[list[ItemInfo]] | None = None

    def finish(self, cache: InspectionCache) -> list[ItemInfo]:
        """Return what is known about each file, in the order of the names, and cache it.

        Files that cannot be used are not cached: another version of a library may read them.
        """
        if self.found:
            unknown = [name for name in self.versions if name not in self.known]
            found = dict(zip(unknown, self.found.result(), strict=True))
            cache.put([(name, self.versions[name], info) for name, info in found.items() if not info.reason])
            self.known |= found
        return [self.known[name] for name in self.versions]


def _chunks(names: Sequence[str], source: Source) -> Iterator[_Chunk]:
    versions: dict[str, str | None] = {}
    total = 0
    for name in names:
        if name in versions or len(versions) == CHUNK_FILES or total > CHUNK_BYTES:  # a manifest can repeat a file
            yield _Chunk(versions)
            versions, total = {}, 0
        size, versions[name] = source.state(name)
        total += size
    if versions:
        yield _Chunk(versions)


def _examine(source: Source, cache: InspectionCache, inspector: Inspector, names: list[str]) -> list[ItemInfo]:
    """Return what is known about each file, which is read, and decoded if its content is not in the cache."""
    hashes: dict[str, str] = {}
    contents: dict[str, bytes] = {}
    infos: dict[str, ItemInfo] = {}
    for name in names:
        try:
            contents[name] = source.read(name)
            hashes[name] = file_hash(contents[name])
        except ItemError as error:
            infos[name] = ItemInfo(error.reason, str(error))
    known = cache.by_content(list(hashes.values()))
    infos |= {name: known[found] for name, found in hashes.items() if found in known}
    unknown = [name for name in names if name not in infos]
    new = inspect_contents([contents[name] for name in unknown], inspector)
    infos |= {name: info._replace(file_hash=hashes[name]) for name, info in zip(unknown, new, strict=True)}
    return [infos[name] for name in names]


_worker: tuple[Source, InspectionCache, Inspector]  # what a worker process has opened for itself


def _open_in_worker(
    open_source: Callable[[], Source], open_cache: Callable[[], InspectionCache], inspector: Inspector
) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    _worker = open_source(), open_cache(), inspector


def _examine_in_worker(names: list[str]) -> list[ItemInfo]:
    return _examine(*_worker, names)


def _process_pool(workers: int, opener: Callable[[], Source], cache: InspectionCache, inspector: Inspector) -> Executor:
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    return ProcessPoolExecutor(workers, context, _open_in_worker, (opener, cache.opener(), inspector))

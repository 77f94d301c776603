"""What there is to know about every file, found in one pass on all cores, and kept from run to run."""

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
AHEAD = 3  # chunks per worker that are under way
# Threads share Python's lock, which decoders hold for a part of the time. Processes take half a second to start.
MIN_FILES_FOR_PROCESSES = 5000
PROBE_SIZE = 64


class Inspector(Protocol):
    """What inspection asks of a modality, see `headstart.modalities.base.Modality`."""

    name: str

    def decode(self, data: bytes) -> Any: ...
    def item_id(self, item: Any) -> str: ...
    def measures(self, item: Any) -> dict[str, float]: ...
    def sketch(self, item: Any) -> np.ndarray: ...
    def describe(self, sketches: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]: ...
    def probes(self, size: int) -> list[bytes]: ...


def inspect_contents(files: Sequence[bytes], inspector: Inspector) -> list[ItemInfo]:
    """What is known about files by their bytes, in their order; without their hashes."""
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
    if sketches:
        vectors, described = inspector.describe(np.stack(sketches))
        rows = iter(
            [
                ItemInfo(
                    item_id=item_id,
                    measures=measures | {name: float(values[place]) for name, values in described.items()},
                    descriptor=vectors[place].tobytes() if vectors[place].any() else b"",
                )
                for place, (item_id, measures) in enumerate(known)
            ]
        )
        infos = [info or next(rows) for info in infos]
    return [info for info in infos if info is not None]


def fingerprint(inspector: Inspector) -> str:
    """What inspection makes of known files, as text: another code that finds the same has the same."""
    infos = inspect_contents(inspector.probes(PROBE_SIZE), inspector)
    return f"{inspector.name} {blake3(repr(infos).encode()).hexdigest(length=16)}"


def inspect(
    names: Sequence[str], source: Source, cache: InspectionCache, inspector: Inspector, processes: bool | None = None
) -> Iterator[ItemInfo]:
    """What is known about the files of `source`, in the order of `names`; what `cache` has is not decoded again.

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
    pool = _processes(workers, opener, cache, inspector) if opener and processes else ThreadPoolExecutor(workers)
    with pool as executor:
        examine = _examine_in_worker if opener and processes else partial(_examine, source, cache, inspector)
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
        """What is known about each file, in the order of the names."""
        if self.found:
            unknown = [name for name in self.versions if name not in self.known]
            found = dict(zip(unknown, self.found.result(), strict=True))
            cache.put([(name, self.versions[name], info) for name, info in found.items() if info.file_hash])
            self.known |= found
        return [self.known[name] for name in self.versions]


def _chunks(names: Sequence[str], source: Source) -> Iterator[_Chunk]:
    chosen: dict[str, str | None] = {}
    total = 0
    for name in names:
        if name in chosen or len(chosen) == CHUNK_FILES or total > CHUNK_BYTES:  # a manifest can name a file twice
            yield _Chunk(chosen)
            chosen, total = {}, 0
        size, chosen[name] = source.state(name)
        total += size
    if chosen:
        yield _Chunk(chosen)


def _examine(source: Source, cache: InspectionCache, inspector: Inspector, names: list[str]) -> list[ItemInfo]:
    """What is known about each file, read here, and decoded if the cache does not have its content."""
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
    looked = inspect_contents([contents[name] for name in unknown], inspector)
    infos |= {name: new._replace(file_hash=hashes[name]) for name, new in zip(unknown, looked, strict=True)}
    return [infos[name] for name in names]


_here: tuple[Source, InspectionCache, Inspector]  # what a worker process has opened for itself


def _open_in_worker(
    opener: Callable[[], Source], open_cache: Callable[[], InspectionCache], inspector: Inspector
) -> None:
    global _here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _here = opener(), open_cache(), inspector


def _examine_in_worker(names: list[str]) -> list[ItemInfo]:
    return _examine(*_here, names)


def _processes(workers: int, opener: Callable[[], Source], cache: InspectionCache, inspector: Inspector) -> Executor:
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    return ProcessPoolExecutor(workers, context, _open_in_worker, (opener, cache.opener(), inspector))

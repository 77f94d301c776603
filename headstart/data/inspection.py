"""Find out what there is to know about every file, in one pass on all cores; results are cached from run to run."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_all_start_methods, get_context

import numpy as np
from blake3 import blake3

from headstart.data.boxes import Box
from headstart.data.files import Source, file_hash
from headstart.data.inspection_cache import InspectionCache, ItemInfo
from headstart.data.listing import Kind
from headstart.errors import ItemError
from headstart.machine import cores

CHUNK_FILES, CHUNK_BYTES = 64, 2**22  # whichever comes first: what is in memory at once
AHEAD = 3  # chunks per worker that are submitted ahead
# Threads share Python's lock, which decoders hold for a part of the time. Processes take half a second to start.
MIN_FILES_FOR_PROCESSES = 5000
PROBE_SIZE, PROBE_BOX, PROBE_MARGIN = 64, Box(3.5, 2, 20.2, 11), 0.1
_Versions = dict[str, str | None]  # what `Source.state` says of files, by name


def inspect_contents(files: Sequence[bytes], kind: Kind) -> list[ItemInfo]:
    """Return what is known about files by their bytes, in their order; without their hashes."""
    infos: list[ItemInfo | None] = []
    sketches, known = [], []
    for data in files:
        try:
            item = kind.decode(data)
            described_by = kind.item_id(item), kind.measures(item), kind.sketch(item)
        except ItemError as error:
            infos.append(ItemInfo(error.reason, str(error)))
            continue
        infos.append(None)
        known.append(described_by[:2])
        sketches.append(described_by[2])
    if not sketches:
        return [info for info in infos if info]
    vectors, described = kind.describe(np.stack(sketches))
    good = (
        ItemInfo(
            item_id=item_id,
            measures=measures | {name: float(values[row]) for name, values in described.items()},
            descriptor=vectors[row].tobytes() if vectors[row].any() else b"",
        )
        for row, (item_id, measures) in enumerate(known)
    )
    return [info or next(good) for info in infos]


def fingerprint(kind: Kind) -> str:
    """Return a text by what inspection finds in known files: code with the same results has the same fingerprint."""
    probes = kind.probes(PROBE_SIZE)
    found = inspect_contents(probes, kind), list(_boxes(probes, kind))
    return f"{kind.name} {blake3(repr(found).encode()).hexdigest(length=16)}"


def _boxes(probes: Sequence[bytes], kind: Kind) -> Iterator[bytes]:
    """Boxes in known files, if the modality has boxes."""
    for data in probes:
        with contextlib.suppress(ItemError):
            yield kind.cutter(data)(PROBE_BOX, PROBE_MARGIN)


def inspect(
    names: Sequence[str], source: Source, cache: InspectionCache, kind: Kind, processes: bool | None = None
) -> Iterator[ItemInfo]:
    """Yield what is known about the files of `source`, in the order of `names`; what is cached is not decoded again.

    Args:
        processes: decode in processes instead of threads, if `source` can be opened by them; None: if there are many
            files. A process starts when it gets work: none if all files are cached.
    """
    opener, workers = source.opener(), cores()
    executor: Executor
    examine: Callable[[list[str]], dict[str, ItemInfo]]
    if opener and (len(names) >= MIN_FILES_FOR_PROCESSES if processes is None else processes):
        context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
        executor = ProcessPoolExecutor(workers, context, _open_in_worker, (opener, cache.opener(), kind))
        examine = _examine_in_worker
    else:
        executor, examine = ThreadPoolExecutor(workers), partial(_examine, source, cache, kind)
    chunks = _chunks(names, source)
    waiting: deque[tuple[_Versions, dict[str, ItemInfo], Future[dict[str, ItemInfo]] | None]] = deque()
    with executor:
        try:
            while True:
                for versions in itertools.islice(chunks, AHEAD * workers - len(waiting)):
                    known = cache.by_version(versions)
                    unknown = [name for name in versions if name not in known]
                    waiting.append((versions, known, executor.submit(examine, unknown) if unknown else None))
                if not waiting:
                    return
                versions, known, future = waiting.popleft()
                if future:
                    cache.put([(name, versions[name], info) for name, info in future.result().items()])
                    known |= future.result()
                yield from (known[name] for name in versions)
        finally:
            executor.shutdown(cancel_futures=True)


def _chunks(names: Sequence[str], source: Source) -> Iterator[_Versions]:
    versions: _Versions = {}
    total = 0
    for name in names:
        if name in versions or len(versions) == CHUNK_FILES or total > CHUNK_BYTES:  # a manifest can repeat a file
            yield versions
            versions, total = {}, 0
        size, versions[name] = source.state(name)
        total += size
    if versions:
        yield versions


def _examine(source: Source, cache: InspectionCache, kind: Kind, names: list[str]) -> dict[str, ItemInfo]:
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
    new = inspect_contents([contents[name] for name in unknown], kind)
    return infos | {name: info._replace(file_hash=hashes[name]) for name, info in zip(unknown, new, strict=True)}


_worker: tuple[Source, InspectionCache, Kind]  # what a worker process has opened for itself


def _open_in_worker(open_source: Callable[[], Source], open_cache: Callable[[], InspectionCache], kind: Kind) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    _worker = open_source(), open_cache(), kind


def _examine_in_worker(names: list[str]) -> dict[str, ItemInfo]:
    return _examine(*_worker, names)

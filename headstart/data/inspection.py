"""What is to be known about every image, found in one pass on all cores, and remembered from run to run."""

from __future__ import annotations

import itertools
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_all_start_methods, get_context

import numpy as np
from PIL import Image

from headstart.data.files import Source
from headstart.data.inspection_cache import Facts, Memory
from headstart.errors import ItemError
from headstart.machine import cores
from headstart.modalities.image.decode import decode, file_hash, item_id

THUMB = 64  # pixels, square: what brightness, sharpness and the descriptor are computed on
WAVES, CHROMA_WAVES = 8, 3
DESCRIPTOR_DIM = WAVES**2 - 1 + 2 * CHROMA_WAVES**2
FLAT = 2.0  # grey levels: an image that deviates less from its mean has no structure to compare
CHUNK_IMAGES, CHUNK_BYTES = 64, 2**22  # whichever comes first: what is in memory at once
AHEAD = 3  # chunks a worker, that are under way
# Threads share Python's lock, which Pillow holds for a fifth of the time. Processes take half a second to start.
MIN_IMAGES_FOR_PROCESSES = 5000


def describe(thumbs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Descriptors, brightness and sharpness of images.

    A descriptor is the low frequencies of the image: the 8 x 8 lowest coefficients of the cosine transform of its luma
    without the mean, and the 3 x 3 lowest of each chroma, scaled to length 1. Distances between them, in [0, 2], are
    small for copies that were resized, recompressed or brightened: pHash (Zauner 2010), in real numbers and in colour.

    Args:
        thumbs: (n, 64, 64, 3) uint8 YCbCr.

    Returns:
        (n, DESCRIPTOR_DIM) float16, of zeros where an image is flat; (n,) float32 in [0, 1]; (n,) float32.
    """
    luma = thumbs[..., 0].astype(np.float32) - 128
    low = _transform(luma, WAVES)
    chroma = [_transform(thumbs[..., channel].astype(np.float32) - 128, CHROMA_WAVES) for channel in (1, 2)]
    vectors = np.concatenate([low[:, 1:], *chroma], axis=1)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    structure = np.concatenate([low[:, 1:], *(channel[:, 1:] for channel in chroma)], axis=1)  # without the means
    # The transform is orthonormal: over THUMB^2 pixels, THUMB times the deviation.
    flat = np.linalg.norm(structure, axis=1, keepdims=True) < FLAT * THUMB
    vectors = np.where(flat, 0, vectors / np.where(flat, 1, length))
    brightness = (low[:, 0] / THUMB + 128) / 255
    fine = np.einsum("nij,nij->n", luma, luma) - np.einsum("ni,ni->n", low, low)
    return vectors.astype(np.float16), brightness.clip(0, 1), np.sqrt(fine.clip(0) / THUMB**2)


def _transform(channels: np.ndarray, waves: int) -> np.ndarray:
    """(n, waves * waves) float32: the lowest coefficients of (n, 64, 64) float32."""
    basis = _COSINES[:waves]
    return np.matmul(np.matmul(basis, channels), basis.T).reshape(len(channels), -1)


def _cosine_basis(size: int) -> np.ndarray:
    """The orthonormal type II cosine transform as a matrix, float32."""
    basis = np.cos(np.pi * np.outer(np.arange(size), np.arange(size) + 0.5) / size) * np.sqrt(2 / size)
    basis[0] /= np.sqrt(2)
    return basis.astype(np.float32)


_COSINES = _cosine_basis(THUMB)


def look(files: list[bytes]) -> list[Facts]:
    """The facts about files, by their bytes."""
    facts: list[Facts | None] = []
    thumbs, sizes = [], []
    for data in files:
        try:
            image = decode(data)
        except ItemError as error:
            facts.append(Facts(error.reason, str(error)))
            continue
        facts.append(None)
        sizes.append((item_id(np.asarray(image)), *image.size))
        thumbs.append(_thumb(image))
    if thumbs:
        described = zip(sizes, *describe(np.stack(thumbs)), strict=True)
        rows = (
            Facts("", "", *size, float(brightness), float(sharpness), vector.tobytes() if vector.any() else b"")
            for size, vector, brightness, sharpness in described
        )
        facts = [found or next(rows) for found in facts]
    return facts


def _thumb(image: Image.Image) -> np.ndarray:
    """(64, 64, 3) uint8 YCbCr: means of four pixels each.

    Averaging all pixels takes four times as long, and the few suffice: they move the descriptors of half of the flower
    photographs by less than 0.02 where copies are looked for within 0.25.
    """
    samples, (width, height) = 2 * THUMB, image.size
    grid = (width / samples, 0, 0, 0, height / samples, 0)
    sampled = image.transform((samples, samples), Image.Transform.AFFINE, grid, Image.Resampling.NEAREST)
    return np.asarray(sampled.reduce(2).convert("YCbCr"))


def inspect(names: Sequence[str], source: Source, memory: Memory, processes: bool | None = None) -> Iterator[Facts]:
    """The facts about the files of `source`, in the order of `names`; what `memory` knows is not read or decoded again.

    Args:
        processes: decode in processes instead of threads; by default where new files are many and `source` allows it.
    """
    opener = source.opener()
    if processes is None:
        processes = opener is not None and len(names) - memory.files() >= MIN_IMAGES_FOR_PROCESSES
    workers = cores()
    chunks = _chunks(names, source)
    waiting: deque[_Chunk] = deque()
    with _processes(workers, opener, memory) if processes else ThreadPoolExecutor(workers) as executor:
        examine = _examine_apart if processes else partial(_examine, source, memory)
        try:
            while True:
                for chunk in itertools.islice(chunks, AHEAD * workers - len(waiting)):
                    chunk.known = memory.recall_versions(chunk.versions)
                    unknown = [name for name in chunk.versions if name not in chunk.known]
                    chunk.found = executor.submit(examine, unknown) if unknown else None
                    waiting.append(chunk)
                if not waiting:
                    return
                yield from waiting.popleft().finish(memory)
        finally:
            executor.shutdown(cancel_futures=True)


class _Chunk:
    """Files that are examined together.

    Attributes:
        versions: what `Source.state` says of each, by name.
        known: the facts that are remembered, by name.
        found: the facts about the others, in their order; None where there are none.
    """

    def __init__(self, versions: dict[str, str | None]) -> None:
        self.versions = versions
        self.known: dict[str, Facts] = {}
        self.found: Future[list[Facts]] | None = None

    def finish(self, memory: Memory) -> list[Facts]:
        """All facts, in the order of the names."""
        if self.found:
            unknown = [name for name in self.versions if name not in self.known]
            found = dict(zip(unknown, self.found.result(), strict=True))
            memory.remember([(name, self.versions[name], facts) for name, facts in found.items() if facts.file_hash])
            self.known |= found
        return [self.known[name] for name in self.versions]


def _chunks(names: Sequence[str], source: Source) -> Iterator[_Chunk]:
    chosen: dict[str, str | None] = {}
    total = 0
    for name in names:
        if name in chosen or len(chosen) == CHUNK_IMAGES or total > CHUNK_BYTES:  # a manifest can name a file twice
            yield _Chunk(chosen)
            chosen, total = {}, 0
        size, chosen[name] = source.state(name)
        total += size
    if chosen:
        yield _Chunk(chosen)


def _examine(source: Source, memory: Memory, names: list[str]) -> list[Facts]:
    """The facts about each file."""
    hashes: dict[str, str] = {}
    contents: dict[str, bytes] = {}
    facts: dict[str, Facts] = {}
    for name in names:
        try:
            contents[name] = source.read(name)
            hashes[name] = file_hash(contents[name])
        except ItemError as error:
            facts[name] = Facts(error.reason, str(error))
    known = memory.recall_contents(list(hashes.values()))
    facts |= {name: known[found] for name, found in hashes.items() if found in known}
    unknown = [name for name in names if name not in facts]
    looked = look([contents[name] for name in unknown])
    facts |= {name: new._replace(file_hash=hashes[name]) for name, new in zip(unknown, looked, strict=True)}
    return [facts[name] for name in names]


_here: tuple[Source, Memory]  # what a worker process has opened for itself


def _open_apart(opener: Callable[[], Source], open_memory: Callable[[], Memory]) -> None:
    global _here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _here = opener(), open_memory()


def _examine_apart(names: list[str]) -> list[Facts]:
    return _examine(*_here, names)


def _processes(workers: int, opener: Callable[[], Source] | None, memory: Memory) -> Executor:
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    return ProcessPoolExecutor(workers, context, _open_apart, (opener, memory.opener()))

"""What is to be known about every image, found in one pass on all cores, and remembered from run to run."""

from __future__ import annotations

import itertools
import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_all_start_methods, get_context

import numpy as np
from blake3 import blake3
from PIL import Image

from pipeline.files import Source
from pipeline.images import ImageError, decode, image_id
from pipeline.memory import Facts, Memory

THUMB = 64  # pixels, square: what brightness, sharpness and the descriptor are computed on
GRID, WAVES, CHROMA_WAVES = 32, 8, 3
DESCRIPTOR_DIM = WAVES**2 - 1 + 2 * CHROMA_WAVES**2
FLAT = 2.0  # grey levels: an image that deviates less from its mean has no structure to compare
CHUNK_IMAGES, CHUNK_BYTES = 64, 2**22  # whichever comes first: what is in memory at once
# Pillow holds Python's lock for a seventh of the time, so that threads are of no use beyond a few cores. Processes take
# a second to start.
MAX_THREADS, MIN_IMAGES_FOR_PROCESSES = 4, 5000


def describe(thumbs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Descriptors, brightness and sharpness of images.

    A descriptor is the low frequencies of the image: the 8 x 8 lowest coefficients of the cosine transform of its luma
    without the mean, and the 3 x 3 lowest of each chroma, scaled to length 1. Distances between them, in [0, 2], are
    small for copies that were resized, recompressed or brightened: pHash (Zauner 2010), in real numbers and in colour.

    Args:
        thumbs: (n, 64, 64, 3) uint8 RGB.

    Returns:
        (n, DESCRIPTOR_DIM) float16, of zeros where an image is flat; (n,) float32 in [0, 1]; (n,) float32.
    """
    rgb = thumbs.astype(np.float32)
    luma = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    brightness = luma.mean((1, 2)) / 255
    middle = luma[:, 1:-1, 1:-1]
    laplacian = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:] - 4 * middle
    sharpness = laplacian.var((1, 2))

    def transform(channel: np.ndarray, waves: int) -> np.ndarray:
        cells = channel.reshape(-1, GRID, THUMB // GRID, GRID, THUMB // GRID).mean((2, 4), dtype=np.float64)
        basis = _COSINES[:waves]
        return np.matmul(np.matmul(basis, cells), basis.T).reshape(len(channel), -1)

    blue, red = 0.564 * (rgb[..., 2] - luma), 0.713 * (rgb[..., 0] - luma)  # BT.601
    parts = [transform(luma, WAVES)[:, 1:], transform(blue, CHROMA_WAVES), transform(red, CHROMA_WAVES)]
    vectors = np.concatenate(parts, axis=1)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    flat = (
        length < FLAT * GRID
    )  # the transform is orthonormal: its length is the deviation times the square root of GRID^2
    vectors = np.where(flat, 0, vectors / np.maximum(length, FLAT))
    return vectors.astype(np.float16), brightness.astype(np.float32), sharpness.astype(np.float32)


def _cosine_basis(size: int) -> np.ndarray:
    """The orthonormal type II cosine transform as a matrix, float64."""
    basis = np.cos(np.pi * np.outer(np.arange(size), np.arange(size) + 0.5) / size) * np.sqrt(2 / size)
    basis[0] /= np.sqrt(2)
    return basis


_COSINES = _cosine_basis(GRID)


def look(files: list[bytes]) -> list[Facts]:
    """The facts about files, by their bytes."""
    facts: list[Facts | None] = []
    thumbs, sizes = [], []
    for data in files:
        try:
            image = decode(data)
        except ImageError as error:
            facts.append(Facts(error.reason, str(error)))
            continue
        facts.append(None)
        sizes.append((image_id(image), *image.size))
        # The gap lets Pillow average whole blocks of pixels first, which is twice as fast.
        thumbs.append(np.asarray(image.resize((THUMB, THUMB), Image.Resampling.BILINEAR, reducing_gap=1.0)))
    if thumbs:
        described = zip(sizes, *describe(np.stack(thumbs)), strict=True)
        rows = (
            Facts("", "", *size, float(brightness), float(sharpness), vector.tobytes() if vector.any() else b"")
            for size, vector, brightness, sharpness in described
        )
        facts = [found or next(rows) for found in facts]
    return facts


def inspect(names: Sequence[str], source: Source, memory: Memory, processes: bool | None = None) -> Iterator[Facts]:
    """The facts about the files of `source`, in the order of `names`; what `memory` knows is not read or decoded again.

    Args:
        processes: decode in processes instead of threads; by default where cores and files are many.
    """
    workers = os.cpu_count() or 1
    if processes is None:
        processes = workers > MAX_THREADS and len(names) >= MIN_IMAGES_FOR_PROCESSES
    chunks = _chunks(names, source)
    reading: deque[_Chunk] = deque()
    decoding: deque[_Chunk] = deque()
    with ThreadPoolExecutor(2 * workers) as readers, _decoders(workers, processes) as decoders:
        try:
            while True:
                for chunk in itertools.islice(chunks, 2 * workers - len(reading)):
                    chunk.recall_versions(memory)
                    chunk.read = readers.submit(_read, source, chunk.unknown())
                    reading.append(chunk)
                while reading and len(decoding) < 2 * workers:
                    chunk = reading.popleft()
                    chunk.decoded = decoders.submit(look, chunk.take(chunk.read.result(), memory))
                    decoding.append(chunk)
                if not decoding:
                    return
                yield from decoding.popleft().finish(memory)
        finally:
            readers.shutdown(cancel_futures=True)
            decoders.shutdown(cancel_futures=True)


class _Chunk:
    """Files on their way: first what is remembered of them, then their bytes, then all facts."""

    def __init__(self, names: list[str], versions: list[str | None]) -> None:
        self._names, self._versions = names, versions
        self._facts: dict[str, Facts] = {}
        self._digests: dict[str, bytes] = {}
        self._awaited: list[str] = []
        self.read: Future[dict[str, tuple[bytes, bytes] | Facts]]
        self.decoded: Future[list[Facts]]

    def recall_versions(self, memory: Memory) -> None:
        self._facts = memory.recall_versions(dict(zip(self._names, self._versions, strict=True)))

    def unknown(self) -> list[str]:
        return [name for name in self._names if name not in self._facts]

    def take(self, found: dict[str, tuple[bytes, bytes] | Facts], memory: Memory) -> list[bytes]:
        """Take what reading brought; returns the bytes that are still to be decoded."""
        self._facts |= {name: value for name, value in found.items() if isinstance(value, Facts)}
        read = {name: value for name, value in found.items() if not isinstance(value, Facts)}
        self._digests = {name: digest for name, (digest, _) in read.items()}
        known = memory.recall_contents(list(self._digests.values()))
        self._facts |= {name: known[digest] for name, digest in self._digests.items() if digest in known}
        self._awaited = [name for name in read if name not in self._facts]
        return [read[name][1] for name in self._awaited]

    def finish(self, memory: Memory) -> list[Facts]:
        """All facts, in the order of the names."""
        self._facts |= zip(self._awaited, self.decoded.result(), strict=True)
        versions = dict(zip(self._names, self._versions, strict=True))
        memory.remember([(name, versions[name], digest, self._facts[name]) for name, digest in self._digests.items()])
        return [self._facts[name] for name in self._names]


def _chunks(names: Sequence[str], source: Source) -> Iterator[_Chunk]:
    chosen: list[str] = []
    size = 0
    for name in names:
        chosen.append(name)
        size += source.size(name)
        if len(chosen) == CHUNK_IMAGES or size > CHUNK_BYTES:
            yield _Chunk(chosen, [source.version(name) for name in chosen])
            chosen, size = [], 0
    if chosen:
        yield _Chunk(chosen, [source.version(name) for name in chosen])


def _read(source: Source, names: list[str]) -> dict[str, tuple[bytes, bytes] | Facts]:
    """Digest and bytes of each file, or why it cannot be read."""
    found: dict[str, tuple[bytes, bytes] | Facts] = {}
    for name in names:
        try:
            data = source.read(name)
            found[name] = (blake3(data).digest(), data)
        except ImageError as error:
            found[name] = Facts(error.reason, str(error))
    return found


def _decoders(workers: int, processes: bool) -> Executor:
    if not processes:
        return ThreadPoolExecutor(workers)
    # Ctrl-C is the parent's to handle. A server forks them, which is safe beside the reading threads.
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    return ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))

"""The one way from a file's bytes to the pixels that networks see: extracting, training, judging and predicting alike.

No TensorFlow. Python's lock is hardly held: threads decode on all cores.
"""

from __future__ import annotations

import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from headstart.errors import ItemError, UserError
from headstart.machine import cores
from headstart.modalities.image.decode import MAX_PIXELS, decode, file_hash

READ_AHEAD = 2  # batches, or tasks a thread where these are more, that are decoded while a batch is used
TASK_IMAGES = 8  # decoded by a thread in one go
# A bilinear resize looks at two pixels a side: beyond this ratio it would pass over too many, and the image is averaged
# down first. Averaging always, as an antialiased resize does, takes longer than decoding.
MAX_RATIO = 2.5

cv2.setNumThreads(1)  # the threads are here


class Reader(Protocol):
    """What gives out the bytes of a file by its name."""

    def read(self, name: str) -> bytes: ...


def pixels(data: bytes, size: int) -> np.ndarray:
    """The image in RGB, (h, w, 3) uint8: upright, transparency laid on white.

    A JPEG with both sides at least twice `size` is decoded at 1/2, 1/4 or 1/8, by its cosine transform: in a fraction
    of the time. Plain JPEGs, most photographs, go straight to libjpeg-turbo; all else goes through Pillow.

    Raises:
        ItemError: as `images.decode`.
    """
    if data.startswith(b"\xff\xd8\xff"):
        try:
            found = _plain_jpeg(data, size)
        except ValueError:  # damaged, or odd: Pillow tells which
            found = None
        if found is not None:
            return found
    return np.asarray(decode(data, at_least=size))


def _plain_jpeg(data: bytes, size: int) -> np.ndarray | None:
    """(h, w, 3) uint8, or None where the image may have to be turned or is not one of three colours or grey."""
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    if colours not in ("YCbCr", "Gray") or height * width > MAX_PIXELS or _is_turned(data):
        return None
    factor = next(factor for factor in (8, 4, 2, 1) if factor == 1 or min(height, width) // size >= factor)
    return simplejpeg.decode_jpeg(
        data, min_factor=factor, min_height=-(-height // factor), min_width=-(-width // factor)
    )


def _is_turned(data: bytes) -> bool:
    """Whether EXIF or XMP may say that the pixels are not upright as they are stored."""
    start = data.find(b"Exif\0\0")
    exif = Image.Exif()
    if start >= 0:
        # In one segment of its own kind; what is spread, repeated or of another kind, Pillow puts together.
        if data[start - 4 : start - 2] != b"\xff\xe1" or data.count(b"Exif\0\0") > 1:
            return True
        try:
            exif.load(data[start : start + 2**16])
        except Exception:  # of many kinds, where it is damaged
            return True
    return exif.get(0x0112, 1) != 1 or b"tiff:Orientation" in data


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """(size, size, 3) uint8: the whole image, (h, w, 3) uint8, its sides stretched; the same bits on every machine.

    Bilinear; a side that is more than MAX_RATIO times too long is averaged down by a whole factor before.
    """
    height, width = image.shape[:2]
    down, across = (max(1, int(np.ceil(side / size / MAX_RATIO))) for side in (height, width))
    if down > 1 or across > 1:
        smaller = (-(-width // across), -(-height // down))
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR_EXACT)


def load(path: Path, size: int) -> np.ndarray:
    """The image in a file as the networks see it: (size, size, 3) uint8.

    Raises:
        ItemError: where it cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise ItemError("unreadable", "not a file")
        data = path.read_bytes()
    except OSError as error:
        raise ItemError("unreadable", (error.strerror or str(error)).lower()) from error
    return resize(pixels(data, size), size)


def read_pixels(source: Reader, path: str, expected: str, size: int) -> np.ndarray:
    """`pixels` of the file whose `images.file_hash` is `expected`.

    Raises:
        UserError: where the file is not that one any more.
    """
    try:
        data = source.read(path)
        if file_hash(data) == expected:
            return pixels(data, size)
        reason = "its content is another"
    except ItemError as error:
        reason = str(error)
    raise UserError(
        f"{path} has changed since prepare ran ({reason}); run `dvc repro --force prepare`, then `dvc repro`"
    )


def read_images(
    source: Reader,
    paths: Sequence[str],
    file_hashes: Sequence[str],
    size: int,
    batch_size: int,
    workers: int | None = None,
) -> Iterator[np.ndarray]:
    """Batches (b, size, size, 3) uint8 of the images in the order of `paths`, b = batch_size except in the last.

    Some batches are read ahead by `workers` threads, by default one a core; memory does not grow with the images.

    Raises:
        UserError: where a file is not the one of that hash any more.
    """

    def load_rows(rows: range) -> Iterator[np.ndarray]:
        for row in rows:
            yield resize(read_pixels(source, paths[row], file_hashes[row], size), size)

    return batches(load_rows, len(paths), size, batch_size, workers)


def batches(
    load_rows: Callable[[range], Iterable[np.ndarray]],
    count: int,
    size: int,
    batch_size: int,
    workers: int | None = None,
) -> Iterator[np.ndarray]:
    """Batches (b, size, size, 3) uint8 of `count` images, made ahead by threads and given out in order.

    Args:
        load_rows: gives the images of a range of rows, (size, size, 3) uint8 each; called from several threads.
    """

    def fill(batch: np.ndarray, first: int, rows: range) -> None:
        for place, image in enumerate(load_rows(rows), rows.start - first):
            batch[place] = image

    workers = workers or cores()
    task_images = min(TASK_IMAGES, batch_size)
    ahead = max(READ_AHEAD, READ_AHEAD * workers * task_images // batch_size)
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[tuple[np.ndarray, list[Future[None]]]] = deque()
        try:
            for start in range(0, count, batch_size):
                stop = min(start + batch_size, count)
                batch = np.empty((stop - start, size, size, 3), np.uint8)
                tasks = [range(row, min(row + task_images, stop)) for row in range(start, stop, task_images)]
                pending.append((batch, [pool.submit(fill, batch, start, rows) for rows in tasks]))
                if len(pending) > ahead:
                    yield _finished(*pending.popleft())
            while pending:
                yield _finished(*pending.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def _finished(batch: np.ndarray, tasks: list[Future[None]]) -> np.ndarray:
    for task in tasks:
        task.result()
    return batch

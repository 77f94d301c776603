"""Where the training of the upper blocks starts: at the pixels, or at what the frozen blocks below made of them, kept.

Both give the same inputs for the same view of an image, up to the rounding of float16 and of the engine.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import pandas as pd

from headstart.data.files import Source
from headstart.errors import UserError
from headstart.features import store
from headstart.features.engines import Engine
from headstart.features.extraction import Extraction, Jobs, ingredients, views
from headstart.machine import cores
from headstart.modalities.image.augmentation import Augmentation
from headstart.modalities.image.pixels import batches

MAX_BYTES = 20 * 10**9  # that may be taken without being asked for
LEAST_WORK = 0.1  # share of the work that must be in the frozen blocks
STORAGE = "float16"  # half the space of float32; what is trained sees noise of a thousandth


class Inputs(Protocol):
    """What training starts from.

    Attributes:
        workers: how many threads may read at once.
    """

    workers: int

    def read(self, rows: np.ndarray, number: int) -> np.ndarray:
        """(b, ...): view `number` of the images of some rows (b,) of the manifest; 0 is the image as it is."""


class Pixels:
    """Images (b, size, size, 3) uint8, decoded and augmented anew each time."""

    def __init__(self, images: pd.DataFrame, source: Source, size: int, augmentation: Augmentation) -> None:
        self._paths, self._hashes = list(images.path), list(images.file_hash)
        self._source, self._size, self._augmentation = source, size, augmentation
        self.workers = cores()

    def read(self, rows: np.ndarray, number: int) -> np.ndarray:
        made = [
            next(views(self._source, self._paths[row], self._hashes[row], [number], self._size, self._augmentation))
            for row in rows
        ]
        return np.stack(made)

    def batches(self, number: int, batch_size: int) -> Iterator[np.ndarray]:
        """View `number` of all images in their order, read ahead by threads."""

        def load(rows: range) -> Iterator[np.ndarray]:
            for row in rows:
                yield from self.read(np.array([row]), number)

        return batches(load, len(self._paths), self._size, batch_size)


class Activations:
    """The output of the frozen blocks (b, ...) float32 for each view of an image, from the feature store."""

    workers = 1

    def __init__(self, extraction: Extraction, jobs: Jobs, shape: tuple[int, ...]) -> None:
        self._extraction, self._jobs, self._shape = extraction, jobs, shape
        self._turn = threading.Lock()  # Keras reads in threads of its own

    def read(self, rows: np.ndarray, number: int) -> np.ndarray:
        with self._turn:
            found = self._extraction.features(self._jobs.first[rows] + number)
        return found.astype(np.float32).reshape(-1, *self._shape)


@contextmanager
def activations(
    run: Engine,
    recipe: dict[str, Any],
    images: pd.DataFrame,
    source: Source,
    shape: tuple[int, ...],
    size: int,
    augmentation: Augmentation,
    views: int,
) -> Iterator[Activations]:
    """Compute what the store lacks, `views` augmented views of each image in train beside all as they are.

    Args:
        run: of the frozen blocks, `blocks.lower`.
        shape: of what they give for an image.
    """
    jobs = Jobs(images, views, augmentation, size)
    with store.open_store(ingredients(run, recipe, size), run.feature_dim, STORAGE) as kept:
        extraction = Extraction(jobs, source, run, kept, size, augmentation, "fine_tune")
        extraction.complete()
        yield Activations(extraction, jobs, shape)


def choose(setting: str, floats: int | None, images: int, passes: int, fast: bool, work: float) -> tuple[bool, str]:
    """Whether to start from kept activations, and why, in words. The same on every machine with the same engine.

    Args:
        setting: auto, on or off.
        floats: how many numbers the frozen blocks give for an image; None where they cannot be run apart.
        images: how many would be computed once, views and val among them.
        passes: how many images all epochs take together.
        fast: whether frozen networks have an engine of their own, of about twice the speed of that of training.
        work: the share of the network's multiplications that are in the frozen blocks, in [0, 1].

    Raises:
        UserError: where it is asked for, and cannot be.
    """
    if floats is None:
        if setting == "on":
            raise UserError(
                "params.yaml: fine_tune.trunk_cache on: nothing of what is frozen can be computed apart; use auto, or "
                "unfreeze less"
            )
        return False, "nothing of what is frozen can be computed apart"
    if setting != "auto":
        return setting == "on", f"as fine_tune.trunk_cache {setting} says"
    size = np.dtype(STORAGE).itemsize * floats * images
    what = f"{images:,} views to be computed once ({size / 1e9:.2g} GB)"
    if size > MAX_BYTES:
        return False, f"{what} are more than the {MAX_BYTES / 1e9:.0f} GB that are taken without being asked for"
    if work < LEAST_WORK:
        return False, f"only {work:.0%} of the work is in what is frozen and can be computed apart"
    if images * (0.5 if fast else 1.0) >= passes:
        return False, f"{what} are hardly fewer than the {passes:,} of all epochs"
    return True, f"{what}, not {passes:,} in all epochs"

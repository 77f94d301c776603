"""Features of images by way of the feature store: what it has is read, what it lacks is computed and put there."""

from __future__ import annotations

import importlib.metadata
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pandas as pd
from blake3 import blake3
from tqdm import tqdm

from headstart import locks
from headstart.data.files import Source
from headstart.errors import UserError
from headstart.features import fingerprints
from headstart.features.engines import Engine, OutOfMemoryError
from headstart.features.store import KEY_BYTES, DamagedStoreError, FeatureStore
from headstart.framework import keras
from headstart.modalities.image.augmentation import Augmentation, view
from headstart.modalities.image.pixels import batches, read_pixels

SECONDS_BETWEEN_PUTS = 0.1  # what a kill can lose, beside the batches under way


class Jobs:
    """What is to be computed: the plain view of every image, and augmented views of those in train.

    Attributes:
        paths, hashes: path and file_hash of each image, by the manifest's row.
        rows, numbers: the manifest's row and the view's number of each job, those of an image side by side.
        first: the job of each image as it is; those of its views follow.
        keys: its name in the feature store: what the view is made from.
    """

    def __init__(self, manifest: pd.DataFrame, views: int, augmentation: Augmentation, image_size: int) -> None:
        self.paths, self.hashes = list(manifest.path), list(manifest.file_hash)
        per_image = np.where(manifest.split == "train", 1 + views, 1)
        self.rows = np.repeat(np.arange(len(manifest)), per_image)
        self.first = np.cumsum(per_image) - per_image
        self.numbers = np.arange(len(self.rows)) - np.repeat(self.first, per_image)
        recipe = f"{augmentation.text()} {fingerprints.augmenting(image_size, augmentation)}" if views else ""
        self.keys = [
            self._key(recipe, self.hashes[row], number) for row, number in zip(self.rows, self.numbers, strict=True)
        ]

    def of(self, images: pd.Series, augmented: bool) -> np.ndarray:
        """The jobs of those images, by a mask over the manifest, in its order."""
        return np.flatnonzero(images.to_numpy()[self.rows] & ((self.numbers > 0) == augmented))

    @staticmethod
    def _key(recipe: str, file_hash: str, number: int) -> bytes:
        if number == 0:
            return bytes.fromhex(file_hash)
        return blake3(f"{recipe} {file_hash} {number}".encode()).digest(length=KEY_BYTES)


def views(
    source: Source, path: str, file_hash: str, numbers: Iterable[int], size: int, augmentation: Augmentation
) -> Iterator[np.ndarray]:
    """Views of an image, (size, size, 3) uint8 each, by their numbers; it is read once. 0 is the image as it is.

    Raises:
        UserError: where the file is not the one of that hash any more.
    """
    numbers = list(numbers)
    image = read_pixels(source, path, file_hash, augmentation.least(size) if any(numbers) else size)
    for number in numbers:
        yield view(image, size, augmentation, file_hash, number)


def ingredients(run: Engine, recipe: dict[str, Any], image_size: int) -> dict[str, Any]:
    """All that shapes what `run` computes: `recipe`, which names the network, and the ways of decoding and rounding."""
    return {
        **recipe,
        "engine": run.name,
        "weights_sha256": run.weights_sha256,
        "arithmetic": run.arithmetic,
        "pillow": importlib.metadata.version("pillow"),
        "decoding": fingerprints.decoding(image_size),
        "computing": run.device or fingerprints.network(run, image_size),
    }


class Extraction:
    """Fills the store with the features of jobs, and reads them from it.

    Args:
        stage: whose name progress and messages bear.

    Attributes:
        computed: how many jobs went through the network.
        seconds: how long they took.
    """

    def __init__(
        self,
        jobs: Jobs,
        source: Source,
        run: Engine,
        store: FeatureStore,
        size: int,
        augmentation: Augmentation,
        stage: str = "extract",
    ) -> None:
        self._jobs, self._source, self._run, self._store = jobs, source, run, store
        self._size, self._augmentation, self._stage = size, augmentation, stage
        self.computed, self.seconds = 0, 0.0
        self._since = 0.0

    def _images(self, chosen: Sequence[int]) -> Iterator[np.ndarray]:
        """The views of `chosen` jobs, (size, size, 3) uint8 each; an image is read once for its views side by side."""
        jobs, size = self._jobs, self._size
        for (row, _), group in itertools.groupby(chosen, lambda job: (jobs.rows[job], jobs.numbers[job] > 0)):
            numbers = [int(jobs.numbers[job]) for job in group]
            yield from views(self._source, jobs.paths[row], jobs.hashes[row], numbers, size, self._augmentation)

    def complete(self) -> None:
        """Compute all that the store lacks. Processes that want the same take turns: the second finds it there.

        Raises:
            UserError: as `compute`.
        """
        with locks.alone(
            self._store.file.with_suffix(".lock"), f"{self._stage}: waits for a run that computes the same"
        ):
            missing = self._store.missing(self._jobs.keys)
            self.compute(missing, len(self._jobs.keys) - len(missing))

    def compute(self, chosen: Sequence[int], known: int) -> None:
        """Put the features of `chosen` jobs into the store, a batch at a time; `known` others are there already.

        Raises:
            UserError: where an image has changed, or its features are not finite.
        """
        made = batches(
            lambda rows: self._images(chosen[rows.start : rows.stop]), len(chosen), self._size, self._run.batch_size
        )
        self._since = time.perf_counter()
        places, waiting = iter(chosen), []
        total = known + len(chosen)
        with (
            closing(self._run.map(made)) as run,
            tqdm(total=total, initial=known, desc=self._stage, unit=" images", disable=None) as bar,
        ):
            for features in run:
                some = list(itertools.islice(places, len(features)))
                self._check(features, some)
                waiting.append((some, features))
                bar.update(len(some))
                if time.perf_counter() - self._since > SECONDS_BETWEEN_PUTS:
                    self._put(waiting)
            self._put(waiting)
        self.computed += len(chosen)

    def _put(self, waiting: list[tuple[list[int], np.ndarray]]) -> None:
        """Store what is waiting, jobs and features, with the time since the last put."""
        now = time.perf_counter()
        keys = [self._jobs.keys[job] for some, _ in waiting for job in some]
        if keys:
            self._store.put(keys, np.concatenate([features for _, features in waiting]), now - self._since)
        self.seconds += now - self._since
        self._since = now
        waiting.clear()

    def _check(self, features: np.ndarray, some: Sequence[int]) -> None:
        with np.errstate(over="ignore"):
            good = np.isfinite(features.astype(self._store.dtype)).all(axis=1)
        if not good.all():
            raise UserError(
                f"{self._jobs.paths[self._jobs.rows[some[int(np.argmin(good))]]]}: its features are no finite numbers; "
                + (
                    "use float32 for extract.precision and extract.storage, or other weights"
                    if self._stage == "extract"
                    else "set fine_tune.trunk_cache to off"
                )
            )

    def features(self, chosen: Sequence[int]) -> np.ndarray:
        """(n, feature_dim) of the store's dtype; what is damaged there is computed anew."""
        keys = [self._jobs.keys[job] for job in chosen]
        features, bad = self._store.get(keys)
        if bad:
            print(
                f"{self._stage}: {self._store.file}: damaged rows, {len(bad)} here, are computed anew", file=sys.stderr
            )
            self.compute([chosen[place] for place in bad], 0)
            features, bad = self._store.get(keys)
            if bad:
                raise UserError(f"{self._store.file}: does not hold what was written; is the disk sound?")
        return features


def patiently(stage: str, work: Callable[[int | None], None], batch_size: int | None) -> None:
    """Call `work` with that many images a batch; again, with less where they do not fit, or where the store is damaged.

    Raises:
        UserError: where two images do not fit, or a new store is damaged too.
    """
    damaged = False
    while True:
        try:
            work(batch_size)
            return
        except DamagedStoreError as error:
            if damaged:
                raise UserError(f"{error}; it was made anew just before: is the disk sound?") from error
            damaged = True
            print(f"{stage}: {error}: all of it is computed anew", file=sys.stderr)
        except OutOfMemoryError as error:
            if error.batch_size <= 2:
                raise UserError(f"{stage}: two images do not fit into the memory of the device ({error})") from error
            batch_size = error.batch_size // 2
            keras.backend.clear_session()  # the network that did not fit leaves the device
            print(f"{stage}: a batch of {error.batch_size} does not fit into the memory; on with {batch_size}")

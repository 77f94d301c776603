"""Views of examples: how they are loaded, their keys in the feature store, and fingerprints of what shapes features.

Code is fingerprinted by its results: another processor, library or version of the code has the same fingerprint if it
gives the same bits, and only then.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from blake3 import blake3

from headstart.data.files import Source, read_unchanged
from headstart.features.engines import Engine
from headstart.features.store import KEY_BYTES
from headstart.modalities import Augmentation, Batch, Modality
from headstart.modalities.batch import batch_length

PROBES_COMPUTED = 4  # probes that go through the network
LARGEST_PROBE = 256  # size; larger ones would take long and show no more


@dataclass(frozen=True)
class ViewLoader:
    """Loads views of examples by their numbers: 0 is the example as it is, the others are augmented.

    Attributes:
        size: of an example, as `extract.size` counts it.
        augmentation: None: all views are the example as it is.
    """

    source: Source
    modality: Modality
    size: int
    augmentation: Augmentation | None = None

    def load(self, path: str, file_hash: str, numbers: Iterable[int]) -> Iterator[np.ndarray]:
        """Load views of an example, which is read and decoded once.

        Raises:
            UserError: if the file does not have that hash any more.
        """
        data = read_unchanged(self.source, path, file_hash)
        return self.modality.views(data, self.size, self.augmentation, file_hash, numbers)


class ViewIndex:
    """All views that have features: every example as it is, and `views` augmented views of those in train.

    Attributes:
        paths, hashes: path and file_hash of each example, by the manifest's row.
        rows, numbers: the manifest's row and the number of each view; views of an example are next to each other.
        first: the index of view 0 of each example; its augmented views follow.
        keys: of each view in the feature store, made of everything that it depends on.
        lengths: of each example, by which views are sorted into batches; None: they need not be.
    """

    def __init__(self, manifest: pd.DataFrame, views: int, loader: ViewLoader) -> None:
        self.paths, self.hashes = list(manifest.path), list(manifest.file_hash)
        self.lengths = loader.modality.lengths(manifest)
        per_example = np.where(manifest.split == "train", 1 + views, 1)
        self.rows = np.repeat(np.arange(len(manifest)), per_example)
        self.first = np.cumsum(per_example) - per_example
        self.numbers = np.arange(len(self.rows)) - np.repeat(self.first, per_example)
        recipe = _fingerprint_augmentation(loader) if views else ""
        numbered = zip(self.rows, self.numbers, strict=True)
        self.keys = [_key(recipe, self.hashes[row], number) for row, number in numbered]

    def sort(self, chosen: Sequence[int]) -> Sequence[int]:
        """Return the views by the length of their examples, the longest first; those of an example stay together."""
        if self.lengths is None:
            return chosen
        longest_first = np.argsort(-self.lengths[self.rows[np.asarray(chosen, int)]], kind="stable")
        return [chosen[place] for place in longest_first]

    def select(self, examples: pd.Series, augmented: bool) -> np.ndarray:
        """Return the indices of view 0, or of the augmented views, of some examples: a mask over the manifest."""
        return np.flatnonzero(examples.to_numpy()[self.rows] & ((self.numbers > 0) == augmented))


@dataclass(frozen=True)
class Views:
    """The views of an index, with what loads them.

    Attributes:
        index: of all views.
        loader: of their examples.
    """

    index: ViewIndex
    loader: ViewLoader

    def load(self, chosen: Sequence[int]) -> Iterator[np.ndarray]:
        """Load the arrays of views, by their indices."""
        return load_views(self.names(chosen), self.loader)

    def names(self, chosen: Sequence[int]) -> Iterator[tuple[str, str, int]]:
        """Yield path and hash of the example and the number of each view."""
        index = self.index
        for view in chosen:
            row = index.rows[view]
            yield index.paths[row], index.hashes[row], int(index.numbers[view])

    def batch(self, arrays: Sequence[np.ndarray]) -> Batch:
        """Return loaded arrays as a batch."""
        return self.loader.modality.batch(arrays)


def load_views(names: Iterable[tuple[str, str, int]], loader: ViewLoader) -> Iterator[np.ndarray]:
    """Load the arrays of views, by path and hash of the example and their number.

    An example is read once for views next to each other.
    """
    for (path, file_hash, _), group in itertools.groupby(names, lambda view: (*view[:2], view[2] > 0)):
        yield from loader.load(path, file_hash, [number for *_, number in group])


def _key(recipe: str, file_hash: str, number: int) -> bytes:
    if number == 0:
        return bytes.fromhex(file_hash)
    return blake3(f"{recipe} {file_hash} {number}".encode()).digest(length=KEY_BYTES)


def fingerprint_inputs(engine: Engine, recipe: dict[str, Any], loader: ViewLoader) -> dict[str, Any]:
    """Return everything that shapes features: `recipe`, which names the network, how examples are loaded, rounding."""
    return {
        **recipe,
        "engine": engine.name,
        "weights_sha256": engine.weights_sha256,
        "arithmetic": engine.arithmetic,
        "loading": _digest(loader.modality.name, _load_probes(loader, min(loader.size, LARGEST_PROBE))),
        **({"reading": loader.modality.reading} if loader.modality.reading else {}),
        "computing": _fingerprint_device(engine) if engine.device else _fingerprint_engine(engine, loader),
    }


def _fingerprint_device(engine: Engine) -> str:
    """Name the device, and by a hash what stands in for features that its network computes: what describes that."""
    return f"{engine.device} {blake3(engine.network.encode()).hexdigest(length=8)}" if engine.network else engine.device


def _fingerprint_engine(engine: Engine, loader: ViewLoader) -> str:
    arrays = _load_probes(loader, loader.size)[:PROBES_COMPUTED]  # the network takes no other size
    starts = range(0, len(arrays), engine.batch_size)
    batches = [loader.modality.batch(arrays[start : start + engine.batch_size]) for start in starts]
    computed = zip(batches, engine.map(batches), strict=True)
    return _digest(engine.name, (features[: batch_length(batch)] for batch, features in computed))


def _fingerprint_augmentation(loader: ViewLoader) -> str:
    modality, augmentation, size = loader.modality, loader.augmentation, min(loader.size, LARGEST_PROBE)
    views = (modality.views(data, size, augmentation, "probe", range(1, 4)) for data in modality.probes(size)[:1])
    key = augmentation.key() if augmentation else ""
    return f"{key} {_digest(modality.name, (view for some in views for view in some))}"


def _load_probes(loader: ViewLoader, size: int) -> list[np.ndarray]:
    return [loader.modality.load(data, size) for data in loader.modality.probes(min(size, LARGEST_PROBE))]


def _digest(name: str, arrays: Iterable[np.ndarray]) -> str:
    digest = blake3(name.encode())
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest(length=16)

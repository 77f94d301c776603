"""Distances between descriptors, and hashes that are equal for close ones: of vectors, and of MinHash signatures."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

# Locality-sensitive hashing: examples that have the same hash in one of several bands are compared. The number of bands
# is such that a pair at the largest distance has it with probability RECALL; closer pairs nearly always do.
RECALL, MAX_BANDS = 0.99, 256
_BATCH = 2**16  # rows that are computed at once: bounds the memory


class Descriptors(Protocol):
    """What the search for near copies needs. Hashes have the bucket in their upper 32 bits; within a bucket, those of
    examples that are close are close.
    """

    sample: int  # of how many examples a sample is taken

    def __len__(self) -> int: ...
    def bands(self, max_distance: float) -> int: ...
    def hashes(self, band: int) -> np.ndarray: ...
    def distances(self, firsts: np.ndarray, seconds: np.ndarray) -> np.ndarray: ...
    def to_sample(self, rows: np.ndarray, sample: np.ndarray) -> np.ndarray: ...


def describe(descriptors: np.ndarray) -> Descriptors:
    """Return (n, d) float16 vectors of length 1, or (n, d) uint16 signatures, as what can be searched."""
    return Signatures(descriptors) if descriptors.dtype == np.uint16 else Vectors(descriptors)


def _count_bands(same: float) -> int:
    """Return how many bands it takes if a pair has the same hash in one of them with that probability."""
    if same >= RECALL:
        return 1
    return min(math.ceil(math.log(1 - RECALL) / math.log1p(-same)), MAX_BANDS) if same > 0 else MAX_BANDS


class Vectors:
    """Euclidean distances. A hash says on which sides of random planes a vector lies (Charikar, STOC 2002)."""

    sample = 2**14

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors
        self._bits = min(math.ceil(math.log2(max(len(vectors), 2))) + 1, 30)

    def __len__(self) -> int:
        return len(self._vectors)

    def bands(self, max_distance: float) -> int:
        separated = 2 * math.asin(max_distance / 2) / math.pi  # the share of planes that separate two examples
        return _count_bands((1 - separated) ** self._bits)

    def hashes(self, band: int) -> np.ndarray:
        """Hash all vectors, (n,) int64: a bit for each plane, then 32 bits of the position along one more normal.

        Everything is computed in integers that float32 represents exactly, so that every machine finds the same.
        """
        normal = np.random.default_rng([0, band]).normal(size=(self._vectors.shape[1], self._bits + 1))
        planes = np.round(16 * normal).astype(np.float32)
        result = np.empty(len(self), np.int64)
        for start in range(0, len(self), _BATCH):
            part = slice(start, start + _BATCH)
            products = np.round(self._vectors[part].astype(np.float32) * 1024) @ planes
            sides = (products[:, : self._bits] > 0) @ (1 << np.arange(self._bits, dtype=np.int64))
            result[part] = (sides << 32) + products[:, self._bits].astype(np.int64) + 2**31
        return result

    def distances(self, firsts: np.ndarray, seconds: np.ndarray) -> np.ndarray:
        """Return the distance of each pair, (m,) float32."""
        result = np.empty(len(firsts), np.float32)
        for start in range(0, len(firsts), _BATCH):
            part = slice(start, start + _BATCH)
            difference = self._vectors[firsts[part]].astype(np.float32) - self._vectors[seconds[part]].astype(
                np.float32
            )
            result[part] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
        return result

    def to_sample(self, rows: np.ndarray, sample: np.ndarray) -> np.ndarray:
        """Return the distances between some examples and others, (rows, sample) float32."""
        products = self._vectors[rows].astype(np.float32) @ self._vectors[sample].astype(np.float32).T
        return np.sqrt(np.maximum(2 - 2 * products, 0))  # of vectors of length 1


class Signatures:
    """The share of the values in which two MinHash signatures differ: 1 - the Jaccard index of two sets (Broder 1997).

    A hash is made of some values, drawn at random.
    """

    sample = 2**12

    def __init__(self, signatures: np.ndarray) -> None:
        self._signatures = signatures
        # Sets that have a tenth in common are the same in so many values once in n times.
        self._values = min(max(2, math.ceil(math.log10(max(len(signatures), 2)))), signatures.shape[1])

    def __len__(self) -> int:
        return len(self._signatures)

    def bands(self, max_distance: float) -> int:
        return _count_bands((1 - max_distance) ** self._values)

    def hashes(self, band: int) -> np.ndarray:
        """Hash all signatures, (n,) int64: 31 bits, then 32 of two more values."""
        random = np.random.default_rng([1, band])
        places = random.permutation(self._signatures.shape[1])[: self._values]
        weights = random.integers(2**63, size=self._values, dtype=np.uint64) * 2 + 1
        hashes = (self._signatures[:, places] * weights).sum(axis=1, dtype=np.uint64) >> np.uint64(33)
        return (hashes.astype(np.int64) << 32) + np.ascontiguousarray(self._signatures[:, :2]).view(np.uint32)[:, 0]

    def distances(self, firsts: np.ndarray, seconds: np.ndarray) -> np.ndarray:
        """Return the distance of each pair, (m,) float32."""
        result = np.empty(len(firsts), np.float32)
        for start in range(0, len(firsts), _BATCH):
            part = slice(start, start + _BATCH)
            result[part] = (self._signatures[firsts[part]] != self._signatures[seconds[part]]).mean(axis=1)
        return result

    def to_sample(self, rows: np.ndarray, sample: np.ndarray) -> np.ndarray:
        """Return the distances between some examples and others, (rows, sample) float32."""
        same = np.zeros((len(rows), len(sample)), np.uint16)
        equal = np.empty(same.shape, bool)
        for one, other in zip(self._signatures[rows].T.copy(), self._signatures[sample].T.copy(), strict=True):
            same += np.equal(one[:, None], other, out=equal)
        return 1 - same.astype(np.float32) / self._signatures.shape[1]

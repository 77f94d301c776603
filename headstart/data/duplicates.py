"""Find near copies: examples whose descriptors are close, such as resized images, or texts with a word changed."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from headstart.data.similarity import Descriptors, describe

WINDOW = 8  # each example is compared with the next ones of its bucket
NEIGHBOURS = 8  # copies of an example that are kept if there are more: the others are reached through these
SURE = 0.4  # share of the largest distance within which examples are copies, however many others are close
# A copy stands out: a pair counts as copies if few examples are within its distance, and not many more within twice
# its distance. In a plane twice the radius contains four times as many; in a population of similar images, such as
# handwritten digits or X-rays, which vary in many ways, far more. This is estimated on a sample of the examples.
# A distance that contains a quarter of all examples says nothing either.
CROWD, SHARE = 4, 0.25


def near_pairs(descriptors: np.ndarray, max_distance: float) -> np.ndarray:
    """Find pairs of examples that are copies of each other, without comparing each example with all others.

    Args:
        descriptors: (n, d) float16 or uint16 of `Modality.describe`; rows of zeros have no copies.
        max_distance: in [0, 1]; 0: no pairs.

    Returns:
        (m, 2) int64 row numbers, the smaller first, each pair once, sorted.
    """
    rows = np.flatnonzero(descriptors.any(axis=1))
    if max_distance == 0 or len(rows) < 2:
        return np.empty((0, 2), np.int64)
    known = describe(descriptors[rows])
    pairs, distances = _close_pairs(known, max_distance)
    copies = distances <= SURE * max_distance
    unsure = np.flatnonzero(~copies)
    if len(unsure):
        sample = np.random.default_rng(0).permutation(len(known))[: known.sample]
        copies[unsure] = True
        for side in (0, 1):
            copies[unsure] &= _stand_out(known, pairs[unsure, side], distances[unsure], max_distance, sample)
    return rows[pairs[copies]]


def groups(n: int, pairs: np.ndarray) -> np.ndarray:
    """Number the connected components of `n` rows, (n,) int32, that `pairs`, (m, 2), connect."""
    links = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return connected_components(links, directed=False)[1]


def _close_pairs(known: Descriptors, max_distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs (m, 2) within `max_distance` that hashing finds, sorted, and their distances (m,)."""
    n = len(known)
    codes, distances = np.empty(0, np.int64), np.empty(0, np.float32)
    for band in range(known.bands(max_distance)):
        firsts, seconds = _same_bucket(known.hashes(band))
        apart = known.distances(firsts, seconds)
        near = apart <= max_distance
        low, high = np.minimum(firsts, seconds)[near], np.maximum(firsts, seconds)[near]
        codes, place = np.unique(np.concatenate([codes, low * n + high]), return_index=True)
        distances = np.concatenate([distances, apart[near]])[place]
        if len(codes) > 2 * NEIGHBOURS * n:
            kept = _nearest(codes // n, codes % n, distances)
            codes, distances = codes[kept], distances[kept]
    return np.stack([codes // n, codes % n], axis=1), distances


def _same_bucket(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pair the examples of each bucket with the next ones in it by the lower half of the hash."""
    order = np.argsort(hashes, kind="stable")
    buckets = hashes[order] >> 32
    firsts, seconds = [order[:0]], [order[:0]]
    for step in range(1, WINDOW + 1):
        same = np.flatnonzero(buckets[step:] == buckets[:-step])
        if not len(same):
            break
        firsts.append(order[same])
        seconds.append(order[same + step])
    return np.concatenate(firsts), np.concatenate(seconds)


def _nearest(firsts: np.ndarray, seconds: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Whether each pair is among the NEIGHBOURS closest pairs of one of its examples."""
    rows = np.concatenate([firsts, seconds])
    order = np.lexsort((np.concatenate([distances, distances]), rows))
    ordered = rows[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    ranks = np.empty(len(rows), np.int64)
    ranks[order] = np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
    return (ranks[: len(firsts)] < NEIGHBOURS) | (ranks[len(firsts) :] < NEIGHBOURS)


def _stand_out(
    known: Descriptors, rows: np.ndarray, distances: np.ndarray, max_distance: float, sample: np.ndarray
) -> np.ndarray:
    """Whether each row and what is within that distance of it stand out from all others.

    Either the pair does, at its own distance, or all copies of the row, at `max_distance`.
    """
    scale = len(known) / len(sample)
    result = np.empty(len(rows), bool)
    for start in range(0, len(rows), 2**10):
        part = slice(start, start + 2**10)
        apart = known.to_sample(rows[part], sample)
        result[part] = False
        for reach in (distances[part, None], np.full((len(apart), 1), max_distance)):
            reach = reach * 1.001 + 1e-3  # float16 has no more digits
            # The row itself does not count; the other one of the pair does, in the sample or not.
            close = np.maximum(((apart <= reach).sum(axis=1) - 1) * scale, 1)
            around = ((apart <= 2 * reach).sum(axis=1) - 1) * scale
            few = close <= max(NEIGHBOURS, SHARE * len(known))
            result[part] |= few & (around <= np.maximum(CROWD * close, 2 * scale))
    return result

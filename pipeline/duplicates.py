"""Images that are copies of each other, resized, recompressed, brightened or slightly cropped: found by an index."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from pipeline.inspection import CHROMA_WAVES, WAVES

NEIGHBOURS = 8  # of each image are compared with it: more copies are reached through these
SURE = 0.4  # share of the largest distance within which images are copies in any company
# A copy stands out: images are taken for copies where their distance reaches few images, and twice their distance not
# many more. In a plane twice the radius holds four times as many; in a population of alike images, such as
# handwritten digits or X-rays, which vary in many ways, it holds far more.
CROWD, CROWD_NEIGHBOURS = 4, 64
_BATCH = 2**16  # images that are looked up at once: bounds the memory


def near_pairs(descriptors: np.ndarray, max_distance: float) -> np.ndarray:
    """Pairs of images that are copies of each other.

    A k-d tree over the 16 lowest frequencies finds the candidates, whose true distances cannot be smaller there; no
    image is compared with all others.

    Args:
        descriptors: (n, DESCRIPTOR_DIM) float16 of `inspection.describe`; rows of zeros have no copies.
        max_distance: in [0, 2]; 0: no pairs.

    Returns:
        (m, 2) int64 row numbers, the smaller first, each pair once, sorted.
    """
    rows = np.flatnonzero(descriptors.any(axis=1))
    if max_distance == 0 or len(rows) < 2:
        return np.empty((0, 2), np.int64)
    vectors = descriptors[rows]
    points = vectors[:, _LOWEST].astype(np.float64)
    tree = cKDTree(points)
    pairs = []
    for start in range(0, len(rows), _BATCH):
        block = np.arange(start, min(start + _BATCH, len(rows)))
        _, found = tree.query(points[block], NEIGHBOURS + 1, distance_upper_bound=max_distance, workers=-1)
        firsts, seconds = _listed(block, found, len(rows))
        distances = _distances(vectors, firsts, seconds)
        near = distances <= max_distance
        firsts, seconds, distances = firsts[near], seconds[near], distances[near]
        stands_out = distances <= SURE * max_distance
        unsure = np.flatnonzero(~stands_out)
        if len(unsure):
            stands_out[unsure] = _stand_out(tree, points, vectors, firsts[unsure], distances[unsure])
        pairs.append(np.stack([firsts, seconds, stands_out], axis=1))
    return _agreed(np.concatenate(pairs), rows)


def groups(n: int, pairs: np.ndarray) -> np.ndarray:
    """(n,) int32: a number for each of `n` rows, shared by those that `pairs`, (m, 2), connect."""
    links = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return connected_components(links, directed=False)[1]


def _lowest() -> np.ndarray:
    """The places in a descriptor of the 14 lowest frequencies of the luma and the mean of each chroma."""
    waves = [(row + column, row, place) for place, (row, column) in enumerate(np.ndindex(WAVES, WAVES))][1:]
    luma = [place - 1 for _, _, place in sorted(waves)[:14]]
    chroma = WAVES**2 - 1
    return np.array([*luma, chroma, chroma + CHROMA_WAVES**2])


_LOWEST = _lowest()


def _listed(block: np.ndarray, found: np.ndarray, missing: int) -> tuple[np.ndarray, np.ndarray]:
    """What a query for `block` has found as firsts and seconds, without the images themselves."""
    firsts, seconds = np.repeat(block, found.shape[1]), found.ravel()
    other = (seconds != missing) & (firsts != seconds)
    return firsts[other], seconds[other]


def _distances(vectors: np.ndarray, firsts: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    result = np.empty(len(firsts))
    for start in range(0, len(firsts), _BATCH):
        part = slice(start, start + _BATCH)
        difference = vectors[firsts[part]].astype(np.float32) - vectors[seconds[part]].astype(np.float32)
        result[part] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
    return result


def _stand_out(
    tree: cKDTree, points: np.ndarray, vectors: np.ndarray, firsts: np.ndarray, distances: np.ndarray
) -> np.ndarray:
    """Whether each pair is closer than the company of its first image explains."""
    centres, place = np.unique(firsts, return_inverse=True)
    widest = 2 * distances.max()
    neighbours = np.full((len(centres), CROWD_NEIGHBOURS + 1), np.inf)
    for start in range(0, len(centres), _BATCH):
        block = centres[start : start + _BATCH]
        _, found = tree.query(points[block], CROWD_NEIGHBOURS + 1, distance_upper_bound=widest, workers=-1)
        known = (found != len(points)) & (found != block[:, None])
        row, column = np.nonzero(known)
        neighbours[start + row, column] = _distances(vectors, block[row], found[row, column])
    close = (neighbours[place] <= distances[:, None] + 1e-6).sum(axis=1)
    around = (neighbours[place] <= 2 * distances[:, None]).sum(axis=1)
    return (close <= NEIGHBOURS) & (around <= CROWD * close)


def _agreed(found: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Each pair once, where it stands out for every one of its images that has found the other."""
    firsts, seconds, stands_out = found.T
    pairs = np.stack([np.minimum(firsts, seconds), np.maximum(firsts, seconds)], axis=1)
    unique, place = np.unique(pairs, axis=0, return_inverse=True)
    agreed = np.ones(len(unique), bool)
    np.logical_and.at(agreed, place.ravel(), stands_out.astype(bool))
    return rows[unique[agreed]]

"""Images that are copies of each other, resized, recompressed, brightened or slightly cropped: found by an index."""

from __future__ import annotations

import math

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# The index: an image's hash are the sides of random planes on which its descriptor lies (Charikar, STOC 2002). Images
# that agree on all planes of a band are compared. There are so many bands that a pair at the largest distance agrees in
# one of them with this probability; closer ones nearly always do.
RECALL, MAX_BANDS = 0.99, 256
WINDOW = 8  # images that are compared with the next ones of their bucket
NEIGHBOURS = 8  # copies of an image that are kept where there are more: others are reached through these
SURE = 0.4  # share of the largest distance within which images are copies in any company
# A copy stands out: images are taken for copies where their distance reaches few images, and twice their distance not
# many more. In a plane twice the radius holds four times as many; in a population of alike images, such as
# handwritten digits or X-rays, which vary in many ways, it holds far more. Looked at in a sample of the images.
# Nor can images be told apart by a distance that reaches a quarter of all.
CROWD, SHARE, SAMPLE = 4, 0.25, 2**14
_BATCH = 2**16  # rows that are computed with at once: bounds the memory


def near_pairs(descriptors: np.ndarray, max_distance: float) -> np.ndarray:
    """Pairs of images that are copies of each other; no image is compared with all others.

    Args:
        descriptors: (n, DESCRIPTOR_DIM) float16 of `inspection.describe`; rows of zeros have no copies.
        max_distance: in [0, 1]; 0: no pairs.

    Returns:
        (m, 2) int64 row numbers, the smaller first, each pair once, sorted.
    """
    rows = np.flatnonzero(descriptors.any(axis=1))
    if max_distance == 0 or len(rows) < 2:
        return np.empty((0, 2), np.int64)
    vectors = descriptors[rows]
    pairs, distances = _close_pairs(vectors, max_distance)
    copies = distances <= SURE * max_distance
    unsure = np.flatnonzero(~copies)
    if len(unsure):
        sample = vectors[np.random.default_rng(0).permutation(len(vectors))[:SAMPLE]]
        copies[unsure] = True
        for side in (0, 1):
            copies[unsure] &= _stand_out(vectors, pairs[unsure, side], distances[unsure], max_distance, sample)
    return rows[pairs[copies]]


def groups(n: int, pairs: np.ndarray) -> np.ndarray:
    """(n,) int32: a number for each of `n` rows, shared by those that `pairs`, (m, 2), connect."""
    links = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return connected_components(links, directed=False)[1]


def _close_pairs(vectors: np.ndarray, max_distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (m, 2) within `max_distance` that the index finds, sorted, and their distances (m,)."""
    n = len(vectors)
    bits = min(math.ceil(math.log2(n)) + 1, 30)
    turned = 2 * math.asin(max_distance / 2) / math.pi  # the share of planes that part two images
    bands = min(math.ceil(math.log(1 - RECALL) / math.log(1 - (1 - turned) ** bits)), MAX_BANDS)
    codes, distances = np.empty(0, np.int64), np.empty(0, np.float32)
    for band in range(bands):
        firsts, seconds = _same_bucket(_hashes(vectors, bits, band))
        apart = _distances(vectors, firsts, seconds)
        near = apart <= max_distance
        low, high = np.minimum(firsts, seconds)[near], np.maximum(firsts, seconds)[near]
        codes, place = np.unique(np.concatenate([codes, low * n + high]), return_index=True)
        distances = np.concatenate([distances, apart[near]])[place]
        if len(codes) > 2 * NEIGHBOURS * n:
            kept = _nearest(codes // n, codes % n, distances)
            codes, distances = codes[kept], distances[kept]
    return np.stack([codes // n, codes % n], axis=1), distances


def _hashes(vectors: np.ndarray, bits: int, band: int) -> np.ndarray:
    """(n,) int64: the side of each of `bits` planes, above 32 bits of where a vector lies along one more.

    All is computed in integers that float32 holds exactly, so that every machine finds the same.
    """
    planes = np.round(16 * np.random.default_rng([0, band]).normal(size=(vectors.shape[1], bits + 1))).astype(
        np.float32
    )
    result = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), _BATCH):
        part = slice(start, start + _BATCH)
        products = np.round(vectors[part].astype(np.float32) * 1024) @ planes
        sides = (products[:, :bits] > 0) @ (1 << np.arange(bits, dtype=np.int64))
        result[part] = (sides << 32) + products[:, bits].astype(np.int64) + 2**31
    return result


def _same_bucket(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images of one bucket, each with the next ones in it along the last plane's normal."""
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


def _distances(vectors: np.ndarray, firsts: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    result = np.empty(len(firsts), np.float32)
    for start in range(0, len(firsts), _BATCH):
        part = slice(start, start + _BATCH)
        difference = vectors[firsts[part]].astype(np.float32) - vectors[seconds[part]].astype(np.float32)
        result[part] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
    return result


def _nearest(firsts: np.ndarray, seconds: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Whether each pair is among the NEIGHBOURS closest of one of its images."""
    images = np.concatenate([firsts, seconds])
    order = np.lexsort((np.concatenate([distances, distances]), images))
    ordered = images[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    ranks = np.empty(len(images), np.int64)
    ranks[order] = np.arange(len(images)) - np.repeat(starts, np.diff(np.append(starts, len(images))))
    return (ranks[: len(firsts)] < NEIGHBOURS) | (ranks[len(firsts) :] < NEIGHBOURS)


def _stand_out(
    vectors: np.ndarray, images: np.ndarray, distances: np.ndarray, max_distance: float, sample: np.ndarray
) -> np.ndarray:
    """Whether each image and what is within that distance of it stand out from all others.

    Either the pair does, at its own distance, or the family of the image, at `max_distance`.
    """
    scale = len(vectors) / len(sample)
    others = sample.astype(np.float32)
    result = np.empty(len(images), bool)
    for start in range(0, len(images), 2**10):
        part = slice(start, start + 2**10)
        products = vectors[images[part]].astype(np.float32) @ others.T
        apart = np.sqrt(np.maximum(2 - 2 * products, 0))  # of vectors of length 1
        result[part] = False
        for reach in (distances[part, None], np.full((len(products), 1), max_distance)):
            reach = reach * 1.001 + 1e-3  # float16 has no more digits
            # The image itself does not count; the other of the pair does, sampled or not.
            close = np.maximum(((apart <= reach).sum(axis=1) - 1) * scale, 1)
            around = ((apart <= 2 * reach).sum(axis=1) - 1) * scale
            few = close <= max(NEIGHBOURS, SHARE * len(vectors))
            result[part] |= few & (around <= np.maximum(CROWD * close, 2 * scale))
    return result

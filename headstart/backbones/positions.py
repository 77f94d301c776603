"""Position embeddings of a vision transformer for another number of patches, as PyTorch interpolates them.

Keras' bicubic resizing has another kernel (a = -0.5) than PyTorch's (a = -0.75, unless it smooths), which the networks
were evaluated with: DINOv2's features would be off by up to some percent.
"""

from __future__ import annotations

import numpy as np


def resize(positions: np.ndarray, count: int, first: int, antialias: bool = False) -> np.ndarray:
    """Interpolate position embeddings bicubically.

    Args:
        positions: (..., tokens, dim): `first` of class tokens and the like, then a square of patches, row by row.
        count: of tokens afterwards, with as many before the patches.
        antialias: whether to smooth where there are fewer patches than before.

    Returns:
        (..., count, dim) of the same dtype.
    """
    *_, tokens, dim = positions.shape
    old, new = round((tokens - first) ** 0.5), round((count - first) ** 0.5)
    if (old**2 + first, new**2 + first) != (tokens, count):
        raise ValueError(f"{tokens} or {count} tokens are no square of patches and {first} before it")
    square = positions[..., first:, :].reshape(*positions.shape[:-2], old, old, dim)
    rows = _weights(old, new, antialias)
    resized = np.einsum("ia,jb,...abd->...ijd", rows, rows, square.astype(np.float64))
    patches = resized.reshape(*positions.shape[:-2], new * new, dim).astype(positions.dtype)
    return np.concatenate([positions[..., :first, :], patches], axis=-2)


def _weights(old: int, new: int, antialias: bool) -> np.ndarray:
    """Return what each of `new` places takes of each of `old` ones, (new, old); rows sum to 1."""
    a, stretch = (-0.5, max(old / new, 1)) if antialias else (-0.75, 1)
    outside = int(2 * stretch) + 1
    centers = (np.arange(new) + 0.5) * old / new - 0.5
    x = np.abs(np.arange(-outside, old + outside) - centers[:, None]) / stretch
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    weights = np.where(x <= 1, near, np.where(x < 2, far, 0))
    inside = weights[:, outside:-outside].copy()
    if antialias:  # what lies outside is left out
        return inside / inside.sum(axis=1, keepdims=True)
    inside[:, 0] += weights[:, :outside].sum(axis=1)  # beyond the border is what is at the border
    inside[:, -1] += weights[:, -outside:].sum(axis=1)
    return inside

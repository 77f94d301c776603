"""Features as linear heads take them: square roots, each tensor of a network scaled to the same variance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headstart.training.examples import FeatureSet
from headstart.training.linear import Linear
from headstart.training.roots import root

ROUNDING = 1e-12  # variance of float32 that is rounding, as a share of the squared mean


@dataclass(frozen=True)
class Scaling:
    """Maps roots of features to (roots - mean) x factor.

    Attributes:
        mean, factor: (feature_dim,) float32.
    """

    mean: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(cls, examples: FeatureSet, widths: dict[str, list[int]]) -> Scaling:
        """Return the scaling after which the values of each tensor have a mean of 0 and a variance of 1, on average.

        A tensor that is the same for all examples, up to rounding, becomes 0.
        """
        count, total, squares = 0, np.zeros(examples.dim), np.zeros(examples.dim)
        for rows in examples.blocks(0):
            roots = root(examples.rows(rows)).astype(np.float64)
            count, total, squares = count + len(roots), total + roots.sum(axis=0), squares + (roots**2).sum(axis=0)
        mean = total / count
        variance = np.maximum(squares / count - mean**2, 0)
        sizes = [width for added in widths.values() for width in added]
        parts, levels = (np.split(values, np.cumsum(sizes)[:-1]) for values in (variance, mean**2))
        factor = [
            np.full(len(part), 1 / np.sqrt(max(part.mean(), np.finfo(np.float32).tiny)))
            * (part.mean() > ROUNDING * level.mean())
            for part, level in zip(parts, levels, strict=True)
        ]
        return cls(np.float32(mean), np.float32(np.concatenate(factor)))

    def apply(self, features: np.ndarray) -> np.ndarray:
        """Return the (N, feature_dim) float32 features as a head on this scaling takes them."""
        return (root(features) - self.mean) * self.factor

    def prefix(self, dim: int, factor: float) -> Scaling:
        """Return the scaling of the first `dim` features, multiplied by `factor`."""
        return Scaling(self.mean[:dim], self.factor[:dim] * np.float32(factor))

    def unscaled(self, head: Linear) -> Linear:
        """Return the head that gives for roots of features what `head` gives for these as scaled."""
        kernel = self.factor[:, None] * head.kernel
        return Linear(kernel, head.bias - self.mean @ kernel)

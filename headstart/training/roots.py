"""Square roots of features, as heads take them. Shipped with models, so that it imports nothing but NumPy."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

OFFSET = 0.01  # of the root, which would be vertical at zero
Numbers = TypeVar("Numbers", bound=Any)  # arrays of NumPy, or of Keras


def root(features: Numbers, ops: Any = np) -> Numbers:
    """Return nearly the square roots of features, with their signs.

    Args:
        ops: `numpy` or `keras.ops`, by what `features` are.
    """
    return features / ops.sqrt(ops.abs(features) + OFFSET)

"""Pooling of sequences by their mask: only places that are filled count."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


def mean_pool(sequence: keras.KerasTensor, mask: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """Return the mean over the places where the mask (N, t) int32 is 1: (N, t, dim) -> (N, dim)."""
    from headstart.framework import keras

    return keras.layers.GlobalAveragePooling1D(name=name)(sequence, mask=mask)


def max_pool(sequence: keras.KerasTensor, mask: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """Return the maximum over the places where the mask (N, t) int32 is 1: (N, t, dim) -> (N, dim)."""
    from headstart.framework import keras

    below_all = -1e4  # in float16, too
    present = keras.ops.where(keras.ops.expand_dims(mask, -1) > 0, sequence, below_all)
    return keras.layers.GlobalMaxPooling1D(name=name)(present)

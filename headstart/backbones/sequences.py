"""Pooling of sequences by their mask: only places that are filled count."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

SMALLEST_VARIANCE = 1e-6


def not_zero(sequence: keras.KerasTensor) -> keras.KerasTensor:
    """Return the mask (N, t) int32 of the places that are not all zeros, where zeros stand for what is not heard."""
    from headstart.framework import keras

    return keras.ops.cast(keras.ops.any(keras.ops.not_equal(sequence, 0.0), axis=-1), "int32")


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


def statistics_pool(sequence: keras.KerasTensor, mask: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """Return mean and standard deviation over the places where the mask (N, t) int32 is 1: (N, t, dim) -> (N, 2 dim).

    As in x-vectors (Snyder et al. 2018, https://doi.org/10.1109/ICASSP.2018.8461375): how much changes within a sound
    says more of words, and less of voices, than the mean alone.
    """
    from headstart.framework import keras

    mean = mean_pool(sequence, mask, f"{name}_mean")
    half = sequence.dtype == "float16"  # whose largest number a sum of squares soon exceeds
    changes = sequence - keras.ops.expand_dims(mean, 1)
    squares = keras.ops.square(keras.ops.cast(changes, "float32") if half else changes)
    layer = keras.layers.GlobalAveragePooling1D(name=f"{name}_variance", dtype="float32" if half else None)
    deviation = keras.ops.sqrt(layer(squares, mask=mask) + SMALLEST_VARIANCE)  # its gradient is infinite at zero
    deviation = keras.ops.cast(deviation, "float16") if half else deviation
    return keras.layers.Concatenate(name=name)([mean, deviation])

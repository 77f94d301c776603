"""From sounds to what networks hear: steps of 20 ms, (t, STEP) float32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RATE = 16_000  # samples a second
STEP = 320  # samples; networks for sounds describe each step
STEPS = RATE // STEP  # in a second
FILLED = 25  # steps; batches are filled up to a multiple, so that the rounding of convolutions hardly changes


def cut(sound: np.ndarray, seconds: int) -> np.ndarray:
    """Return a sound, (n,) float32; of one longer than `seconds`, so many windows of a second, spread evenly."""
    if len(sound) <= seconds * RATE:
        return sound
    starts = np.linspace(0, len(sound) - RATE, seconds).astype(int) if seconds > 1 else [(len(sound) - RATE) // 2]
    return np.concatenate([sound[start : start + RATE] for start in starts])


def split(sound: np.ndarray) -> np.ndarray:
    """Split a sound into steps, (t, STEP) float32; zeros fill up the last one."""
    return np.pad(sound, (0, -len(sound) % STEP)).reshape(-1, STEP)


def fill(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return one array, (b, T, STEP) float32, of sounds (t, STEP) each, with zeros behind all but the longest."""
    longest = -(-max(map(len, arrays)) // FILLED) * FILLED
    steps = np.zeros((len(arrays), longest, STEP), np.float32)
    for row, array in zip(steps, arrays, strict=True):
        row[: len(array)] = array
    return steps

"""From sounds to batches: (b, n) float32, n being a multiple of a step of 20 ms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RATE = 16_000  # samples a second
STEP = 320  # samples; networks for sounds describe each step
FILLED = 25 * STEP  # batches are filled up to a multiple, so that the rounding of convolutions hardly changes


def cut(sound: np.ndarray, seconds: int) -> np.ndarray:
    """Return a sound, (n,) float32; of one longer than `seconds`, so many windows of a second, spread evenly."""
    if len(sound) <= seconds * RATE:
        return sound
    starts = np.linspace(0, len(sound) - RATE, seconds).astype(int) if seconds > 1 else [(len(sound) - RATE) // 2]
    return np.concatenate([sound[start : start + RATE] for start in starts])


def fill(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return one array, (b, n) float32, of sounds (n,) each, with zeros behind all but the longest."""
    longest = -(-max(map(len, arrays)) // FILLED) * FILLED
    sounds = np.zeros((len(arrays), longest), np.float32)
    for row, array in zip(sounds, arrays, strict=True):
        row[: len(array)] = array
    return sounds

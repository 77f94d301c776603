"""Augmented views of sounds, seeded by sound and number: faster, later, louder, noisier, or the other way round."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from headstart.modalities.base import Augmentation

QUIETER_NOISE = 20  # dB; the noise of a view lies up to that much below the loudest that may be
MOST_CUT = 0.1  # share of a recording that is cut off at most, as it begins earlier


@dataclass(frozen=True)
class SoundAugmentation(Augmentation):
    """How a sound may be changed.

    Attributes:
        shift: seconds by which it begins later or earlier, at most.
        gain: dB by which it is louder or softer, at most.
        noise: signal-to-noise ratio in dB of the loudest noise that is added; None: no noise.
        speed: share by which it is faster and higher, or slower and lower, at most; in [0, 1).
    """

    shift: float
    gain: float
    noise: float | None
    speed: float


def view(sound: np.ndarray, rate: int, augmentation: SoundAugmentation, key: str, number: int) -> np.ndarray:
    """Make view `number` of a sound, (n,) float32 in [-1, 1]; 0 is the sound as it is."""
    if number == 0:
        return sound
    seed = blake3(f"{key} {number}".encode()).digest(length=8)
    random = np.random.default_rng(int.from_bytes(seed, "little"))
    # All are drawn, so that each is the same whatever the others are.
    speed, shift, gain, ratio = random.uniform(-1, 1, 4)
    result = _change_speed(sound, 1 + augmentation.speed * speed)
    result = _shift(result, round(augmentation.shift * shift * rate))
    result = result * np.float32(10 ** (augmentation.gain * gain / 20))
    if augmentation.noise is not None:
        below = augmentation.noise + QUIETER_NOISE * (ratio + 1) / 2
        loudness = float(np.sqrt(np.square(result, dtype=np.float64).mean()))
        result = result + np.float32(loudness * 10 ** (-below / 20)) * random.standard_normal(len(result), np.float32)
    return np.clip(result, -1, 1)


def _change_speed(sound: np.ndarray, factor: float) -> np.ndarray:
    """Play a sound `factor` times faster, by linear interpolation."""
    count = max(1, round(len(sound) / factor))
    return np.interp(np.linspace(0, len(sound) - 1, count), np.arange(len(sound)), sound).astype(np.float32)


def _shift(sound: np.ndarray, samples: int) -> np.ndarray:
    if samples >= 0:
        return np.concatenate([np.zeros(samples, np.float32), sound])
    return sound[min(-samples, int(MOST_CUT * len(sound))) :]

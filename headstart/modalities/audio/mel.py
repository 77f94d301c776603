"""Bands that are equally wide on the mel scale."""

from __future__ import annotations

import numpy as np

from headstart.modalities.audio.steps import RATE


def mel_filters(bands: int, low: float, high: float, window: int) -> np.ndarray:
    """Return overlapping triangular filters between two frequencies in Hz, (window // 2 + 1, bands) float32.

    Args:
        window: samples at 16 kHz from which the spectrum is computed.
    """
    mels, (first, last) = (_mel(hertz) for hertz in (np.fft.rfftfreq(window, 1 / RATE), np.array([low, high])))
    width = (last - first) / (bands + 1)
    middles = first + width * np.arange(1, bands + 1)
    return np.maximum(1 - np.abs(mels[:, None] - middles) / width, 0).astype(np.float32)


def _mel(hertz: np.ndarray) -> np.ndarray:
    return 2595 * np.log10(1 + hertz / 700)

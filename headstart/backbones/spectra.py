"""Spectra of sounds, computed by convolutions whose kernels are not trained: every engine can run these."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from headstart.modalities.audio.steps import RATE, STEP

__all__ = ["RATE", "STEP", "fix", "mel_bands", "triangles", "windowed_waves"]

if TYPE_CHECKING:
    import keras


def fix(layer: keras.layers.Conv1D, x: keras.KerasTensor, kernel: np.ndarray) -> keras.KerasTensor:
    """Apply a convolution with that kernel, (size, in, out), which is not trained."""
    out = layer(x)
    layer.kernel.assign(kernel)
    layer.trainable = False
    return out


def windowed_waves(window: int, transform: int, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return cosines and sines, (window, len(bins)) float64 each, of bins of a Fourier transform, in Hann's window."""
    time = np.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * time / window)
    angle = 2 * np.pi * np.outer(time, bins) / transform
    return hann[:, None] * np.cos(angle), hann[:, None] * np.sin(angle)


def triangles(places: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return what each place (n,) counts in each band, (n, len(edges) - 2) float64: 1 at its middle, an edge, 0 at the
    edges beside it.
    """
    places = places[:, None]
    up = (places - edges[:-2]) / (edges[1:-1] - edges[:-2])
    down = (edges[2:] - places) / (edges[2:] - edges[1:-1])
    return np.clip(np.minimum(up, down), 0, None)


def mel_bands(count: int, lowest: float, highest: float, transform: int) -> np.ndarray:
    """Return triangles of equal area, and of equal width in mel, (transform // 2 + 1, count) float32, as in librosa.

    These mel are linear up to 1 kHz; above it 27 of them are a factor of 6.4, as in Slaney's Auditory Toolbox.
    """
    linear, knee, ratio = 200 / 3, 15.0, 27 / math.log(6.4)  # Hz of a mel; in mel; mel of a factor of e

    def mel(hertz: float) -> float:
        return hertz / linear if hertz < 1000 else knee + ratio * math.log(hertz / 1000)

    steps = np.linspace(mel(lowest), mel(highest), count + 2)
    edges = np.where(steps < knee, linear * steps, 1000 * np.exp((steps - knee) / ratio))
    bands = triangles(np.arange(transform // 2 + 1) * RATE / transform, edges)
    return (bands * 2 / (edges[2:] - edges[:-2])).astype(np.float32)

"""Descriptors of sounds by which near copies are found; they are blind to loudness and to when a sound begins.

Libraries for this, such as Chromaprint, want at least three seconds: of a spoken word they return nothing.
"""

from __future__ import annotations

import numpy as np
from scipy import fft, ndimage, sparse

from headstart.modalities.audio.mel import mel_filters
from headstart.modalities.audio.steps import RATE

WINDOW, HOP = 1024, 128  # samples of a frame, and from one to the next: 64 and 8 ms
BANDS = 9  # equally wide on the mel scale
# Telephones and old recordings hold nothing above 4 kHz. What is heard above is compared only in sounds such as
# those of birds, which have less than LOW_SHARE of their power below.
LOW, HIGH, LOW_SHARE = (80, 3500), (3500, 7800), 0.01  # Hz
FLOOR = 30  # dB below the loudest frame: anything softer is silence, as noise may hide it
FADE = 6, 18  # dB above the floor, from nothing to all: how much a frame counts
AROUND = 63  # frames, half a second: the spectrum is compared with its mean in that time
RHYTHMS = 1.25 * np.arange(1, 13)  # Hz: how often loudness rises and falls
COEFFICIENTS = 64  # of the spectrum's cosine transform: its envelope and, of voices and instruments, the pitch
EVEN, FLAT = 3.0, 1.0  # dB: what changes less in time, or over frequencies, has less to compare
DIM = COEFFICIENTS + 2 * (BANDS - 1) * len(RHYTHMS)
_AT_ONCE = 2**12  # frames


def sketch(sound: np.ndarray) -> np.ndarray:
    """Return what is compared, (DIM,) float32: how a sound sounds on the whole, then how it changes in time.

    The first part is the cosine transform of the mean spectrum, in dB. The second one is about the deviations of each
    band from its mean in half a second: their Fourier coefficients at some rhythms, each times the conjugate of that
    of the next band. Such a product keeps when one band is loud and the other is not, and not when the sound begins.

    Args:
        sound: (n,) float32 at 16 kHz.
    """
    bands, spectrum = _analyse(sound)
    if spectrum.max(initial=0) <= 0:
        return np.zeros(DIM, np.float32)
    return np.concatenate([_timbre(spectrum), _changes(bands)]).astype(np.float32)


def describe(sketches: np.ndarray) -> np.ndarray:
    """Return descriptors, (n, DIM) float16 of length 1, of (n, DIM) sketches; zeros of silence."""
    lengths = np.linalg.norm(sketches, axis=1, keepdims=True)
    return (sketches / np.where(lengths > 0, lengths, 1)).astype(np.float16)


def _analyse(sound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the power of each band by time, (t, BANDS), and the mean power by frequency, (k,) float32."""
    padded = np.pad(sound / max(float(np.abs(sound).max(initial=0)), 1e-9), WINDOW).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    parts, total = [], np.zeros(WINDOW // 2 + 1, np.float32)
    for start in range(0, len(frames), _AT_ONCE):
        power = np.abs(fft.rfft(frames[start : start + _AT_ONCE] * _HANN, axis=1)) ** 2
        total += power.sum(axis=0)
        parts.append((_FILTERS @ power.T).T)
    low = total[_bins(LOW)].sum() >= LOW_SHARE * total.sum()
    columns, bins = (slice(None, BANDS), _bins(LOW)) if low else (slice(BANDS, None), _bins(HIGH))
    return np.concatenate(parts)[:, columns], total[bins] / len(frames)


def _timbre(spectrum: np.ndarray) -> np.ndarray:
    """Return the first part of a sketch; its length is at most 1."""
    waves = fft.dct(_above_floor(spectrum, spectrum.max()), norm="ortho")[1 : COEFFICIENTS + 1]
    deviation = np.linalg.norm(waves) / np.sqrt(len(spectrum))
    # Sounds of one kind, such as the words of one speaker, differ in the fine structure first, here and below.
    return _with_length(waves * np.sqrt(np.arange(1, COEFFICIENTS + 1)), min(deviation / FLAT, 1))


def _changes(bands: np.ndarray) -> np.ndarray:
    """Return the second part of a sketch; its length is at most 1."""
    loudness = bands.sum(axis=1, keepdims=True)
    levels = _above_floor(bands, loudness.max())
    counts = ((_above_floor(loudness, loudness.max()) - FADE[0]) / (FADE[1] - FADE[0])).clip(0, 1)
    sums = ndimage.convolve1d(np.hstack([levels * counts, counts]), _KERNEL, axis=0, mode="constant")
    deviations = counts * (levels - sums[:, :-1] / np.maximum(sums[:, -1:], 1e-3))
    moments = np.arange(len(levels)) * (HOP / RATE)
    waves = np.exp(-2j * np.pi * np.outer(RHYTHMS, moments)).astype(np.complex64) @ deviations
    strengths = np.sqrt(np.abs(waves[:, :-1] * waves[:, 1:])) + 1e-9
    products = waves[:, :-1] * waves[:, 1:].conj() / strengths * np.sqrt(RHYTHMS)[:, None]
    deviation = np.sqrt(np.square(deviations).sum() / (counts.sum() * BANDS))
    return _with_length(np.stack([products.real, products.imag]).ravel(), min(deviation / EVEN, 1))


def _with_length(vector: np.ndarray, length: float) -> np.ndarray:
    return vector * (length / max(float(np.linalg.norm(vector)), 1e-9))


def _above_floor(power: np.ndarray, loudest: float) -> np.ndarray:
    """Return levels in dB from the floor, 0, to the loudest, FLOOR."""
    return np.maximum(10 * np.log10(power / loudest + 1e-9) + FLOOR, 0)


def _bins(limits: tuple[int, int]) -> slice:
    """The frequencies of a spectrum within limits in Hz."""
    return slice(*(limit * WINDOW // RATE for limit in limits))


_HANN = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
# Sparse: a product of small dense matrices costs more when several threads ask for it.
_FILTERS = sparse.csr_array(np.hstack([mel_filters(BANDS, *limits, WINDOW) for limits in (LOW, HIGH)]).T)
_KERNEL = np.hanning(AROUND + 2)[1:-1]

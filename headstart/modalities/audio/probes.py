"""Known sounds, by which a change of decoding or resampling is noticed."""

from __future__ import annotations

import io

import numpy as np

from headstart.modalities.audio.steps import RATE


def files(seconds: int) -> list[bytes]:
    """Return sounds of many kinds as WAV and FLAC, the first of them longer than `seconds`, the second one short."""
    random = np.random.default_rng(0)
    lengths_and_rates = [(seconds + 0.7, RATE), (0.05, RATE), (0.8, 8000), (0.9, 44_100), (1.0, 48_000), (0.6, 22_050)]
    return [_file(length, rate, number, random) for number, (length, rate) in enumerate(lengths_and_rates)]


def _file(length: float, rate: int, number: int, random: np.random.Generator) -> bytes:
    import soundfile

    time = np.arange(int(length * rate)) / rate
    sweep = np.sin(2 * np.pi * (200 + 150 * number) * time * (1 + time)) * np.exp(-time)
    samples = 0.5 * sweep + 0.05 * random.standard_normal(len(time))
    if number % 2:
        samples = np.stack([samples, 0.5 * samples[::-1]], axis=1)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, "PCM_16", format="FLAC" if number > 2 else "WAV")
    return buffer.getvalue()

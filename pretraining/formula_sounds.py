"""Plain sounds drawn by formula: each function draws one, (n,) floats of any loudness at RATE, another each time."""

from __future__ import annotations

import numpy as np

from pretraining.speech import RATE


def draw_time(random: np.random.Generator) -> np.ndarray:
    return np.arange(int(random.uniform(0.2, 1.0) * RATE)) / RATE


def draw_pitch(random: np.random.Generator) -> float:
    return float(np.exp(random.uniform(np.log(80), np.log(3000))))


def tone(random: np.random.Generator) -> np.ndarray:
    return np.sin(2 * np.pi * draw_pitch(random) * draw_time(random))


def harmonics(random: np.random.Generator) -> np.ndarray:
    time, pitch = draw_time(random), draw_pitch(random) / 3
    numbers = np.arange(1, max(2, min(30, int(7500 / pitch))))
    loudness = numbers ** -random.uniform(0.3, 2)
    return (np.sin(2 * np.pi * pitch * numbers[:, None] * time) * loudness[:, None]).sum(axis=0)


def chirp(random: np.random.Generator) -> np.ndarray:
    time = draw_time(random)
    first, last = sorted((draw_pitch(random), draw_pitch(random)))
    sweep = np.linspace(first, last * 1.2, len(time))[:: random.choice([-1, 1])]
    return np.sin(2 * np.pi * np.cumsum(sweep) / RATE)


def trembling(random: np.random.Generator) -> np.ndarray:
    time = draw_time(random)
    return np.sin(2 * np.pi * draw_pitch(random) * time) * (1 + np.sin(2 * np.pi * random.uniform(3, 30) * time))


def burst(random: np.random.Generator) -> np.ndarray:
    count = len(draw_time(random))
    frequency = np.fft.rfftfreq(count, 1 / RATE)
    spectrum = np.fft.rfft(random.standard_normal(count))
    middle, width = draw_pitch(random), random.uniform(0.1, 1.5)
    return np.fft.irfft(spectrum * np.exp(-0.5 * (np.log(np.maximum(frequency, 1) / middle) / width) ** 2), count)


def clicks(random: np.random.Generator) -> np.ndarray:
    samples = np.zeros(len(draw_time(random)))
    samples[:: int(RATE / random.uniform(4, 60))] = 1
    return np.convolve(samples, random.standard_normal(32) * np.exp(-np.arange(32) / 6), "same")


def bell(random: np.random.Generator) -> np.ndarray:
    time, pitch = draw_time(random), draw_pitch(random)
    ratios = np.array([0.56, 0.92, 1.19, 1.71, 2.0, 2.74, 3.0, 3.76]) * random.uniform(0.95, 1.05, 8)
    ratios = ratios[ratios * pitch < 7500]
    parts = np.sin(2 * np.pi * pitch * ratios[:, None] * time) * np.exp(-time * ratios[:, None] * random.uniform(3, 10))
    return parts.sum(axis=0)


def string(random: np.random.Generator) -> np.ndarray:
    """Pluck a string (Karplus and Strong, 1983), all periods at once: each is the one before it, smoothed."""
    time, period = draw_time(random), int(RATE / min(draw_pitch(random), 800))
    spectrum = np.fft.rfft(random.uniform(-1, 1, period))
    smoothing = np.cos(np.pi * np.arange(len(spectrum)) / period) * random.uniform(0.98, 1)
    rounds = np.arange(-(-len(time) // period))[:, None]
    return np.fft.irfft(spectrum * smoothing**rounds, period).ravel()[: len(time)]


KINDS = (tone, harmonics, chirp, trembling, burst, clicks, bell, string)

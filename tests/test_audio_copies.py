"""Which recordings are near copies: the same one in another format, louder, shifted, noisy; not the same word again."""

from __future__ import annotations

import io

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from headstart.data.duplicates import near_pairs
from headstart.modalities.audio import copies

soundfile = pytest.importorskip("soundfile")
soxr = pytest.importorskip("soxr")

RATE, DISTANCE, COUNT = 16_000, 0.25, 20


def say(word: int, take: int = 0, seconds: float = 0.6, pitch: float = 120) -> np.ndarray:
    """A voice whose resonances move as the word says; each take has another speed, pitch and stress."""
    script, manner = np.random.default_rng(word), np.random.default_rng([word, take])
    time = np.arange(int(RATE * seconds * manner.uniform(0.85, 1.15))) / RATE
    share = time / time[-1]
    corners = np.linspace(0, 1, 5) + np.concatenate([[0], manner.normal(0, 0.03, 3), [0]])
    resonances = [script.uniform(low, high, 5) * manner.normal(1, 0.04, 5) for low, high in ((250, 900), (900, 3000))]
    loudness = np.interp(share, corners, [0.01, *(script.uniform(0.05, 1, 3) * manner.uniform(0.7, 1.4, 3)), 0.01])
    tone = pitch * manner.uniform(0.94, 1.06) * (1 + 0.1 * np.interp(share, corners, manner.normal(0, 1, 5)))
    phase = 2 * np.pi * np.cumsum(tone) / RATE
    sound = np.zeros(len(time))
    for number in range(1, 25):
        near = [np.exp(-0.5 * ((number * tone - np.interp(share, corners, one)) / 120) ** 2) for one in resonances]
        sound += (sum(near) + 0.003) * np.sin(number * phase)
    sound = 0.3 * sound * loudness / np.abs(sound).max() + manner.normal(0, 1e-4, len(time))
    return np.pad(sound, (800, 1600)).astype(np.float32)


def descriptors(sounds: list[np.ndarray]) -> np.ndarray:
    return copies.describe(np.stack([copies.sketch(sound) for sound in sounds]))


def saved(sound: np.ndarray, container: str, subtype: str, rate: int = RATE, level: float | None = None) -> np.ndarray:
    """A sound written as a file at that rate, and read and resampled again."""
    buffer = io.BytesIO()
    there = sound if rate == RATE else soxr.resample(sound, RATE, rate)
    soundfile.write(buffer, there, rate, subtype, format=container, compression_level=level)
    buffer.seek(0)
    samples, rate = soundfile.read(buffer, dtype="float32")
    return samples if rate == RATE else soxr.resample(samples, rate, RATE)


def noisy(sound: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(len(sound)).normal(
        0, np.sqrt(np.mean(np.square(sound))) * 10 ** (-30 / 20), len(sound)
    )
    return (sound + noise).astype(np.float32)


def later(sound: np.ndarray) -> np.ndarray:
    return np.pad(sound, (4321, 0))


CHANGES = {
    "MP3": lambda sound: saved(sound, "MP3", "MPEG_LAYER_III", level=0.62),
    "OGG": lambda sound: saved(sound, "OGG", "VORBIS"),
    "mu-law": lambda sound: saved(sound, "WAV", "ULAW"),
    "8 kHz": lambda sound: saved(sound, "WAV", "PCM_16", rate=8000),
    "12 dB softer": lambda sound: saved(sound / 4, "WAV", "PCM_16"),
    "12 dB louder": lambda sound: sound * 4,
    "later": later,
    "without silence": lambda sound: sound[800:],
    "noisy": noisy,
    "noisy, later, softer, 8 kHz, mu-law": lambda sound: saved(noisy(later(sound)) / 2, "WAV", "ULAW", rate=8000),
}


@pytest.fixture(scope="module")
def originals() -> list[np.ndarray]:
    """Words by a voice, each once, then four of them four times more."""
    once = [say(word) for word in range(COUNT)]
    return once + [say(word, take) for word in range(4) for take in range(1, 5)]


@pytest.fixture(scope="module")
def known(originals) -> np.ndarray:
    return descriptors(originals)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_copies_are_found_and_no_other_takes_of_the_same_words(change, originals, known):
    changed = descriptors([change(sound) for sound in originals[:COUNT]])
    found = near_pairs(np.concatenate([known, changed]), DISTANCE)
    expected = [(number, number + len(originals)) for number in range(COUNT)]
    assert sorted(map(tuple, found.tolist())) == expected


@pytest.mark.parametrize("pitch", [4200, 5600])
def test_sounds_above_what_telephones_hold_are_compared_too(pitch):
    """Birds, say: trills of many rhythms that have nothing below 3.5 kHz but noise."""
    time = np.arange(RATE) / RATE
    birds = [
        (0.2 * np.sin(2 * np.pi * pitch * time + 9 * np.sin(rhythm * 7 * time)) * np.sin(rhythm * time) ** 2)
        + np.random.default_rng(int(rhythm * 10)).normal(0, 1e-3, RATE)
        for rhythm in np.linspace(4, 20, 12)
    ]
    birds = [bird.astype(np.float32) for bird in birds]
    found = near_pairs(descriptors([*birds, *(CHANGES["MP3"](later(bird)) for bird in birds)]), DISTANCE)
    assert found.tolist() == [[number, number + 12] for number in range(12)]


def closest(sounds: list[np.ndarray]) -> float:
    """The least distance between any two sounds."""
    return float(pdist(descriptors([sound.astype(np.float32) for sound in sounds]).astype(np.float32)).min())


def test_recordings_of_one_steady_noise_differ():
    fans = [np.convolve(np.random.default_rng(n).normal(0, 0.1, 2 * RATE), np.ones(5) / 5, "same") for n in range(8)]
    assert closest(fans) > DISTANCE


def test_notes_that_fade_alike_differ():
    time = np.arange(RATE // 2) / RATE
    notes = [
        np.exp(-6 * time) * sum(np.sin(2 * np.pi * 220 * 2 ** (key / 12) * part * time) / part for part in range(1, 6))
        for key in range(12)
    ]
    assert closest(notes) > DISTANCE


def test_descriptors_of_long_and_of_odd_sounds():
    long = np.concatenate([say(word) for word in range(30)])
    odd = [np.zeros(RATE), np.zeros(0), np.ones(1), np.full(100, 1e-30), long]
    found = descriptors([sound.astype(np.float32) for sound in odd])
    assert (found.shape, found.dtype) == ((5, copies.DIM), np.float16)
    assert np.isfinite(found).all()
    assert not found[:2].any()  # nothing to compare
    lengths = np.linalg.norm(found.astype(np.float32), axis=1)
    np.testing.assert_allclose(lengths[[2, 4]], 1, atol=1e-2)


def test_parts_of_a_long_sound_are_analysed_one_after_another(monkeypatch):
    sound = say(0)
    whole = copies.sketch(sound)
    monkeypatch.setattr(copies, "_AT_ONCE", 7)
    np.testing.assert_allclose(copies.sketch(sound), whole, atol=1e-4)

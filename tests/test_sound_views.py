"""Views and windows of sounds, and how they become batches."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from headstart.modalities import get_modality
from headstart.modalities.audio import steps
from headstart.modalities.audio.augmentation import SoundAugmentation, view

RATE = steps.RATE
OFF = {"shift": 0.0, "gain": 0.0, "noise": None, "speed": 0.0}


def tone(seconds: float, hertz: float = 440) -> np.ndarray:
    return (0.25 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, "FLOAT", format="WAV")
    return buffer.getvalue()


def changed(number: int = 1, **settings) -> np.ndarray:
    return view(tone(0.5), RATE, SoundAugmentation(**{**OFF, **settings}), "key", number)


def test_views_are_repeatable_and_differ():
    settings = {"shift": 0.1, "gain": 6, "noise": 20, "speed": 0.05}
    first, again, second = changed(1, **settings), changed(1, **settings), changed(2, **settings)
    np.testing.assert_array_equal(first, again)
    assert len(first) != len(second) or np.abs(first - second).max() > 0.01
    np.testing.assert_array_equal(changed(0, **settings), tone(0.5))
    assert np.abs(first).max() <= 1


def test_each_change_can_be_switched_off():
    np.testing.assert_allclose(changed(), tone(0.5), atol=1e-6)


def test_gain_is_within_its_limit():
    loudness = [20 * np.log10(np.abs(changed(n, gain=6)).max() / 0.25) for n in range(1, 30)]
    assert max(map(abs, loudness)) <= 6.001
    assert max(loudness) > 3
    assert min(loudness) < -3


def test_noise_is_no_louder_than_the_ratio_allows():
    ratios = []
    for number in range(1, 20):
        noise = changed(number, noise=20) - tone(0.5)
        ratios.append(10 * np.log10(np.square(tone(0.5)).mean() / np.square(noise).mean()))
    assert min(ratios) > 19.5
    assert min(ratios) < 30 < max(ratios)


def test_speed_changes_length_and_pitch():
    sounds = [changed(number, speed=0.1) for number in range(1, 20)]
    assert {len(sound) > len(tone(0.5)) for sound in sounds} == {True, False}
    for sound in sounds:
        peak = np.abs(np.fft.rfft(sound, RATE)).argmax()
        assert peak == pytest.approx(440 * len(tone(0.5)) / len(sound), rel=0.02)


def test_a_shift_keeps_most_of_the_sound():
    sound = np.arange(1, RATE // 2 + 1, dtype=np.float32) / RATE
    for number in range(1, 20):
        found = view(sound, RATE, SoundAugmentation(**{**OFF, "shift": 5}), "key", number)
        heard = found[found > 0]
        np.testing.assert_array_equal(heard, sound[-len(heard) :])
        assert len(heard) >= 0.9 * len(sound)


def test_of_a_long_recording_windows_spread_over_all_of_it_are_heard():
    sound = np.repeat(np.arange(1, 61, dtype=np.float32), RATE) / 100
    found = steps.cut(sound, 5)
    assert len(found) == 5 * RATE
    heard = np.unique(found.reshape(5, RATE)[:, RATE // 2])
    np.testing.assert_allclose(heard * 100, [1, 16, 30, 45, 60], atol=1)
    short = sound[: 5 * RATE]
    assert steps.cut(short, 5) is short
    np.testing.assert_array_equal(steps.cut(sound[: 3 * RATE], 1), np.full(RATE, np.float32(0.02)))


def test_loading_says_what_is_left_out():
    modality = get_modality("audio")
    sound, remark = modality.load_with_remark(wav(tone(2.5)), 2)
    assert (len(sound), remark) == (
        2 * RATE, "are longer than 2 s, of which 2 windows of a second, spread evenly, are heard."
    )  # fmt: skip
    assert modality.load_with_remark(wav(tone(1.5)), 2)[1] == ""


def test_a_batch_is_filled_up_with_silence_to_whole_steps():
    batch = get_modality("audio").batch([tone(0.3), tone(0.71)])["sound"]
    assert batch.shape == (2, RATE)
    np.testing.assert_array_equal(batch[0, : int(0.3 * RATE)], tone(0.3))
    assert not batch[0, int(0.3 * RATE) :].any()


def test_a_view_of_the_longest_recording_is_one_piece():
    modality, data = get_modality("audio"), wav(tone(2.0, 200))
    augmentation = SoundAugmentation(**{**OFF, "shift": 0.3, "speed": 0.05})
    for found in modality.views(data, 2, augmentation, "key", range(1, 9)):
        assert len(found) <= 2 * RATE
        heard = found[np.flatnonzero(found)[0] :]
        assert np.abs(np.diff(heard)).max() < 0.03  # no jump: the steepest of the tone is 0.02


def test_the_params_of_views():
    off = SimpleNamespace(time_shift=0, gain=0, noise_snr=None, speed=0)
    assert get_modality("audio").augmentation(off) is None
    on = SimpleNamespace(time_shift=0.1, gain=0, noise_snr=None, speed=0)
    modality, data = get_modality("audio"), wav(tone(0.5))
    augmentation = modality.augmentation(on)
    first, second = modality.views(data, 5, augmentation, "key", [0, 1])
    np.testing.assert_allclose(first, tone(0.5), atol=1e-6)
    assert len(first) != len(second)

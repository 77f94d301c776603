"""How pages show recordings: waveform and spectrogram, a player, and which moments matter."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import headstart.report
from headstart.modalities.audio import evidence, picture

soundfile = pytest.importorskip("soundfile")

RATE = 16_000


def beep(pitch: float, start: float, end: float, seconds: float = 1) -> np.ndarray:
    """A tone in silence."""
    time = np.arange(int(seconds * RATE)) / RATE
    return np.where((time >= start) & (time < end), 0.5 * np.sin(2 * np.pi * pitch * time), 0).astype(np.float32)


def media(shown: str, kind: str) -> bytes:
    """What a data: URL of that kind holds."""
    (found,) = re.findall(rf'src="data:{kind};base64,([^"]*)"', shown)
    return base64.b64decode(found)


@pytest.mark.parametrize(("seconds", "heard", "title"), [(1, 1, "1.00 s"), (14, 10, "the first 10 s")])
def test_a_sound_is_a_small_picture_and_a_small_player(seconds, heard, title):
    sound = np.random.default_rng(0).normal(0, 0.1, seconds * RATE).astype(np.float32)
    shown = picture.show(sound)
    assert title in shown
    assert '<audio controls preload="none"' in shown
    assert len(shown) < 12_000 + 4_000 * heard
    assert Image.open(io.BytesIO(media(shown, "image/webp"))).size == (160, 96)
    samples, rate = soundfile.read(io.BytesIO(media(shown, "audio/mpeg")))
    assert rate == RATE
    assert heard <= len(samples) / rate < heard + 0.2


def test_the_pages_allow_players():
    page = (Path(headstart.report.__file__).parent / "templates" / "page.html").read_text()
    assert "default-src 'none'; img-src data:; media-src data:;" in page


def test_a_library_without_mp3_leaves_the_picture(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise soundfile.LibsndfileError(1)

    monkeypatch.setattr(soundfile, "write", fail)
    shown = picture.show(beep(500, 0, 1))
    assert shown.startswith("<img ")
    assert "<audio" not in shown


@pytest.mark.parametrize("pitch", [200, 1000, 5000])
def test_a_tone_is_bright_at_its_pitch_and_time(pitch):
    drawn = picture.draw(beep(pitch, 0.25, 0.5)).astype(int)
    assert drawn.shape == (96, 160)
    wave, spectrogram = drawn[: picture.WAVE], drawn[picture.WAVE :]
    high, low = 2595 * np.log10(1 + RATE / 2 / 700), 2595 * np.log10(1 + 50 / 700)
    height = (2595 * np.log10(1 + pitch / 700) - low) / (high - low)
    row, column = np.unravel_index(spectrogram.argmax(), spectrogram.shape)
    assert abs(row - (1 - height) * picture.BANDS) <= 1.5
    assert 40 <= column < 80
    counts = (wave > 0).sum(axis=0)
    assert (counts[42:78] > 20).all()  # as high as there is room for
    assert (counts[:38] == 1).all()  # a line
    assert (counts[82:] == 1).all()
    assert spectrogram[:, :35].max() < spectrogram[:, 45:75].max() / 2


@pytest.mark.parametrize("sound", [np.zeros(RATE), np.zeros(0), np.ones(3), np.full(100, 1e-12)])
def test_odd_sounds_have_a_picture(sound):
    assert picture.draw(sound.astype(np.float32)).shape == (96, 160)
    assert picture.show(sound.astype(np.float32)).startswith("<img ")


class Hearing:
    """A network whose score of class 0 is the loudness of a sound, and of class 1 the opposite of it."""

    def __init__(self) -> None:
        self.heard: list[np.ndarray] = []

    def scores(self, arrays: list[np.ndarray], classes: np.ndarray) -> np.ndarray:
        self.heard += arrays
        loudness = np.array([np.square(array).sum() for array in arrays])
        return np.stack([loudness, -loudness], axis=1)[np.arange(len(arrays))[:, None], classes]


def test_moments_without_which_a_score_falls_are_in_colour():
    network = Hearing()
    sounds = [beep(1000, 0.25, 0.5), beep(300, 0, 3, 3)[:100], beep(300, 1.8, 2.2, 4)]
    shown, legend = evidence.explain(sounds, network.scores, np.array([[0, 1]] * 3))
    assert all(len(pieces) == 3 and "<audio" in pieces[0] for pieces in shown)
    assert all(array.any() for array in network.heard)
    assert len(network.heard) <= 3 * (evidence.MAX_PARTS + 2)
    assert "made silent" in legend
    for pieces, (first, last) in ((shown[0], (40, 80)), (shown[2], (72, 88))):
        loud, soft = bars(pieces[1]), bars(pieces[2])
        assert loud[first:last].mean() > 0.8
        assert loud[: first - 20].max() < 0.1
        assert loud[last + 20 :].max() < 0.1
        assert soft.max() < 0.1  # nothing speaks for it


def bars(shown: str) -> np.ndarray:
    """How bright the bar above a picture is, (160,), from 0 to about 1."""
    pixels = np.asarray(Image.open(io.BytesIO(media(shown, "image/webp"))).convert("RGB"), np.float32)
    return (pixels[1:5, :, 0].mean(axis=0) - 40) / 215

"""A sound on a page: its waveform above its spectrogram, and a player."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image
from scipy import fft

from headstart.modalities.audio.mel import mel_filters
from headstart.modalities.audio.steps import RATE
from headstart.modalities.pictures import as_html

WIDTH, WAVE, BANDS = 160, 29, 67  # pixels: of the picture, and the heights of waveform and spectrogram
FRAME, TRANSFORM, PER_COLUMN = 640, 1024, 4  # samples; frames from which a column of pixels is made
RANGE = 70  # dB from the loudest to the darkest pixel
PLAYED = 10  # seconds that can be heard on a page
BIT_RATE = 0.9  # of soundfile: 24 kbit/s, at which a player of PLAYED seconds has 40 kB. All browsers play MP3.
# Nine of the 256 colours of magma (https://bids.github.io/colormap, CC0): equal steps look equal.
_COLOURS = "000003 1c1046 50127b 822581 b63679 e55063 fb8660 fec286 fbfcbf"
_WAVE_COLOUR = 200  # of 255, from dark to bright


def show(sound: np.ndarray) -> str:
    """Return a picture and a player of a sound, (n,) float32 in [-1, 1] at 16 kHz, as HTML."""
    return as_html(colour(draw(sound)), title(sound)) + player(sound)


def title(sound: np.ndarray) -> str:
    """Return how long a sound is, and how much of it the player holds."""
    seconds = len(sound) / RATE
    return f"{seconds:.2f} s" + (f"; the player has the first {PLAYED} s" if seconds > PLAYED else "")


def draw(sound: np.ndarray) -> np.ndarray:
    """Return a picture, (WAVE + BANDS, WIDTH) uint8, to be coloured.

    The waveform is scaled to its peak; the spectrogram has low frequencies at the bottom, spaced by the mel scale.
    """
    sound = np.pad(sound, (0, max(WIDTH - len(sound), 0)))
    peak = max(float(np.abs(sound).max()), 1e-9)
    edges = np.arange(WIDTH) * len(sound) // WIDTH
    middle = (WAVE - 1) / 2
    highest = np.maximum.reduceat(sound, edges) / peak * middle
    lowest = np.minimum.reduceat(sound, edges) / peak * middle
    rows = middle - np.arange(WAVE)[:, None]
    wave = (rows <= np.ceil(highest)) & (rows >= np.floor(lowest)) & (np.abs(rows) <= middle)
    return np.concatenate([np.where(wave, _WAVE_COLOUR, 0).astype(np.uint8), _spectrogram(sound / peak)])


def colour(picture: np.ndarray) -> Image.Image:
    """Return a picture of `draw` in colour, from black over purple and orange to light yellow."""
    return Image.fromarray(_PALETTE[picture])


def player(sound: np.ndarray) -> str:
    """Return a player of the first PLAYED seconds, or nothing if they cannot be encoded here."""
    import soundfile

    buffer = io.BytesIO()
    try:
        soundfile.write(
            *(buffer, sound[: PLAYED * RATE], RATE, "MPEG_LAYER_III"),
            format="MP3",
            compression_level=BIT_RATE,
            bitrate_mode="CONSTANT",
        )
    except (soundfile.SoundFileError, ValueError):  # a libsndfile of the system without MP3
        return ""
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f'<audio controls preload="none" src="data:audio/mpeg;base64,{encoded}"></audio>'


def _spectrogram(sound: np.ndarray) -> np.ndarray:
    """Return levels by frequency, the highest first, and time, (BANDS, WIDTH) uint8."""
    starts = (np.arange(WIDTH * PER_COLUMN) + 0.5) * len(sound) / (WIDTH * PER_COLUMN)
    padded = np.pad(sound, (FRAME // 2, FRAME)).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[starts.astype(int)] * _HANN
    power = np.abs(fft.rfft(frames, TRANSFORM, axis=1)) ** 2 @ _FILTERS
    columns = power.reshape(WIDTH, PER_COLUMN, BANDS).mean(axis=1).T[::-1]
    levels = 10 * np.log10(columns / max(float(columns.max()), 1e-9) + 1e-9)
    return np.uint8(255 * (levels / RANGE + 1).clip(0, 1))


def _palette() -> np.ndarray:
    """Return the colours, (256, 3) uint8."""
    anchors = np.array([list(bytes.fromhex(text)) for text in _COLOURS.split()])
    places = np.linspace(0, len(anchors) - 1, 256)
    columns = [np.interp(places, np.arange(len(anchors)), channel) for channel in anchors.T]
    return np.round(np.stack(columns, axis=1)).astype(np.uint8)


_HANN = np.hanning(FRAME + 1)[:-1].astype(np.float32)
_FILTERS = mel_filters(BANDS, 50, RATE / 2, TRANSFORM)
_PALETTE = _palette()

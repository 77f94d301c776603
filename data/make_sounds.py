"""Make data/sounds.zip: eight kinds of sound, drawn by formula, 60 of each: KIND/INDEX.flac, 16 kHz.

They are synthetic, an example to try the pipeline with: what works on them need not work on recordings. The sounds are
always the same; the bytes of the files depend on the version of libsndfile, and Git ignores them.
Command: python data/make_sounds.py (after make setup EXTRAS=audio)
"""

from __future__ import annotations

import io
import os
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from pretraining import formula_sounds
from pretraining.formula_sounds import RATE, draw_time

SOUNDS = Path(__file__).parent / "sounds.zip"
EACH = 60
# The lowest resonances of a vowel, Hz (Peterson and Barney, 1952, men).
FORMANTS = {"vowel_a": (730, 1090, 2440), "vowel_i": (270, 2290, 3010), "vowel_u": (300, 870, 2240)}


def vowel(formants: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Sing a vowel: harmonics of a voice, the louder the nearer they are to a formant of a throat of some size."""
    time, pitch, size = draw_time(random), random.uniform(85, 260), random.uniform(0.95, 1.2)
    numbers = np.arange(1, int(5000 / pitch))
    heights = pitch * numbers
    loudness = sum(1 / (1 + ((heights - size * formant) / 90) ** 2) for formant in formants) / numbers**0.5
    trembling = 1 + 0.01 * np.sin(2 * np.pi * 5 * time) * random.random()
    phase = 2 * np.pi * pitch * np.cumsum(trembling) / RATE
    return (loudness[:, None] * np.sin(numbers[:, None] * phase)).sum(axis=0)


def drum(random: np.random.Generator) -> np.ndarray:
    """Beat a drum: a tone that falls and fades, and a burst of noise."""
    time = draw_time(random)
    height = random.uniform(60, 140) * (1 + np.exp(-time * random.uniform(15, 40)))
    tone = np.sin(2 * np.pi * np.cumsum(height) / RATE) * np.exp(-time * random.uniform(5, 15))
    return tone + random.uniform(0.1, 0.8) * random.standard_normal(len(time)) * np.exp(-time * random.uniform(30, 80))


def siren(random: np.random.Generator) -> np.ndarray:
    """Sound a siren: a tone with overtones that rises and falls."""
    time = draw_time(random)
    height = random.uniform(500, 1200) * (
        1 + 0.4 * np.sin(2 * np.pi * random.uniform(1, 4) * time + random.uniform(0, 6))
    )
    phase = 2 * np.pi * np.cumsum(height) / RATE
    return np.sin(phase) + 0.4 * np.sin(2 * phase) + 0.2 * np.sin(3 * phase)


KINDS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "bell": formula_sounds.bell,
    "drum": drum,
    "rain": formula_sounds.clicks,
    "siren": siren,
    "string": formula_sounds.string,
    **{name: partial(vowel, formants) for name, formants in FORMANTS.items()},
}


def make(file: Path) -> None:
    """Write the archive."""
    import soundfile

    partial_file = file.with_name(f".{file.stem}.partial{file.suffix}")
    with zipfile.ZipFile(partial_file, "w", zipfile.ZIP_STORED) as archive:
        for number, (kind, draw) in enumerate(KINDS.items()):
            for index in range(EACH):
                random = np.random.default_rng([number, index])
                sound = draw(random)
                sound = sound * 10 ** (random.uniform(-24, -2) / 20) / np.abs(sound).max()
                sound = sound + random.standard_normal(len(sound)) * 10 ** (random.uniform(-60, -35) / 20)
                flac = io.BytesIO()
                soundfile.write(flac, np.clip(sound, -1, 1), RATE, "PCM_16", format="FLAC")
                archive.writestr(zipfile.ZipInfo(f"{kind}/{index:02}.flac"), flac.getvalue())
    os.replace(partial_file, file)


if __name__ == "__main__":
    make(SOUNDS)

"""Which moments of a sound speak for a class: those without which its score falls (occlusion)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from headstart.modalities.audio import picture
from headstart.modalities.audio.steps import STEP
from headstart.modalities.explaining import Explanation
from headstart.modalities.pictures import as_html

MAX_PARTS = 24  # of a sound; two neighbours are made silent at once
LEAST_STEPS = 2  # of a part, 40 ms: shorter gaps are hardly noticed
SILENT = 1e-4  # times as loud, -80 dB; not 0, since networks leave zeros out, and cannot leave out everything
BAR = 6  # pixels: the height of the bar above a picture


def explain(
    sounds: Sequence[np.ndarray],
    scores: Callable[[Sequence[np.ndarray], np.ndarray], np.ndarray],
    classes: np.ndarray,
) -> Explanation:
    """Draw what speaks for each class.

    Args:
        sounds: n sounds, (n,) float32 at 16 kHz, as the network hears them.
        scores, classes: see `headstart.modalities.explaining.Evidence`.
    """
    variants: list[np.ndarray] = []
    rows: list[int] = []
    for row, sound in enumerate(sounds):
        made = [sound, *silence_parts(sound)]
        variants += made
        rows += [row] * len(made)
    found, shown, start = scores(variants, classes[rows]), [], 0
    for row, sound in enumerate(sounds):
        count = rows.count(row)
        whole, *without = found[start : start + count]
        start += count
        evidence = by_part(whole - np.array(without)).T
        shown.append([picture.show(sound), *(as_html(mark(sound, one)) for one in evidence)])
    return Explanation(
        shown,
        "In colour, and where the bar is bright: moments that, made silent, lower the score of the class.",
    )


def silence_parts(sound: np.ndarray) -> list[np.ndarray]:
    """Return a sound without its part 1, without 1 and 2, without 2 and 3, and so on to the last: parts + 1 sounds."""
    width = _part_length(sound)
    parts = max(-(-len(sound) // width), 1)
    made = []
    for number in range(parts + 1):
        changed = sound.copy()
        changed[max(number - 1, 0) * width : (number + 1) * width] *= SILENT
        made.append(changed)
    return made


def by_part(evidence: np.ndarray) -> np.ndarray:
    """Return what each part adds, (parts, k): the mean of the two times without it, of `evidence`, (parts + 1, k)."""
    return (evidence[:-1] + evidence[1:]) / 2


def mark(sound: np.ndarray, evidence: np.ndarray) -> Image.Image:
    """Return a picture of a sound that is grey but for the moments with evidence, and a bar above it as strong as that.

    Args:
        evidence: (parts,), by how much a score falls without each part.
    """
    drawn = picture.draw(sound)
    moments = (np.arange(picture.WIDTH) + 0.5) * len(sound) / picture.WIDTH
    strength = np.interp(moments, (np.arange(len(evidence)) + 0.5) * _part_length(sound), evidence)
    strength = (strength / max(float(evidence.max()), 1e-6)).clip(0, 1)[:, None]
    grey = drawn[..., None] * np.ones(3) * 0.7
    pixels = grey * (1 - strength) + np.asarray(picture.colour(drawn)) * strength
    bar = np.broadcast_to(strength * np.array([255, 190, 60]) + (1 - strength) * 40, (BAR, picture.WIDTH, 3))
    return Image.fromarray(np.concatenate([bar, pixels]).astype(np.uint8))


def _part_length(sound: np.ndarray) -> int:
    """Return the samples of a part, a multiple of a step."""
    return STEP * max(LEAST_STEPS, -(-len(sound) // (STEP * MAX_PARTS)))

"""Draw where in an image there is evidence for a class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from headstart.modalities.explaining import Explanation
from headstart.modalities.pictures import as_html

Box = tuple[float, float, float, float]  # left, upper, right, lower

SIDE = 160  # pixels of a picture, the longer side
PALE = 4  # by how much contrast is reduced where the network does not look


def draw(images: Sequence[np.ndarray], maps: np.ndarray, seen: Sequence[Box], words: str) -> Explanation:
    """Return each image, then once for each class with red and yellow where there is evidence for it.

    Args:
        images: (h, w, 3) uint8 each.
        maps, words: (n, k, h, w), and what they show, see `headstart.modalities.explaining.Evidence`.
        seen: of each image the part that the network saw.
    """
    shown, parts = [], False
    for pixels, evidence, box in zip(images, maps, seen, strict=True):
        image = _scaled(pixels)
        parts = parts or box != (0, 0, *pixels.shape[1::-1])
        left, right = (round(end * image.width / pixels.shape[1]) for end in box[::2])
        upper, lower = (round(end * image.height / pixels.shape[0]) for end in box[1::2])
        place = left, upper, max(right, left + 1), max(lower, upper + 1)
        shown.append([as_html(image), *(as_html(_overlay(image, one, place)) for one in evidence)])
    size = " x ".join(map(str, maps.shape[2:]))
    return Explanation(
        shown,
        f"Red and yellow: {words}, here {size}.{' The network does not see what is pale.' * parts}",
    )


def _scaled(pixels: np.ndarray) -> Image.Image:
    """An image, (h, w, 3) uint8, its longer side SIDE, even if it is smaller."""
    image = Image.fromarray(pixels)
    width, height = (max(round(side * SIDE / max(image.size)), 1) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)


def _overlay(image: Image.Image, evidence: np.ndarray, place: tuple[int, int, int, int]) -> Image.Image:
    """The image in grey, with red and yellow where `evidence`, (h, w) in [0, 1], is high; pale outside of `place`."""
    left, upper, right, lower = place
    heat, pale = np.zeros((image.height, image.width, 1), np.float32), np.ones((image.height, image.width, 1), bool)
    within = Image.fromarray(evidence).resize((right - left, lower - upper), Image.Resampling.BICUBIC)
    heat[upper:lower, left:right, 0] = np.asarray(within).clip(0)
    pale[upper:lower, left:right] = False
    strength = heat / max(float(heat.max()), np.finfo(np.float32).tiny)
    colour = np.concatenate(
        [np.full_like(strength, 255), 255 * np.clip(1.6 * strength - 0.5, 0, 1), np.full_like(strength, 30)], axis=-1
    )
    grey = np.asarray(image.convert("L"), np.float32)[..., None]
    grey = np.where(pale, 255 - (255 - grey) / PALE, grey)
    return Image.fromarray(np.uint8(grey * (1 - 0.75 * strength) + 0.75 * strength * colour))

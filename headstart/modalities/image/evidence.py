"""Draw where in an image there is evidence for a class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from headstart.modalities.explaining import Explanation
from headstart.modalities.pictures import as_html

SIDE = 160  # pixels of a picture, the longer side


def draw(images: Sequence[np.ndarray], maps: np.ndarray) -> Explanation:
    """Return each image, then once for each class with red and yellow where there is evidence for it.

    Args:
        images: (h, w, 3) uint8 each.
        maps: (n, k, h, w), see `headstart.modalities.explaining.Evidence`.
    """
    shown = []
    for pixels, evidence in zip(images, maps, strict=True):
        image = _scaled(pixels)
        shown.append([as_html(image), *(as_html(_overlay(image, one)) for one in evidence)])
    size = " x ".join(map(str, maps.shape[2:]))
    return Explanation(
        shown,
        "Red and yellow: evidence for a class, by place, in the last feature map of the backbone or, of a transformer, "
        f"in the tokens that its last layer reads, here {size}.",
    )


def _scaled(pixels: np.ndarray) -> Image.Image:
    """An image, (h, w, 3) uint8, its longer side SIDE, even if it is smaller."""
    image = Image.fromarray(pixels)
    width, height = (max(round(side * SIDE / max(image.size)), 1) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)


def _overlay(image: Image.Image, evidence: np.ndarray) -> Image.Image:
    """The image in grey, with red and yellow where `evidence`, (h, w) in [0, 1], is high."""
    heat = np.asarray(Image.fromarray(evidence).resize(image.size, Image.Resampling.BICUBIC))[..., None].clip(0)
    strength = heat / max(float(heat.max()), np.finfo(np.float32).tiny)
    colour = np.concatenate(
        [np.full_like(strength, 255), 255 * np.clip(1.6 * strength - 0.5, 0, 1), np.full_like(strength, 30)], axis=-1
    )
    grey = np.asarray(image.convert("L"), np.float32)[..., None]
    return Image.fromarray(np.uint8(grey * (1 - 0.75 * strength) + 0.75 * strength * colour))

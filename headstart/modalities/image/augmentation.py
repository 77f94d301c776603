"""Augmented views of images by the recipe of Inception, seeded by image and number.

A view is a random crop of part of the area, resized (https://arxiv.org/abs/1409.4842, section 6), perhaps mirrored,
with brightness, contrast and saturation changed. View n of an image is the same wherever and whenever it is made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from headstart.modalities.base import Augmentation
from headstart.modalities.image.pixels import resize

ASPECT = (3 / 4, 4 / 3)  # of the crops, width to height relative to that of what is seen without augmentation
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class ImageAugmentation(Augmentation):
    """How an image may be changed.

    Attributes:
        crop: smallest share of the area in a view, in (0, 1]; 1: as without augmentation. If networks see a central
            square, of the area of the largest square in the image.
        flip: whether half of the views are mirrored, left to right.
        jitter: largest relative change of brightness, contrast and saturation, in [0, 1).
        mirror: whether every view is mirrored, whatever `flip` says.
    """

    crop: float
    flip: bool
    jitter: float
    mirror: bool = False

    def min_side(self, size: int) -> int:
        """Return how many pixels per side an image needs so that its crops still have `size` per side."""
        return int(np.ceil(size / np.sqrt(self.crop * ASPECT[0])))


def view(
    image: np.ndarray,
    size: int,
    augmentation: ImageAugmentation,
    key: str,
    number: int,
    center_crop: float | None = None,
) -> np.ndarray:
    """Make view `number` of an (h, w, 3) uint8 image, (size, size, 3) uint8; 0 is the image as it is.

    Args:
        center_crop: as `seen_part` takes it. Random crops are of the whole image in any case, but where networks see a
            square their shapes are near squares, too: nothing is stretched more than `ASPECT` says.
    """
    if number == 0:
        return resize(image, size, center_crop)
    seed = blake3(f"{key} {number}".encode()).digest(length=8)
    random = np.random.default_rng(int.from_bytes(seed, "little"))
    top, left, height, width = _crop(image.shape[0], image.shape[1], augmentation.crop, random, bool(center_crop))
    if center_crop and augmentation.crop == 1:
        result = resize(image, size, center_crop)
    else:
        result = resize(image[top : top + height, left : left + width], size)
    flipped = random.random() < 0.5 and augmentation.flip  # drawn first: the other draws must not depend on it
    if flipped or augmentation.mirror:
        result = result[:, ::-1]
    return _jitter(result, *random.uniform(1 - augmentation.jitter, 1 + augmentation.jitter, 3))


def _crop(
    height: int, width: int, min_area: float, random: np.random.Generator, square: bool
) -> tuple[int, int, int, int]:
    """Draw top, left, height and width of a crop inside the image."""
    area, aspect = random.uniform(min_area, 1), np.exp(random.uniform(*np.log(ASPECT)))
    if square:
        side = np.sqrt(area) * min(height, width)
        sides = min(side / np.sqrt(aspect), height), min(side * np.sqrt(aspect), width)
    else:  # if a side would be longer than the image, the other one keeps the area
        across = np.clip(np.sqrt(area * aspect), area, 1)
        sides = height * area / across, width * across
    sides = max(1, round(sides[0])), max(1, round(sides[1]))
    return (int(random.integers(height - sides[0] + 1)), int(random.integers(width - sides[1] + 1)), *sides)


def _jitter(image: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """Scale brightness, the distance from the mean grey, and that from each pixel's grey."""
    values = image.astype(np.float32) * np.float32(brightness)
    grey = values[..., 0] * _LUMA[0] + values[..., 1] * _LUMA[1] + values[..., 2] * _LUMA[2]
    mean = np.float32(grey.mean(dtype=np.float64))
    values = np.float32(saturation) * values + np.float32(1 - saturation) * grey[..., None]
    values = np.float32(contrast) * values + np.float32(1 - contrast) * mean
    return np.uint8(np.clip(np.rint(values), 0, 255))

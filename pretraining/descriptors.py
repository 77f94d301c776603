"""What a network predicts of every image besides its category: gradients, brightness and colours, by place.

Classifying formulas teaches a network to ignore colour, place and fine grain, by which photographs differ. So it also
predicts classical descriptors of the image, above all histograms of oriented gradients (Dalal & Triggs, CVPR 2005), as
MaskFeat does (https://arxiv.org/abs/2112.09133); its features then contain them, in a form that a linear classifier can
use.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

DIRECTIONS = 8
CELLS = 4  # per side
SCALES = (2, 4, 8)  # by which the image is made smaller
LEVELS = 4  # of each colour channel in a histogram of colours
FAINT = 0.02  # contrast below which the directions of a cell count little: they are noise


def build_describer(size: int) -> keras.Model:
    """Build a model without weights: (N, size, size, 3) RGB in [0, 255] -> (N, D) float32, standardised over the batch.

    A description has, for each of 4 x 4 cells and three scales, the square roots of the shares of eight directions in
    the gradients and of their strength; brightness on 8 x 8 cells; two colour differences on 4 x 4 cells, and how much
    all three vary in a cell; the square roots of histograms of 64 colours, of the whole image and of its middle.

    Args:
        size: a multiple of 16.
    """
    images = keras.Input((size, size, 3))
    rgb = images / 255.0
    red, green, blue = rgb[..., 0:1], rgb[..., 1:2], rgb[..., 2:3]
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    differences = ops.concatenate([red - green, (red + green) / 2 - blue], axis=-1)
    found = [_gradients(_shrink(grey, factor), size // factor) for factor in SCALES]
    found.append(_shrink(grey, size // 8))
    found.append(_shrink(differences, size // CELLS))
    planes, cell = ops.concatenate([grey, differences], axis=-1), size // CELLS
    found.append(ops.sqrt(ops.relu(_shrink(planes**2, cell) - _shrink(planes, cell) ** 2) + 1e-6))
    small, edge = _shrink(rgb, 4), size // 16
    found.append(_colours(small, size // 4))
    found.append(_colours(small[:, edge:-edge, edge:-edge], size // 8))
    described = ops.concatenate([ops.reshape(part, (-1, int(np.prod(part.shape[1:])))) for part in found], axis=1)
    mean, deviation = ops.mean(described, axis=0), ops.std(described, axis=0)
    return keras.Model(images, (described - mean) / (deviation + 1e-4))


def _shrink(planes: keras.KerasTensor, factor: int) -> keras.KerasTensor:
    return planes if factor == 1 else ops.average_pool(planes, factor, factor)


def _gradients(grey: keras.KerasTensor, size: int) -> keras.KerasTensor:
    """Return (N, CELLS, CELLS, DIRECTIONS + 1) for (N, size, size, 1)."""
    padded = ops.pad(grey, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="symmetric")
    across, down = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2], padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    angle = np.arange(DIRECTIONS) * 2 * np.pi / DIRECTIONS
    along = ops.relu(across * np.float32(np.cos(angle)) + down * np.float32(np.sin(angle)))
    # cos^2 of the angle to each direction: the eight of them add up to two for any angle.
    share = along**2 / (2 * ops.sqrt(across**2 + down**2 + 1e-6))
    histogram = _shrink(share, size // CELLS)
    strength = ops.sum(histogram, axis=-1, keepdims=True)
    return ops.sqrt(ops.concatenate([histogram / (strength + FAINT), strength], axis=-1) + 1e-6)


def _colours(rgb: keras.KerasTensor, size: int) -> keras.KerasTensor:
    """Return (N, LEVELS, LEVELS**2) for (N, size, size, 3): each pixel counts for the nearest levels, by distance."""
    levels = np.float32(np.linspace(0, 1, LEVELS))
    near = ops.relu(1 - ops.abs(rgb[..., None] - levels) * (LEVELS - 1))
    pixels = ops.reshape(near, (-1, size * size, 3, LEVELS))
    two = ops.reshape(pixels[:, :, 0, :, None] * pixels[:, :, 1, None, :], (-1, size * size, LEVELS**2))
    return ops.sqrt(ops.matmul(ops.transpose(pixels[:, :, 2], (0, 2, 1)), two) / size**2 + 1e-6)

"""Draw images by formula: no photographs, no licences, no downloads.

A category is a formula with constants; an image is one view of it: with slightly other constants, another pose, other
colours and materials, among other objects, sharp or not. A network that classifies the categories must recognize edges,
strokes, curves, closed shapes and textures in any surroundings. The noise and dead leaves are those of
https://arxiv.org/abs/2106.05963; see `formulas` for the shapes.

Command: python -m pretraining.formula_images FILE.png    # a sheet: a row per category, two of each family
"""

from __future__ import annotations

import argparse
import sys
from functools import cache, lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from headstart.errors import UserError
from headstart.outputs import Outputs
from pretraining.formulas import FAMILIES, FRACTION_BITS, Mask, sixteenths

FIELD, FIELDS = 256, 48  # side and number of the noise fields that materials are cut from


def draw(category: int, instance: int, size: int, seed: int) -> np.ndarray:
    """Draw image number `instance` of `category`, (size, size, 3) uint8 RGB; the same arguments give the same image."""
    view = np.random.default_rng([seed, category, 1 + instance])
    return _see(_paint(_formula(category, seed), view, size), view)


@cache
def _formula(category: int, seed: int) -> Mask:
    shape = np.random.default_rng([seed, category])
    family, number = FAMILIES[category % len(FAMILIES)], category // len(FAMILIES)
    return family(shape, number)


# --- pictures: materials, other objects around, and the quality of the image


@lru_cache(maxsize=1)
def _fields() -> np.ndarray:
    """Make noise, (FIELDS, FIELD, FIELD) float32 in [0, 1], whose amplitude falls with frequency as in photographs."""
    random = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(FIELD)[:, None], np.fft.rfftfreq(FIELD)[None])
    frequency[0, 0] = 1
    fields = []
    for slope in np.linspace(0.6, 2.2, FIELDS):
        spectrum = np.exp(2j * np.pi * random.random(frequency.shape)) / frequency**slope
        field = np.fft.irfft2(spectrum)
        fields.append(np.clip(0.5 + field / field.std() / 5, 0, 1))
    return np.float32(fields)


def _colour(view: np.random.Generator) -> np.ndarray:
    """Draw a colour, (3,) float32 in [0, 255]; three of ten are grey."""
    colour = view.uniform(0, 255, 3)
    return np.float32(colour if view.random() < 0.7 else [colour[0]] * 3)


def _material(view: np.random.Generator, size: int) -> np.ndarray:
    """Make a surface that broadcasts to (size, size, 3) float32 in [0, 255]: plain, a gradient or noise."""
    start, kind = _colour(view), view.random()
    if kind < 0.3:
        return start[None, None]
    end = start + (_colour(view) - start) * np.float32(view.uniform(0.2, 1))
    if kind < 0.55:
        slope = np.float32(view.random())
        y, x = np.mgrid[:size, :size].astype(np.float32) / size
        share = slope * x + (1 - slope) * y
        share = 1 - share if view.random() < 0.5 else share
    else:
        field = _fields()[view.integers(FIELDS)]
        wide = int(size * view.uniform(0.4, 2))
        top, left = view.integers(0, FIELD - wide + 1, 2)
        share = cv2.resize(field[top : top + wide, left : left + wide], (size, size), interpolation=cv2.INTER_LINEAR)
    return start + (end - start) * share[:, :, None]


def _litter(view: np.random.Generator, image: np.ndarray, count: int, least: float, most: float) -> np.ndarray:
    """Draw `count` blobs and polygons over `image`; their radius is a share of its side, from `least` to `most`."""
    size = image.shape[0]
    image = np.uint8(np.clip(image, 0, 255))
    for _ in range(count):
        corners = int(view.integers(3, 12))
        angle = np.sort(view.uniform(0, 2 * np.pi, corners))
        radius = view.uniform(least, most) * size * view.uniform(0.6, 1, corners)
        points = view.uniform(0, size, 2) + np.stack([np.cos(angle), np.sin(angle)], -1) * radius[:, None]
        if view.random() < 0.7:
            cv2.fillPoly(image, [sixteenths(points)], _colour(view).tolist(), cv2.LINE_AA, FRACTION_BITS)
            continue
        left, top = np.clip(np.floor(points.min(0)), 0, size).astype(int)
        right, bottom = np.clip(np.ceil(points.max(0)) + 1, 0, size).astype(int)
        side = max(right - left, bottom - top)
        if min(right - left, bottom - top) < 1:
            continue
        canvas = np.zeros((bottom - top, right - left), np.uint8)
        cv2.fillPoly(canvas, [sixteenths(points - (left, top))], 255, cv2.LINE_AA, FRACTION_BITS)
        part = image[top:bottom, left:right].astype(np.float32)
        material = np.broadcast_to(_material(view, side), (side, side, 3))[: bottom - top, : right - left]
        image[top:bottom, left:right] = part + (material - part) * (canvas[:, :, None] / np.float32(255))
    return image


def _paint(mask: Mask, view: np.random.Generator, size: int) -> np.ndarray:
    """Paint the object of `mask` on a background, of other materials, among other shapes: float32 in [0, 255]."""
    image = np.broadcast_to(_material(view, size), (size, size, 3))
    busy = view.random()
    if busy < 0.45:
        image = _litter(view, image, int(view.integers(1, 7)), 0.1, 0.6)
    figure = _material(view, size)
    # An object as bright as its background would teach nothing.
    background, own = image.mean(), figure.mean()
    if abs(own - background) < 50:
        figure = np.clip(figure + (60 if background < 128 else -60) + (background - own), 0, 255)
    cover = mask(view, size)
    if view.random() < 0.15:  # two of them
        other = mask(view, size)
        half = size // 2
        together = np.zeros_like(cover)
        corner, away = view.integers(0, half + 1, 2)
        for part, top, left in ((cover, corner, away), (other, half - corner, half - away)):
            small = cv2.resize(part, (half, half), interpolation=cv2.INTER_AREA)
            together[top : top + half, left : left + half] = np.maximum(
                together[top : top + half, left : left + half], small
            )
        cover = together
    image = image + (figure - image) * cover[:, :, None]
    if busy < 0.15:
        image = _litter(view, image, int(view.integers(1, 3)), 0.05, 0.2)
    return image


def _see(image: np.ndarray, view: np.random.Generator) -> np.ndarray:
    """Degrade a picture as cameras and small files do: light, blur, few pixels, noise. Returns uint8."""
    size = image.shape[0]
    if view.random() < 0.5:
        image = 255 * (np.clip(image, 0, 255) / np.float32(255)) ** np.float32(np.exp(view.normal(0, 0.3)))
    kind = view.random()
    if kind < 0.5:
        few = int(view.integers(8, max(9, size * 2 // 3)))
        small = cv2.resize(np.float32(image), (few, few), interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR if kind < 0.4 else cv2.INTER_CUBIC)
    elif kind < 0.65:
        image = cv2.GaussianBlur(np.float32(image), (0, 0), float(view.uniform(0.3, 1.5)) * size / 64)
    if view.random() < 0.3:
        image = image + np.float32(view.uniform(2, 20)) * view.standard_normal(image.shape, np.float32)
    return np.uint8(np.clip(np.round(image), 0, 255))


def sheet(rows: int, columns: int, size: int, seed: int) -> Image.Image:
    """Draw the first images of the first categories, a row per category."""
    lines = [
        np.concatenate([draw(row, column, size, seed) for column in range(columns)], axis=1) for row in range(rows)
    ]
    return Image.fromarray(np.concatenate(lines))


def main(argv: list[str] | None = None) -> int:
    """Write a sheet."""
    parser = argparse.ArgumentParser(prog="python -m pretraining.formula_images", description=sheet.__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="output file, .png or .jpg")
    file = parser.parse_args(argv).file
    outputs = Outputs()
    try:
        if file.suffix.lower() not in (".png", ".jpg", ".jpeg"):
            raise UserError(f"{file}: the name must end in .png or .jpg")
        sheet(2 * len(FAMILIES), 14, 64, 1).save(outputs.path(file))
        outputs.commit()
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

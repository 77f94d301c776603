"""Images drawn by formula: no photographs, no licences, no downloads.

A category is a formula with its constants; an image is one view of it: the constants shaken, in another pose, in other
colours and materials, among other things, seen sharply or badly. A network that tells the categories apart has to see
edges, strokes, curves, closed shapes and textures, whatever lies around them. After FractalDB
(https://doi.org/10.1007/s11263-021-01555-8), Improving Fractal Pre-training (https://arxiv.org/abs/2110.03091), the
contours of https://arxiv.org/abs/2206.09132, and the noise and dead leaves of https://arxiv.org/abs/2106.05963.

Command: python -m pretraining.formula_images FILE.png    # a sheet: a row a category, two of each family
"""

from __future__ import annotations

import argparse
import string
import sys
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from headstart.errors import UserError
from headstart.outputs import Outputs

SHAKE = 0.08  # how far an image's constants stray from those of its category
POINTS, STEPS, SETTLE = 500, 20, 8  # of the chaos game: particles, moves of each, first moves that are not drawn
VARIANTS = 6  # of each attractor, computed once
FIELD, FIELDS = 256, 48  # side and number of the noise fields that materials are cut from
FRACTION_BITS = 4  # OpenCV draws at sixteenths of a pixel

# Letters and signs, no digits, and of two letters that differ by their size alone only one.
SIGNS = "".join(sorted(set(string.ascii_letters) - set("COPSUVWXZ"))) + "#$%&*+/<=>?@~{}^"
FONTS = tuple(range(8))  # cv2.FONT_HERSHEY_*: drawn by strokes, as a hand does

# mask(view, size): where the thing is, (size, size) float32 in [0, 1].
Mask = Callable[[np.random.Generator, int], np.ndarray]


def draw(category: int, instance: int, size: int, seed: int) -> np.ndarray:
    """The image number `instance` of `category`: (size, size, 3) uint8, RGB, the same for the same arguments."""
    view = np.random.default_rng([seed, category, 1 + instance])
    return _see(_paint(_formula(category, seed), view, size), view)


@cache
def _formula(category: int, seed: int) -> Mask:
    shape = np.random.default_rng([seed, category])
    family, number = FAMILIES[category % len(FAMILIES)], category // len(FAMILIES)
    return family(shape, number)


# --- families: each makes, from a category's own numbers, what draws its masks


def _fractal(shape: np.random.Generator, number: int) -> Mask:
    """The attractor of an iterated function system, by the chaos game; maps drawn by their singular values."""
    maps = int(shape.integers(2, 7))
    turns = shape.uniform(0, 2 * np.pi, (2, maps))
    stretch = shape.uniform(0.25, 0.85, (2, maps)) * shape.choice([-1, 1], (2, maps))
    shift = shape.uniform(-1, 1, (maps, 2))
    clouds = [
        _attractor(turns + shape.normal(0, SHAKE, turns.shape), stretch, shift + shape.normal(0, SHAKE, shift.shape))
        for _ in range(VARIANTS)
    ]

    def mask(view: np.random.Generator, size: int) -> np.ndarray:
        pixels = _pose(clouds[view.integers(VARIANTS)], view, size).astype(np.int32)
        inside = ((pixels >= 0) & (pixels < size)).all(1)
        density = np.bincount(pixels[inside, 1] * size + pixels[inside, 0], minlength=size * size)
        return np.minimum(1, density.reshape(size, size) / np.float32(3)).astype(np.float32)

    return mask


def _attractor(turns: np.ndarray, stretch: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """(POINTS * (STEPS - SETTLE), 2) points, in [-1, 1] but for the outermost."""
    random = np.random.default_rng(0)
    left, right = (np.stack([np.cos(t), -np.sin(t), np.sin(t), np.cos(t)], -1).reshape(-1, 2, 2) for t in turns)
    linear = left @ (stretch.T[:, :, None] * right)
    weight = np.abs(stretch.prod(0)) + 0.02
    points, trail = random.uniform(-1, 1, (POINTS, 2)), []
    for step in range(STEPS):
        chosen = random.choice(len(weight), POINTS, p=weight / weight.sum())
        points = np.einsum("nij,nj->ni", linear[chosen], points) + shift[chosen]
        if step >= SETTLE:
            trail.append(points)
    cloud = np.concatenate(trail)
    low, high = np.quantile(cloud, [0.01, 0.99], axis=0)
    return ((cloud - (low + high) / 2) / (np.max(high - low) / 2 + 1e-6)).astype(np.float32)


def _contour(shape: np.random.Generator, number: int) -> Mask:
    """A closed curve whose radius is a sum of waves, or a polygon; filled, or as outlines inside each other."""
    corners = int(shape.integers(3, 9)) if shape.random() < 0.3 else 90
    waves = int(shape.integers(2, 7))
    height, phase = shape.uniform(0, 0.7, waves) / np.arange(1, waves + 1) ** 0.5, shape.uniform(0, 2 * np.pi, waves)
    rings, filled = int(shape.integers(1, 4)), bool(shape.integers(0, 3))
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)

    def mask(view: np.random.Generator, size: int) -> np.ndarray:
        tall = height * (1 + view.normal(0, 2 * SHAKE, waves))
        radius = 1 + (tall[:, None] * np.cos(np.arange(1, waves + 1)[:, None] * angle + phase[:, None])).sum(0)
        curve = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1) / np.abs(radius).max()
        curve = _pose(curve, view, size)
        centre, canvas = curve.mean(0), np.zeros((size, size), np.uint8)
        width = int(view.integers(1, max(2, size // 14)))
        for ring in range(rings):
            scaled = _sixteenths(centre + (curve - centre) * (1 - ring / rings))
            if filled:
                cv2.fillPoly(canvas, [scaled], 0 if ring % 2 else 255, cv2.LINE_AA, FRACTION_BITS)
            else:
                cv2.polylines(canvas, [scaled], True, 255, width, cv2.LINE_AA, FRACTION_BITS)
        return canvas / np.float32(255)

    return mask


def _strokes(shape: np.random.Generator, number: int) -> Mask:
    """One to four strokes through a few points, straight or curved, as in the signs of a script."""
    paths = []
    for _ in range(int(shape.integers(1, 5))):
        paths.append((shape.uniform(-0.9, 0.9, (int(shape.integers(2, 6)), 2)), bool(shape.integers(0, 3))))

    def mask(view: np.random.Generator, size: int) -> np.ndarray:
        canvas = np.zeros((size, size), np.uint8)
        width = int(view.integers(max(1, size // 24), max(2, size // 7)))
        turn, zoom, move = view.normal(0, 0.2), view.uniform(0.55, 1.0, 2), view.normal(0, 0.1, 2)
        rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        for corners, curved in paths:
            shaken = corners + view.normal(0, SHAKE, corners.shape)
            line = _bezier(shaken) if curved else shaken
            pixels = ((line * zoom) @ rotation + move + 1) / 2 * size
            cv2.polylines(canvas, [_sixteenths(pixels)], False, 255, width, cv2.LINE_AA, FRACTION_BITS)
        return canvas / np.float32(255)

    return mask


def _sign(shape: np.random.Generator, number: int) -> Mask:
    """A letter or a sign, or two of them, in any of OpenCV's fonts, as thick and as crooked as a hand makes it."""
    text = SIGNS[number] if number < len(SIGNS) else "".join(shape.choice(list(SIGNS), 2))

    def mask(view: np.random.Generator, size: int) -> np.ndarray:
        font = int(view.choice(FONTS)) | (cv2.FONT_ITALIC if view.random() < 0.3 else 0)
        large, thick = 2 * size, int(view.integers(max(2, size // 14), max(3, size // 4)))
        (width, height), base = cv2.getTextSize(text, font, 1.0, 1)
        scale = 1.3 * size / max(width, height + base, 1)
        canvas = np.zeros((large, large), np.uint8)
        (width, height), base = cv2.getTextSize(text, font, scale, 1)
        origin = (large // 2 - width // 2, large // 2 + (height - base) // 2)
        cv2.putText(canvas, text, origin, font, scale, 255, thick, cv2.LINE_AA)
        turn, shear, zoom = view.normal(0, 0.15), view.normal(0, 0.2), view.uniform(0.4, 0.8, 2)
        linear = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ [[1, shear], [0, 1]] * zoom
        y, x = np.mgrid[:size, :size].astype(np.float32)
        points = np.stack([x, y], -1) - (size / 2 + view.normal(0, size / 14, 2))
        source = points @ np.linalg.inv(linear).T + large / 2
        bend = cv2.resize(np.float32(view.normal(0, size / 12, (4, 4, 2))), (size, size), interpolation=cv2.INTER_CUBIC)
        return cv2.remap(canvas, np.float32(source + bend), None, cv2.INTER_AREA) / np.float32(255)

    return mask


def _texture(shape: np.random.Generator, number: int) -> Mask:
    """One to three plane waves over each other, or noise of one grain and direction; soft or hard."""
    hard = bool(shape.integers(0, 2))
    if shape.random() < 0.5:
        waves = int(shape.integers(1, 4))
        frequency, direction = shape.uniform(1.5, 14, waves), shape.uniform(0, np.pi, waves)

        def field(view: np.random.Generator, size: int) -> np.ndarray:
            turned = direction + view.normal(0, SHAKE)
            finer = frequency * (1 + view.normal(0, SHAKE))
            y, x = np.mgrid[:size, :size].astype(np.float32) / size
            phase = view.uniform(0, 2 * np.pi, waves)
            total = np.zeros((size, size), np.float32)
            for f, d, p in zip(finer, turned, phase, strict=True):
                total += np.sin(np.float32(2 * np.pi * f) * (np.cos(d) * x + np.sin(d) * y) + np.float32(p))
            return total / waves
    else:
        grain, aspect, direction = shape.uniform(0.8, 5), shape.uniform(1, 5), shape.uniform(0, np.pi)
        ridges = bool(shape.integers(0, 2))

        def field(view: np.random.Generator, size: int) -> np.ndarray:
            turn, fine = direction + view.normal(0, SHAKE), grain * (1 + view.normal(0, SHAKE)) * size / 64
            white = np.float32(view.normal(0, 1, (2 * size, 2 * size)))
            noise = cv2.GaussianBlur(white, (0, 0), fine, sigmaY=fine * aspect)
            matrix = cv2.getRotationMatrix2D((size, size), float(np.degrees(turn)), 1.0)
            matrix[:, 2] -= size / 2
            noise = cv2.warpAffine(noise, matrix, (size, size), borderMode=cv2.BORDER_WRAP)
            noise = noise / (noise.std() + 1e-6)
            return 1 - 2 * np.abs(noise) if ridges else noise / 2

    def mask(view: np.random.Generator, size: int) -> np.ndarray:
        found = field(view, size)
        return np.float32(found > 0) if hard else np.clip((found + 1) / 2, 0, 1)

    return mask


FAMILIES = (_strokes, _fractal, _contour, _texture, _sign)


def _bezier(corners: np.ndarray) -> np.ndarray:
    """40 points of the Bezier curve over `corners`, by de Casteljau."""
    position = np.linspace(0, 1, 40)[:, None, None]
    points = np.repeat(corners[None], 40, 0)
    while points.shape[1] > 1:
        points = points[:, :-1] * (1 - position) + points[:, 1:] * position
    return points[:, 0]


def _pose(points: np.ndarray, view: np.random.Generator, size: int) -> np.ndarray:
    """(N, 2) points in [-1, 1] turned, stretched and moved; in pixels."""
    turn, zoom = view.normal(0, 0.35), view.uniform(0.5, 1.05, 2)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return ((points * zoom) @ rotation.T + view.normal(0, 0.12, 2) + 1) / 2 * size


def _sixteenths(points: np.ndarray) -> np.ndarray:
    return np.int32(np.round(points * 2**FRACTION_BITS))


# --- pictures: materials, things around the thing, and how well all of it is seen


@lru_cache(maxsize=1)
def _fields() -> np.ndarray:
    """(FIELDS, FIELD, FIELD) float32 noise in [0, 1] whose amplitude falls with the frequency, as in photographs."""
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
    """(3,) float32 in [0, 255]: any colour, or in three of ten a grey."""
    colour = view.uniform(0, 255, 3)
    return np.float32(colour if view.random() < 0.7 else [colour[0]] * 3)


def _material(view: np.random.Generator, size: int) -> np.ndarray:
    """(size, size, 3) float32 in [0, 255], or one that broadcasts to it: plain, a gradient, or noise of two colours."""
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
    """`image` under `count` blobs and polygons of a radius between shares `least` and `most` of the side."""
    size = image.shape[0]
    image = np.uint8(np.clip(image, 0, 255))
    for _ in range(count):
        corners = int(view.integers(3, 12))
        angle = np.sort(view.uniform(0, 2 * np.pi, corners))
        radius = view.uniform(least, most) * size * view.uniform(0.6, 1, corners)
        points = view.uniform(0, size, 2) + np.stack([np.cos(angle), np.sin(angle)], -1) * radius[:, None]
        if view.random() < 0.7:
            cv2.fillPoly(image, [_sixteenths(points)], _colour(view).tolist(), cv2.LINE_AA, FRACTION_BITS)
            continue
        left, top = np.clip(np.floor(points.min(0)), 0, size).astype(int)
        right, bottom = np.clip(np.ceil(points.max(0)) + 1, 0, size).astype(int)
        side = max(right - left, bottom - top)
        if min(right - left, bottom - top) < 1:
            continue
        canvas = np.zeros((bottom - top, right - left), np.uint8)
        cv2.fillPoly(canvas, [_sixteenths(points - (left, top))], 255, cv2.LINE_AA, FRACTION_BITS)
        part = image[top:bottom, left:right].astype(np.float32)
        material = np.broadcast_to(_material(view, side), (side, side, 3))[: bottom - top, : right - left]
        image[top:bottom, left:right] = part + (material - part) * (canvas[:, :, None] / np.float32(255))
    return image


def _paint(mask: Mask, view: np.random.Generator, size: int) -> np.ndarray:
    """The thing that `mask` draws, of one material, over a ground of another, among others: float32 in [0, 255]."""
    image = np.broadcast_to(_material(view, size), (size, size, 3))
    busy = view.random()
    if busy < 0.45:
        image = _litter(view, image, int(view.integers(1, 7)), 0.1, 0.6)
    figure = _material(view, size)
    # A figure as bright as its ground would teach nothing.
    ground, own = image.mean(), figure.mean()
    if abs(own - ground) < 50:
        figure = np.clip(figure + (60 if ground < 128 else -60) + (ground - own), 0, 255)
    cover = mask(view, size)
    if view.random() < 0.15:  # more than one of it
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
    """The picture as a camera or a small file shows it: light, blur, few pixels, noise. uint8."""
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
    """The first images of the first categories, a row a category."""
    lines = [
        np.concatenate([draw(row, column, size, seed) for column in range(columns)], axis=1) for row in range(rows)
    ]
    return Image.fromarray(np.concatenate(lines))


def main(argv: list[str] | None = None) -> int:
    """Write a sheet."""
    parser = argparse.ArgumentParser(prog="python -m pretraining.formula_images", description=sheet.__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="to write, .png or .jpg")
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

"""Formulas: each family makes, from the numbers of a category, a function that draws masks of its objects.

After FractalDB (https://doi.org/10.1007/s11263-021-01555-8), Improving Fractal Pre-training
(https://arxiv.org/abs/2110.03091) and the contours of https://arxiv.org/abs/2206.09132.
"""

from __future__ import annotations

import string
from collections.abc import Callable

import cv2
import numpy as np

SHAKE = 0.08  # how far an image's constants stray from those of its category
POINTS, STEPS, SETTLE = 500, 20, 8  # of the chaos game: particles, moves of each, first moves that are not drawn
VARIANTS = 6  # of each attractor, computed once
FRACTION_BITS = 4  # OpenCV draws at sixteenths of a pixel

# Letters and signs, no digits, and only one of two letters that differ only in size.
SIGNS = "".join(sorted(set(string.ascii_letters) - set("COPSUVWXZ"))) + "#$%&*+/<=>?@~{}^"
FONTS = tuple(range(8))  # cv2.FONT_HERSHEY_*: drawn with strokes, like handwriting

# mask(view, size): where the object is, (size, size) float32 in [0, 1].
Mask = Callable[[np.random.Generator, int], np.ndarray]


def _fractal(shape: np.random.Generator, number: int) -> Mask:
    """Attractor of an iterated function system, by the chaos game; maps are drawn by their singular values."""
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
    """Return (POINTS * (STEPS - SETTLE), 2) points; all but the outermost are in [-1, 1]."""
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
    """Closed curve whose radius is a sum of waves, or a polygon; filled, or as nested outlines."""
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
            scaled = sixteenths(centre + (curve - centre) * (1 - ring / rings))
            if filled:
                cv2.fillPoly(canvas, [scaled], 0 if ring % 2 else 255, cv2.LINE_AA, FRACTION_BITS)
            else:
                cv2.polylines(canvas, [scaled], True, 255, width, cv2.LINE_AA, FRACTION_BITS)
        return canvas / np.float32(255)

    return mask


def _strokes(shape: np.random.Generator, number: int) -> Mask:
    """One to four strokes through a few points, straight or curved, as in the characters of a script."""
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
            cv2.polylines(canvas, [sixteenths(pixels)], False, 255, width, cv2.LINE_AA, FRACTION_BITS)
        return canvas / np.float32(255)

    return mask


def _sign(shape: np.random.Generator, number: int) -> Mask:
    """One or two letters or signs in any of OpenCV's fonts, with the thickness and distortion of handwriting."""
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
    """Sum of one to three plane waves, or noise of one grain and direction; soft or hard."""
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
    """Return 40 points of the Bezier curve with these control points, by de Casteljau."""
    position = np.linspace(0, 1, 40)[:, None, None]
    points = np.repeat(corners[None], 40, 0)
    while points.shape[1] > 1:
        points = points[:, :-1] * (1 - position) + points[:, 1:] * position
    return points[:, 0]


def _pose(points: np.ndarray, view: np.random.Generator, size: int) -> np.ndarray:
    """Rotate, stretch and move (N, 2) points in [-1, 1]; returns pixels."""
    turn, zoom = view.normal(0, 0.35), view.uniform(0.5, 1.05, 2)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return ((points * zoom) @ rotation.T + view.normal(0, 0.12, 2) + 1) / 2 * size


def sixteenths(points: np.ndarray) -> np.ndarray:
    return np.int32(np.round(points * 2**FRACTION_BITS))

"""Images drawn by formula: no photographs, no licences, no downloads.

A category is a formula with its constants; an image is one view of it, with the constants shaken and with another
pose, line width, colour and sharpness. A network that tells the categories apart has to see edges, strokes, curves,
closed shapes and textures. After FractalDB (https://doi.org/10.1007/s11263-021-01555-8), Improving Fractal
Pre-training (https://arxiv.org/abs/2110.03091) and the contours of https://arxiv.org/abs/2206.09132.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SHAKE = 0.08  # how far an image's constants stray from those of its category
POINTS, STEPS, SETTLE = 1500, 20, 8  # of the chaos game: particles, moves of each, first moves that are not drawn


def draw(category: int, instance: int, size: int, seed: int) -> np.ndarray:
    """The image number `instance` of `category`: (size, size, 3) uint8, the same for the same arguments."""
    shape = np.random.default_rng([seed, category])
    view = np.random.default_rng([seed, category, 1 + instance])
    return _paint(FAMILIES[category % len(FAMILIES)](shape, view, size), view)


def _fractal(shape: np.random.Generator, view: np.random.Generator, size: int) -> Image.Image:
    """The attractor of an iterated function system, by the chaos game; maps drawn by their singular values."""
    maps = int(shape.integers(2, 7))
    turns = shape.uniform(0, 2 * np.pi, (2, maps))
    stretch = shape.uniform(0.25, 0.85, (2, maps)) * shape.choice([-1, 1], (2, maps))
    shift = shape.uniform(-1, 1, (maps, 2))
    turns = turns + view.normal(0, SHAKE, turns.shape)
    shift = shift + view.normal(0, SHAKE, shift.shape)
    left, right = (np.stack([np.cos(t), -np.sin(t), np.sin(t), np.cos(t)], -1).reshape(-1, 2, 2) for t in turns)
    linear = left @ (stretch.T[:, :, None] * right)
    weight = np.abs(stretch.prod(0)) + 0.02
    points, trail = view.uniform(-1, 1, (POINTS, 2)), []
    for step in range(STEPS):
        chosen = view.choice(maps, POINTS, p=weight / weight.sum())
        points = np.einsum("nij,nj->ni", linear[chosen], points) + shift[chosen]
        if step >= SETTLE:
            trail.append(points)
    cloud = np.concatenate(trail)
    low, high = np.quantile(cloud, [0.01, 0.99], axis=0)
    pixels = _pose((cloud - (low + high) / 2) / (np.max(high - low) / 2 + 1e-6), view, size).astype(int)
    inside = ((pixels >= 0) & (pixels < size)).all(1)
    density = np.zeros((size, size))
    np.add.at(density, (pixels[inside, 1], pixels[inside, 0]), 1.0)
    return Image.fromarray(np.uint8(255 * np.minimum(1, density / 3)))


def _contour(shape: np.random.Generator, view: np.random.Generator, size: int) -> Image.Image:
    """A closed curve whose radius is a sum of waves, filled or as one to three outlines inside each other."""
    waves = int(shape.integers(2, 7))
    height, phase = shape.uniform(0, 0.7, waves) / np.arange(1, waves + 1) ** 0.5, shape.uniform(0, 2 * np.pi, waves)
    rings, filled = int(shape.integers(1, 4)), bool(shape.integers(0, 2))
    height = height * (1 + view.normal(0, 2 * SHAKE, waves))
    angle = np.linspace(0, 2 * np.pi, 90)
    radius = 1 + (height[:, None] * np.cos(np.arange(1, waves + 1)[:, None] * angle + phase[:, None])).sum(0)
    curve = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1) / np.abs(radius).max()
    curve = _pose(curve, view, size)
    centre, mask = curve.mean(0), Image.new("L", (size, size))
    pen, width = ImageDraw.Draw(mask), int(view.integers(1, max(2, size // 14)))
    for ring in range(rings):
        scaled = centre + (curve - centre) * (1 - ring / rings)
        corners = [tuple(corner) for corner in scaled]
        if filled:
            pen.polygon(corners, fill=255 if ring % 2 == 0 else 0)
        else:
            pen.line(corners, fill=255, width=width, joint="curve")
    return mask


def _strokes(shape: np.random.Generator, view: np.random.Generator, size: int) -> Image.Image:
    """One to four strokes through a few points, straight or curved, as in the signs of a script."""
    mask = Image.new("L", (size, size))
    pen, width = ImageDraw.Draw(mask), int(view.integers(max(1, size // 24), max(2, size // 7)))
    turn, zoom, shift = view.normal(0, 0.2), view.uniform(0.55, 1.0), view.normal(0, 0.1, 2)
    for _ in range(int(shape.integers(1, 5))):
        corners = shape.uniform(-0.9, 0.9, (int(shape.integers(2, 6)), 2))
        curved = bool(shape.integers(0, 3))
        corners = corners + view.normal(0, SHAKE, corners.shape)
        path = _bezier(corners) if curved else corners
        rotated = path @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        pixels = (rotated * zoom + shift + 1) / 2 * size
        pen.line([tuple(point) for point in pixels], fill=255, width=width, joint="curve")
        for x, y in (pixels[0], pixels[-1]):
            pen.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], fill=255)
    return mask


def _texture(shape: np.random.Generator, view: np.random.Generator, size: int) -> Image.Image:
    """One to three plane waves over each other, soft or hard."""
    waves = int(shape.integers(1, 4))
    frequency, direction = shape.uniform(1.5, 14, waves), shape.uniform(0, np.pi, waves)
    hard = bool(shape.integers(0, 2))
    direction = direction + view.normal(0, SHAKE)
    frequency = frequency * (1 + view.normal(0, SHAKE))
    y, x = np.mgrid[:size, :size] / size
    along = np.cos(direction)[:, None, None] * x + np.sin(direction)[:, None, None] * y
    phase = view.uniform(0, 2 * np.pi, (waves, 1, 1))
    field = np.sin(2 * np.pi * frequency[:, None, None] * along + phase).mean(0)
    return Image.fromarray(np.uint8(255 * ((field > 0) if hard else (field + 1) / 2)))


FAMILIES = (_strokes, _fractal, _contour, _texture)


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


def _paint(mask: Image.Image, view: np.random.Generator) -> np.ndarray:
    """Foreground over background by `mask`: random colours or greys, gradients, noise, and sharpness."""
    size = mask.width
    if view.random() < 0.4:  # seen through few pixels: from a small file, or from far away
        few, method = int(view.integers(8, 40)), int(view.choice([Image.Resampling.BILINEAR, Image.Resampling.BICUBIC]))
        mask = mask.resize((few, few), Image.Resampling.BOX).resize((size, size), method)
    elif view.random() < 0.3:
        mask = mask.filter(ImageFilter.GaussianBlur(view.uniform(0.3, 2)))
    y, x = np.mgrid[:size, :size][..., None] / size
    layers = []
    for _ in range(2):
        start, end = view.uniform(0, 255, (2, 3))
        if view.random() < 0.4:
            start[:], end[:] = start[0], end[0]
        end = start + (end - start) * view.choice([0, 0, 1])
        slope = view.random()
        layers.append(start + (end - start) * (slope * x + (1 - slope) * y))
    ground, figure = layers
    # A figure as bright as its ground would teach nothing.
    if abs(figure.mean() - ground.mean()) < 60:
        figure = 255 - ground if abs(255 - 2 * ground.mean()) > 60 else figure * 0.2
    cover = np.asarray(mask, np.float32)[:, :, None] / 255
    image = ground * (1 - cover) + figure * cover
    if view.random() < 0.4:
        image = image + view.normal(0, view.uniform(2, 20), image.shape)
    return np.uint8(np.clip(image, 0, 255))

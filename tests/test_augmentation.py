from __future__ import annotations

import numpy as np
import pytest
from test_pixels import photo

from headstart.modalities.image.augmentation import Augmentation, view
from headstart.modalities.image.pixels import resize

WHOLE = Augmentation(crop=1.0, flip=False, jitter=0.0)


@pytest.fixture
def image() -> np.ndarray:
    return np.asarray(photo(90, 60))


def test_a_view_is_the_same_again_and_another_by_number_and_image(image):
    augmentation = Augmentation(0.35, True, 0.3)
    first = view(image, 32, augmentation, "a", 1)
    assert first.shape == (32, 32, 3)
    assert first.dtype == np.uint8
    assert (view(image, 32, augmentation, "a", 1) == first).all()
    assert (view(image, 32, augmentation, "a", 2) != first).any()
    assert (view(image, 32, augmentation, "b", 1) != first).any()


def test_view_0_is_the_image_as_it_is(image):
    assert (view(image, 32, Augmentation(0.1, True, 0.9), "a", 0) == resize(image, 32)).all()


def test_crops_are_of_the_area_and_shape_that_are_asked_for():
    x, y = np.meshgrid(np.arange(200, dtype=np.uint8), np.arange(200, dtype=np.uint8))
    image = np.stack([x, y, np.zeros_like(x)], axis=-1)  # a pixel says where it comes from
    areas, aspects = [], []
    for number in range(1, 300):
        made = view(image, 200, Augmentation(0.25, False, 0.0), "a", number).astype(int)
        width, height = (np.ptp(made[..., channel]) + 1 for channel in (0, 1))
        areas.append(width * height / 200**2)
        aspects.append(width / height)
    assert 0.24 < min(areas) < 0.3
    assert 0.95 < max(areas) <= 1.0
    assert 0.73 < min(aspects) < 0.85
    assert 1.18 < max(aspects) < 1.36
    assert (view(image, 200, Augmentation(1.0, False, 0.0), "a", 1) == image).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (7, 5)])
def test_images_of_any_shape_have_views(shape):
    for number in range(1, 50):
        assert view(np.zeros((*shape, 3), np.uint8), 8, Augmentation(0.01, True, 0.5), "a", number).shape == (8, 8, 3)


def test_half_are_mirrored_where_that_is_wished(image):
    plain = resize(image, 32)
    flips = Augmentation(1.0, True, 0.0)
    mirrored = [(view(image, 32, flips, "a", number) == plain[:, ::-1]).all() for number in range(1, 200)]
    assert 60 < sum(mirrored) < 140
    for number in range(1, 50):
        assert (view(image, 32, WHOLE, "a", number) == plain).all()


def test_jitter_changes_light_contrast_and_colour_within_its_limits(image):
    plain = resize(image, 32).astype(float)
    light = [view(image, 32, Augmentation(1.0, False, 0.2), "a", n).mean() / plain.mean() for n in range(1, 200)]
    assert 0.78 < min(light) < 0.85
    assert 1.12 < max(light) < 1.22
    grey = np.full((8, 8, 3), 100, np.uint8)  # has neither contrast nor colour
    values = view(grey, 8, Augmentation(1.0, False, 0.5), "a", 1)
    assert np.ptp(values) == 0

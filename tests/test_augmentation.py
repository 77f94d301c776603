from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from test_pixels import photo

from headstart.modalities import get_modality
from headstart.modalities.image.augmentation import ImageAugmentation, view
from headstart.modalities.image.pixels import resize

WHOLE = ImageAugmentation(crop=1.0, flip=False, jitter=0.0)


@pytest.fixture
def image() -> np.ndarray:
    return np.asarray(photo(90, 60))


def test_a_view_depends_on_number_and_image_only(image):
    augmentation = ImageAugmentation(0.35, True, 0.3)
    first = view(image, 32, augmentation, "a", 1)
    assert first.shape == (32, 32, 3)
    assert first.dtype == np.uint8
    assert (view(image, 32, augmentation, "a", 1) == first).all()
    assert (view(image, 32, augmentation, "a", 2) != first).any()
    assert (view(image, 32, augmentation, "b", 1) != first).any()


def test_view_0_is_the_image_as_it_is(image):
    assert (view(image, 32, ImageAugmentation(0.1, True, 0.9), "a", 0) == resize(image, 32)).all()


def test_crops_have_the_area_and_shape_of_the_settings():
    x, y = np.meshgrid(np.arange(200, dtype=np.uint8), np.arange(200, dtype=np.uint8))
    image = np.stack([x, y, np.zeros_like(x)], axis=-1)  # each pixel shows where it comes from
    areas, aspects = [], []
    for number in range(1, 300):
        made = view(image, 200, ImageAugmentation(0.25, False, 0.0), "a", number).astype(int)
        width, height = (np.ptp(made[..., channel]) + 1 for channel in (0, 1))
        areas.append(width * height / 200**2)
        aspects.append(width / height)
    assert 0.24 < min(areas) < 0.3
    assert 0.95 < max(areas) <= 1.0
    assert 0.73 < min(aspects) < 0.85
    assert 1.18 < max(aspects) < 1.36
    assert (view(image, 200, ImageAugmentation(1.0, False, 0.0), "a", 1) == image).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (7, 5)])
def test_images_of_any_shape_have_views(shape):
    for number in range(1, 50):
        assert view(np.zeros((*shape, 3), np.uint8), 8, ImageAugmentation(0.01, True, 0.5), "a", number).shape == (
            8,
            8,
            3,
        )


def test_half_are_mirrored_if_flip_is_set(image):
    plain = resize(image, 32)
    flips = ImageAugmentation(1.0, True, 0.0)
    mirrored = [(view(image, 32, flips, "a", number) == plain[:, ::-1]).all() for number in range(1, 200)]
    assert 60 < sum(mirrored) < 140
    for number in range(1, 50):
        assert (view(image, 32, WHOLE, "a", number) == plain).all()


def test_jitter_changes_light_contrast_and_colour_within_its_limits(image):
    plain = resize(image, 32).astype(float)
    light = [view(image, 32, ImageAugmentation(1.0, False, 0.2), "a", n).mean() / plain.mean() for n in range(1, 200)]
    assert 0.78 < min(light) < 0.85
    assert 1.12 < max(light) < 1.22
    grey = np.full((8, 8, 3), 100, np.uint8)  # has neither contrast nor colour
    values = view(grey, 8, ImageAugmentation(1.0, False, 0.5), "a", 1)
    assert np.ptp(values) == 0


def test_all_views_are_mirrored_if_mirror_is_set(image):
    mirror = ImageAugmentation(1.0, False, 0.0, mirror=True)
    assert all((view(image, 32, mirror, "a", n) == resize(image, 32)[:, ::-1]).all() for n in range(1, 20))


@dataclass
class Settings:
    crop: float | None
    flip: bool | None
    jitter: float = 0.0


def test_fine_tuning_is_augmented_as_strongly_as_the_head_recognizes():
    images = get_modality("image")

    def choose(settings: Settings, weakest: float, mirrored: bool = True):
        return images.choose_augmentation(settings, lambda one, _: one.crop >= weakest and (mirrored or not one.mirror))

    assert choose(Settings(None, None, 0.1), 0.5) == ImageAugmentation(0.5, True, 0.1)
    assert choose(Settings(None, None, 0.1), 0.5, mirrored=False) == ImageAugmentation(0.5, False, 0.1)
    assert choose(Settings(None, False), 0.95).crop == 0.9  # the weakest one
    assert choose(Settings(0.4, True, 0.2), 2.0) == ImageAugmentation(0.4, True, 0.2)  # params are explicit
    assert choose(Settings(1.0, False), 0.0) is None
    assert images.augmentation(Settings(None, None)) is None

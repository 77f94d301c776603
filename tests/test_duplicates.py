from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from headstart.data.duplicates import groups, near_pairs
from headstart.modalities import get_modality

IMAGES = get_modality("image")
DIM = IMAGES.descriptor_dim
DISTANCE = 0.25


def scenes(count: int) -> list[Image.Image]:
    """Images of soft blobs, each different from the others."""
    made = []
    for number in range(count):
        cells = np.random.default_rng(number).integers(0, 256, (5, 6, 3)).astype(np.uint8)
        made.append(Image.fromarray(cells).resize((96, 80), Image.Resampling.BICUBIC))
    return made


def describe(images: list[Image.Image]) -> np.ndarray:
    return IMAGES.describe(np.stack([IMAGES.sketch(image.convert("RGB")) for image in images]))[0]


def recompressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)
    return Image.open(io.BytesIO(buffer.getvalue()))


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((48, 40), Image.Resampling.BICUBIC),
        lambda image: image.resize((300, 150)),  # another shape too: models see squares
        recompressed,
        lambda image: ImageEnhance.Brightness(image).enhance(1.15),
        lambda image: ImageEnhance.Brightness(image).enhance(0.6),
        lambda image: ImageEnhance.Contrast(image).enhance(1.2),
        lambda image: image.crop((2, 1, 95, 79)),
    ],
    ids=["half the size", "stretched", "recompressed", "brighter", "darker", "more contrast", "cropped"],
)
def test_copies_are_found_and_nothing_else(change):
    originals = scenes(60)
    pairs = near_pairs(describe([*originals, *map(change, originals)]), DISTANCE)
    expected = {(number, number + 60) for number in range(60)}
    found = set(map(tuple, pairs.tolist()))
    assert len(found & expected) >= 58
    assert found <= expected


def test_a_large_family_of_copies_is_found_completely():
    """Forty copies of each of three scenes among others; some are close to few of their family only."""
    generator = np.random.default_rng(0)
    images, families = scenes(90), []
    for image in images[:3]:
        for number in range(40):
            copy = ImageEnhance.Brightness(image.resize((60 + number, 50 + number))).enhance(
                generator.uniform(0.6, 1.4)
            )
            buffer = io.BytesIO()
            copy.save(buffer, "JPEG", quality=int(generator.integers(8, 90)))
            families.append(Image.open(io.BytesIO(buffer.getvalue())))
    numbers = groups(210, near_pairs(describe([*images, *families]), DISTANCE))
    for family in range(3):
        assert len(set(numbers[90 + 40 * family : 130 + 40 * family]) | {numbers[family]}) == 1
    assert len(set(numbers)) == 90


def test_images_in_other_colours_are_not_copies():
    (image,) = scenes(1)
    red, green, blue = image.split()
    assert len(near_pairs(describe([image, Image.merge("RGB", (blue, red, green))]), DISTANCE)) == 0


def test_flat_images_have_no_copies_and_a_distance_of_0_finds_none():
    flat = [Image.new("RGB", (50, 50), colour) for colour in ("black", "white", "grey", "red", "pink")]
    assert not describe(flat).any()
    assert len(near_pairs(describe(flat), 1.0)) == 0
    same = describe(scenes(1) * 2)
    assert near_pairs(same, DISTANCE).tolist() == [[0, 1]]
    assert len(near_pairs(same, 0.0)) == 0


def test_a_population_of_similar_images_is_not_taken_for_copies():
    """A thousand variations of one scene, as close to each other as copies are: similar, but not copies."""
    generator = np.random.default_rng(0)
    centre = generator.normal(size=DIM)
    population = centre + generator.normal(size=(1000, DIM)) * 0.14
    population /= np.linalg.norm(population, axis=1, keepdims=True)
    distances = np.linalg.norm(population[0] - population[1:], axis=1)
    assert (distances < DISTANCE).mean() > 0.9
    copy = population[:1] + 0.004 * generator.normal(size=DIM)
    pairs = near_pairs(np.concatenate([population, copy]).astype(np.float16), DISTANCE)
    assert [0, 1000] in pairs.tolist()
    assert len(pairs) < 20


def test_the_order_of_images_changes_no_pair():
    descriptors = describe([*scenes(30), *map(recompressed, scenes(30))])
    order = np.random.default_rng(0).permutation(60)
    shuffled = {frozenset(order[pair]) for pair in near_pairs(descriptors[order], DISTANCE)}
    assert shuffled == set(map(frozenset, near_pairs(descriptors, DISTANCE).tolist()))


def test_groups_are_connected_components():
    numbers = groups(6, np.array([[0, 3], [3, 5], [1, 2]]))
    assert numbers[0] == numbers[3] == numbers[5]
    assert numbers[1] == numbers[2]
    assert len(set(numbers)) == 3

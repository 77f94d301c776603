"""What fine_tune does about params that are null."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from PIL import Image

from headstart.config import load_params
from headstart.data.files import Folder, file_hash
from headstart.errors import UserError
from headstart.features import activations
from headstart.features.views import ViewLoader
from headstart.modalities import get_modality
from headstart.modalities.image import CROPS
from headstart.modalities.image.augmentation import ImageAugmentation
from headstart.training import defaults
from headstart.training.refit import choose_refit

SETTINGS = load_params(ROOT / "params.yaml").fine_tune


@pytest.mark.parametrize(
    ("effort", "schedules"),
    [
        ("quick", {100: (8, 7), 1236: (6, 5), 2570: (3, 2), 100_000: (3, 2)}),
        ("default", {100: (30, 9), 1236: (10, 9), 2570: (5, 4), 100_000: (5, 4)}),
        ("thorough", {100: (30, 9), 1236: (19, 9), 2570: (9, 8), 100_000: (5, 4)}),
    ],
)
def test_epochs_and_views_follow_from_effort_and_the_number_of_examples(effort, schedules):
    settings = SETTINGS.model_copy(update={"effort": effort, "batch_size": 32})
    assert {count: defaults.choose_schedule(settings, count) for count in schedules} == schedules
    assert defaults.choose_schedule(settings.model_copy(update={"epochs": 3, "views": 7}), 100) == (3, 7)


@pytest.mark.parametrize(("effort", "epochs"), [("quick", 8), ("default", 15), ("thorough", 30)])
def test_with_a_training_for_each_fold_half_as_many_epochs_are_enough(effort, epochs):
    settings = SETTINGS.model_copy(update={"effort": effort})
    assert defaults.choose_schedule(settings, 100, folds=True)[0] == epochs
    assert defaults.choose_schedule(settings.model_copy(update={"epochs": 20}), 100, folds=True)[0] == 20


@pytest.mark.parametrize(("effort", "expected"), [("quick", 3), ("default", 3), ("thorough", 9)])
def test_a_refit_is_short_unless_effort_is_thorough(effort, expected):
    settings = SETTINGS.model_copy(update={"effort": effort})
    assert defaults.choose_refit_epochs(settings, 9) == expected
    assert defaults.choose_refit_epochs(settings, 1) == 1


@pytest.mark.parametrize(
    ("ema", "count", "momentum"), [(None, 320, 0.95), (None, 290, 0.95), (None, 8, 0.5), (0, 320, 0), (0.9, 8, 0.9)]
)
def test_the_moving_average_follows_from_the_number_of_steps(ema, count, momentum):
    settings = SETTINGS.model_copy(update={"ema": ema, "batch_size": 32})
    assert defaults.choose_ema_momentum(settings, 10, count) == pytest.approx(momentum)
    assert defaults.choose_ema_momentum(settings, 1, 8) == (ema or 0)


@pytest.mark.parametrize(
    ("asked", "n_val", "classes", "n_groups", "expected"),
    [
        (None, 49, [20, 20], 40, 4),
        (None, 50, [20, 20], 40, 0),
        (None, 10, [3, 2], 5, 3),
        (None, 10, [20, 20], 3, 3),
        (None, 1, [1, 1], 2, 0),
        (None, 10, [496, 495], 991, 0),
        (0, 10, [20, 20], 40, 0),
        (3, 1000, [20, 20], 40, 3),
    ],
)
def test_folds_of_train_come_to_the_help_of_a_small_val(asked, n_val, classes, n_groups, expected):
    targets = np.repeat(np.arange(len(classes)), classes)
    settings = SETTINGS.model_copy(update={"folds": asked})
    assert defaults.choose_folds(settings, n_val, targets, np.arange(len(targets)) % n_groups) == expected


@pytest.mark.parametrize(
    ("asked", "count", "given", "expected"),
    [
        (None, 5000, False, True),
        (None, 5001, False, False),
        (None, 100, True, False),
        (True, 5001, True, True),
        (False, 100, False, False),
    ],
)
def test_few_examples_are_refitted_on_unless_val_came_with_the_data(asked, count, given, expected):
    splits = np.where(np.arange(count) < 10, "val", "train")
    examples = pd.DataFrame({"split": splits, "given": given & (splits == "val")})
    assert choose_refit(asked, examples) == expected


# --- augmentation


def side_network(margin: int) -> keras.Model:
    """Return a network that knows the side of a bright stripe in a 32 px image, by its outermost `margin` pixels."""
    image = keras.Input((32, 32, 3), name="image")
    sides = [keras.ops.mean(side, axis=(1, 2, 3)) for side in (image[:, :, :margin], image[:, :, -margin:])]
    return keras.Model({"image": image}, keras.ops.stack(sides, axis=1))


@pytest.fixture
def stripes(tmp_path: Path) -> pd.DataFrame:
    """Images of two classes: those with a stripe at the left border, and those with one at the right."""
    rows = []
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 60, (32, 32, 3), np.uint8)
        side, target = (slice(0, 3), 0) if number % 2 else (slice(29, 32), 1)
        pixels[:, side] = 255
        file = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(file)
        rows.append({"path": file.name, "file_hash": file_hash(file.read_bytes()), "target": target})
    return pd.DataFrame(rows)


def test_augmentation_is_as_strong_as_the_head_can_bear(tmp_path, stripes):
    """A mirror image is of the other class, and a strong crop loses the stripe."""

    def choose(network: keras.Model, examples: pd.DataFrame, **changes: object) -> ImageAugmentation:
        settings, loader = SETTINGS.model_copy(update=changes), ViewLoader(Folder(tmp_path), get_modality("image"), 32)
        return defaults.choose_augmentation(settings, network, examples, loader, 0)

    network = side_network(3)
    found = choose(network, stripes)
    assert found.flip is False
    assert found.crop > 0.5
    image = keras.Input((32, 32, 3), name="image")
    constant = keras.layers.Dense(2, kernel_initializer="zeros")(keras.layers.Flatten()(image))
    blind = keras.Model({"image": image}, constant)
    jitter = SETTINGS.jitter
    # A network that always predicts class 0 is correct on every view if that is the only class, else nothing is known.
    assert choose(blind, stripes.assign(target=0)) == ImageAugmentation(CROPS[0], True, jitter)
    assert choose(blind, stripes.assign(target=1)) == ImageAugmentation(CROPS[-1], False, jitter)
    assert choose(network, stripes, crop=0.3, flip=True) == ImageAugmentation(0.3, True, jitter)


# --- cached activations


@pytest.mark.parametrize(
    ("arguments", "expected", "reason"),
    [
        (("auto", 1000, 100, 1000, True, 0.5), True, "100 views to cache (0.2 MB) instead of 1,000"),
        (("auto", 1000, 100, 100, True, 0.5), True, "instead of 100 in all epochs"),
        (("auto", 1000, 100, 100, False, 0.5), False, "hardly fewer than the 100 of all epochs"),
        (("auto", 10**6, 10**6, 10**7, True, 0.5), False, "more than the limit of 20 GB"),
        (("auto", 1000, 100, 1000, True, 0.05), False, "only 5% of the work"),
        (("on", 10**9, 10**6, 10, True, 0.5), True, "fine_tune.trunk_cache is on"),
        (("off", 1000, 100, 1000, True, 0.5), False, "fine_tune.trunk_cache is off"),
        (("auto", None, 100, 1000, True, 0.0), False, "no frozen part can be run by itself"),
    ],
    ids=str,
)
def test_activations_are_cached_if_it_pays(arguments, expected, reason):
    found, why = activations.choose_cache(*arguments)
    assert found is expected
    assert reason in why


def test_activations_that_cannot_be_cached_are_refused():
    with pytest.raises(UserError, match=r"fine_tune\.trunk_cache on: no frozen part can be run by itself"):
        activations.choose_cache("on", None, 100, 1000, True, 0.0)

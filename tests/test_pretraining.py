from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from pipeline.learning import networks
from pretraining import train
from pretraining.formula_images import FAMILIES, draw


@pytest.mark.parametrize("category", range(2 * len(FAMILIES)))
def test_an_image_is_a_function_of_its_numbers(category):
    image = draw(category, 3, 48, seed=5)
    assert image.shape == (48, 48, 3)
    assert image.dtype == np.uint8
    assert (image == draw(category, 3, 48, seed=5)).all()
    assert (image != draw(category, 4, 48, seed=5)).any()
    assert (image != draw(category, 3, 48, seed=6)).any()


def test_most_images_show_something():
    spread = [draw(category, 0, 48, seed=5).std() for category in range(60)]
    assert np.mean(np.array(spread) > 5) > 0.9


@pytest.fixture
def small(monkeypatch):
    """A network that compiles in a second takes the place of the real one."""

    def build(classes: int, size: int, steps: int, learning_rate: float, seed: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        image = keras.Input((size, size, 3))
        base = keras.Sequential([keras.layers.Conv2D(4, 5, strides=4)], name="backbone")
        features = keras.layers.GlobalAveragePooling2D()(base(image))
        model = keras.Model(image, keras.layers.Dense(classes)(features))
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
        return model

    monkeypatch.setattr(train, "build", build)
    monkeypatch.setattr(train, "CHECKPOINT_STEPS", 2)


def run(folder: Path, name: str) -> Path:
    numbers = "--steps 5 --batch-size 4 --classes 4 --size 32"
    train.main([*numbers.split(), "--out", str(folder / name), "--checkpoint", str(folder / "checkpoint.keras")])
    return folder / name


def test_an_interrupted_training_goes_on_where_it_was(tmp_path, small, monkeypatch):
    whole = run(tmp_path, "whole.weights.h5")
    real, starts = train.batches, []

    def killed(start, stop, *arguments):
        starts.append(start)
        for number, batch in enumerate(real(start, stop, *arguments)):
            if len(starts) == 1 and number == 3:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(train, "batches", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "resumed.weights.h5")
    assert not (tmp_path / "resumed.weights.h5").exists()
    resumed = run(tmp_path, "resumed.weights.h5")
    assert starts == [0, 2]
    assert not (tmp_path / "checkpoint.keras").exists()
    weights = []
    for file in (whole, resumed):
        base = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(4, 5, strides=4)])
        base.load_weights(file)
        weights.append(base.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_network_is_the_one_of_the_table():
    model = train.build(classes=3, size=32, steps=10, learning_rate=0.001, seed=0)
    trunk = networks.build_trunk("tiny", "none", 32, "avg", 0)
    shapes = [[weight.shape for weight in network.get_layer("backbone").weights] for network in (model, trunk)]
    assert shapes[0] == shapes[1]

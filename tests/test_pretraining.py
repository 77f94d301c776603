from __future__ import annotations

import hashlib
from argparse import Namespace
from pathlib import Path

import keras
import numpy as np
import pytest

from pipeline.learning import networks
from pretraining import train
from pretraining.descriptors import build_describer
from pretraining.formula_images import FAMILIES, SIGNS, draw, sheet


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


def test_a_sheet_has_a_row_a_category():
    found = np.asarray(sheet(4, 3, 32, seed=1))
    assert found.shape == (4 * 32, 3 * 32, 3)
    assert (found[64:96, 32:64] == draw(2, 1, 32, seed=1)).all()


def test_no_digit_is_among_the_signs():
    """Digits are what the network is judged by."""
    assert not set(SIGNS) & set("0123456789")


@pytest.fixture(scope="module")
def describer() -> keras.Model:
    return build_describer(32)


def described(describer: keras.Model, *images: np.ndarray) -> np.ndarray:
    return describer.predict_on_batch(np.stack(images))


def bars(upright: bool, colours: tuple[int, ...] = (255, 255, 255)) -> np.ndarray:
    """A few thick bars, (32, 32, 3) uint8."""
    image = np.zeros((32, 32, 3), np.uint8)
    stripes = (np.arange(32) // 4) % 2 == 1
    image[:, stripes] = colours
    return image if upright else image.transpose(1, 0, 2)


def test_descriptors_tell_direction_colour_and_place_apart(describer):
    half = np.zeros((32, 32, 3), np.uint8)
    half[:16] = 255
    pairs = [
        (bars(True), bars(False)),
        (bars(True), bars(True, (255, 0, 0))),
        (half, half[::-1]),
    ]
    noise = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    for one, other in pairs:
        first, second, *_ = described(describer, one, other, *noise)
        assert np.abs(first - second).max() > 1


def test_descriptors_are_standardised_over_the_batch(describer):
    noise = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    found = described(describer, *noise)
    assert found.shape == (64, describer.output_shape[1])
    assert np.abs(found.mean(axis=0)).max() < 0.01
    assert found.std() == pytest.approx(1, abs=0.05)
    assert np.isfinite(described(describer, *np.zeros((3, 32, 32, 3), np.uint8))).all()


@pytest.fixture
def small(monkeypatch):
    """A network that compiles in a second takes the place of the real one."""

    def build(params: Namespace) -> keras.Model:
        keras.utils.set_random_seed(params.seed)
        image = keras.Input((params.size, params.size, 3))
        base = keras.Sequential([keras.layers.Conv2D(4, 5, strides=4)], name="backbone")
        features = keras.layers.GlobalAveragePooling2D()(base(image))
        lengths = params.classes, build_describer(params.size).output_shape[1]
        model = keras.Model(image, [keras.layers.Dense(length)(features) for length in lengths])
        model.compile("adam", [keras.losses.SparseCategoricalCrossentropy(from_logits=True), "mean_squared_error"])
        return model

    monkeypatch.setattr(train, "build", build)
    monkeypatch.setattr(train, "CHECKPOINT_STEPS", 2)


def numbers(name: str, folder: Path) -> list[str]:
    small = "--steps 5 --batch-size 4 --classes 4 --size 32"
    return [*small.split(), "--out", str(folder / name), "--checkpoints", str(folder)]


def run(folder: Path, name: str) -> Path:
    train.main(numbers(name, folder))
    return folder / name


def test_an_interrupted_training_goes_on_where_it_was(tmp_path, small, monkeypatch, capsys):
    whole = run(tmp_path, "whole.weights.h5")
    assert hashlib.sha256(whole.read_bytes()).hexdigest() in capsys.readouterr().out
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
    (checkpoint,) = tmp_path.glob("checkpoint-*.keras")
    other = train.parse([*numbers("other.weights.h5", tmp_path), "--learning-rate", "0.1"])
    assert other.checkpoint != checkpoint  # of another training: that is not gone on with
    resumed = run(tmp_path, "resumed.weights.h5")
    assert starts == [0, 2]
    assert not checkpoint.exists()
    weights = []
    for file in (whole, resumed):
        base = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(4, 5, strides=4)])
        base.load_weights(file)
        weights.append(base.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_network_is_the_one_of_the_table():
    params = Namespace(classes=3, size=32, steps=10, learning_rate=0.001, weight_decay=0.0, describe=1.0, seed=0)
    model = train.build(params)
    trunk = networks.build_trunk("tiny", "none", 32, "avg", 0)
    shapes = [[weight.shape for weight in network.get_layer("backbone").weights] for network in (model, trunk)]
    assert shapes[0] == shapes[1]
    assert [output.shape[1] for output in model.outputs] == [3, build_describer(32).output_shape[1]]

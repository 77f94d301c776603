"""The shipped model as its users call it."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import paint

from headstart.data.files import Folder, file_hash
from headstart.evaluation import shipped_model
from headstart.evaluation.shipped_model import compare_whole_images, latency_ms
from headstart.modalities import get_modality
from headstart.modalities.image.decode import decode
from headstart.training.networks import Classifier, build_head, join


@pytest.fixture(scope="module")
def model() -> Classifier:
    """A classifier of three classes by what stands where in images of 16 x 16 pixels."""
    keras.utils.set_random_seed(0)
    modality = get_modality("image")
    image = keras.Input((16, 16, 3), name="image")
    features = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(image))
    encoder = keras.Model({"image": image}, features, name="encoder")
    network = join(modality.front(16), encoder, build_head(16 * 16 * 3, 3, []))
    return Classifier(network, ["blue", "green", "red"], modality, 16)


@pytest.fixture
def examples(tmp_path: Path) -> pd.DataFrame:
    """Photographs of many sizes, one of them smaller than the network's input."""
    rows = []
    for number, size in enumerate([(10, 12), (16, 16), (90, 40), (200, 300)]):
        for suffix in (".png", ".jpg"):
            file = tmp_path / f"{number}{suffix}"
            paint(file, (40, 40, 200), number, size)
            rows.append((file.name, file_hash(file.read_bytes()), number % 3))
    return pd.DataFrame(rows, columns=["path", "file_hash", "target"])


def test_whole_images_give_the_probabilities_that_calling_the_model_gives(model, examples, tmp_path):
    images = [np.asarray(decode((tmp_path / path).read_bytes()), np.float32) for path in examples.path]
    called = np.concatenate([np.asarray(model.network(image[None])) for image in images])
    with Folder(tmp_path) as source:
        same = compare_whole_images(model, source, examples, called, 0)
        other = compare_whole_images(model, source, examples, called[:, ::-1], 0)
    assert same["examples"] == 8
    assert same["max_difference"] == pytest.approx(0, abs=1e-5)
    assert same["accuracy"] == same["pipeline_accuracy"] == (called.argmax(axis=1) == examples.target).mean()
    difference = abs(called - called[:, ::-1])
    assert other["max_difference"] == pytest.approx(difference.max(), abs=1e-5)
    assert other["mean_difference"] == pytest.approx(difference.mean(), abs=1e-5)
    assert other["pipeline_accuracy"] == (called[:, ::-1].argmax(axis=1) == examples.target).mean()


def test_of_many_examples_a_part_is_tried(model, examples, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped_model, "MAX_WHOLE", 3)
    with Folder(tmp_path) as source:
        assert compare_whole_images(model, source, examples, np.full((8, 3), 1 / 3), 0)["examples"] == 3


def test_latency_is_that_of_one_example(model):
    assert 0 < latency_ms(model) < 1000

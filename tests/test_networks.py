"""Heads and joined classifiers: what is saved is what was trained, and nothing else is loaded."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from headstart import paths
from headstart.backbones import get_backbone
from headstart.errors import UserError
from headstart.modalities import get_modality
from headstart.training import networks
from headstart.training.saved_head import load_head

SIZE = 32


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)


def save_classifier(file: Path, encoder: keras.Model, head: keras.Model, classes: list[str]) -> None:
    model = networks.join(get_modality("image").front(SIZE), encoder, head)
    networks.save(model, file, classes, modality="image", size=SIZE)


# Preprocessing: tf, caffe, inside.
@pytest.mark.parametrize(
    "backbone", ["tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vgg16", "efficientnetb0"))]
)
def test_features_through_the_head_equal_the_saved_classifier(backbone, images, tmp_path):
    encoder = get_backbone(backbone).build("none", SIZE, "avg", 0)
    head = networks.build_head(encoder.output_shape[1], 3, [8], dropout=0.5)
    features = networks.predict(encoder, images, 8)
    save_classifier(tmp_path / "model.keras", encoder, head, ["a", "b", "c"])
    classifier = networks.load_classifier(tmp_path / "model.keras")
    assert (classifier.classes, classifier.modality.name, classifier.size) == (["a", "b", "c"], "image", SIZE)
    batch = classifier.modality.batch(list(images))
    np.testing.assert_allclose(classifier.predict(batch), head.predict(features, verbose=0), atol=1e-6)


def test_dropout_is_inactive_however_a_classifier_is_called(images, tmp_path):
    """Keras would let it act if a model is called as a function."""
    encoder = get_backbone("tiny").build("none", SIZE, "avg", 0)
    save_classifier(tmp_path / "model.keras", encoder, networks.build_head(1280, 2, [4], dropout=0.5), ["a", "b"])
    model, _ = networks.load(tmp_path / "model.keras")
    assert np.asarray(model(images.astype(np.float32))) == pytest.approx(model.predict(images, verbose=0), abs=1e-5)


def test_the_same_model_gives_the_same_bytes(tmp_path):
    head = networks.build_head(4, 2, [3], dropout=0.1)
    for name in ("a.keras", "b.keras"):
        networks.save(head, tmp_path / name, ["x", "y"])
    assert (tmp_path / "a.keras").read_bytes() == (tmp_path / "b.keras").read_bytes()
    # Keras writes the memory addresses of shared parts, which differ only between processes.
    with zipfile.ZipFile(tmp_path / "a.keras") as archive:
        numbers = {int(number) for number in re.findall(rb'"shared_object_id": (\d+)', archive.read("config.json"))}
    assert numbers == set(range(len(numbers)))
    assert numbers


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist; run `dvc repro`"):
        networks.load(tmp_path / "none.keras")
    (tmp_path / "bad.keras").write_bytes(b"no zip")
    with pytest.raises(UserError, match="is not a model of this pipeline"):
        networks.load(tmp_path / "bad.keras")
    networks.save(networks.build_head(4, 2, []), tmp_path / "three.keras", ["a", "b", "c"])
    with pytest.raises(UserError, match=r"2 outputs and the class names \['a', 'b', 'c'\]"):
        networks.load(tmp_path / "three.keras")
    head = networks.build_head(4, 2, [])
    head.set_weights([np.full((4, 2), np.nan), np.zeros(2)])
    networks.save(head, tmp_path / "nan.keras", ["a", "b"])
    with pytest.raises(
        UserError, match=r"nan\.keras is not .* damaged \(its weights are NaN or infinite\); .* delete it"
    ):
        networks.load(tmp_path / "nan.keras")


def test_too_little_memory_is_not_called_damage(tmp_path, monkeypatch):
    networks.save(networks.build_head(4, 2, []), tmp_path / "head.keras", ["a", "b"])

    def load_model(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(keras.models, "load_model", load_model)
    with pytest.raises(MemoryError):
        networks.load(tmp_path / "head.keras")


@pytest.mark.parametrize("place", [0.02, 0.2, 0.5, 0.8])
def test_damaged_files_are_refused(tmp_path, place):
    networks.save(networks.build_head(4, 2, [3]), tmp_path / "head.keras", ["a", "b"])
    data = bytearray((tmp_path / "head.keras").read_bytes())
    start = int(place * len(data))
    data[start : start + 200] = bytes(200)
    (tmp_path / "damaged.keras").write_bytes(data)
    (tmp_path / "truncated.keras").write_bytes(data[:start])
    for name in ("damaged", "truncated"):
        with pytest.raises(UserError, match=rf"{name}\.keras is not a model .*delete it, then run `dvc checkout`"):
            networks.load(tmp_path / f"{name}.keras")


def test_a_head_for_other_features_or_classes_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in (paths.HEAD, paths.CLASSES):
        file.parent.mkdir(parents=True)
    networks.save(networks.build_head(4, 2, []), paths.HEAD, ["a", "b"])
    paths.CLASSES.write_text('["a", "b"]')
    assert load_head(4)[1] == ["a", "b"]
    assert load_head(5)[0].input_shape == (None, 4)  # the first ones
    with pytest.raises(UserError, match=r"head\.keras: must take at most 3 features, got .*`dvc repro train_head`"):
        load_head(3)
    paths.CLASSES.write_text('["a", "c"]')
    with pytest.raises(UserError, match=r"head\.keras: must have the classes of data.prepared.classes\.json, got a, b"):
        load_head(4)


def test_a_head_is_no_classifier(tmp_path):
    networks.save(networks.build_head(4, 2, []), tmp_path / "head.keras", ["a", "b"])
    with pytest.raises(UserError, match=r"head\.keras takes features, not examples; give the model that fine_tune"):
        networks.load_classifier(tmp_path / "head.keras")

"""Encoders as the registry builds them: weights, pooling, preprocessing."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras.src.legacy.saving import legacy_h5_format

from headstart.backbones import cached_backbones, get_backbone, keras_applications
from headstart.backbones.base import BACKBONE_LAYER, weights_sha256
from headstart.backbones.keras_applications import keras_folders
from headstart.backbones.keras_table import ROWS
from headstart.errors import UserError

# A backbone per way of preprocessing; two that do it inside, since EfficientNet and ConvNeXt use different layers.
SLOW = {"convnexttiny", "densenet121", "efficientnetb0"}
FAMILIES = ["tiny", "vgg16", "densenet121", "efficientnetb0", "convnexttiny", "mobilenetv3small"]


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.float32)


def build(
    backbone: str = "tiny", weights: str = "none", size: int = 32, pooling: str = "avg", seed: int = 0
) -> keras.Model:
    return get_backbone(backbone).build(weights, size, pooling, seed)


def test_the_families_cover_every_way_of_preprocessing():
    assert {get_backbone(name).preprocessing for name in FAMILIES} == {row.preprocessing for row in ROWS}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in FAMILIES]
)
def test_preprocessing_is_part_of_the_encoder(name, images):
    row = get_backbone(name)
    encoder = build(name)
    by_hand = getattr(keras.applications, row.module).preprocess_input(images.copy())
    expected = encoder.get_layer(BACKBONE_LAYER)(by_hand, training=False).numpy().mean(axis=(1, 2))
    found = encoder({"image": images}, training=False).numpy()
    assert found.shape == (5, row.feature_dim)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_poolings(images):
    vectors = {}
    for pooling in ("avg", "max", "flatten"):
        encoder = build(size=64, pooling=pooling)
        vectors[pooling] = encoder({"image": images.repeat(2, 1).repeat(2, 2)}, training=False).numpy()
    maps = vectors["flatten"].reshape(5, 4, 1280)
    assert np.allclose(vectors["avg"], maps.mean(axis=1), atol=1e-5)
    assert np.allclose(vectors["max"], maps.max(axis=1), atol=1e-5)


def test_random_weights_depend_on_the_seed_only():
    hashes = [weights_sha256(build(seed=seed)) for seed in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("backbone", ["vgg16", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_a_weights_file_is_loaded(backbone, tmp_path):
    base = getattr(keras.applications, get_backbone(backbone).constructor)(include_top=False, weights=None)
    base.save_weights(tmp_path / "own.weights.h5")
    assert weights_sha256(build(backbone, str(tmp_path / "own.weights.h5"))) == weights_sha256(base)


def test_weights_of_another_network_are_refused(tmp_path):
    build("mobilenetv3small").get_layer(BACKBONE_LAYER).save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(UserError, match=r"other\.weights\.h5: these weights do not fit tiny"):
        build("tiny", str(tmp_path / "other.weights.h5"))
    base = build("tiny").get_layer(BACKBONE_LAYER)
    base.set_weights([np.full_like(weights, np.nan) for weights in base.get_weights()])
    base.save_weights(tmp_path / "nan.weights.h5")
    with pytest.raises(UserError, match=r"nan\.weights\.h5: these weights do not fit .*\(they are NaN or infinite\)"):
        build("tiny", str(tmp_path / "nan.weights.h5"))
    with pytest.raises(UserError, match=r"weights file '.*none\.h5' does not exist"):
        build("tiny", str(tmp_path / "none.h5"))


def test_the_weights_of_the_repository_have_the_hash_in_the_table(monkeypatch, tmp_path):
    build("tiny", "pretrained")
    build().get_layer(BACKBONE_LAYER).save_weights(tmp_path / "tiny.weights.h5")
    monkeypatch.setattr(keras_applications, "TINY_WEIGHTS", tmp_path / "tiny.weights.h5")
    for damage in (lambda: None, (tmp_path / "tiny.weights.h5").unlink):
        damage()
        with pytest.raises(UserError, match=r"tiny\.weights\.h5: not the weights that keras_table\.py lists"):
            build("tiny", "pretrained")


@pytest.fixture
def cached(monkeypatch, tmp_path) -> tuple[Path, keras.Model]:
    """The file of MobileNetV2's weights for size 96 in Keras' cache, and the network with them.

    Random weights stand for ImageNet's, under the name and in the format that Keras publishes them.
    """
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))  # read from KERAS_HOME at import
    file = get_backbone("mobilenetv2").weights_path(96)
    file.parent.mkdir(parents=True)
    base = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(96, 96, 3))
    with h5py.File(file, "w") as h5:
        legacy_h5_format.save_weights_to_hdf5_group(h5, base)
    return file, base


def read_only(monkeypatch, folder: Path) -> None:
    """Let `folder` look like one of a read-only mount, to Python and to Keras."""
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not Path(path).is_relative_to(folder) and access(path, mode))
    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", no_network)


def no_network(*_: object) -> None:
    raise OSError("no network")


def test_weights_on_a_read_only_mount_are_used(monkeypatch, tmp_path, cached):
    """Keras by itself would look in /tmp/.keras, and download there."""
    file, base = cached
    read_only(monkeypatch, tmp_path)
    assert "mobilenetv2" not in cached_backbones()  # by default of size 224
    assert weights_sha256(build("mobilenetv2", "pretrained", 96)) == weights_sha256(base)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"_96_no_top\.h5: these weights do not fit mobilenetv2"):
        build("mobilenetv2", "pretrained", 96)


def test_the_sizes_whose_weights_are_here_are_named(monkeypatch, tmp_path, cached):
    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", no_network)
    with pytest.raises(UserError, match=r"mobilenetv2 for size 128 are not on this machine") as raised:
        build("mobilenetv2", "pretrained", 128)
    assert "\nSet extract.size of params.yaml to 96, for which weights of mobilenetv2 are here. " in str(raised.value)
    assert f"folder: {tmp_path / 'models'} (" in str(raised.value)


def test_weights_in_a_home_that_cannot_be_written_are_found(monkeypatch, tmp_path, cached):
    file, base = cached
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / ".keras" / "models").mkdir(parents=True)
    file.rename(tmp_path / "home" / ".keras" / "models" / file.name)
    read_only(monkeypatch, tmp_path)
    assert weights_sha256(build("mobilenetv2", "pretrained", 96)) == weights_sha256(base)


def test_imagenet_weights_come_from_the_cache_of_keras(cached):
    file, base = cached
    assert weights_sha256(build("mobilenetv2", "pretrained", 96)) == weights_sha256(base)

    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"_96_no_top\.h5: these weights of mobilenetv2 cannot be loaded .* remove the"):
        build("mobilenetv2", "pretrained", 96)


def test_unavailable_weights_are_reported_with_their_place(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(keras.applications, "VGG16", offline)
    with pytest.raises(UserError) as error:
        build("vgg16", "pretrained")
    for part in ("vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5", str(tmp_path / "models"), "here:   tiny"):
        assert part in str(error.value)


def test_a_home_without_a_keras_folder_yet_is_writable(monkeypatch, tmp_path):
    """Else weights that anybody may have put into /tmp would be taken."""
    monkeypatch.delenv("KERAS_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert keras_folders() == [tmp_path / ".keras"]

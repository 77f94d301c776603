from __future__ import annotations


import h5py
import keras
import numpy as np
import pytest
from keras.src.legacy.saving import legacy_h5_format

from headstart.backbones import keras_applications
from headstart.backbones.table import BACKBONES
from headstart.errors import UserError
from headstart.training import networks

# One backbone a way of preprocessing; `inside` twice, since EfficientNet and ConvNeXt do it by other layers.
FAMILIES = {
    "tiny": 32,
    "vgg16": 32,
    "densenet121": 32,
    "efficientnetb0": 32,
    "convnexttiny": 32,
    "mobilenetv3small": 32,
}


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


def trunk_of(backbone: str = "tiny", weights: str = "none", pooling: str = "avg", seed: int = 0) -> keras.Model:
    return keras_applications.build_trunk(backbone, weights, 32, pooling, seed)


def test_the_families_are_all_there():
    assert {BACKBONES[name].preprocessing for name in FAMILIES} == {row.preprocessing for row in BACKBONES.values()}


@pytest.mark.parametrize(("pooling", "width"), [("avg", 1280), ("max", 1280), ("flatten", 1280)])
def test_poolings(pooling, width, images):
    features = networks.predict(trunk_of(pooling=pooling), images, 8)
    assert features.shape == (5, width)  # 32 px leave one position of the feature map
    assert keras_applications.build_trunk("tiny", "none", 64, "flatten", 0).output_shape == (None, 4 * 1280)


def test_an_image_has_the_same_features_in_any_batch(images):
    trunk = trunk_of(weights="pretrained")
    whole = networks.predict(trunk, images, 5)
    for size in (1, 5, 64):  # on some processors TensorFlow rounds by size and place
        other = np.concatenate([networks.predict(trunk, images[[n]], size) for n in range(5)])
        assert np.abs(other - whole).max() <= 1e-5 * np.abs(whole).max()


def test_weights_without_training_are_drawn_from_the_seed():
    fingerprints = [keras_applications.weights_sha256(trunk_of(seed=seed)) for seed in (1, 1, 2)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


@pytest.mark.parametrize("backbone", ["vgg16", "resnet50"])
def test_a_weights_file_is_loaded(backbone, tmp_path):
    base = getattr(keras.applications, BACKBONES[backbone].constructor)(include_top=False, weights=None)
    base.save_weights(tmp_path / "own.weights.h5")
    assert keras_applications.weights_sha256(
        trunk_of(backbone, str(tmp_path / "own.weights.h5"))
    ) == keras_applications.weights_sha256(base)


def test_weights_of_another_network_are_refused(tmp_path):
    trunk_of("vgg16").get_layer("backbone").save_weights(tmp_path / "vgg.weights.h5")
    with pytest.raises(UserError, match=r"vgg\.weights\.h5: these weights do not fit tiny"):
        trunk_of("tiny", str(tmp_path / "vgg.weights.h5"))
    with pytest.raises(UserError, match=r"weights file '.*none\.h5' does not exist"):
        trunk_of("tiny", str(tmp_path / "none.h5"))


def test_the_weights_of_the_repository_are_those_of_the_table(monkeypatch, tmp_path):
    keras_applications.build_trunk("tiny", "pretrained", 32, "avg", 0)
    trunk_of().get_layer("backbone").save_weights(tmp_path / "tiny.weights.h5")
    monkeypatch.setattr("headstart.backbones.table.TINY_WEIGHTS", tmp_path / "tiny.weights.h5")
    for harm in (lambda: None, (tmp_path / "tiny.weights.h5").unlink):
        harm()
        with pytest.raises(UserError, match=r"tiny\.weights\.h5: not the weights that pipeline/backbones\.py lists"):
            keras_applications.build_trunk("tiny", "pretrained", 32, "avg", 0)


def test_imagenet_weights_come_from_the_cache_of_keras(monkeypatch, tmp_path):
    """Random weights take the place of ImageNet's, under the name and in the format that Keras publishes them."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))  # read from KERAS_HOME at import
    file = BACKBONES["mobilenetv2"].weights_path(96)
    file.parent.mkdir(parents=True)
    base = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(96, 96, 3))
    with h5py.File(file, "w") as h5:
        legacy_h5_format.save_weights_to_hdf5_group(h5, base)
    trunk = keras_applications.build_trunk("mobilenetv2", "pretrained", 96, "avg", 0)
    assert keras_applications.weights_sha256(trunk) == keras_applications.weights_sha256(base)

    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"_96_no_top\.h5: these weights of mobilenetv2 cannot be loaded .* remove the"):
        keras_applications.build_trunk("mobilenetv2", "pretrained", 96, "avg", 0)


def test_weights_that_cannot_be_had_are_named_with_their_place(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(keras.applications, "VGG16", offline)
    with pytest.raises(UserError) as error:
        trunk_of("vgg16", "pretrained")
    for part in ("vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5", str(tmp_path / "models"), "here:   tiny"):
        assert part in str(error.value)

"""Where a network looks if its head takes features of several depths."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from headstart.backbones import get_backbone
from headstart.backbones.depths import pooling_layers
from headstart.backbones.places import find_places
from headstart.modalities import get_modality
from headstart.report import attention
from headstart.training import networks

SIZE = 80  # feature maps of 3 x 3, and of 5 x 5, which no pixel of the former covers exactly
CLASSES = np.array([[0, 2], [1, 2]])


def make_classifier(pooling: str, of_roots: bool, hidden: list[int] | None = None) -> networks.Classifier:
    encoder = get_backbone("tiny").build("pretrained", SIZE, pooling, 0, "half")
    keras.utils.set_random_seed(0)
    head = networks.build_head(encoder.output_shape[1], 3, hidden or [], of_roots=of_roots)
    modality = get_modality("image")
    return networks.Classifier(networks.join(modality.front(SIZE), encoder, head), list("abc"), modality, SIZE)


def make_images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)


def features_of(classifier: networks.Classifier, images: np.ndarray) -> np.ndarray:
    return np.asarray(classifier.network.get_layer("encoder")({"image": images.astype(np.float32)}), np.float64)


def relative(values: np.ndarray) -> np.ndarray:
    """Return (b, k), the values (b, n_classes) of CLASSES less their mean over all classes."""
    return np.take_along_axis(values - values.mean(axis=1, keepdims=True), CLASSES, axis=1)


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_the_evidence_of_all_places_and_depths_adds_up_to_the_class_score(pooling):
    classifier, images = make_classifier(pooling, of_roots=False), make_images()
    kernel = classifier.network.get_layer("head").get_layer(networks.LOGITS_LAYER).get_weights()[0]
    found = attention.signed_maps(classifier, {"image": images}, CLASSES)
    assert found.shape == (2, 2, 3, 3)
    expected = relative(features_of(classifier, images) @ kernel)
    assert found.sum(axis=(2, 3)) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_with_roots_of_features_it_does_so_up_to_the_slope_of_the_root():
    classifier, images = make_classifier("avg", of_roots=True), make_images()
    kernel = classifier.network.get_layer("head").get_layer(networks.LOGITS_LAYER).get_weights()[0]
    features = features_of(classifier, images)
    size = np.abs(features)
    slope = 1 / np.sqrt(size + 0.01) - size / 2 / (size + 0.01) ** 1.5
    found = attention.signed_maps(classifier, {"image": images}, CLASSES)
    assert found.sum(axis=(2, 3)) == pytest.approx(relative((features * slope) @ kernel), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("hidden", [[], [8]])
def test_a_picture_without_content_gives_no_nan(hidden):
    classifier = make_classifier("avg", True, hidden)
    for grey in (0, 128, 255):
        found = attention.maps(classifier, {"image": np.full((2, SIZE, SIZE, 3), grey, np.uint8)}, CLASSES)[0]
        assert np.isfinite(found).all()
        assert found.min() >= 0
        assert found.max() <= 1


def test_evidence_of_early_layers_lies_where_it_is():
    """A head that takes nothing but the earliest feature map points at the only place where that is not flat."""
    classifier = make_classifier("avg", of_roots=False)
    encoder = classifier.network.get_layer("encoder")
    pool = pooling_layers(encoder)[-1]
    images = np.full((1, SIZE, SIZE, 3), 128, np.uint8)
    below = keras.Model(encoder.input, [pool.input, pool.output])
    flat = np.asarray(below({"image": images.astype(np.float32)})[1])[0]
    images[:, 56:, 56:] = np.random.default_rng(0).integers(0, 2, (3, 3, 3)).repeat(8, 0).repeat(8, 1) * 255
    kernel = np.zeros((encoder.output_shape[1], 3), np.float32)
    kernel[-pool.output.shape[-1] :, 1] = np.asarray(below({"image": images.astype(np.float32)})[1])[0] - flat
    classifier.network.get_layer("head").get_layer(networks.LOGITS_LAYER).set_weights([kernel, np.zeros(3)])
    found = attention.maps(classifier, {"image": images}, np.array([[1]]))[0][0, 0]
    assert np.unravel_index(found.argmax(), found.shape) == (2, 2)


def test_the_evidence_of_a_token_is_what_the_score_changes_by(tmp_path):
    """Of a transformer, up to first order, at the place that the token stands for."""
    pytest.importorskip("keras_hub", exc_type=ImportError)
    from reference_models import write_model

    encoder = get_backbone(str(write_model("dinov2-registers", tmp_path))).build("pretrained", 56, "avg", 0, "half")
    keras.utils.set_random_seed(0)
    head, modality = networks.build_head(encoder.output_shape[1], 3, []), get_modality("image")
    classifier = networks.Classifier(networks.join(modality.front(56), encoder, head), list("abc"), modality, 56)
    images = np.random.default_rng(0).integers(0, 256, (1, 56, 56, 3), np.uint8)
    found = attention.signed_maps(classifier, {"image": images}, np.array([[0]]))[0, 0]
    assert found.shape == (4, 4)
    below, places = find_places(encoder)
    vectors = below({"image": images.astype(np.float32)})
    tokens = [np.array(vectors[str(number)], np.float64) for number in range(len(places))]
    kernel = head.get_layer(networks.LOGITS_LAYER).get_weights()[0]

    def score(changed: list[np.ndarray]) -> float:
        features = [np.asarray(one.above(part.astype(np.float32))) for one, part in zip(places, changed, strict=True)]
        logits = np.concatenate(features, axis=1).astype(np.float64) @ kernel
        return float(logits[0, 0] - logits[0].mean())

    for row, column in [(0, 0), (1, 2), (3, 3)]:
        place = tokens[0].shape[1] - 16 + 4 * row + column  # patches come last, row by row
        ends = []
        for step in (0.02, -0.02):
            changed = [part.copy() for part in tokens]
            for part in changed:
                part[0, place] *= 1 + step
            ends.append(score(changed))
        assert found[row, column] == pytest.approx((ends[0] - ends[1]) / 0.04, rel=0.05, abs=1e-4)

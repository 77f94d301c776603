"""What a network goes by when it answers; `Modality.explain` makes pictures or quotations of it.

Where in an image it sees evidence for a class: the last feature map times the gradient of the class score, summed over
channels, which is what each place adds to the score if the head is linear (HiResCAM,
https://arxiv.org/abs/2011.08891). Unlike Grad-CAM, which averages the gradient over places first, it also holds for
flattened features; for features averaged over all places both agree. If the head takes features of several depths, the
feature map of each adds its part. Of a vision transformer its attention is shown instead, see `report.rollout`; if that
cannot be read, its tokens take the place of a feature map, where they enter its last layer: since that is not linear,
the sum over all places is the score up to first order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from headstart.backbones.attentions import find_chain
from headstart.backbones.places import find_places
from headstart.errors import one_line
from headstart.framework import keras, tf
from headstart.modalities import Batch
from headstart.modalities.lengths import map_batches
from headstart.report.rollout import rollout
from headstart.training import networks
from headstart.training.networks import Classifier


class NetworkEvidence:
    """The evidence of a classifier, see `headstart.modalities.explaining.Evidence`."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    def maps(self, arrays: Sequence[np.ndarray], classes: np.ndarray) -> tuple[np.ndarray, str]:
        return maps(self._classifier, self._classifier.modality.batch(arrays), classes)

    def scores(self, arrays: Sequence[np.ndarray], classes: np.ndarray) -> np.ndarray:
        encoder, head = (self._classifier.network.get_layer(name) for name in ("encoder", "head"))
        network = keras.Model(encoder.input, networks.without_softmax(head)(encoder.output, training=False))
        run = partial(networks.predict, network, batch_size=networks.PREDICTION_BATCH)
        logits = map_batches(run, self._classifier.modality, arrays, networks.PREDICTION_BATCH)
        found = np.take_along_axis(logits, classes, axis=1)
        return found - logits.mean(axis=1, keepdims=True)


def maps(classifier: Classifier, batch: Batch, classes: np.ndarray) -> tuple[np.ndarray, str]:
    """Return the evidence for classes by place.

    Args:
        batch: b images of the size that the classifier takes.
        classes: (b, k) int: the classes in question for each image.

    Returns:
        (b, k, h, w) float32 in [0, 1], h and w those of the backbone's last feature map or of the patches: each map has
        a maximum of 1, or is all 0 if nothing speaks for the class. And what they show, in words.
    """
    encoder, head = (classifier.network.get_layer(name) for name in ("encoder", "head"))
    words = "evidence for a class, by place, in the last feature map of the backbone"
    try:
        chain = find_chain(encoder)
        if chain:
            found = rollout(encoder, chain, networks.without_softmax(head), batch, classes)
            found -= found.min(axis=(2, 3), keepdims=True)
            return _with_maximum_of_1(found), "where the backbone looks for a class, by attention rollout"
    except (AttributeError, TypeError, ValueError, tf.errors.ResourceExhaustedError) as error:  # layers may change
        reason = f"attention rollout failed: {one_line(error)}"
        print(f"results page: {reason}; it shows gradient times token")
        words = f"evidence for a class, by place, in the tokens that its last layer reads ({reason})"
    return _with_maximum_of_1(np.maximum(signed_maps(classifier, batch, classes), 0)), words


def _with_maximum_of_1(found: np.ndarray) -> np.ndarray:
    return found / np.maximum(found.max(axis=(2, 3), keepdims=True), np.finfo(np.float32).tiny)


def signed_maps(classifier: Classifier, batch: Batch, classes: np.ndarray) -> np.ndarray:
    """Return by place what speaks for classes, (b, k, h, w) float32, or if negative against them.

    The sum over all places is the features times the gradient by them of the logit of the class, less the mean of all
    logits: evidence for all classes decides nothing.
    """
    encoder, head = (classifier.network.get_layer(name) for name in ("encoder", "head"))
    below, places = find_places(encoder)
    logits_of = networks.without_softmax(head)
    images = {name: tf.cast(array, tf.float32) for name, array in batch.items()}
    found_maps = below(images, training=False)
    feature_maps = [tf.convert_to_tensor(found_maps[str(number)]) for number in range(len(places))]
    found, size = [], places[0].grid
    for column in classes.T:
        with tf.GradientTape() as tape:
            tape.watch(feature_maps)
            features = tf.concat(
                [one.above(part, training=False) for one, part in zip(places, feature_maps, strict=True)], axis=-1
            )
            logits = logits_of(features, training=False)
            score = tf.gather(logits, column, batch_dims=1, axis=1) - tf.reduce_mean(logits, axis=1)
        gradients, evidence = tape.gradient(score, feature_maps), np.zeros((len(column), *size), np.float32)
        for one, gradient, part in zip(places, gradients, feature_maps, strict=True):
            # Means over areas, times the ratio of both sizes: sums stay as they are.
            sums = one.by_place(tf.reduce_sum(gradient * part, axis=-1, keepdims=True))
            ratio = sums.shape[1] * sums.shape[2] / (size[0] * size[1])
            evidence += ratio * tf.image.resize(sums, size, tf.image.ResizeMethod.AREA)[..., 0].numpy()
        found.append(evidence)
    return np.stack(found, axis=1)

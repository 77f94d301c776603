"""Where in an image the network sees evidence for a class.

The last feature map times the gradient of the class score, summed over channels: what each place adds to the score,
if the head is linear (HiResCAM, https://arxiv.org/abs/2011.08891). Unlike Grad-CAM, which averages the gradient over
places first, it also holds for flattened features; for features averaged over all places both agree. If the head takes
features of several depths, the feature map of each adds its part.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from headstart.backbones.depths import pooling_layers
from headstart.framework import keras, tf
from headstart.modalities import Batch
from headstart.modalities.image import data_url
from headstart.training import networks
from headstart.training.networks import Classifier

SIDE = 160  # pixels of a picture, the longer side


def maps(classifier: Classifier, batch: Batch, classes: np.ndarray) -> np.ndarray:
    """Return the evidence for classes by place.

    Args:
        batch: b images of the size that the classifier takes.
        classes: (b, k) int: the classes in question for each image.

    Returns:
        (b, k, h, w) float32 in [0, 1], h and w those of the backbone's last feature map: each map has a maximum of 1,
        or is all 0 if nothing speaks for the class.
    """
    found = np.maximum(signed_maps(classifier, batch, classes), 0)
    return found / np.maximum(found.max(axis=(2, 3), keepdims=True), np.finfo(np.float32).tiny)


def signed_maps(classifier: Classifier, batch: Batch, classes: np.ndarray) -> np.ndarray:
    """Return by place what speaks for classes, (b, k, h, w) float32, or if negative against them.

    The sum over all places is the features times the gradient by them of the logit of the class, less the mean of all
    logits: evidence for all classes decides nothing.
    """
    encoder, head = (classifier.network.get_layer(name) for name in ("encoder", "head"))
    pools = pooling_layers(encoder)
    # By name, since Keras takes a list of one output as that output.
    below = keras.Model(encoder.input, {pool.name: pool.input for pool in pools})
    logits_of = networks.without_softmax(head)
    images = {name: tf.cast(array, tf.float32) for name, array in batch.items()}
    found_maps = below(images, training=False)
    feature_maps = [tf.convert_to_tensor(found_maps[pool.name]) for pool in pools]
    found, size = [], feature_maps[0].shape[1:3]
    for column in classes.T:
        with tf.GradientTape() as tape:
            tape.watch(feature_maps)
            features = tf.concat([pool(one) for pool, one in zip(pools, feature_maps, strict=True)], axis=-1)
            logits = logits_of(features, training=False)
            score = tf.gather(logits, column, batch_dims=1, axis=1) - tf.reduce_mean(logits, axis=1)
        gradients, evidence = tape.gradient(score, feature_maps), np.zeros((len(column), *size), np.float32)
        for gradient, one in zip(gradients, feature_maps, strict=True):
            # Means over areas, times the ratio of both sizes: sums stay as they are.
            places = tf.reduce_sum(gradient * one, axis=-1, keepdims=True)
            ratio = places.shape[1] * places.shape[2] / (size[0] * size[1])
            evidence += ratio * tf.image.resize(places, size, tf.image.ResizeMethod.AREA)[..., 0].numpy()
        found.append(evidence)
    return np.stack(found, axis=1)


def pictures(classifier: Classifier, files: list[bytes], classes: np.ndarray) -> tuple[list[list[str]], str]:
    """Draw image files with the evidence for classes.

    Args:
        files: n image files.
        classes: (n, k) int, as in `maps`.

    Returns:
        For each file the addresses of k + 1 pictures, the plain one first; and the size of a map, as `7 x 7`.
    """
    modality = classifier.modality
    batch = modality.batch([modality.load(data, classifier.size) for data in files])
    found = maps(classifier, batch, classes)
    drawn = []
    for data, evidence in zip(files, found, strict=True):
        image = _scaled(modality.whole(data))
        drawn.append([data_url(image), *(data_url(_overlay(image, one)) for one in evidence)])
    return drawn, " x ".join(map(str, found.shape[2:]))


def _scaled(pixels: np.ndarray) -> Image.Image:
    """An image, (h, w, 3) uint8, its longer side SIDE, even if it is smaller."""
    image = Image.fromarray(pixels)
    width, height = (max(round(side * SIDE / max(image.size)), 1) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)


def _overlay(image: Image.Image, evidence: np.ndarray) -> Image.Image:
    """The image in grey, with red and yellow where `evidence`, (h, w) in [0, 1], is high."""
    heat = np.asarray(Image.fromarray(evidence).resize(image.size, Image.Resampling.BICUBIC))[..., None].clip(0)
    strength = heat / max(float(heat.max()), np.finfo(np.float32).tiny)
    colour = np.concatenate(
        [np.full_like(strength, 255), 255 * np.clip(1.6 * strength - 0.5, 0, 1), np.full_like(strength, 30)], axis=-1
    )
    grey = np.asarray(image.convert("L"), np.float32)[..., None]
    return Image.fromarray(np.uint8(grey * (1 - 0.75 * strength) + 0.75 * strength * colour))

"""Where in an image a classifier sees what speaks for a class.

The last feature map times the gradient of the class' score, summed over channels: what each place adds to the score, as
far as the head is linear (HiResCAM, https://arxiv.org/abs/2011.08891). Unlike Grad-CAM, which averages the gradient
over places first, it also holds for features that are flattened; for those averaged over all places both agree.
"""

from __future__ import annotations

import numpy as np

from headstart.backbones import keras_applications
from headstart.framework import keras, tf
from headstart.training import networks


def maps(model: keras.Model, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """What speaks for a class, by place.

    Args:
        model: a classifier made by `networks.join`.
        images: (b, size, size, 3) uint8 RGB, of the size that the model resizes to.
        classes: (b, k) int: the classes that are asked about, of each image.

    Returns:
        (b, k, h, w) float32 in [0, 1], h and w those of the backbone's last feature map: the largest of each map is 1,
        or all are 0 where nothing speaks for the class.
    """
    trunk, head = model.get_layer("trunk"), model.get_layer("head")
    pool = trunk.get_layer(keras_applications.POOL_LAYER)
    below = keras.Model(trunk.input, pool.input)
    logits_of = networks.without_softmax(head)
    features = tf.convert_to_tensor(below(tf.cast(images, tf.float32), training=False))
    found = []
    for asked in classes.T:
        with tf.GradientTape() as tape:
            tape.watch(features)
            logits = logits_of(pool(features), training=False)
            # Against the other classes: what speaks for all alike decides nothing.
            score = tf.gather(logits, asked, batch_dims=1, axis=1) - tf.reduce_mean(logits, axis=1)
        spoken = tf.nn.relu(tf.reduce_sum(tape.gradient(score, features) * features, axis=-1)).numpy()
        found.append(spoken / np.maximum(spoken.max(axis=(1, 2), keepdims=True), np.finfo(np.float32).tiny))
    return np.stack(found, axis=1)

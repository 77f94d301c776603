"""Where a vision transformer looks for a class: attention rollout, weighted by gradients.

Plain rollout (https://arxiv.org/abs/2005.00928) multiplies the attention of all layers, each plus the identity for what
passes beside it: the same for every class. Here each attention counts as far as the score of the class rises with it
(https://arxiv.org/abs/2103.15679, for self-attention): of layer after layer R becomes R + A R, where A is the mean over
heads of the attention times the gradient of the score by it, without what is negative. Shown is the row of R of what
the features are: the class token, the mean of the tokens, both, or several depths, each as far as the score rests on
it. What pools by attention is one more layer.

Only that row is needed. It is found from the output down, together with the gradients, one layer at a time: then the
attention of no more than one layer is in memory.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from headstart.backbones.attentions import Chain
from headstart.framework import keras, tf
from headstart.modalities import Batch

TOLERANCE = 0.05  # of the largest feature: more than rounding in bfloat16 makes of it, less than a forgotten step
_TINY = np.finfo(np.float32).tiny


def rollout(
    encoder: keras.Model, chain: Chain, logits_of: keras.Model, batch: Batch, classes: np.ndarray
) -> np.ndarray:
    """Return where the network looks for classes, (b, k, h, w) float32, 0 and more.

    Args:
        encoder, chain: a network and its steps, see `find_chain`.
        logits_of: features -> logits.
        batch: b images.
        classes: (b, k) int. The score of a class is its logit less the mean of all logits.

    Raises:
        ValueError: if the steps do not give the features that the network gives.
    """
    images = {name: tf.cast(array, tf.float32) for name, array in batch.items()}
    expected = tf.cast(encoder(images, training=False), tf.float32)
    found = []
    for number, row in enumerate(classes):
        one = {name: array[number : number + 1] for name, array in images.items()}
        found.append(_of_image(chain, logits_of, one, row, expected[number]))
    return np.stack(found)


def _of_image(
    chain: Chain, logits_of: keras.Model, image: dict[str, tf.Tensor], classes: np.ndarray, expected: tf.Tensor
) -> np.ndarray:
    """Return (k, h, w) for one image, which goes through the network once for each class."""
    states = [tf.repeat(chain.below(image, training=False), len(classes), axis=0)]
    for block in chain.blocks:
        states.append(block(states[-1])[0])
    relevance = shown = tf.zeros(states[0].shape[:2])
    gradient = tf.zeros_like(states[0])
    starts = {start.after: start for start in _starts(chain, logits_of, states, classes, expected)}
    for number in reversed(range(len(chain.blocks))):
        if start := starts.get(number + 1):
            relevance, gradient = relevance + start.share, gradient + start.gradient
            shown = shown + (0.0 if start.looks else start.share)
        with tf.GradientTape() as tape:
            tape.watch(states[number])
            tokens, attention = chain.blocks[number](states[number])
        gradient, by_attention = tape.gradient(tokens, [states[number], attention], output_gradients=gradient)
        relevance = relevance + tf.einsum("kq,kqt->kt", relevance, _weigh(attention, by_attention))
    height, width = chain.grid
    return tf.reshape((relevance - shown)[:, -height * width :], (-1, height, width)).numpy()


class _Start(NamedTuple):
    """What the features of a depth rest on.

    Attributes:
        after: how many blocks come before.
        share: (k, t) float32 of each token; over all depths they add up to 1.
        looks: whether that says where the network looks; else the tokens are alike, or have no place.
        gradient: (k, t, dim), of the scores by the tokens.
    """

    after: int
    share: tf.Tensor
    looks: bool
    gradient: tf.Tensor


def _starts(
    chain: Chain, logits_of: keras.Model, states: list[tf.Tensor], classes: np.ndarray, expected: tf.Tensor
) -> list[_Start]:
    """Return where relevance starts from: at each depth that gives features."""
    tokens = [states[after] for after, _ in chain.pools]
    with tf.GradientTape() as tape:
        tape.watch(tokens)
        pooled = [pool(one) for (_, pool), one in zip(chain.pools, tokens, strict=True)]
        vectors, attentions = [tf.cast(vector, tf.float32) for vector, _ in pooled], [one for _, one in pooled]
        features = tf.concat(vectors, axis=-1)
        logits = logits_of(features, training=False)
        score = tf.gather(logits, classes, batch_dims=1, axis=1) - tf.reduce_mean(logits, axis=1)
    if not np.abs(features - expected).max() <= TOLERANCE * np.abs(expected).max():
        raise ValueError("its layers, called one by one, give other features than the network does")
    there = [one for one in attentions if one is not None]
    by_tokens, by_vectors, by_attentions = tape.gradient(score, [tokens, vectors, there])
    sizes = [
        tf.reduce_sum(tf.abs(by * one), axis=1, keepdims=True) for by, one in zip(by_vectors, vectors, strict=True)
    ]
    whole, left = tf.maximum(tf.add_n(sizes), _TINY), iter(by_attentions)
    found = []
    for (after, _), attention, size, by in zip(chain.pools, attentions, sizes, by_tokens, strict=True):
        looks = attention is not None
        share = _weigh(attention, next(left))[:, 0] if looks else tf.norm(tf.cast(by, tf.float32), axis=-1)
        share = share / tf.maximum(tf.reduce_sum(share, axis=1, keepdims=True), _TINY)
        found.append(_Start(after, share * size / whole, looks, by))
    return found


def _weigh(attention: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    """Return how far each token matters to each, (k, q, t) float32 of (k, heads, q, t)."""
    return tf.reduce_mean(tf.nn.relu(tf.cast(attention * gradient, tf.float32)), axis=1)

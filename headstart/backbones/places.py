"""Where in a network there is a vector for each place of an image: its feature maps, or the tokens of a transformer."""

from __future__ import annotations

from typing import NamedTuple

from headstart.backbones.base import BACKBONE_LAYER
from headstart.backbones.depths import pooling_layers
from headstart.backbones.vision_transformers import BLOCK, PATCHES
from headstart.framework import keras


class Places(NamedTuple):
    """What the features of one depth are computed from.

    Attributes:
        above: a feature map (N, h, w, channels), or tokens (N, k + h * w, channels) -> the features.
        grid: h, w.
    """

    above: keras.Model
    grid: tuple[int, int]

    def by_place(self, values: keras.KerasTensor) -> keras.KerasTensor:
        """Return (N, h, w, c) of values for each place, (N, ..., c): without the k tokens that have no place."""
        height, width = self.grid
        if len(values.shape) == 4:
            return values
        return keras.ops.reshape(values[:, values.shape[1] - height * width :], (-1, height, width, values.shape[-1]))


def find_places(encoder: keras.Model) -> tuple[keras.Model, list[Places]]:
    """Return the places that features come from, in the order of the features.

    Of a transformer those are the tokens that enter its last layer: behind that its class token is all that counts.

    Returns:
        What gives the vectors of all of them at once, by the names "0", "1", ...; and the places. By name, since Keras
        takes a list of one output as that output.
    """
    pools = pooling_layers(encoder)
    if all(len(pool.input.shape) == 4 for pool in pools):
        places = [Places(keras.Model(pool.input, pool.output), tuple(pool.input.shape[1:3])) for pool in pools]
        return keras.Model(encoder.input, _named([pool.input for pool in pools])), places
    base = encoder.get_layer(BACKBONE_LAYER)
    tokens = [block_of(vector)._inbound_nodes[0].input_tensors[0] for vector in base.outputs]
    grid = tuple(base.get_layer(PATCHES).output.shape[1:3])
    preprocessed = base._inbound_nodes[-1].input_tensors
    below = keras.Model(encoder.input, keras.Model(base.inputs, _named(tokens))(preprocessed, training=False))
    return below, [Places(keras.Model(one, vector), grid) for one, vector in zip(tokens, base.outputs, strict=True)]


def _named(tensors: list[keras.KerasTensor]) -> dict[str, keras.KerasTensor]:
    return {str(number): tensor for number, tensor in enumerate(tensors)}


def block_of(tensor: keras.KerasTensor) -> keras.Layer:
    """Return the layer of the transformer that something is computed from."""
    step = tensor._keras_history.operation
    while not BLOCK.match(step.name):
        step = step._inbound_nodes[0].parent_nodes[0].operation
    return step

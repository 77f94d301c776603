"""What the tokens of a vision transformer look at: the attention of each of its layers, as KerasHub computes it.

A layer of KerasHub keeps its attention to itself. Here its own parts are called one after the other, once for each kind
of layer, and the attention is given beside the output. That both ways compute the same is for the caller to check.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from headstart.backbones.base import BACKBONE_LAYER
from headstart.backbones.places import block_of
from headstart.backbones.vision_transformers import BLOCK, PATCHES
from headstart.framework import keras

# Tokens (N, t, dim) -> tokens and their attention, (N, heads, t, t): of each token to all of them, which adds up to 1.
Attended = tuple[keras.KerasTensor, keras.KerasTensor]
Step = Callable[[keras.KerasTensor], Attended]
# Tokens (N, t, dim) -> the features of a depth, and the attention that pools them, (N, heads, 1, t), if there is one.
Pool = Callable[[keras.KerasTensor], tuple[keras.KerasTensor, keras.KerasTensor | None]]


class Chain(NamedTuple):
    """A vision transformer, step by step.

    Attributes:
        below: images -> the tokens that enter the first block.
        blocks: in the order of the network.
        pools: for each depth, in the order of the features, after how many blocks it takes the tokens, and how.
        grid: h, w of the patches, which are the last tokens.
    """

    below: keras.Model
    blocks: list[Step]
    pools: list[tuple[int, Pool]]
    grid: tuple[int, int]


def find_chain(encoder: keras.Model) -> Chain | None:
    """Return the steps of a vision transformer; None if the encoder is none.

    Raises:
        ValueError: if a layer is of a kind that is not known here.
    """
    base = encoder.get_layer(BACKBONE_LAYER)
    layers = [layer for layer in getattr(base, "layers", []) if BLOCK.match(layer.name)]
    if not layers or PATCHES not in {layer.name for layer in base.layers}:
        return None
    first = keras.Model(base.inputs, layers[0]._inbound_nodes[0].input_tensors[0])
    below = keras.Model(encoder.input, first(base._inbound_nodes[-1].input_tensors, training=False))
    pools = []
    for vector in base.outputs:
        block = block_of(vector)
        pools.append((layers.index(block) + 1, _pool(block.output, vector)))
    return Chain(below, [_step(base, layer) for layer in layers], pools, base.get_layer(PATCHES).output.shape[1:3])


def _step(base: keras.Model, layer: keras.Layer) -> Step:
    kind = type(layer).__name__
    if kind == "DINOV3Layer":
        return lambda tokens: _dinov3(base, layer, tokens)
    if kind not in _STEPS:
        raise ValueError(f"the attention of a {kind} cannot be read")
    return lambda tokens: _STEPS[kind](layer, tokens)


def _siglip(layer: keras.Layer, tokens: keras.KerasTensor) -> Attended:
    """Of SigLIP, ViT and DeiT, see `vision_transformers`."""
    normed = layer.layer_norm1(tokens)
    change, attention = layer.self_attn(normed, normed, return_attention_scores=True, training=False)
    tokens = tokens + change
    return tokens + layer.mlp(layer.layer_norm2(tokens), training=False), attention


def _clip(layer: keras.Layer, tokens: keras.KerasTensor) -> Attended:
    normed = layer.layer_norm_1(tokens)
    causal = layer.use_causal_mask  # KerasHub's vision encoder sets it to False
    change, attention = layer.attention(
        normed, normed, return_attention_scores=True, use_causal_mask=causal, training=False
    )
    tokens = tokens + change
    return tokens + layer.dense_2(layer.activation(layer.dense_1(layer.layer_norm_2(tokens)))), attention


def _dinov2(layer: keras.Layer, tokens: keras.KerasTensor) -> Attended:
    normed = layer.norm1(tokens)
    change, attention = layer.attention.attention(normed, normed, return_attention_scores=True, training=False)
    tokens = tokens + layer.layer_scale1(change)
    return tokens + layer.layer_scale2(layer.mlp(layer.norm2(tokens), training=False)), attention


def _dinov3(base: keras.Model, layer: keras.Layer, tokens: keras.KerasTensor) -> Attended:
    """Its attention rotates by position and is KerasHub's own, which gives no probabilities."""
    ops, attend, normed = keras.ops, layer.attention, layer.norm1(tokens)
    cropping, places, angles = (base.get_layer(f"{layer.name}_{part}") for part in ("patches", "places", "angles"))
    cos, sin = angles(places(cropping(tokens)))
    heads = (-1, tokens.shape[1], attend.num_heads, attend.head_dim)
    query, key, value = (
        ops.reshape(dense(normed), heads) for dense in (attend.query_dense, attend.key_dense, attend.value_dense)
    )
    query, key = attend._apply_rotary(query, key, cos, sin, cropping.cropping[0])
    attention = ops.softmax(ops.einsum("nqhd,nkhd->nhqk", query, key) * attend.scale)
    change = attend.output_dense(ops.reshape(ops.einsum("nhqk,nkhd->nqhd", attention, value), ops.shape(tokens)))
    tokens = tokens + layer.layer_scale1(change)
    return tokens + layer.layer_scale2(layer.mlp(layer.norm2(tokens), training=False)), attention


_STEPS = {"CLIPEncoderLayer": _clip, "DINOV2Layer": _dinov2, "SigLIPEncoderLayer": _siglip}


def _pool(tokens: keras.KerasTensor, vector: keras.KerasTensor) -> Pool:
    """Return how the graph gets from the tokens of a block to a vector."""
    head = vector._keras_history.operation
    if type(head).__name__ != "SigLIPMultiHeadAttentionPooling":
        whole = keras.Model(tokens, vector)
        return lambda states: (whole(states, training=False), None)
    norm = keras.Model(tokens, head._inbound_nodes[0].input_tensors[0])

    def pool(states: keras.KerasTensor) -> Attended:
        normed = norm(states, training=False)
        probes = keras.ops.repeat(head.probe, keras.ops.shape(normed)[0], axis=0)
        found, attention = head.attention(probes, normed, return_attention_scores=True, training=False)
        return (found + head.mlp(head.layer_norm(found), training=False))[:, 0], attention

    return pool

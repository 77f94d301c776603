"""Vision transformers of KerasHub as one plain chain of layers, for images of any size.

KerasHub's own networks keep all their layers in a single one, with position embeddings for one image size. Here they
become patches -> tokens with positions -> one layer per block -> norm: what splitting, several depths and layer-wise
learning rates need. What in KerasHub differs from the models it converts is mended here, each with its reason:

- Layers of ViT and DeiT cannot be saved in such a chain (their config does not fit their constructor), take 1e-6 for
  any `layer_norm_eps`, and GELU for any activation: SigLIP's, which computes the same, takes their weights.
- Bicubic interpolation of positions differs between TensorFlow and PyTorch, in which the models were trained.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import keras

PATCHES = "patches"  # the layer that makes patches, and the block of the layers before the first one
BLOCK = re.compile(r"block_\d+$")  # the layers of a transformer
_KEYS, _ANTIALIASED_KEYS = -0.75, -0.5  # parameter of Keys' cubic in PyTorch, without and with antialiasing

Step = Callable[["keras.KerasTensor"], "keras.KerasTensor"]


class Parts(NamedTuple):
    """What a network of KerasHub consists of.

    Attributes:
        patch: its convolution, whose kernel is (p, p, 3, dim).
        prefix: (k, dim) float32: tokens before those of the patches, with their positions.
        positions: (h, w, dim) float32 of the patches; None: layers rotate by position.
        norm: before the first block, or None.
        blocks: layers.
        after: the norm of the output.
        head: what pools tokens by attention, or None.
        antialias: whether positions are interpolated so.
    """

    patch: keras.Layer
    prefix: np.ndarray
    positions: np.ndarray | None
    norm: keras.Layer | None
    blocks: list[keras.Layer]
    after: keras.Layer
    head: keras.Layer | None = None
    antialias: bool = False


class Tower(NamedTuple):
    """A chain of layers.

    Attributes:
        image: the input, (N, size, size, 3) float32, preprocessed.
        tokens: the output, (N, k + patches, dim).
        prefix: k, how many tokens come before those of the patches.
        head: as of `Parts`.
    """

    image: keras.KerasTensor
    tokens: keras.KerasTensor
    prefix: int
    head: keras.Layer | None


def is_transformer(network: keras.Model) -> bool:
    """Whether a network of KerasHub is one that `build_tower` can take apart."""
    return type(network).__name__ in _READERS


def vision_part(network: keras.Model) -> keras.Model:
    """Return the part of a network of KerasHub that takes images alone, itself if that is all of it."""
    for name in ("vision_encoder", "image_encoder"):
        network = getattr(network, name, network)
    return network


def build_tower(network: keras.Model, config: dict[str, Any], size: int) -> Tower:
    """Build the chain for images of that size, a multiple of the patch size.

    Args:
        network: of KerasHub; its layers are copied, since they may belong to a chain already.
        config: config.json by Hugging Face, or that of KerasHub.
    """
    import keras
    import keras_hub

    parts = _READERS[type(network).__name__](network, config)
    (patch, _), (count, dim) = parts.patch.kernel_size, parts.prefix.shape
    grid = size // patch
    positions = np.zeros((grid, grid, dim), np.float32)
    if parts.positions is not None:
        positions = interpolate(parts.positions, grid, parts.antialias)
    table = np.concatenate([parts.prefix, positions.reshape(-1, dim)])

    image = keras.Input((size, size, 3), name="pixels")
    convolution = keras.layers.Conv2D(dim, patch, strides=patch, use_bias=parts.patch.use_bias, name=PATCHES)
    tokens = keras.layers.Reshape((grid * grid, dim), name="tokens")(convolution(image))
    convolution.set_weights(parts.patch.get_weights())
    if count:  # what stands in their place is all in the position embeddings
        tokens = keras.layers.ZeroPadding1D((count, 0), name="prefix")(tokens)
    embedding = keras_hub.layers.PositionEmbedding(len(table), name="positions")
    tokens = keras.layers.Add(name="embeddings")([tokens, embedding(tokens)])
    embedding.set_weights([table])
    if parts.norm:
        tokens = _copy(parts.norm, "norm_before", tokens.shape)(tokens)
    for number, layer in enumerate(parts.blocks, 1):
        step = _copy(layer, f"block_{number}", tokens.shape)
        tokens = (_rotary(step, network, count, grid) if parts.positions is None else step)(tokens)
    tokens = _copy(parts.after, "norm", tokens.shape)(tokens)
    return Tower(image, tokens, count, parts.head and _copy(parts.head, "head", tokens.shape))


def interpolate(positions: np.ndarray, side: int, antialias: bool = False) -> np.ndarray:
    """Resize position embeddings, (h, w, dim) to (side, side, dim), bicubic as PyTorch does it."""
    if positions.shape[:2] == (side, side):
        return positions
    rows, columns = (_weights(length, side, antialias) for length in positions.shape[:2])
    return np.einsum("yh,xw,hwd->yxd", rows, columns, positions.astype(np.float64)).astype(np.float32)


def _weights(source: int, target: int, antialias: bool) -> np.ndarray:
    """Return the weights of each place, (target, source), when a line is resized."""
    scale = source / target
    stretch = max(scale, 1.0) if antialias else 1.0
    a = _ANTIALIASED_KEYS if antialias else _KEYS
    found = np.zeros((target, source))
    for place in range(target):
        centre = (place + 0.5) * scale - 0.5
        reach = math.ceil(2 * stretch)
        for other in range(math.floor(centre) - reach, math.floor(centre) + reach + 2):
            weight = _cubic(abs(other - centre) / stretch, a)
            if 0 <= other < source or not antialias:  # else places outside are as the one at the edge
                found[place, min(max(other, 0), source - 1)] += weight
    return found / found.sum(axis=1, keepdims=True)


def _cubic(distance: float, a: float) -> float:
    if distance < 1:
        return ((a + 2) * distance - (a + 3)) * distance**2 + 1
    return a * (((distance - 5) * distance + 8) * distance - 4) if distance < 2 else 0.0


def _copy(layer: keras.Layer, name: str, shape: tuple[int | None, ...]) -> keras.Layer:
    """Return a layer like another one, with its weights."""
    new = type(layer).from_config({**layer.get_config(), "name": name})
    new.build(shape)
    new.set_weights(layer.get_weights())
    return new


def _rotary(layer: keras.Layer, network: keras.Model, count: int, grid: int) -> Step:
    """Return a block of DINOv3, which rotates by position.

    The angles depend on the shape of what KerasHub computes them from, and are computed from the tokens of each block:
    then nothing but tokens passes from block to block.
    """
    import keras
    from keras_hub.src.models.dinov3.dinov3_layers import DINOV3RopePositionEmbedding

    def call(tokens: keras.KerasTensor) -> keras.KerasTensor:
        patches = keras.layers.Cropping1D((count, 0), name=f"{layer.name}_patches")(tokens)
        places = keras.layers.Reshape((grid, grid, network.hidden_dim), name=f"{layer.name}_places")(patches)
        angles = DINOV3RopePositionEmbedding(
            network.hidden_dim, network.num_heads, network.rope_theta, 1, name=f"{layer.name}_angles"
        )(places)
        return layer(tokens, position_embeddings=angles, num_prefix_tokens=count)

    return call


def _plain_blocks(layers: list[keras.Layer], config: dict[str, Any]) -> list[keras.Layer]:
    """Return blocks that compute what those of a ViT or DeiT do, with their weights."""
    from keras_hub.src.models.siglip.siglip_layers import SigLIPEncoderLayer

    found = []
    for layer in layers:
        own = getattr(layer, "mlp_dim", None) or layer.intermediate_dim
        new = SigLIPEncoderLayer(
            layer.hidden_dim, layer.num_heads, own, config.get("hidden_act", "gelu"),
            layer_norm_epsilon=config.get("layer_norm_eps", layer.layer_norm_epsilon),
        )  # fmt: skip
        new.build((None, None, layer.hidden_dim))
        mlp = (layer.mlp.dense_1, layer.mlp.dense_2) if hasattr(layer, "mlp_dim") else _deit_mlp(layer)
        pairs = [(new.layer_norm1, layer.layer_norm_1), (new.layer_norm2, layer.layer_norm_2)]
        pairs += zip((new.mlp.fc1, new.mlp.fc2), mlp, strict=True)
        mine, theirs = new.self_attn, layer.mha
        pairs += [(getattr(mine, name), getattr(theirs, name)) for name in _PROJECTIONS]
        for to, source in pairs:
            weights = source.get_weights()
            if len(weights) < len(to.weights):  # without a bias
                weights.append(np.zeros(to.weights[1].shape, np.float32))
            to.set_weights(weights)
        found.append(new)
    return found


_PROJECTIONS = ("query_dense", "key_dense", "value_dense", "output_dense")


def _deit_mlp(layer: keras.Layer) -> tuple[keras.Layer, keras.Layer]:
    return layer.mlp.dense, layer.output_layer.dense


def _array(weights: Any) -> np.ndarray:
    """Return weights (..., dim) as (n, dim) float32."""
    import keras

    array = keras.ops.convert_to_numpy(weights).astype(np.float32)
    return array.reshape(-1, array.shape[-1])


def _square(positions: np.ndarray) -> np.ndarray:
    side = math.isqrt(len(positions))
    return positions.reshape(side, side, -1)


def _read_vit(network: keras.Model, config: dict[str, Any]) -> Parts:
    embeddings, encoder = network.layers[1:3]
    positions = _array(embeddings.position_embedding.embeddings)
    prefix = _array(embeddings.class_token) + positions[:1] if embeddings.use_class_token else positions[:0]
    blocks = _plain_blocks(encoder.encoder_layers, config)
    norm = _norm(encoder.layer_norm, config)
    return Parts(embeddings.patch_embedding, prefix, _square(positions[len(prefix) :]), None, blocks, norm)


def _read_deit(network: keras.Model, config: dict[str, Any]) -> Parts:
    embeddings, encoder = network.layers[1:3]
    positions = _array(embeddings.position_embedding)
    prefix = np.concatenate([_array(embeddings.class_token), _array(embeddings.distillation_token)]) + positions[:2]
    blocks = _plain_blocks(encoder.encoder_layers, config)
    norm = _norm(encoder.layer_norm, config)
    return Parts(embeddings.patch_embedding, prefix, _square(positions[2:]), None, blocks, norm)


def _norm(layer: keras.Layer, config: dict[str, Any]) -> keras.Layer:
    import keras

    norm = keras.layers.LayerNormalization(epsilon=config.get("layer_norm_eps", layer.epsilon))
    norm.build((None, None, layer.gamma.shape[0]))
    norm.set_weights(layer.get_weights())
    return norm


def _read_dinov2(network: keras.Model, config: dict[str, Any]) -> Parts:
    embeddings = network.embeddings
    positions = _array(embeddings.position_embeddings)
    prefix = _with_registers(_array(embeddings.cls_token) + positions[:1], embeddings)
    patch, antialias = embeddings.patch_embeddings.projection, embeddings.antialias_in_interpolation
    blocks, after = list(network.encoder.layers), network.layernorm
    return Parts(patch, prefix, _square(positions[1:]), None, blocks, after, antialias=antialias)


def _read_dinov3(network: keras.Model, config: dict[str, Any]) -> Parts:
    embeddings = network.embeddings
    prefix = _with_registers(_array(embeddings.cls_token), embeddings)
    patch = embeddings.patch_embeddings.projection
    return Parts(patch, prefix, None, None, list(network.encoder.layers), network.layernorm)


def _with_registers(token: np.ndarray, embeddings: keras.Layer) -> np.ndarray:
    if not embeddings.num_register_tokens:
        return token
    return np.concatenate([token, _array(embeddings.register_tokens)])


def _read_clip(network: keras.Model, config: dict[str, Any]) -> Parts:
    embedding = network.embedding
    positions = _array(embedding.position_embedding.embeddings)
    prefix = _array(embedding.class_embedding) + positions[:1]
    layers, norm = list(network.encoder_layers), network.pre_layer_norm
    return Parts(embedding.patch_embedding, prefix, _square(positions[1:]), norm, layers, network.layer_norm)


def _read_siglip(network: keras.Model, config: dict[str, Any]) -> Parts:
    embedding, layers = network.embedding, list(network.encoder_layers)
    positions = _array(embedding.position_embedding.embeddings)
    after, head = network.post_layer_norm, network.head
    return Parts(embedding.patch_embedding, positions[:0], _square(positions), None, layers, after, head)


_READERS: dict[str, Callable[[keras.Model, dict[str, Any]], Parts]] = {
    "CLIPVisionEncoder": _read_clip,
    "DeiTBackbone": _read_deit,
    "DINOV2Backbone": _read_dinov2,
    "DINOV3Backbone": _read_dinov3,
    "SigLIPVisionEncoder": _read_siglip,
    "ViTBackbone": _read_vit,
}

"""Moonshine's encoder, made of Keras' own layers: what models of KerasHub and Hugging Face become.

After Jeffries et al. (2024), https://arxiv.org/abs/2410.15608: three convolutions read samples, and blocks of a
transformer, whose attention rotates by position, 42 places a second. The original norms the output of the first
convolution over all of a batch's length, silence behind shorter sounds included; here such silence counts nowhere, so
that each sound has the features that it has alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headstart.backbones.spectra import STEP
from headstart.errors import UserError

if TYPE_CHECKING:
    import keras

MODEL_TYPE, KERAS_CLASS = "moonshine", "MoonshineBackbone"  # in a config.json of Hugging Face, and of KerasHub
KERNELS, STRIDES = (127, 7, 3), (64, 3, 2)  # of the convolutions
SHORTEST = 3  # steps that have an output
EPSILON = 1e-5
NORM = {"epsilon": EPSILON, "center": False}
_BELOW_ALL = -1e4  # in float16, too


class Sizes(NamedTuple):
    """What differs between models.

    Attributes:
        dim: of a place.
        layers, heads: of the transformer.
        inner: width between the two dense layers of a block.
        head: width of a head.
        rotated: how much of it is rotated by position.
        base: of the wavelengths of the rotation.
    """

    dim: int
    layers: int
    heads: int
    inner: int
    head: int
    rotated: int
    base: float


def read_sizes(file: Path, config: dict[str, Any]) -> Sizes:
    """Return the sizes of a model.

    Args:
        file: the config.json, for messages.
        config: its content, by Hugging Face or KerasHub.

    Raises:
        UserError: if it lacks one of them, or says what this network cannot be.
    """
    of_keras = config.get("model_type") != MODEL_TYPE
    settings, names = (config.get("config", {}), _KERAS_HUB) if of_keras else (config, _HUGGING_FACE)
    for key, expected in _ASSUMED.items():
        if settings.get(key, expected) not in (expected, None):
            raise UserError(f"{file}: {key} must be {expected!r} for Moonshine, got {settings[key]!r}")
    try:
        dim, layers, heads, inner = (int(settings[name]) for name in names)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: Moonshine's encoder cannot be built without {', '.join(names)} ({error})") from error
    head = dim // heads
    if of_keras:
        inner = dim * settings.get("feedforward_expansion_factor", 4)
        multiple = settings.get("pad_head_dim_to_multiple_of") or 1
        head = -(-head // multiple) * multiple
    rotation = {"partial_rotary_factor": 0.62 if of_keras else 0.9, "rope_theta": 10_000.0}
    rotation |= {key: settings[key] for key in rotation if key in settings} | (settings.get("rope_parameters") or {})
    rotated = int(head * rotation["partial_rotary_factor"])
    if rotated % 2 or rotation.get("rope_type", "default") != "default":
        raise UserError(f"{file}: Moonshine's encoder must rotate an even part of each head, without scaling")
    return Sizes(dim, layers, heads, inner, head, rotated, rotation["rope_theta"])


_HUGGING_FACE = ("hidden_size", "encoder_num_hidden_layers", "encoder_num_attention_heads", "intermediate_size")
_KERAS_HUB = ("hidden_dim", "encoder_num_layers", "encoder_num_heads", "intermediate_dim")
_ASSUMED = {"attention_bias": False, "encoder_hidden_act": "gelu", "encoder_use_swiglu_activation": False}


def build_moonshine(sizes: Sizes) -> keras.Model:
    """Build the encoder: [samples, mask] -> (N, places, dim), random; zeros behind the end of a sound.

    The samples are (N, t, STEP) float32 in [-1, 1] at RATE, the mask is (N, t, 1) int32: 0 where there is silence.
    """
    from headstart.framework import keras

    layers, ops, dim = keras.layers, keras.ops, sizes.dim
    samples = keras.Input((None, STEP), name="samples")
    mask = keras.Input((None, 1), dtype="int32", name="mask")
    x = layers.ZeroPadding1D((0, SHORTEST - 1), name="stem_pad")(samples)
    x = layers.Reshape((-1, 1), name="stem_waveform")(x)
    x = layers.Conv1D(dim, KERNELS[0], STRIDES[0], use_bias=False, activation="tanh", name="stem_conv1")(x)
    inside = ops.repeat(_until_end(mask), STEP // STRIDES[0], axis=1)[:, 1:]  # frames that no silence behind is part of
    x = _norm(x, inside)
    # Of a sequence that ends, an output is inside if the last of its inputs is.
    for number, (width, kernel, stride) in enumerate(zip((2 * dim, dim), KERNELS[1:], STRIDES[1:], strict=True), 2):
        x = layers.Conv1D(width, kernel, stride, activation="gelu", name=f"stem_conv{number}")(x)
        inside = inside[:, kernel - 1 :: stride]
    for number in range(1, sizes.layers + 1):
        x = _block(x, inside, f"block{number}", sizes)
    x = layers.LayerNormalization(**NORM, name=_top(sizes.layers))(x)
    x = layers.Multiply(name=f"{_top(sizes.layers)}_inside")([x, inside])
    return keras.Model([samples, mask], x, name="moonshine")


def _until_end(mask: keras.KerasTensor) -> keras.KerasTensor:
    """Return which steps are not behind the last one with sound, (N, t + SHORTEST - 1, 1) int32; the first ones are."""
    from headstart.framework import keras

    ops = keras.ops
    longer = ops.pad(mask, [[0, 0], [0, SHORTEST - 1], [0, 0]])
    behind = ops.cumsum(ops.flip(longer, 1), axis=1)
    places = ops.cumsum(ops.ones_like(longer), axis=1)
    return ops.cast(ops.logical_or(ops.flip(behind, 1) > 0, places <= SHORTEST), "int32")


def _norm(x: keras.KerasTensor, inside: keras.KerasTensor) -> keras.KerasTensor:
    """Apply GroupNorm with one group, whose statistics are those of the frames inside of the sound."""
    from headstart.framework import keras

    ops = keras.ops
    x, weights = ops.cast(x, "float32"), ops.cast(inside, "float32")
    count = ops.sum(weights, axis=(1, 2), keepdims=True) * x.shape[-1]
    centered = x - ops.sum(x * weights, axis=(1, 2), keepdims=True) / count
    variance = ops.sum(ops.square(centered) * weights, axis=(1, 2), keepdims=True) / count
    scale = keras.layers.EinsumDense("btc,c->btc", (None, x.shape[-1]), bias_axes="c", name="stem_norm")
    return scale(centered * ops.rsqrt(variance + EPSILON))


def _block(x: keras.KerasTensor, inside: keras.KerasTensor, name: str, sizes: Sizes) -> keras.KerasTensor:
    from headstart.framework import keras

    layers, ops = keras.layers, keras.ops
    normed = layers.LayerNormalization(**NORM, name=f"{name}_norm1")(x)
    query, key, value = (
        layers.EinsumDense("btd,dhk->bthk", (None, sizes.heads, sizes.head), name=f"{name}_{part}")(normed)
        for part in ("query", "key", "value")
    )
    # Computed in each block from what it reads, so that no angles pass where the network is split.
    places = ops.cumsum(ops.ones_like(ops.cast(x[..., : sizes.rotated // 2], "float32")), axis=1)
    rates = (sizes.base ** (-np.arange(0, sizes.rotated, 2) / sizes.rotated)).tolist()
    angles = layers.Rescaling(rates, [-rate for rate in rates], dtype="float32", name=f"{name}_angles")(places)
    query, key = (_rotate(one, angles, sizes.rotated) for one in (query, key))
    scores = ops.cast(ops.einsum("bthk,bshk->bhts", query, key), "float32") * sizes.head**-0.5
    keys = ops.expand_dims(ops.transpose(inside, (0, 2, 1)), 1)  # (N, 1, 1, places)
    weights = ops.softmax(ops.where(keys > 0, scores, _BELOW_ALL), axis=-1)
    attended = ops.einsum("bhts,bshk->bthk", ops.cast(weights, value.dtype), value)
    attended = layers.EinsumDense("bthk,hkd->btd", (None, sizes.dim), name=f"{name}_attended")(attended)
    x = layers.Add(name=f"{name}_sum")([x, attended])
    inner = layers.LayerNormalization(**NORM, name=f"{name}_norm2")(x)
    inner = layers.Dense(sizes.inner, activation="gelu", name=f"{name}_dense1")(inner)
    x = layers.Add(name=f"{name}_sum2")([x, layers.Dense(sizes.dim, name=f"{name}_dense2")(inner)])
    return layers.Multiply(name=f"{name}_out")([x, inside])


def _rotate(x: keras.KerasTensor, angles: keras.KerasTensor, rotated: int) -> keras.KerasTensor:
    """Rotate pairs of numbers of each head, (N, t, heads, head), by angles, (N, t, rotated / 2).

    First parts of pairs come before second ones in what is returned: products of queries and keys stay the same.
    """
    from headstart.framework import keras

    ops = keras.ops
    cosine, sine = (ops.cast(ops.expand_dims(wave(angles), 2), x.dtype) for wave in (ops.cos, ops.sin))
    first, second = x[..., 0:rotated:2], x[..., 1:rotated:2]
    parts = [first * cosine - second * sine, second * cosine + first * sine, x[..., rotated:]]
    return ops.concatenate(parts, axis=-1)


def _top(layers: int) -> str:
    """Return the name of the norm behind the last block, which it belongs to."""
    return f"block{layers}_top"


def by_layer(arrays: dict[str, np.ndarray], sizes: Sizes) -> dict[str, list[np.ndarray]]:
    """Return the weights by layer, and remove them from `arrays`, those of Hugging Face's encoder by their names.

    Raises:
        KeyError, ValueError: if they are those of another encoder.
    """
    heads = (sizes.heads, sizes.head)

    def take(name: str) -> list[np.ndarray]:
        kinds = [kind for kind in ("weight", "bias") if kind == "weight" or f"{name}.bias" in arrays]
        return [arrays.pop(f"{name}.{kind}").T for kind in kinds]  # PyTorch has kernels transposed

    names = {f"stem_conv{number}": f"conv{number}" for number in (1, 2, 3)}
    names |= {"stem_norm": "groupnorm", _top(sizes.layers): "layer_norm"}
    found = {layer: take(name) for layer, name in names.items()}
    for number in range(sizes.layers):
        own, block = f"layers.{number}", f"block{number + 1}"
        for layer, name in _PARTS.items():
            found[f"{block}_{layer}"] = take(f"{own}.{name}")
        for layer in ("query", "key", "value"):
            found[f"{block}_{layer}"] = [kernel.reshape(-1, *heads) for kernel in found[f"{block}_{layer}"]]
        found[f"{block}_attended"] = [kernel.reshape(*heads, -1) for kernel in found[f"{block}_attended"]]
    return found


_PARTS = {
    "norm1": "input_layernorm", "norm2": "post_attention_layernorm", "dense1": "mlp.fc1", "dense2": "mlp.fc2",
    "query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj", "attended": "self_attn.o_proj",
}  # fmt: skip


def read_network(network: keras.Model) -> dict[str, list[np.ndarray]]:
    """Return the weights by layer of KerasHub's network."""
    found = {
        "stem_conv1": network.conv1,
        "stem_conv2": network.conv2,
        "stem_conv3": network.conv3,
        "stem_norm": network.group_norm,
        _top(len(network.encoder_blocks)): network.encoder_final_layer_norm,
    }
    for number, layer in enumerate(network.encoder_blocks, 1):
        attention = layer.self_attention_layer
        found |= {
            f"block{number}_norm1": layer.self_attention_layer_norm,
            f"block{number}_norm2": layer.feedforward_layer_norm,
            f"block{number}_dense1": layer.feedforward.dense_1,
            f"block{number}_dense2": layer.feedforward.dense_2,
            f"block{number}_query": attention._query_dense,
            f"block{number}_key": attention._key_dense,
            f"block{number}_value": attention._value_dense,
            f"block{number}_attended": attention._output_dense,
        }
    return {name: layer.get_weights() for name, layer in found.items()}

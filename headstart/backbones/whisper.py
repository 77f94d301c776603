"""Whisper's encoder, made of Keras' own layers, with the spectrum inside: what models of KerasHub and others become.

After Radford et al. (2022), https://arxiv.org/abs/2212.04356. KerasHub's own network includes the decoder, takes
spectra, and has a layer that Keras cannot load again. Weights are those of its presets, or of Hugging Face's files, for
which it has no converter.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headstart.backbones.spectra import RATE, STEP, fix, mel_bands, windowed_waves
from headstart.errors import UserError

if TYPE_CHECKING:
    import keras

MODEL_TYPE, KERAS_CLASS = "whisper", "WhisperBackbone"  # in a config.json of Hugging Face, and of KerasHub
WINDOW, HOP = 400, 160  # samples of a frame, and between frames
LOWEST, HIGHEST = 0.0, 8000.0  # Hz
FLOOR, RANGE = 1e-10, 8.0  # the least energy; powers of ten below the loudest of a recording that count
POSITIONS = "positions"  # the layer that has them
NORM = {"epsilon": 1e-5}
PER_SECOND = RATE // STEP  # steps


class Sizes(NamedTuple):
    """What differs between models.

    Attributes:
        mels: bands of the spectrum.
        dim: of a step.
        layers, heads: of the transformer.
        inner: width between the two dense layers of a block.
        places: steps of 20 ms for which there are positions.
    """

    mels: int
    dim: int
    layers: int
    heads: int
    inner: int
    places: int


def read_sizes(file: Path, config: dict[str, Any]) -> Sizes:
    """Return the sizes of a model.

    Args:
        file: the config.json, for messages.
        config: its content, by Hugging Face or KerasHub.

    Raises:
        UserError: if it lacks one of them, or says what this network cannot be.
    """
    if config.get("model_type") == MODEL_TYPE:
        if (activation := config.get("activation_function", "gelu")) != "gelu":
            raise UserError(f"{file}: activation_function must be gelu for Whisper, got {activation!r}")
        settings, names = config, _HUGGING_FACE
    else:
        settings, names = config.get("config", {}), _KERAS_HUB
    try:
        sizes = [int(settings[name]) for name in names]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: Whisper's encoder cannot be built without {', '.join(names)} ({error})") from error
    if settings is not config:
        sizes[-1] //= 2  # KerasHub counts frames
    return Sizes(*sizes)


_HUGGING_FACE = (
    "num_mel_bins", "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "max_source_positions",
)  # fmt: skip
_KERAS_HUB = ("num_mels", "hidden_dim", "num_layers", "num_heads", "intermediate_dim", "max_encoder_sequence_length")


def build_whisper(sizes: Sizes, seconds: int) -> keras.Model:
    """Build the encoder for sounds of that length: [samples, mask] -> (N, steps, dim), random but for the positions.

    The samples are (N, steps, STEP) float32 in [-1, 1] at RATE. The mask, (N, steps, 1) float32, is not used: it passes
    through, so that what pools the output finds it.
    """
    from headstart.framework import keras

    layers, steps = keras.layers, seconds * PER_SECOND
    samples = keras.Input((steps, STEP), name="samples")
    mask = keras.Input((steps, 1), name="mask")
    x = log_mel(samples, sizes.mels)
    x = layers.Conv1D(sizes.dim, 3, padding="same", activation="gelu", name="stem_conv1")(x)
    x = layers.ZeroPadding1D(1, name="stem_pad")(x)
    x = layers.Conv1D(sizes.dim, 3, strides=2, activation="gelu", name="stem_conv2")(x)
    table = layers.Embedding(steps, sizes.dim, name=POSITIONS)  # in no block: it was never trained
    places = keras.ops.cumsum(keras.ops.ones_like(mask[..., 0]), axis=1) - 1.0
    x = layers.Add(name="stem_out")([x, table(keras.ops.cast(places, "int32"))])
    table.set_weights([_sinusoids(steps, sizes.dim)])
    for number in range(1, sizes.layers + 1):
        x = _block(x, f"block{number}", sizes)
    x = layers.LayerNormalization(**NORM, name=_top(sizes.layers))(x)
    return keras.Model([samples, mask], x, name="whisper")


def _top(layers: int) -> str:
    """Return the name of the norm behind the last block, which it belongs to."""
    return f"block{layers}_top"


def _block(x: keras.KerasTensor, name: str, sizes: Sizes) -> keras.KerasTensor:
    from headstart.framework import keras

    layers, dim = keras.layers, sizes.dim
    normed = layers.LayerNormalization(**NORM, name=f"{name}_norm1")(x)
    # Whisper's keys have no bias. Here it is zero, and would change nothing: it adds the same to all keys of a query.
    attention = layers.MultiHeadAttention(sizes.heads, dim // sizes.heads, name=f"{name}_attention")
    x = layers.Add(name=f"{name}_attended")([x, attention(normed, normed)])
    inner = layers.LayerNormalization(**NORM, name=f"{name}_norm2")(x)
    inner = layers.Dense(sizes.inner, activation="gelu", name=f"{name}_dense1")(inner)
    return layers.Add(name=f"{name}_out")([x, layers.Dense(dim, name=f"{name}_dense2")(inner)])


def log_mel(samples: keras.KerasTensor, mels: int) -> keras.KerasTensor:
    """Return the logarithm of the energy in each mel band, (N, 2 * steps, mels), as Whisper's feature extractor does.

    Each clip alone decides on its values. It is computed in float32, whatever the precision.
    """
    from headstart.framework import keras

    layers, ops, exact = keras.layers, keras.ops, {"dtype": "float32"}
    cosine, sine, bands = _transform(mels)
    x = layers.Reshape((-1, 1), name="waveform", **exact)(samples)
    x = ops.pad(x, [[0, 0], [WINDOW // 2, WINDOW // 2 - HOP], [0, 0]], mode="reflect")  # without the last frame
    kernel = np.concatenate([cosine, sine], axis=1)[:, None]
    spectrum = fix(layers.Conv1D(kernel.shape[-1], WINDOW, HOP, use_bias=False, name="spectrum", **exact), x, kernel)
    squares = layers.Multiply(name="squares", **exact)([spectrum, spectrum])
    bands = np.concatenate([bands, bands])[None]  # energy is the sum of both squares
    energy = fix(layers.Conv1D(mels, 1, use_bias=False, name="mel", **exact), squares, bands)
    logs = ops.log(ops.maximum(energy, FLOOR)) / math.log(10)
    loudest = ops.max(logs, axis=(1, 2), keepdims=True)
    return layers.Rescaling(0.25, 1.0, name="log_mel", **exact)(ops.maximum(logs, loudest - RANGE))


@cache
def _transform(mels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return windowed cosines and sines, (WINDOW, bins) float32 each, and bands, (bins, mels), of bins in any band."""
    bands = mel_bands(mels, LOWEST, HIGHEST, WINDOW)
    bins = np.flatnonzero(bands.any(axis=1))
    cosine, sine = (wave.astype(np.float32) for wave in windowed_waves(WINDOW, WINDOW, bins))
    return cosine, sine, bands[bins]


def _sinusoids(places: int, dim: int) -> np.ndarray:
    """Return the positions that a Whisper begins with, (places, dim) float32; half of them are sines."""
    rates = np.exp(-math.log(10_000) / (dim // 2 - 1) * np.arange(dim // 2))
    angles = np.arange(places)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def with_length(whole: keras.Model, sizes: Sizes, seconds: int) -> keras.Model:
    """Return the network for shorter sounds, of which it has the first positions alone."""
    cut = build_whisper(sizes, seconds)
    for layer in cut.layers:
        weights = whole.get_layer(layer.name).get_weights() if layer.weights else []
        if weights:
            layer.set_weights([array[: layer.input_dim] for array in weights] if layer.name == POSITIONS else weights)
    return cut


def by_layer(arrays: dict[str, np.ndarray], sizes: Sizes) -> dict[str, list[np.ndarray]]:
    """Return the weights by layer, and remove them from `arrays`, those of Hugging Face's encoder by their names.

    Raises:
        KeyError, ValueError: if they are those of another encoder.
    """
    heads = (sizes.heads, sizes.dim // sizes.heads)

    def pair(name: str) -> list[np.ndarray]:
        return [arrays.pop(f"{name}.weight").T, arrays.pop(f"{name}.bias")]  # PyTorch has kernels transposed

    found = {"stem_conv1": pair("conv1"), "stem_conv2": pair("conv2"), _top(sizes.layers): pair("layer_norm")}
    found[POSITIONS] = [arrays.pop("embed_positions.weight")]
    for number in range(sizes.layers):
        own, block = f"layers.{number}", f"block{number + 1}"
        attention = []
        for name in "qkv":
            kernel = arrays.pop(f"{own}.self_attn.{name}_proj.weight").T
            bias = np.zeros(sizes.dim, np.float32) if name == "k" else arrays.pop(f"{own}.self_attn.{name}_proj.bias")
            attention += [kernel.reshape(-1, *heads), bias.reshape(heads)]
        kernel, bias = pair(f"{own}.self_attn.out_proj")
        found[f"{block}_attention"] = [*attention, kernel.reshape(*heads, -1), bias]
        for layer, name in _OTHERS.items():
            found[f"{block}_{layer}"] = pair(f"{own}.{name}")
    return found


_OTHERS = {"norm1": "self_attn_layer_norm", "norm2": "final_layer_norm", "dense1": "fc1", "dense2": "fc2"}


def read_network(network: keras.Model) -> dict[str, list[np.ndarray]]:
    """Return the weights by layer of KerasHub's network."""
    found = {
        "stem_conv1": network.encoder_conv_layer_1,
        "stem_conv2": network.encoder_conv_layer_2,
        POSITIONS: network.encoder_position_embedding,
        _top(network.num_layers): network.encoder_layer_norm,
    }
    attentions = {}
    for number, layer in enumerate(network.encoder_transformer_layers, 1):
        found |= {
            f"block{number}_norm1": layer._self_attention_layer_norm,
            f"block{number}_norm2": layer._feedforward_layer_norm,
            f"block{number}_dense1": layer._feedforward_intermediate_dense,
            f"block{number}_dense2": layer._feedforward_output_dense,
        }
        arrays = layer._self_attention_layer.get_weights()
        arrays.insert(_KEY_BIAS, np.zeros_like(arrays[1]))
        attentions[f"block{number}_attention"] = arrays
    return {name: layer.get_weights() for name, layer in found.items()} | attentions


_KEY_BIAS = 3  # its place among the weights of an attention: kernel and bias of query, then of key

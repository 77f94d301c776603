"""Google's speech_embedding: what is said in each 782 ms, every 80 ms; 328,128 weights, convolutions on mel energies.

Lin et al. (2020), https://arxiv.org/abs/2002.01322; https://www.kaggle.com/models/google/speech-embedding. The network
was published for windows of 76 frames; here it is convolutional over time, so that windows share what they have in
common. All is made of Keras' own layers, so that models load without this package.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from headstart.backbones.spectra import STEP, fix, mel_bands, windowed_waves

if TYPE_CHECKING:
    import keras

WINDOW, HOP, TRANSFORM, MELS = 400, 160, 512, 32  # samples of a frame, between frames, of the transform; bands
LOWEST, HIGHEST = 60.0, 3800.0  # Hz
LOUDEST = 32_768.0  # what 1.0 is for it
FLOOR = 1e-10  # of energies
RANGE = 8.0  # powers of ten from the loudest energy of a recording downwards; what is below counts as that
# Steps of silence before and after a sound. A word of half a second is heard in windows that begin before it and end
# behind it, as when it passes through the window of a listening device. Digits of an unseen speaker are then recognized
# at 0.95, by a linear probe; at 0.56 with windows that begin at the sound.
CONTEXT = 28
FEATURES = 96


class Stage(NamedTuple):
    """What a block has: its channels, how many pairs of convolutions, whether pooling halves the time, too."""

    channels: int
    pairs: int
    halves_time: bool


STAGES = (Stage(24, 1, True), Stage(48, 2, False), Stage(72, 2, True), Stage(96, 2, False), Stage(96, 2, True))
KERNEL = 3


def build_speech_embedding() -> keras.Model:
    """Build the network: [samples, mask] -> (N, windows, FEATURES) float32, zeros for windows that are not heard.

    The samples are (N, t, STEP) float32 in [-1, 1] at RATE, the mask is (N, t, 1) int32: 0 where there is silence.
    A window is heard if all of it is at most CONTEXT steps away from what is no silence.
    """
    from headstart.framework import keras

    layers = keras.layers
    samples = keras.Input((None, STEP), name="samples")
    mask = keras.Input((None, 1), dtype="int32", name="mask")
    x, heard = log_mel(samples), _heard_frames(mask)
    x = keras.ops.multiply(x, heard)
    width = MELS
    for number, stage in enumerate(STAGES, 1):
        x, width = _block(x, f"block{number}", stage, width, first=number == 1)
        # Four frames less for two convolutions over time.
        heard = _all_heard(heard, 2 * (KERNEL - 1) + 1 + stage.halves_time, 1 + stage.halves_time)
        x = layers.Multiply(name=f"block{number}_heard")([x, heard])
    x = layers.Conv1D(FEATURES, KERNEL, use_bias=False, name="top")(x)
    x = layers.Multiply(name="top_heard")([x, _all_heard(heard, KERNEL)])
    return keras.Model([samples, mask], x, name="speech_embedding")


def _block(x: keras.KerasTensor, name: str, stage: Stage, width: int, first: bool) -> tuple[keras.KerasTensor, int]:
    """Apply convolutions over bands and over time by turns, then pooling: (N, t, width * c) -> the same, and width."""
    from headstart.framework import keras

    layers = keras.layers
    channels = stage.channels
    x = layers.Reshape((-1, width, x.shape[-1] // width), name=f"{name}_maps")(x)
    kernels = [(1, KERNEL), (KERNEL, 1)] * stage.pairs
    if first:
        x = layers.ZeroPadding2D(((0, 0), (1, 1)), name=f"{name}_pad")(x)
        x = _activate(layers.Conv2D(channels, KERNEL, name=f"{name}_conv0")(x), f"{name}_act0")
    for number, kernel in enumerate(kernels, 1):
        same = "same" if kernel[0] == 1 else "valid"  # over the bands
        x = layers.Conv2D(channels, kernel, padding=same, name=f"{name}_conv{number}")(x)
        x = _activate(x, f"{name}_act{number}")
    x = layers.MaxPooling2D((1 + stage.halves_time, 2), name=f"{name}_pool")(x)
    return layers.Reshape((-1, width // 2 * channels), name=f"{name}_flat")(x), width // 2


def _activate(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    from headstart.framework import keras

    return keras.ops.maximum(keras.layers.LeakyReLU(0.2, name=name)(x), -0.4)


def log_mel(samples: keras.KerasTensor) -> keras.KerasTensor:
    """Return mel energies as powers of ten + 2, (N, frames, MELS), a frame per HOP samples, with CONTEXT on both sides.

    Each clip alone decides on its values. It is computed in float32: energies go up to 1e13.
    """
    from headstart.framework import keras

    layers = keras.layers
    cosine, sine, bands = _transform()
    x = layers.Reshape((-1, 1), name="waveform", dtype="float32")(samples)
    unused = (TRANSFORM - WINDOW) // 2  # zeros of the original's window at each end
    x = layers.ZeroPadding1D((CONTEXT * STEP - unused, CONTEXT * STEP), name="context", dtype="float32")(x)
    kernel = np.concatenate([cosine, sine], axis=1)[:, None]
    spectrum = fix(
        layers.Conv1D(kernel.shape[-1], WINDOW, HOP, use_bias=False, name="spectrum", dtype="float32"), x, kernel
    )
    squares = layers.Multiply(name="squares", dtype="float32")([spectrum, spectrum])
    bands = np.concatenate([bands, bands])[None]  # energy is the sum of both squares
    energy = fix(layers.Conv1D(MELS, 1, use_bias=False, name="mel", dtype="float32"), squares, bands)
    logs = keras.ops.log(keras.ops.maximum(energy, FLOOR)) / math.log(10)
    loudest = keras.ops.max(logs, axis=(1, 2), keepdims=True)
    return keras.ops.maximum(logs, loudest - RANGE) + 2.0


@cache
def _transform() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return windowed cosines and sines, (WINDOW, bins) float32 each, and bands, (bins, MELS), of bins in any band."""
    bands = mel_bands(MELS, LOWEST, HIGHEST, TRANSFORM)
    bins = np.flatnonzero(bands.any(axis=1))
    cosine, sine = ((LOUDEST * wave).astype(np.float32) for wave in windowed_waves(WINDOW, TRANSFORM, bins))
    return cosine, sine, bands[bins]


def _heard_frames(mask: keras.KerasTensor) -> keras.KerasTensor:
    """Return the mask of the frames, (N, frames, 1) int32: whether all of it is near what is no silence."""
    from headstart.framework import keras

    ops = keras.ops
    wide = ops.cast(ops.pad(mask, [[0, 0], [CONTEXT, CONTEXT], [0, 0]]), "float32")
    near = ops.cast(ops.max_pool(wide, 2 * CONTEXT + 1, strides=1, padding="same"), "int32")
    return ops.repeat(_all_heard(near, 2), STEP // HOP, axis=1)  # a frame is part of two steps


def _all_heard(mask: keras.KerasTensor, size: int, stride: int = 1) -> keras.KerasTensor:
    """Return the mask of what reads `size` places of a sequence, (N, t, 1) int32: 1 if it is 1 at all of them."""
    from headstart.framework import keras

    missing = keras.ops.max_pool(1.0 - keras.ops.cast(mask, "float32"), size, strides=stride)
    return keras.ops.cast(keras.ops.equal(missing, 0.0), "int32")


def read_weights(file: Path) -> list[np.ndarray]:
    """Return the weights of all convolutions but those of `log_mel`, in the order of the network, as Keras has them.

    Args:
        file: ONNX, as tf2onnx has made it of the published network.

    Raises:
        KeyError, RuntimeError, ValueError: if it is not.
    """
    import openvino

    model = openvino.Core().read_model(file)
    constants = {one.get_friendly_name(): one for one in model.get_ops() if one.get_type_name() == "Constant"}
    found = []
    count = 1 + sum(2 * stage.pairs for stage in STAGES)
    for number in range(count):
        name = f"model/conv2d{f'_{number}' if number else ''}/Conv2D"
        kernel, bias = (constants[f"{name}_{kind}_fused_bn"].data for kind in ("weights", "bias"))
        found += [kernel.transpose(2, 3, 1, 0).copy(), bias.copy()]
    top = constants[f"model/conv2d_{count}/Conv2D/ReadVariableOp:0"].data
    return [*found, top.squeeze(3).transpose(2, 1, 0).copy()]


def set_weights(base: keras.Model, weights: list[np.ndarray]) -> None:
    """Set the weights of all convolutions that can be trained, in their order; raises ValueError if they do not fit."""
    layers = (layer for layer in base.layers if layer.name not in ("spectrum", "mel"))
    for variable, value in zip((one for layer in layers for one in layer.weights), weights, strict=True):
        variable.assign(value)

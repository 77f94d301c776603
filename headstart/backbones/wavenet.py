"""WaveNet as an encoder of sounds: dilated causal convolutions with gates, on the logarithm of mel energies.

After van den Oord et al. (2016), https://arxiv.org/abs/1609.03499: each block gives its part to a sum that skips the
blocks above it. There the blocks read samples and predict the next one; here they read 50 steps a second, and their
sum describes the sound. All is made of Keras' own layers, so that models load without this package.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from headstart.backbones.spectra import STEP, fix, windowed_waves
from headstart.modalities.audio.mel import mel_filters

if TYPE_CHECKING:
    import keras

WINDOW, HOP, TRANSFORM, MELS = 400, 160, 512, 64  # samples of a frame, between frames, of the transform; bands
LOWEST, HIGHEST = 60.0, 7600.0  # Hz
FLOOR = 1e-6  # added to energies, which are about 1 for a loud sound
CHANNELS, SKIPPED, FEATURES = 128, 192, 256
DILATIONS = (1, 2, 4, 8, 16) * 3
KERNEL = 2  # steps that a block reads, as in the article


def build_wavenet(channels: int = CHANNELS, dilations: tuple[int, ...] = DILATIONS) -> keras.Model:
    """Build the network without a classifier: [samples, mask] -> (N, t, FEATURES) float32; no step reads later ones.

    The samples are (N, t, STEP) float32 in [-1, 1] at RATE, the mask is (N, t, 1) int32: 0 where there is silence.
    """
    from headstart.framework import keras

    layers = keras.layers
    samples = keras.Input((None, STEP), name="samples")
    mask = keras.Input((None, 1), dtype="int32", name="mask")
    x = log_mel(samples)
    x = layers.ZeroPadding1D((STEP // HOP, 0), name="stem_pad")(x)
    x = layers.Conv1D(channels, STEP // HOP + 1, strides=STEP // HOP, activation="relu", name="stem")(x)
    x = keras.ops.multiply(x, mask)
    total = None
    for number, dilation in enumerate(dilations, 1):
        x, skipped = _block(x, f"block{number}", channels, dilation)
        total = skipped if total is None else layers.Add(name=f"block{number}_sum")([total, skipped])
    x = layers.Activation("relu", name="top_relu")(total)
    x = layers.Conv1D(FEATURES, 1, activation="relu", name="top")(x)
    x = keras.ops.multiply(x, mask)  # which thus reaches every part that the network is split into
    return keras.Model([samples, mask], x, name="wavenet")


def _block(
    x: keras.KerasTensor, name: str, channels: int, dilation: int
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    from headstart.framework import keras

    layers = keras.layers
    causal = {"kernel_size": KERNEL, "padding": "causal", "dilation_rate": dilation}
    filtered = layers.Conv1D(channels, activation="tanh", name=f"{name}_filter", **causal)(x)
    gate = layers.Conv1D(channels, activation="sigmoid", name=f"{name}_gate", **causal)(x)
    gated = layers.Multiply(name=f"{name}_gated")([filtered, gate])
    skipped = layers.Conv1D(SKIPPED, 1, name=f"{name}_skip")(gated)
    residual = layers.Conv1D(channels, 1, name=f"{name}_residual")(gated)
    return layers.Add(name=f"{name}_out")([x, residual]), skipped


def log_mel(samples: keras.KerasTensor) -> keras.KerasTensor:
    """Return the logarithm of the energy in each mel band, (N, frames, MELS), about -1.7 to 2; a frame per HOP samples.

    Each clip alone decides on its values. keras.layers.MelSpectrogram would relate them to the loudest of the batch.
    It is computed in float32, whatever the precision: energies of soft sounds are too small for others.
    """
    from headstart.framework import keras

    layers = keras.layers
    cosine, sine = _transform()
    exact = {"dtype": "float32"}
    x = layers.Reshape((-1, 1), name="waveform", **exact)(samples)
    x = layers.ZeroPadding1D((WINDOW - HOP, 0), name="frame_pad", **exact)(x)
    kernel = np.concatenate([cosine, sine], axis=1)[:, None]
    waves = layers.Conv1D(kernel.shape[-1], WINDOW, strides=HOP, use_bias=False, name="spectrum", **exact)
    spectrum = fix(waves, x, kernel)
    squares = layers.Multiply(name="squares", **exact)([spectrum, spectrum])
    bands = np.tile(mel_filters(MELS, LOWEST, HIGHEST, TRANSFORM), (2, 1))[None]  # energy is the sum of both squares
    floor = keras.initializers.Constant(FLOOR)
    energy = fix(layers.Conv1D(MELS, 1, bias_initializer=floor, name="mel", **exact), squares, bands)
    logs = keras.ops.log(energy)
    return layers.Rescaling(0.25, 1.75, name="log_mel", **exact)(logs)


@cache
def _transform() -> tuple[np.ndarray, np.ndarray]:
    """Return the windowed cosines and sines of a Fourier transform, (WINDOW, TRANSFORM // 2 + 1) float32 each."""
    cosine, sine = windowed_waves(WINDOW, TRANSFORM, np.arange(TRANSFORM // 2 + 1))
    return (4 / WINDOW * cosine).astype(np.float32), (4 / WINDOW * sine).astype(np.float32)

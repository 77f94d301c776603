"""Speech encoders by KerasHub as backbones: samples (N, n) float32 in [-1, 1] at 16 kHz -> (N, feature_dim).

KerasHub is the extra `hub`; it is imported when its presets are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from headstart.backbones import hub_conversions, hub_downloads, hub_files, moonshine, whisper
from headstart.backbones.base import BACKBONE_LAYER, POOL_LAYER, Block
from headstart.backbones.depths import find_taps, pool_name
from headstart.backbones.hub_files import CONFIG, Origin
from headstart.backbones.hub_networks import HubBackbone, from_preset, read_config
from headstart.backbones.sequences import max_pool, not_zero, statistics_pool
from headstart.backbones.sound_encoders import INPUT, SoundEncoder, find_blocks, heard_steps
from headstart.backbones.spectra import STEP
from headstart.config import PARAMS_FILE, Params
from headstart.errors import UserError

if TYPE_CHECKING:
    import keras
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class Whisper(HubBackbone):
    """Whisper's encoder: a row of the table below, or what `hub:PRESET`, `hf:OWNER/NAME` or a folder stands for.

    It hears `extract.size` seconds, at most the `default_size` that it was trained with: silence behind a sound is
    heard, too, since no mask tells it apart, but not pooled.
    """

    libraries: ClassVar[tuple[str, ...]] = ("keras-hub",)
    learning_rate: float = 1e-4

    def check(self, params: Params) -> None:
        super().check(params)
        if params.extract.pooling == "flatten":
            raise UserError(f"{PARAMS_FILE}: extract.pooling must be avg or max for {self.name}, got flatten")
        if params.extract.size is not None and params.extract.size > self.default_size:
            raise UserError(
                f"{PARAMS_FILE}: extract.size must be at most {self.default_size} (seconds) for {self.name}, which has "
                f"no positions beyond, got {params.extract.size}; of longer recordings so many windows are heard"
            )

    def build(self, weights: str, size: int, pooling: str, seed: int, depth: str = "last") -> keras.Model:
        from headstart.framework import keras

        folder = hub_downloads.fetch(self.origin)
        keras.utils.set_random_seed(seed)
        network = self._load(folder, weights)
        if size != self.default_size:
            network = whisper.with_length(network, whisper.read_sizes(folder / CONFIG, read_config(folder)), size)
        base, names = _pool(network, pooling, depth)
        base.name = BACKBONE_LAYER
        base.trainable = False
        sound = keras.Input((None,), name=INPUT)
        length = network.inputs[0].shape[1]
        filled = keras.ops.pad(sound, [[0, 0], [0, length * STEP]])[:, : length * STEP]
        samples = keras.layers.Reshape((length, STEP), name="steps", dtype="float32")(filled)
        mask = keras.ops.cast(heard_steps(samples), "float32")
        outputs = base([samples, mask], training=False)
        vectors = [
            keras.layers.Identity(name=name)(one)
            for name, one in zip(names, outputs if isinstance(outputs, list) else [outputs], strict=True)
        ]
        features = keras.layers.Concatenate(name="features")(vectors) if len(vectors) > 1 else vectors[0]
        return keras.Model({INPUT: sound}, features, name="encoder")

    def blocks(self, encoder: keras.Model) -> list[Block]:
        """Return the convolutions, then each block of the transformer; the last one with the norm after it."""
        return find_blocks(encoder.get_layer(BACKBONE_LAYER).layers)

    def _convert(self, folder: Path, config: dict[str, Any], pretrained: bool) -> keras.Model:
        sizes = whisper.read_sizes(folder / CONFIG, config)
        base = whisper.build_whisper(sizes, self.default_size)
        if pretrained:
            weights = _read_weights(folder, sizes, whisper)
            weights[whisper.POSITIONS] = [weights[whisper.POSITIONS][0][: base.output.shape[1]]]
            _set_weights(base, weights)
        return base


@dataclass(frozen=True, kw_only=True)
class Moonshine(HubBackbone, SoundEncoder):
    """Moonshine's encoder, which hears sounds of any length: what a preset, a repository or a folder stands for."""

    libraries: ClassVar[tuple[str, ...]] = ("keras-hub",)
    learning_rate: float = 1e-4

    def _network(self, weights: str) -> keras.Model:
        return self._load(hub_downloads.fetch(self.origin), weights)

    def _convert(self, folder: Path, config: dict[str, Any], pretrained: bool) -> keras.Model:
        sizes = moonshine.read_sizes(folder / CONFIG, config)
        base = moonshine.build_moonshine(sizes)
        if pretrained:
            _set_weights(base, _read_weights(folder, sizes, moonshine))
        return base

    def _filled(self, sequence: keras.KerasTensor, mask: keras.KerasTensor) -> keras.KerasTensor:
        return not_zero(sequence)


def _read_weights(folder: Path, sizes: Any, network: ModuleType) -> dict[str, list[np.ndarray]]:
    """Return the weights in a folder by the layers of a network, `whisper` or `moonshine`; raises many kinds."""
    file = hub_files.weights_file(folder)
    if file.name == hub_files.KERAS_WEIGHTS:
        return dict(network.read_network(from_preset(folder, True)))
    arrays = hub_conversions.read_encoder(file)
    weights = dict(network.by_layer(arrays, sizes))
    if arrays:
        raise ValueError(f"it also has {min(arrays)}")
    return weights


def _set_weights(base: keras.Model, weights: dict[str, list[np.ndarray]]) -> None:
    for name, arrays in weights.items():
        base.get_layer(name).set_weights(arrays)


def _pool(network: keras.Model, pooling: str, depth: str) -> tuple[keras.Model, list[str]]:
    """Return a network that gives vectors, those of the output first, and the names of what takes each.

    They are pooled inside of it, so that the mask passes wherever it is split: its sequences are never cut short.
    """
    from headstart.framework import keras

    taps = find_taps(find_blocks(network.layers)[1:-1], network.output, depth)
    names = [POOL_LAYER, *(pool_name(name, number) for number, (name, _) in enumerate(taps, 1))]
    pool = max_pool if pooling == "max" else statistics_pool
    mask = network.inputs[1][..., 0]
    sequences = [network.output, *(layer.output for _, layer in taps)]
    vectors = [pool(one, mask, f"vector{number}") for number, one in enumerate(sequences)]
    return keras.Model(network.inputs, vectors if taps else vectors[0]), names


def make_row(name: str, place: str, feature_dim: int, parameters: float, size: int = 30, **more: Any) -> Whisper:
    """Make a row of the table for a Whisper."""
    return Whisper(
        name, "audio", size, feature_dim, parameters, "mono at 16 kHz; logarithm of Whisper's mel bands",
        origin=Origin(place, of_sounds=True), **more,
    )  # fmt: skip


def make_moonshine(name: str, place: str, feature_dim: int, parameters: float, **more: Any) -> Moonshine:
    """Make a row of the table for a Moonshine."""
    return Moonshine(
        name, "audio", 5, feature_dim, parameters, "mono at 16 kHz, in [-1, 1]",
        origin=Origin(place, of_sounds=True), **more,
    )  # fmt: skip


def is_sound_encoder(config: dict[str, Any]) -> bool:
    """Whether a config.json is one of an encoder that is built here."""
    return any(_is_of(network, config) for network in (whisper, moonshine))


def _is_of(network: ModuleType, config: dict[str, Any]) -> bool:
    return config.get("model_type") == network.MODEL_TYPE or config.get("class_name") == network.KERAS_CLASS


def find_row(name: str, folder: Path, config: dict[str, Any]) -> HubBackbone:
    """Return the backbone of a config.json in a folder; raises UserError if it lacks something."""
    if _is_of(moonshine, config):
        moonshine.read_sizes(folder / CONFIG, config)
        return make_moonshine(name, name, 0, 0.0)
    places = whisper.read_sizes(folder / CONFIG, config).places
    return make_row(name, name, 0, 0.0, max(1, places // whisper.PER_SECOND))


ROWS = [
    make_row("whisper-tiny-en", "hub:whisper_tiny_en", 768, 8.2, licence="MIT"),
    make_moonshine("moonshine-tiny-en", "hub:moonshine_tiny_en", 576, 7.7, licence="MIT"),
]

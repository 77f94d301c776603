"""The interface of a backbone: its network, weights, preprocessing and blocks.

An encoder is a Keras model, a batch (see `headstart.modalities.Batch`) -> (N, feature_dim) float32. It has a layer
named BACKBONE_LAYER, the pretrained network itself with its BatchNorm in inference mode, and a layer named POOL_LAYER,
which turns the network's output into a vector. Features of more depths (see `backbones.depths`) follow that vector.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from headstart.config import PARAMS_FILE, Extract, Params
from headstart.errors import UserError

if TYPE_CHECKING:
    import keras

BACKBONE_LAYER, POOL_LAYER = "backbone", "pool"


@dataclass(frozen=True)
class Block:
    """Layers that belong together, in the order of the network, and their name, e.g. `conv5_block3`."""

    name: str
    layers: tuple[keras.Layer, ...]

    @property
    def parameters(self) -> int:
        """Number of its weights."""
        return sum(layer.count_params() for layer in self.layers)


@dataclass(frozen=True)
class Backbone:
    """One pretrained network.

    Attributes:
        name: what `backbone` in params.yaml says.
        modality: name of the modality that it takes.
        default_size, min_size: of an example, as in `extract.size`.
        feature_dim: length of the vectors with `extract.pooling: avg`.
        parameters: weights in millions, without a classifier on top.
        preprocessing: what happens to an example before the first layer, in words.
        learning_rate, label_smoothing: what null means for it in the section `fine_tune`.
        licence: of its weights; empty: see where they come from.
        libraries: packages besides those of every install whose versions shape its features.
    """

    libraries: ClassVar[tuple[str, ...]] = ()

    name: str
    modality: str
    default_size: int
    feature_dim: int
    parameters: float
    preprocessing: str
    min_size: int = 1
    learning_rate: float = 3e-4
    label_smoothing: float = 0.1
    licence: str = ""

    def check(self, params: Params) -> None:
        """Raise UserError if params do not fit this backbone, naming the key, the rule and the value."""
        size = params.extract.size
        if size is not None and size < self.min_size:
            raise UserError(f"{PARAMS_FILE}: extract.size must be at least {self.min_size} for {self.name}, got {size}")

    def build(self, weights: str, size: int, pooling: str, seed: int, depth: str = "last") -> keras.Model:
        """Build the encoder for examples of that size.

        Args:
            weights: `pretrained`, `none` (random, by `seed`) or the path of a weights file.
            pooling: `avg`, `max` or `flatten`.
            depth: down to where layers give features, see `backbones.depths`; `last`: the network's output alone.

        Raises:
            UserError: if the weights are not available, or do not fit.
        """
        raise ValueError(f"backbone {self.name} cannot be built")

    def blocks(self, encoder: keras.Model) -> list[Block]:
        """Return all layers from input to output, in blocks; by default each layer with weights begins a block."""
        found: list[list[keras.Layer]] = [[]]
        for layer in encoder.get_layer(BACKBONE_LAYER).layers:
            if layer.weights and found[-1]:
                found.append([])
            found[-1].append(layer)
        names = (next((layer.name for layer in layers if layer.weights), layers[0].name) for layers in found)
        return [Block(name, tuple(layers)) for name, layers in zip(names, found, strict=True)]

    def weights_path(self, size: int) -> Path | None:
        """Return where the file of the pretrained weights belongs on this machine; None if there is no such file."""
        return None

    def consent(self) -> str:
        """Return how to give the consent that its files cannot be downloaded without; empty: they need none."""
        return ""

    def fetch(self) -> Path:
        """Download what its pretrained weights need, if that is not on this machine; return where it is.

        Raises:
            UserError: if that is impossible.
        """
        raise UserError(f"{self.name}: `extract` downloads its weights when it needs them")

    def reading(self) -> dict[str, Any]:
        """Return how it wants examples to be read, which joins the reading of the data set; see `with_reading`.

        Raises:
            UserError: if files that say so are not available.
        """
        return {}

    def remarks(self, settings: Extract) -> list[str]:
        """Return what is to be known about its files, which are on this machine: a line each."""
        return []

    def in_words(self) -> str:
        """Return what happens to an example before the first layer, for people to read."""
        return self.preprocessing

    def identify(self, weights: str, size: int, seed: int) -> str | None:
        """Name everything besides code and libraries that shapes the network and its weights; arguments as of `build`.

        None if only building it can tell: then it is built whenever it is needed.
        """
        return None


def weights_sha256(model: keras.Model) -> str:
    """Hash all weights, hexadecimal: shapes and float32 bytes in the model's order."""
    import keras

    digest = hashlib.sha256()
    for variable in model.weights:
        array = keras.ops.convert_to_numpy(variable)
        digest.update(repr(array.shape).encode() + np.asarray(array).astype("<f4").tobytes())
    return digest.hexdigest()

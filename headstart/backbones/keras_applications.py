"""The image classifiers of `keras.applications` as backbones: weights, preprocessing, pooling, blocks."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from blake3 import blake3

from headstart.backbones.base import BACKBONE_LAYER, POOL_LAYER, Backbone, Block
from headstart.backbones.depths import find_taps, pool_name
from headstart.config import PARAMS_FILE, Params
from headstart.errors import UserError

if TYPE_CHECKING:
    import keras

TINY_WEIGHTS = Path(__file__).parent / "weights" / "tiny.weights.h5"
INPUT = "image"  # of the encoder, see ImageModality.spec
STEM, TOP = "stem", "top"  # the layers before the first block, and after the last one


@dataclass(frozen=True)
class Family:
    """What the networks of a module of `keras.applications` share; {} in a text is what distinguishes one of them.

    Attributes:
        constructor: function of `keras.applications`.
        preprocessing: what its `preprocess_input` makes of RGB in [0, 255], in words.
        weights_file: name of the ImageNet weights in Keras' cache; `{size}` is the size that they were trained at.
        block_name: pattern of the names of a block's layers; its groups give the name of the block. A layer without a
            match belongs to the block before it.
        named_by_the_end: it belongs to the block after it: only the last layers of a block have its name.
    """

    constructor: str
    preprocessing: str
    weights_file: str
    block_name: str
    named_by_the_end: bool = False


@dataclass(frozen=True, kw_only=True)
class KerasApplication(Backbone):
    """A row of the table in `keras_table.py`: (N, size, size, 3) RGB in [0, 255] -> (N, feature_dim).

    Attributes:
        module: module of `keras.applications`.
        variant: what distinguishes the network in its family.
        weight_sizes: sizes that there are ImageNet weights for; any other image size takes the last one.
        pinned_size: whether Keras has ImageNet weights for the default size only.
        arguments: further arguments of the constructor.
        weights_sha256: of the weights file, hexadecimal, if it comes with this repository.
    """

    family: Family
    module: str
    variant: str
    weight_sizes: tuple[int, ...] = ()
    pinned_size: bool = False
    arguments: tuple[tuple[str, float], ...] = ()
    weights_sha256: str = ""

    @property
    def constructor(self) -> str:
        """Name of the function of `keras.applications`."""
        return self.family.constructor.format(self.variant)

    def check(self, params: Params) -> None:
        super().check(params)
        size = params.extract.size
        if self.pinned_size and params.weights == "pretrained" and size not in (None, self.default_size):
            raise UserError(
                f"{PARAMS_FILE}: extract.size must be {self.default_size} or null for {self.name} with pretrained "
                f"weights, got {size}"
            )

    def weights_path(self, size: int) -> Path:
        if self.weights_sha256:
            return TINY_WEIGHTS
        trained_at = size if size in self.weight_sizes else (self.weight_sizes or (0,))[-1]
        name = self.family.weights_file.format(self.variant.lower(), size=trained_at)
        files = [folder / "models" / name for folder in keras_folders()]
        return next((file for file in files if file.is_file()), files[0])

    def identify(self, weights: str, size: int, seed: int) -> str | None:
        file = self.weights_path(size) if weights == "pretrained" else Path(weights)
        settings = keras_folders()[0] / "keras.json"  # what Keras computes in, and in which order axes come
        try:
            values = f"seed {seed}" if weights == "none" else blake3(file.read_bytes()).hexdigest()
            return f"{self} {values} {settings.read_text() if settings.is_file() else ''}"
        except (OSError, UnicodeDecodeError):  # the weights may be downloaded; `build` reports others
            return None

    def build(self, weights: str, size: int, pooling: str, seed: int, depth: str = "last") -> keras.Model:
        from headstart.framework import keras

        keras.utils.set_random_seed(seed)
        base = self._network(weights, size)
        taps = find_taps(self._blocks(base.layers), base.output, depth)
        if taps:
            base = keras.Model(base.inputs, [base.output, *(layer.output for _, layer in taps)])
        base.name = BACKBONE_LAYER
        base.trainable = False
        image = keras.Input((size, size, 3), name=INPUT)
        maps = base(self.preprocess(image), training=False)
        layers = {"avg": "GlobalAveragePooling2D", "max": "GlobalMaxPooling2D", "flatten": "Flatten"}
        pool = getattr(keras.layers, layers[pooling])
        if not taps:
            return keras.Model({INPUT: image}, pool(name=POOL_LAYER)(maps), name="encoder")
        names = [POOL_LAYER, *(pool_name(name, number) for number, (name, _) in enumerate(taps, 1))]
        vectors = [pool(name=name)(feature_map) for name, feature_map in zip(names, maps, strict=True)]
        return keras.Model({INPUT: image}, keras.layers.Concatenate(name="features")(vectors), name="encoder")

    def preprocess(self, image: keras.KerasTensor) -> keras.KerasTensor:
        """Preprocess RGB in [0, 255] as the backbone expects it."""
        from headstart.framework import keras

        return getattr(keras.applications, self.module).preprocess_input(image)

    def blocks(self, encoder: keras.Model) -> list[Block]:
        """Return all layers, in blocks by the names that the family gives its layers."""
        return self._blocks(encoder.get_layer(BACKBONE_LAYER).layers)

    def _blocks(self, layers: list[keras.Layer]) -> list[Block]:
        pattern, backwards = re.compile(self.family.block_name), self.family.named_by_the_end
        found: dict[str, list[keras.Layer]] = {}
        name = ""
        for layer in reversed(layers) if backwards else layers:
            match = pattern.match(layer.name)
            name = "_".join(match.groups()) if match else name or (TOP if backwards else STEM)
            name = f"block_{name}" if name.isdigit() else name  # a number in fine_tune.unfreeze is a number of blocks
            found.setdefault(name, []).append(layer)
        if backwards:
            return [Block(name, tuple(reversed(layers))) for name, layers in reversed(found.items())]
        return [Block(name, tuple(layers)) for name, layers in found.items()]

    def _network(self, weights: str, size: int) -> keras.Model:
        """Build the network without its top; raises as `build`."""
        from headstart.framework import keras

        build = partial(
            getattr(keras.applications, self.constructor),
            include_top=False,
            input_shape=(size, size, 3),
            **dict(self.arguments),
        )
        with warnings.catch_warnings():
            # MobileNets warn that an unusual size takes the weights of the default one, as weight_sizes says.
            warnings.filterwarnings("ignore", message=".*`input_shape` is undefined or non-square")
            if weights == "none":
                return build(weights=None)
            file = self.weights_path(size) if weights == "pretrained" else Path(weights)
            if weights == "pretrained" and not self.weights_sha256 and not _unseen_by_keras(file):
                try:
                    return build(weights="imagenet")
                except Exception as error:
                    raise self._no_weights(file, size, error) from error
            if weights != "pretrained" and not file.is_file():
                raise UserError(
                    f"{PARAMS_FILE}: weights file {weights!r} does not exist; give its path, `pretrained` or `none`"
                )
            if weights == "pretrained" and self.weights_sha256 and _sha256(file) != self.weights_sha256:
                raise UserError(
                    f"{file}: not the weights that keras_table.py lists by their sha256; restore them (git checkout "
                    f"-- headstart/backbones/weights/{file.name}), or name the file in `weights:` of params.yaml"
                )
            base = build(weights=None)
            self._load(base, file)
            return base

    def _load(self, base: keras.Model, file: Path) -> None:
        """Load all weights of `base` from `file`."""
        try:
            with warnings.catch_warnings():
                # Keras only warns if a file lacks a layer, and leaves that layer random.
                warnings.filterwarnings("error", message="Skipping nested container")
                base.load_weights(file)
            if not all(np.isfinite(weights.numpy()).all() for weights in base.weights):
                raise ValueError("they are NaN or infinite")
        except Exception as error:
            reason = str(error).strip().split("\n")[0][:200]
            raise UserError(
                f"{file}: these weights do not fit {self.name} without its top ({reason}); they must be a .weights.h5 "
                f"or .h5 file of keras.applications.{self.constructor}(include_top=False)"
            ) from error

    def _no_weights(self, file: Path, size: int, error: Exception) -> UserError:
        from headstart.backbones import cached_backbones

        reason = " ".join(str(error).split())[:300]
        if file.is_file():
            return UserError(
                f"{file}: these weights of {self.name} cannot be loaded ({reason}); remove the file, so that it is "
                "downloaded again, or replace it with a complete one"
            )
        advice = "Put the file there, or choose a backbone whose weights are here."
        sizes = [other for other in self.weight_sizes if self.weights_path(other).is_file()]
        if sizes:
            these = " or ".join(map(str, sizes))
            advice = (
                f"Set extract.size of {PARAMS_FILE} to {these}, for which weights of {self.name} are here. {advice}"
            )
        return UserError(
            f"the ImageNet weights of {self.name} for size {size} are not on this machine and could not be downloaded "
            f"({reason}).\n"
            f"  file:   {file.name}\n"
            f"  folder: {file.parent} (another one: set KERAS_HOME, it holds models/)\n"
            f"  here:   {', '.join(cached_backbones()) or 'none'}\n{advice}"
        )


def keras_folders() -> list[Path]:
    """Return where Keras keeps files: KERAS_HOME, else ~/.keras; if it cannot write there, also /tmp/.keras."""
    folder = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras").expanduser()
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())  # Keras would make the rest
    return [folder] if os.access(there, os.W_OK) else [folder, Path("/tmp/.keras")]


def _unseen_by_keras(file: Path) -> bool:
    """Whether a file is there, but in a folder that Keras would not look into since it cannot write to it."""
    return file.is_file() and not os.access(file.parents[1], os.W_OK)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""

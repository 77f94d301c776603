"""Image encoders by KerasHub as backbones: RGB (N, size, size, 3) in [0, 255] -> (N, feature_dim).

KerasHub is the extra `hub`; it is imported when an encoder is built.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from headstart.backbones import hub_conversions, hub_downloads
from headstart.backbones.base import BACKBONE_LAYER, POOL_LAYER, Block
from headstart.backbones.depths import find_taps, pool_name
from headstart.backbones.hub_files import Origin
from headstart.backbones.hub_networks import HubBackbone, from_preset, read_config
from headstart.backbones.hub_scaling import Scaling, differences
from headstart.backbones.keras_applications import INPUT, STEM
from headstart.backbones.keras_table import TF, TORCH
from headstart.backbones.vision_transformers import BLOCK, PATCHES, Tower, build_tower, is_transformer, vision_part
from headstart.config import PARAMS_FILE, Extract, Params
from headstart.errors import UserError

if TYPE_CHECKING:
    import keras

# What a network was trained to be pooled to: its class token, the mean of its patches, both, or by attention.
CLASS, MEAN, BOTH, ATTENTION = "class", "mean", "both", "attention"
IMAGENET: Scaling = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of RGB in [0, 1]
CLIP: Scaling = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF: Scaling = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
_WORDS = {IMAGENET: TORCH, CLIP: "RGB in [0, 1] by CLIP's mean and deviation", HALF: TF}
_PART = re.compile(r"(block_\d+|stack\d+_block\d+)(?:_|$)")  # what layers of one block have in common


@dataclass(frozen=True, kw_only=True)
class ImageEncoder(HubBackbone):
    """A row of `hub_image_table.py`, or what `hub:PRESET`, `hf:OWNER/NAME` or a folder stands for.

    Attributes:
        patch: pixels of the side of a patch, of which `extract.size` must be a multiple; 1: it has none.
        pooled: CLASS, MEAN, BOTH or ATTENTION: what `extract.pooling: avg` means for it.
        scaling: mean and deviation that RGB in [0, 1] is scaled by.
        center_crop: share of the shorter side of images that the square has which it was evaluated on; None: it saw
            whole images, stretched to a square.
    """

    libraries: ClassVar[tuple[str, ...]] = ("keras-hub",)
    patch: int = 1
    pooled: str = MEAN
    scaling: Scaling = IMAGENET
    center_crop: float | None = None
    learning_rate: float = 5e-5

    def check(self, params: Params) -> None:
        super().check(params)
        size = params.extract.size
        if size not in (None, self.default_size) and size % self.patch:
            below, above = size // self.patch * self.patch, -(-size // self.patch) * self.patch
            raise UserError(
                f"{PARAMS_FILE}: extract.size must be a multiple of {self.patch} for {self.name}, whose patches have "
                f"{self.patch} pixels, got {size}; use {f'{below} or {above}' if below else above}"
            )
        if params.extract.pooling == "flatten" and self.patch > 1:
            raise UserError(f"{PARAMS_FILE}: extract.pooling must be avg or max for {self.name}, got flatten")

    def build(self, weights: str, size: int, pooling: str, seed: int, depth: str = "last") -> keras.Model:
        from headstart.framework import keras

        folder = hub_downloads.fetch(self.origin)
        keras.utils.set_random_seed(seed)
        network = vision_part(self._load(folder, weights))
        if is_transformer(network):
            base, names = self._pool(build_tower(network, read_config(folder), size), pooling, depth)
            pool = keras.layers.Identity
        else:
            base, names = _with_size(network, size, depth)
            layers = {"avg": "GlobalAveragePooling2D", "max": "GlobalMaxPooling2D", "flatten": "Flatten"}
            pool = getattr(keras.layers, layers[pooling])
        base.name = BACKBONE_LAYER
        base.trainable = False
        image = keras.Input((size, size, 3), name=INPUT)
        mean, deviation = self.scaling
        scaled = keras.layers.Rescaling(
            [1 / (255 * one) for one in deviation],
            [-m / d for m, d in zip(mean, deviation, strict=True)],
            name="scaled",
        )(image)
        outputs = base(scaled, training=False)
        vectors = [
            pool(name=name)(one)
            for name, one in zip(names, outputs if isinstance(outputs, list) else [outputs], strict=True)
        ]
        features = keras.layers.Concatenate(name="features")(vectors) if len(vectors) > 1 else vectors[0]
        return keras.Model({INPUT: image}, features, name="encoder")

    def reading(self) -> dict[str, Any]:
        return {"center_crop": self.center_crop} if self.center_crop else {}

    def remarks(self, settings: Extract) -> list[str]:
        """Say what its files would have otherwise, unless it was they that said it, or the params do."""
        if self.name == self.origin.place:
            return []
        folder = self.origin.folder()
        try:
            found = differences(folder, read_config(folder), self.scaling, self.center_crop, self.default_size)
        except UserError as error:
            return [f"{self.name} is used as docs/backbones.md has it, since its own files are not clear: {error}"]
        given = {key for key in ("size", "resize") if getattr(settings, key) is not None}
        asked = {"scaling": f"backbone={self.origin.place}"}
        return [
            f"the files of {self.name} say {key} {theirs}, but {ours} is used, as docs/backbones.md has it; "
            f"-S {asked.get(key) or f'extract.{key}={theirs}'} goes by the files"
            for key, (theirs, ours) in found.items()
            if key not in given
        ]

    def in_words(self) -> str:
        crop = f", central square of {self.center_crop:g} of the shorter side" if self.center_crop else ""
        return self.preprocessing + crop

    def blocks(self, encoder: keras.Model) -> list[Block]:
        """Return the layers that make patches (or the stem), then each block; the last one with the norm after it."""
        return _blocks(encoder.get_layer(BACKBONE_LAYER).layers)

    def _convert(self, folder: Path, config: dict[str, Any], pretrained: bool) -> keras.Model:
        if config.get("model_type") in hub_conversions.TOWERS:
            return hub_conversions.vision_tower(folder, config, pretrained)
        with hub_conversions.named_for_keras_hub(folder, config) as place:
            return from_preset(place, pretrained)

    def _pool(self, tower: Tower, pooling: str, depth: str) -> tuple[keras.Model, list[str]]:
        """Return a network that gives vectors, those of the output first, and the names of what takes each."""
        import keras

        whole = keras.Model(tower.image, tower.tokens)
        layers = [layer for layer in whole.layers if BLOCK.match(layer.name)]
        # The last one gives the output.
        taps = find_taps([Block(layer.name, (layer,)) for layer in layers[:-1]], tower.tokens, depth)
        names = [POOL_LAYER, *(pool_name(name, number) for number, (name, _) in enumerate(taps, 1))]
        how = pooling if pooling == "max" else self.pooled
        vectors = [_vector(tower, tower.tokens, how, "vector")]
        how = MEAN if how == ATTENTION else how  # which pools the output alone
        vectors += [_vector(tower, layer.output, how, f"{layer.name}_vector") for _, layer in taps]
        return keras.Model(tower.image, vectors if taps else vectors[0]), names


def _vector(tower: Tower, tokens: keras.KerasTensor, how: str, name: str) -> keras.KerasTensor:
    """Pool tokens, (N, t, dim), to a vector."""
    import keras

    if how == ATTENTION and tower.head:
        return tower.head(tokens)
    patches = keras.layers.Cropping1D((tower.prefix, 0), name=f"{name}_patches")
    if how == "max":
        return keras.layers.GlobalMaxPooling1D(name=name)(patches(tokens))
    if how == MEAN or not tower.prefix:
        return keras.layers.GlobalAveragePooling1D(name=name)(patches(tokens))
    token = keras.layers.Cropping1D((0, tokens.shape[1] - 1), name=f"{name}_class")(tokens)
    if how == CLASS:
        return keras.layers.Flatten(name=name)(token)
    mean = keras.layers.GlobalAveragePooling1D(name=f"{name}_mean")(patches(tokens))
    return keras.layers.Concatenate(name=name)([keras.layers.Flatten(name=f"{name}_token")(token), mean])


def _with_size(network: keras.Model, size: int, depth: str) -> tuple[keras.Model, list[str]]:
    """Return a convolutional network for images of that size, and the names of what takes each of its outputs."""
    import keras

    base = type(network).from_config({**network.get_config(), "image_shape": (size, size, 3)})
    base.set_weights(network.get_weights())
    taps = find_taps(_blocks(base.layers), base.output, depth)
    names = [POOL_LAYER, *(pool_name(name, number) for number, (name, _) in enumerate(taps, 1))]
    return keras.Model(base.inputs, [base.output, *(layer.output for _, layer in taps)] if taps else base.output), names


def _blocks(layers: list[keras.Layer]) -> list[Block]:
    found: dict[str, list[keras.Layer]] = {}
    name = PATCHES if any(layer.name == PATCHES for layer in layers) else STEM
    for layer in layers:
        match = _PART.match(layer.name)
        own = match.group(1) if match else name
        name = name if own in found else own  # what pools a block comes after all blocks
        found.setdefault(own, []).append(layer)
    return [Block(name, tuple(members)) for name, members in found.items()]


def make_row(
    name: str, place: str, feature_dim: int, parameters: float, size: int, patch: int = 1, pooled: str = MEAN,
    scaling: Scaling = IMAGENET, consent: bool = False, **more: Any,
) -> ImageEncoder:  # fmt: skip
    """Make a row of the table."""
    words = _WORDS.get(scaling) or f"RGB in [0, 1] by mean {scaling[0]} and deviation {scaling[1]}"
    return ImageEncoder(
        name, "image", size, feature_dim, parameters, words, patch if patch > 1 else 32,
        origin=Origin(place, of_images=True, consent=consent), patch=patch, pooled=pooled, scaling=scaling, **more,
    )  # fmt: skip

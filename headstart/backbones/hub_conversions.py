"""Models of Hugging Face that KerasHub has a network for, but cannot convert itself.

- Vision towers of CLIP and SigLIP, for which it has no converter (KerasHub 0.32).
- BERT, by the KerasHub for Python 3.10.
- ViT and DeiT without a classifier, such as `google/vit-base-patch16-224-in21k`: their weights lack the beginning of
  the names that its converter looks for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.backbones import hub_files
from headstart.backbones.hub_files import CONFIG

if TYPE_CHECKING:
    import keras

# Model types of Hugging Face; SigLIP 2 for images of one size has that of SigLIP.
TOWERS = ("clip", "clip_vision_model", "siglip", "siglip_vision_model")
_USUAL = {  # what the configs of Hugging Face leave out
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh",
}  # fmt: skip
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_approximate"}
_PREFIXES = {"deit": "deit.", "vit": "vit."}


def tower_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a vision tower in TOWERS; its config names only those that are unusual."""
    usual = {"patch_size": 32, "hidden_act": "quick_gelu"} if config["model_type"].startswith("clip") else {}
    return {**_USUAL, **usual, **config.get("vision_config", config)}


@contextmanager
def named_for_keras_hub(folder: Path, config: dict[str, Any]) -> Iterator[Path]:
    """Yield `folder`, or a copy of it with its weights under the names that KerasHub's converter looks for."""
    from safetensors import safe_open

    prefix, file = _PREFIXES.get(config.get("model_type", ""), ""), folder / hub_files.SAFETENSORS
    if not prefix or not file.is_file():
        yield folder
        return
    with safe_open(file, "np") as weights:
        named = any(name.startswith(prefix) for name in weights.keys())  # noqa: SIM118  it is no dict
    if named:
        yield folder
        return
    with _renamed(folder, prefix.__add__) as place:
        yield place


@contextmanager
def named_as_google(folder: Path) -> Iterator[Path]:
    """Yield a copy of `folder`, of a BERT by Hugging Face, with its weights under the names that Google gave them.

    KerasHub 0.25, the last one for Python 3.10, knows no others.
    """

    def rename(name: str) -> str:
        name = re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", name))
        return name if name.startswith(("bert.", "cls.")) else f"bert.{name}"

    with _renamed(folder, rename) as place:
        yield place


@contextmanager
def _renamed(folder: Path, rename: Callable[[str], str]) -> Iterator[Path]:
    """Yield a copy of `folder` with other names of weights."""
    from safetensors.numpy import load_file, save_file

    with TemporaryDirectory() as temporary:
        weights = load_file(folder / hub_files.SAFETENSORS)
        save_file({rename(name): array for name, array in weights.items()}, Path(temporary, hub_files.SAFETENSORS))
        Path(temporary, CONFIG).write_bytes((folder / CONFIG).read_bytes())
        yield Path(temporary)


def vision_tower(folder: Path, config: dict[str, Any], pretrained: bool) -> keras.Model:
    """Return KerasHub's network of the vision tower of a CLIP or SigLIP.

    Raises:
        ValueError: if KerasHub's network cannot be what its config says.
        Exception: of other kinds, if its files lack something.
    """
    import keras_hub

    settings, clip = tower_settings(config), config["model_type"].startswith("clip")
    side, norm = int(settings["image_size"]), 1e-5 if clip else 1e-6
    if settings.get("layer_norm_eps", norm) != norm:
        raise ValueError(f"layer_norm_eps must be {norm}, got {settings['layer_norm_eps']}")
    if settings["hidden_act"] not in _ACTIVATIONS:
        raise ValueError(f"hidden_act must be one of {', '.join(_ACTIVATIONS)}, got {settings['hidden_act']!r}")
    kind = keras_hub.models.CLIPVisionEncoder if clip else keras_hub.models.SigLIPVisionEncoder
    network = kind(
        patch_size=int(settings["patch_size"]),
        hidden_dim=settings["hidden_size"],
        num_layers=settings["num_hidden_layers"],
        num_heads=settings["num_attention_heads"],
        intermediate_dim=settings["intermediate_size"],
        intermediate_activation=_ACTIVATIONS[settings["hidden_act"]],
        image_shape=(side, side, 3),
    )
    if pretrained:
        _fill(network, _Weights(folder / hub_files.SAFETENSORS), clip)
    return network


class _Weights:
    """Tensors of a file by the ends of their names."""

    def __init__(self, file: Path) -> None:
        from safetensors.numpy import load_file

        found = load_file(file)
        start = re.compile(r"^(?:.*\.)?vision_model\.")
        inside = {start.sub("", name): array for name, array in found.items() if start.match(name)}
        self._arrays = inside or found  # a file of the tower alone may lack the beginning of the names

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name].astype(np.float32)

    def dense(self, layer: keras.Layer, name: str) -> None:
        """Fill a dense layer, or one of attention, whose weights have an axis for heads."""
        kernel, *bias = layer.weights
        kernel.assign(self[f"{name}.weight"].T.reshape(kernel.shape))
        for one in bias:
            one.assign(self[f"{name}.bias"].reshape(one.shape))

    def norm(self, layer: keras.Layer, name: str) -> None:
        layer.gamma.assign(self[f"{name}.weight"])
        layer.beta.assign(self[f"{name}.bias"])


def _fill(network: keras.Model, weights: _Weights, clip: bool) -> None:
    embedding = network.embedding
    kernel, *bias = embedding.patch_embedding.weights
    kernel.assign(weights["embeddings.patch_embedding.weight"].transpose(2, 3, 1, 0))
    for one in bias:
        one.assign(weights["embeddings.patch_embedding.bias"])
    embedding.position_embedding.embeddings.assign(weights["embeddings.position_embedding.weight"])
    if clip:
        embedding.class_embedding.assign(weights["embeddings.class_embedding"])
        weights.norm(network.pre_layer_norm, "pre_layrnorm")
    for number, layer in enumerate(network.encoder_layers):
        name = f"encoder.layers.{number}"
        attention = layer.attention if clip else layer.self_attn
        for part, source in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("output", "out_proj")):
            weights.dense(getattr(attention, f"{part}_dense"), f"{name}.self_attn.{source}")
        norms = (layer.layer_norm_1, layer.layer_norm_2) if clip else (layer.layer_norm1, layer.layer_norm2)
        dense = (layer.dense_1, layer.dense_2) if clip else (layer.mlp.fc1, layer.mlp.fc2)
        for number_of_two, (norm, one) in enumerate(zip(norms, dense, strict=True), 1):
            weights.norm(norm, f"{name}.layer_norm{number_of_two}")
            weights.dense(one, f"{name}.mlp.fc{number_of_two}")
    if clip:
        weights.norm(network.layer_norm, "post_layernorm")
        return
    weights.norm(network.post_layer_norm, "post_layernorm")
    head = network.head
    head.probe.assign(weights["head.probe"])
    parts = zip(("query", "key", "value"), np.split(weights["head.attention.in_proj_weight"], 3),
                np.split(weights["head.attention.in_proj_bias"], 3), strict=True)  # fmt: skip
    for part, matrix, offset in parts:
        kernel, bias_of = getattr(head.attention, f"{part}_dense").weights
        kernel.assign(matrix.T.reshape(kernel.shape))
        bias_of.assign(offset.reshape(bias_of.shape))
    weights.dense(head.attention.output_dense, "head.attention.out_proj")
    weights.norm(head.layer_norm, "head.layernorm")
    weights.dense(head.mlp.fc1, "head.mlp.fc1")
    weights.dense(head.mlp.fc2, "head.mlp.fc2")


def read_encoder(file: Path) -> dict[str, np.ndarray]:
    """Return the weights of an encoder of sounds by their names, (...) float32, without what else a file has.

    Raises:
        KeyError: if there is no encoder in it.
    """
    from safetensors import safe_open

    with safe_open(file, "numpy") as opened:
        names, first = list(opened.keys()), "conv1.weight"
        start = next((name for name in names if name.endswith(f"encoder.{first}")), first).removesuffix(first)
        own = [name for name in names if name.startswith(start)]
        return {name.removeprefix(start): opened.get_tensor(name).astype(np.float32) for name in own}

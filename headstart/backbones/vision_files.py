"""Files of Hugging Face that KerasHub 0.32 cannot convert: vision towers of CLIP and SigLIP, and bare ViTs.

It has the networks of CLIP and SigLIP, but no converter. SigLIP 2 of a fixed image size is the same network, and is
called `siglip` in its config.json, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras

# What a config.json need not say: it names only what differs from the defaults of Hugging Face.
_DEFAULTS = {
    "clip": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    },
    "siglip": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    },
}  # fmt: skip
_FAMILIES = {"clip": "clip", "clip_vision_model": "clip", "siglip": "siglip", "siglip_vision_model": "siglip"}
_ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_approximate"}


def is_tower(config: dict[str, Any]) -> bool:
    """Whether a config.json of Hugging Face is one of CLIP or SigLIP, whole or of the vision tower alone."""
    return config.get("model_type") in _FAMILIES


@contextmanager
def named(folder: Path, kind: str) -> Iterator[Path]:
    """Yield a folder with the weights of `folder` under the names that KerasHub knows: of a bare ViT or DeiT they lack
    the prefix of the classifiers around it.
    """
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    file = folder / "model.safetensors"
    bare = False
    if kind in ("vit", "deit") and file.is_file():
        with safe_open(file, "numpy") as tensors:
            bare = "embeddings.cls_token" in tensors.keys()  # noqa: SIM118  not a dict
    if not bare:
        yield folder
        return
    with TemporaryDirectory() as temporary:
        save_file({f"{kind}.{name}": array for name, array in load_file(file).items()}, Path(temporary) / file.name)
        (Path(temporary) / "config.json").write_bytes((folder / "config.json").read_bytes())
        yield Path(temporary)


def load_tower(folder: Path, load_weights: bool = True) -> keras.Model:
    """Build the vision tower of a folder of Hugging Face: KerasHub's CLIPVisionEncoder or SigLIPVisionEncoder.

    Raises:
        ValueError: if KerasHub's network cannot be what config.json says.
        KeyError: if model.safetensors lacks a tensor.
    """
    import keras_hub
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = _FAMILIES[config["model_type"]]
    about = _DEFAULTS[family] | config.get("vision_config", config)
    if about["layer_norm_eps"] != _DEFAULTS[family]["layer_norm_eps"]:
        raise ValueError(f"layer_norm_eps must be {_DEFAULTS[family]['layer_norm_eps']}, got {about['layer_norm_eps']}")
    if about["hidden_act"] not in _ACTIVATIONS:
        raise ValueError(f"hidden_act must be one of {', '.join(_ACTIVATIONS)}, got {about['hidden_act']!r}")
    build = keras_hub.models.CLIPVisionEncoder if family == "clip" else keras_hub.models.SigLIPVisionEncoder
    tower = build(
        patch_size=about["patch_size"],
        hidden_dim=about["hidden_size"],
        num_layers=about["num_hidden_layers"],
        num_heads=about["num_attention_heads"],
        intermediate_dim=about["intermediate_size"],
        intermediate_activation=_ACTIVATIONS[about["hidden_act"]],
        image_shape=(about["image_size"], about["image_size"], 3),
    )
    if load_weights:
        tensors = load_file(folder / "model.safetensors")
        start = "vision_model."
        (_fill_clip if family == "clip" else _fill_siglip)(
            tower, {name[len(start) :]: array for name, array in tensors.items() if name.startswith(start)} or tensors
        )
    return tower


def _fill_clip(tower: keras.Model, tensors: dict[str, np.ndarray]) -> None:
    _fill_embedding(tower.embedding, tensors)
    tower.embedding.class_embedding.assign(tensors["embeddings.class_embedding"])
    tower.embedding.position_ids.assign(np.arange(tower.embedding.num_positions)[None])
    _fill(tower.pre_layer_norm, tensors, "pre_layrnorm")  # sic
    _fill(tower.layer_norm, tensors, "post_layernorm")
    for number, layer in enumerate(tower.encoder_layers):
        start = f"encoder.layers.{number}."
        _fill_attention(layer.attention, tensors, f"{start}self_attn.")
        parts = (layer.layer_norm_1, layer.layer_norm_2, layer.dense_1, layer.dense_2)
        for part, name in zip(parts, ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"), strict=True):
            _fill(part, tensors, start + name)


def _fill_siglip(tower: keras.Model, tensors: dict[str, np.ndarray]) -> None:
    _fill_embedding(tower.embedding, tensors)
    _fill(tower.post_layer_norm, tensors, "post_layernorm")
    for number, layer in enumerate(tower.encoder_layers):
        start = f"encoder.layers.{number}."
        _fill_attention(layer.self_attn, tensors, f"{start}self_attn.")
        parts = (layer.layer_norm1, layer.layer_norm2, layer.mlp.fc1, layer.mlp.fc2)
        for part, name in zip(parts, ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"), strict=True):
            _fill(part, tensors, start + name)
    head, start = tower.head, "head."
    head.probe.assign(tensors[f"{start}probe"])
    for kind in ("weight", "bias"):  # torch has the three projections in one
        thirds = np.split(tensors[f"{start}attention.in_proj_{kind}"], 3)
        tensors |= {f"{start}attention.{name}_proj.{kind}": third for name, third in zip("qkv", thirds, strict=True)}
    _fill_attention(head.attention, tensors, f"{start}attention.")
    for part, name in ((head.layer_norm, "layernorm"), (head.mlp.fc1, "mlp.fc1"), (head.mlp.fc2, "mlp.fc2")):
        _fill(part, tensors, start + name)


def _fill_embedding(embedding: keras.Layer, tensors: dict[str, np.ndarray]) -> None:
    _fill(embedding.patch_embedding, tensors, "embeddings.patch_embedding")
    embedding.position_embedding.embeddings.assign(tensors["embeddings.position_embedding.weight"])


def _fill_attention(attention: keras.Layer, tensors: dict[str, np.ndarray], start: str) -> None:
    parts = (attention.query_dense, attention.key_dense, attention.value_dense, attention.output_dense)
    for part, name in zip(parts, ("q_proj", "k_proj", "v_proj", "out_proj"), strict=True):
        _fill(part, tensors, start + name)


def _fill(layer: keras.Layer, tensors: dict[str, np.ndarray], name: str) -> None:
    """Assign weight and bias of a layer of torch to one of Keras: a norm, a dense layer or a convolution."""
    norm = hasattr(layer, "gamma")
    weight, bias = (layer.gamma, layer.beta) if norm else (layer.kernel, layer.bias)
    array = tensors[f"{name}.weight"]
    turned = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    weight.assign(turned.reshape(weight.shape))
    if bias is not None:
        bias.assign(tensors[f"{name}.bias"].reshape(bias.shape))

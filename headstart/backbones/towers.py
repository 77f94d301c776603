"""The vision part of what KerasHub loads, as a network whose blocks are layers: images -> tokens (or feature maps).

What KerasHub 0.32 makes of files, against the reference implementations (`tests/test_reference_backbones.py`); where
it differs, the work-around is here or in `vision_files`:

| family | converter for `hf:` | at the trained size | at another size | before the patches | trained to be pooled by |
|---|---|---|---|---|---|
| ViT | of classifiers; a bare ViTModel lacks the prefix `vit.` | layer_norm_eps ignored | refused | class | class token |
| DeiT, distilled | yes; without distillation it is a ViT | equal | refused | class, distillation | class token |
| DINOv2 | yes | equal | another cubic kernel: up to 3% off | class | class token (and patches) |
| DINOv2 with registers | yes | equal | equal (antialiased) | class, registers | class token (and patches) |
| DINOv3 ViT | yes; not its ConvNeXts | equal | equal (rotary) | class, registers | class token |
| CLIP | none: `vision_files` | equal | refused | class | class token after the last norm |
| SigLIP, SigLIP 2 | none: `vision_files` | equal | refused | nothing | attention: the layer `head` |
| ResNet of timm | yes | equal | equal | - | mean |
| RetinaNet | none; presets of Kaggle, the trunk is `image_encoder` | equal | equal | - | mean |
| ConvNeXt | KerasHub has none; `keras.applications` has | | | | |

All GELUs are exact, but for SigLIP's (by tanh) and CLIP's (x * sigmoid(1.702 x)); both as the references have them.
The blocks of ViT, DeiT and DINO are hidden in one layer: they are called one by one here. DeiT's return None beside
their output, which no graph of Keras may: they are asked for the attention too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.backbones import positions, vision_files

if TYPE_CHECKING:
    import keras

# What KerasHub's converters take for granted of a config.json by Hugging Face.
_ASSUMED: dict[str, dict[str, Any]] = {
    "vit": {"hidden_act": "gelu", "qkv_bias": True},
    "deit": {"hidden_act": "gelu", "qkv_bias": True},
    "dinov2": {"hidden_act": "gelu", "qkv_bias": True, "layer_norm_eps": 1e-6},
    "dinov2_with_registers": {"hidden_act": "gelu", "qkv_bias": True, "layer_norm_eps": 1e-6},
    "dinov3_vit": {"pos_embed_rescale": 2.0},  # augments in training alone; there so that the family is listed
}


@dataclass(frozen=True)
class Tower:
    """The vision part of a network.

    Attributes:
        network: preprocessed images (N, size, size, 3) -> tokens after the last norm (N, tokens, dim), each block of
            which is a layer; or feature maps (N, height, width, channels).
        blocks: names of the layers that are its blocks, from the input on; of a ResNet empty.
        first: number of tokens before the patches; of these the first is the class token.
        head: the layer that it was trained to be pooled by, tokens -> (N, dim); None: there is none.
    """

    network: keras.Model
    blocks: tuple[str, ...] = ()
    first: int = 0
    head: keras.Layer | None = None


def load(folder: Path, size: int, load_weights: bool = True) -> Tower:
    """Load the vision part of a folder of Hugging Face, timm or KerasHub for images of `size` pixels a side.

    Raises:
        ValueError: if KerasHub has no such network, or its network differs from what config.json says.
    """
    import keras_hub

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if vision_files.is_tower(config):
        return _tower(_resized(vision_files.load_tower(folder, load_weights), size))
    kind = config.get("model_type", "")
    for key, value in _ASSUMED.get(kind, {}).items():
        if config.get(key, value) != value:
            raise ValueError(f"{key} must be {value} for KerasHub, got {config[key]!r}")
    more = {"layer_norm_epsilon": config["layer_norm_eps"]} if kind == "vit" else {}  # which the converter forgets
    with vision_files.named(folder, kind) as place:
        backbone = keras_hub.models.Backbone.from_preset(str(place), load_weights=load_weights, **more)
    part = getattr(backbone, "vision_encoder", None) or getattr(backbone, "image_encoder", None) or backbone
    return _tower(_resized(part, size))


def _resized(part: keras.Model, size: int) -> keras.Model:
    """Return the same network for images of another size, with its position embeddings interpolated."""
    shape = (size, size, 3)
    if None in part.image_shape or tuple(part.image_shape) == shape:
        return part
    first = _first_position(part)
    resized = type(part).from_config({**part.get_config(), "image_shape": shape})
    for old, new in zip(part.weights, resized.weights, strict=True):
        if old.shape == new.shape:
            new.assign(old)
        elif "int" in str(new.dtype):  # position_ids
            new.assign(np.arange(new.shape[1])[None])
        else:
            smooth = bool(getattr(part, "antialias_in_interpolation", False))
            new.assign(positions.resize(np.asarray(old), new.shape[-2], first, smooth))
    return resized


def _first_position(part: keras.Model) -> int:
    return {"DeiTBackbone": 2, "SigLIPVisionEncoder": 0}.get(type(part).__name__, int(getattr(part, "use_class_token", 1)))


def _tower(part: keras.Model) -> Tower:
    """Return `part` with its blocks as layers."""
    from headstart.framework import keras

    name, image = type(part).__name__, part.inputs[0]
    first = _first_position(part) + getattr(part, "num_register_tokens", 0)
    blocks: list[keras.Layer]
    if name in ("ViTBackbone", "DeiTBackbone"):
        embed, encoder = part.layers[1:]
        tokens, blocks = embed(image), encoder.encoder_layers
        for block in blocks:
            tokens = block(tokens) if name == "ViTBackbone" else block(tokens, return_attention_scores=True)[0]
        return Tower(keras.Model(image, encoder.layer_norm(tokens)), _names(blocks), first)
    if name in ("DINOV2Backbone", "DINOV3Backbone"):
        more = {}
        if name == "DINOV3Backbone":
            more = {"position_embeddings": part.rope_embedding(image), "num_prefix_tokens": first}
        tokens, blocks = part.embeddings(image), part.encoder.layers
        for block in blocks:
            tokens = block(tokens, **more)
        return Tower(keras.Model(image, part.layernorm(tokens)), _names(blocks), first)
    if name == "CLIPVisionEncoder":
        return Tower(keras.Model(image, part.layer_norm.output), _names(part.encoder_layers), first)
    if name == "SigLIPVisionEncoder":
        return Tower(keras.Model(image, part.post_layer_norm.output), _names(part.encoder_layers), first, part.head)
    return Tower(keras.Model(image, part.output))


def _names(blocks: list[keras.Layer]) -> tuple[str, ...]:
    return tuple(block.name for block in blocks)

"""Small models of the families that KerasHub knows: their files are drawn, what their authors' code gives is recorded.

`tests/references/FAMILY/` has the files of a model as Hugging Face keeps one, but for its weights, of which there are
names and shapes only: `weights_of` draws them, the same on every machine. `expected.safetensors` is what the reference
made of `images`, see `references/make.py`.
"""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np

REFERENCES = Path(__file__).parent / "references"
SHAPES, EXPECTED = "shapes.json", "expected.safetensors"


def images(size: int) -> np.ndarray:
    """Return three images, (3, size, size, 3) uint8: noise on a ramp, each of another brightness."""
    noise = np.random.RandomState(size).randint(0, 128, (3, size, size, 3))
    ramp = np.linspace(0, 127, size).astype(int)
    brightness = np.array([1.0, 0.7, 0.4])[:, None, None, None]
    return ((noise + ramp[:, None, None]) * brightness).astype(np.uint8)


def sounds() -> list[np.ndarray]:
    """Return three sounds at 16 kHz, (n,) float32 each: noise and a rising tone, of 0.3, 0.97 and 2 seconds."""
    found = []
    for number, length in enumerate((4800, 15_500, 32_000)):
        time = np.arange(length) / 16_000
        noise = np.random.RandomState(number).uniform(-0.05, 0.05, length)
        found.append((0.4 * np.sin(2 * np.pi * (300 + 700 * number * time) * time) + noise).astype(np.float32))
    return found


def draw(name: str, shape: list[int]) -> np.ndarray:
    """Return one tensor of weights, float32: nothing in it is zero or one, so that a mistake with it would show.

    The numbers of RandomState are those that NumPy never changes.
    """
    values = np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, shape)
    if name.endswith(("bias", "running_mean")):
        values *= 0.3
    elif name.endswith("weight") and len(shape) > 1 and "position" not in name:
        values *= np.sqrt(3 / np.prod(shape[1:]))
    elif name.endswith(("weight", "lambda1", "running_var")) and len(shape) == 1:  # of a norm or a layer scale
        values = 1 + values / 2
    return values.astype(np.float32)


def weights_of(family: str) -> dict[str, np.ndarray]:
    """Return the weights of a model by the names that the reference gives them."""
    shapes = json.loads((REFERENCES / family / SHAPES).read_text(encoding="utf-8"))
    return {name: draw(name, shape) for name, shape in shapes.items()}


def write_model(family: str, folder: Path) -> Path:
    """Write the files of a model as Hugging Face keeps one; returns the folder."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for file in (REFERENCES / family).glob("*config.json"):
        shutil.copy(file, folder)
    save_file(weights_of(family), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def expected(family: str) -> dict[str, np.ndarray]:
    """Return what the reference made of `images`, by name.

    `SIZE/class`, `SIZE/patches`, `SIZE/pooled`: the class token, the mean of the patches, both after the last norm, and
    what the model was trained to be pooled to, (3, dim) each, for images of that size. `hidden/NUMBER`: what block
    NUMBER, from 1, gave for the first image of the size that the model was trained at, (tokens, dim). `attention/2`:
    how the first and the last token attend to all in block 2 then, (heads, 2, tokens).

    Of encoders of sounds: `features`, mean and deviation over the steps in which there is sound, of `sounds`,
    (3, 2 dim), or `SECONDS/features` if so many seconds are heard; `hidden/NUMBER`, what block NUMBER gave for every
    tenth step of the second sound; and of Whisper `spectrum`, the first and the last 20 frames of the last sound,
    (mels, 40).
    """
    from safetensors.numpy import load_file

    return load_file(REFERENCES / family / EXPECTED)


def write_preset(family: str, folder: Path) -> Path:
    """Write CLIP, SigLIP, RetinaNet, Whisper or Moonshine as KerasHub keeps its presets, what is left of it random."""
    import keras_hub

    from headstart.backbones.hub_conversions import vision_tower

    models, layers = keras_hub.models, keras_hub.layers
    text = {"vocabulary_size": 16, "embedding_dim": 8, "hidden_dim": 8, "num_layers": 1, "num_heads": 1}
    text |= {"intermediate_dim": 8, "max_sequence_length": 4}
    source = write_model(family, folder / "source")
    if family in ("whisper", "moonshine"):
        return _write_sound_preset(family, source, folder)
    if family == "resnet":
        trunk = models.Backbone.from_preset(str(source))
        network = models.RetinaNetBackbone(trunk, min_level=3, max_level=7, use_p5=False)
        about = json.loads((source / "config.json").read_text(encoding="utf-8"))["pretrained_cfg"]
        converter, mean, std = layers.RetinaNetImageConverter, "mean", "std"
        more = {"pad_to_aspect_ratio": True, "crop_to_aspect_ratio": False}
    else:
        tower = vision_tower(source, json.loads((source / "config.json").read_text(encoding="utf-8")), True)
        about = json.loads((source / "preprocessor_config.json").read_text(encoding="utf-8"))
        mean, std, more = "image_mean", "image_std", {"interpolation": "bicubic", "crop_to_aspect_ratio": True}
        if family == "clip":
            network = models.CLIPBackbone(tower, models.CLIPTextEncoder(**text), projection_dim=8)
            converter = layers.CLIPImageConverter
        else:
            network = models.SigLIPBackbone(tower, models.SigLIPTextEncoder(**text))
            converter, more = layers.SigLIPImageConverter, more | {"antialias": True, "crop_to_aspect_ratio": False}
    shutil.rmtree(source)
    network.save_to_preset(str(folder))
    scale = [1 / 255 / one for one in about[std]]
    offset = [-one / other for one, other in zip(about[mean], about[std], strict=True)]
    converter(image_size=(80, 80), scale=scale, offset=offset, **more).save_to_preset(str(folder))
    return folder


def _sound_network(family: str, config: dict) -> tuple[Any, dict[str, Any]]:
    """Return KerasHub's network of a config.json, and its layers by what Hugging Face calls them."""
    import keras_hub

    def sizes(names: dict[str, str]) -> dict[str, int]:
        return {name: config[other] for name, other in names.items()}

    if family == "whisper":
        names = {"hidden_dim": "d_model", "num_layers": "encoder_layers", "num_heads": "encoder_attention_heads"}
        known = sizes(names | {"intermediate_dim": "encoder_ffn_dim", "num_mels": "num_mel_bins"})
        known |= {"max_encoder_sequence_length": 2 * config["max_source_positions"], "max_decoder_sequence_length": 4}
        network = keras_hub.models.WhisperBackbone(vocabulary_size=16, **known)
        layers = {
            "conv1": network.encoder_conv_layer_1,
            "conv2": network.encoder_conv_layer_2,
            "embed_positions": network.encoder_position_embedding,
            "layer_norm": network.encoder_layer_norm,
        }
        for number, layer in enumerate(network.encoder_transformer_layers):
            attention = layer._self_attention_layer
            parts = {
                "self_attn.q_proj": attention.query_dense,
                "self_attn.k_proj": attention.key_dense,
                "self_attn.v_proj": attention.value_dense,
                "self_attn.out_proj": attention.output_dense,
                "self_attn_layer_norm": layer._self_attention_layer_norm,
                "final_layer_norm": layer._feedforward_layer_norm,
                "fc1": layer._feedforward_intermediate_dense,
                "fc2": layer._feedforward_output_dense,
            }
            layers |= {f"layers.{number}.{name}": part for name, part in parts.items()}
        return network, layers
    names = {
        "hidden_dim": "hidden_size",
        "filter_dim": "hidden_size",
        "encoder_num_heads": "encoder_num_attention_heads",
    }
    names |= {"encoder_num_layers": "encoder_num_hidden_layers", "decoder_num_layers": "decoder_num_hidden_layers"}
    known = sizes(names | {"intermediate_dim": "intermediate_size", "decoder_num_heads": "decoder_num_attention_heads"})
    known |= {"feedforward_expansion_factor": config["intermediate_size"] // config["hidden_size"]}
    known |= {"partial_rotary_factor": config["rope_parameters"]["partial_rotary_factor"]}
    network = keras_hub.models.MoonshineBackbone(vocabulary_size=16, **known)
    layers = {f"conv{number}": getattr(network, f"conv{number}") for number in (1, 2, 3)}
    layers |= {"groupnorm": network.group_norm, "layer_norm": network.encoder_final_layer_norm}
    for number, layer in enumerate(network.encoder_blocks):
        attention = layer.self_attention_layer
        parts = {
            "self_attn.q_proj": attention.query_dense,
            "self_attn.k_proj": attention.key_dense,
            "self_attn.v_proj": attention.value_dense,
            "self_attn.o_proj": attention.output_dense,
            "input_layernorm": layer.self_attention_layer_norm,
            "post_attention_layernorm": layer.feedforward_layer_norm,
            "mlp.fc1": layer.feedforward.dense_1,
            "mlp.fc2": layer.feedforward.dense_2,
        }
        layers |= {f"layers.{number}.{name}": part for name, part in parts.items()}
    return network, layers


def _write_sound_preset(family: str, source: Path, folder: Path) -> Path:
    """Write an encoder of sounds as KerasHub keeps its presets: with the weights of the files in `source`."""
    from safetensors.numpy import load_file

    network, layers = _sound_network(family, json.loads((source / "config.json").read_text(encoding="utf-8")))
    arrays = load_file(source / "model.safetensors")
    for name, layer in layers.items():
        names = [f"model.encoder.{name}.{kind}" for kind in ("weight", "bias")]
        values = [arrays[one] for one in names if one in arrays]
        for variable, value in zip(layer.weights, values, strict=True):
            variable.assign((value if name == "embed_positions" else value.T).reshape(variable.shape))
    shutil.rmtree(source)
    network.save_to_preset(str(folder))
    return folder

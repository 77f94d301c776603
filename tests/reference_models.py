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

import numpy as np

REFERENCES = Path(__file__).parent / "references"
SHAPES, EXPECTED = "shapes.json", "expected.safetensors"


def images(size: int) -> np.ndarray:
    """Return three images, (3, size, size, 3) uint8: noise on a ramp, each of another brightness."""
    noise = np.random.RandomState(size).randint(0, 128, (3, size, size, 3))
    ramp = np.linspace(0, 127, size).astype(int)
    brightness = np.array([1.0, 0.7, 0.4])[:, None, None, None]
    return ((noise + ramp[:, None, None]) * brightness).astype(np.uint8)


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
    """
    from safetensors.numpy import load_file

    return load_file(REFERENCES / family / EXPECTED)


def write_preset(family: str, folder: Path) -> Path:
    """Write CLIP, SigLIP or RetinaNet as KerasHub keeps its presets, with the rest of the network random."""
    import keras_hub

    from headstart.backbones.hub_conversions import vision_tower

    models, layers = keras_hub.models, keras_hub.layers
    text = {"vocabulary_size": 16, "embedding_dim": 8, "hidden_dim": 8, "num_layers": 1, "num_heads": 1}
    text |= {"intermediate_dim": 8, "max_sequence_length": 4}
    source = write_model(family, folder / "source")
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

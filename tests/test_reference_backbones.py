"""Vision networks by KerasHub against the implementations of their authors, see `references/make.py`.

What KerasHub 0.32 alone makes of the files of Hugging Face and timm, and what is done about it:

| family | its converter | at the trained size | at another | before the patches | trained to be pooled by |
|---|---|---|---|---|---|
| ViT | lacks layer_norm_eps; not of a bare ViTModel | equal | refuses | class | class token |
| DeiT, distilled | equal; without distillation it is a ViT | equal | refuses | class, distillation | class token |
| DINOv2 | equal | equal | up to 3% off: another cubic kernel | class | class token, and patches |
| DINOv2 with registers | equal | equal | equal: antialiased | class, registers | class token, and patches |
| DINOv3 ViT | equal; not of its ConvNeXts | equal | equal: rotary | class, registers | class token |
| CLIP | none: `vision_files` | equal | refuses | class | class token after the last norm |
| SigLIP, SigLIP 2 | none: `vision_files` | equal | refuses | nothing | attention: its layer `head` |
| ResNet of timm | equal | equal | equal | - | mean |
| RetinaNet | none: presets of Kaggle, trunk `image_encoder` | equal | equal | - | mean |
| ConvNeXt | none, nor a network: see keras.applications | | | | |
"""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("keras_hub", exc_type=ImportError)
from reference_models import expected, images, write_model

from headstart.backbones import vision_files


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    return np.abs(np.asarray(found) - wanted).max() < 1e-5 * np.abs(wanted).max()


def pixels(folder, size: int) -> np.ndarray:
    """Return images as the reference has preprocessed them."""
    about = json.loads((folder / "preprocessor_config.json").read_text())
    mean, std = (np.array(about[name], np.float32) for name in ("image_mean", "image_std"))
    return (images(size).astype(np.float32) * about["rescale_factor"] - mean) / std


@pytest.mark.parametrize("family", ["clip", "siglip", "siglip2"])
def test_towers_without_a_converter_of_kerashub(family, tmp_path):
    folder = write_model(family, tmp_path)
    tower = vision_files.load_tower(folder)
    output = np.asarray(tower({"images": pixels(folder, 80)}))
    assert close(output[:, 0] if family == "clip" else output, expected(family)["80/pooled"])


def test_the_config_of_a_tower_may_say_only_what_is_unusual(tmp_path):
    """As google/siglip-base-patch16-224 does."""
    folder = write_model("siglip", tmp_path)
    (folder / "config.json").write_text('{"model_type": "siglip", "vision_config": {"num_hidden_layers": 1}}')
    tower = vision_files.load_tower(folder, load_weights=False)
    assert (tower.image_shape, tower.hidden_dim, tower.num_layers) == ((224, 224, 3), 768, 1)


def test_towers_that_kerashub_cannot_be(tmp_path):
    folder = write_model("clip", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for key, value in (("layer_norm_eps", 1e-3), ("hidden_act", "relu")):
        (folder / "config.json").write_text(json.dumps({**config, "vision_config": {key: value}}))
        with pytest.raises(ValueError, match=f"{key} must be .*, got '?{value}"):
            vision_files.load_tower(folder, load_weights=False)


def test_weights_of_a_bare_vit_have_the_names_that_kerashub_knows(tmp_path):
    import keras_hub

    folder = write_model("vit-bare", tmp_path)
    with vision_files.named(folder, "vit") as place:
        network = keras_hub.models.Backbone.from_preset(str(place), layer_norm_epsilon=1e-3)
    assert close(np.asarray(network(pixels(folder, 80)))[:, 0], expected("vit-bare")["80/class"])

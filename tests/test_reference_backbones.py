"""Vision networks by KerasHub against the implementations of their authors, see `references/make.py`.

What KerasHub 0.32 alone makes of the files of Hugging Face and timm, and what is done about it:

| family | its converter | at the trained size | at another | before the patches | trained to be pooled by |
|---|---|---|---|---|---|
| ViT | lacks layer_norm_eps; not of a bare ViTModel | equal | refuses | class | class token |
| DeiT, distilled | equal; without distillation it is a ViT | equal | refuses | class, distillation | class token |
| DINOv2 | equal | equal | up to 3% off: another cubic kernel | class | class token, patches |
| DINOv2 with registers | equal | equal | equal: antialiased | class, registers | class token, patches |
| DINOv3 ViT | equal; not of its ConvNeXts | equal | equal: rotary | class, registers | class token |
| CLIP | none: `hub_conversions` | equal | refuses | class | class token after the last norm |
| SigLIP, SigLIP 2 | none: `hub_conversions` | equal | refuses | nothing | attention: its layer `head` |
| ResNet of timm | equal | equal | equal | - | mean |
| RetinaNet | none: presets of Kaggle, trunk `image_encoder` | equal | equal | - | mean |
| ConvNeXt | none, nor a network: see keras.applications | | | | |
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("keras_hub", exc_type=ImportError)
from reference_models import REFERENCES, expected, images, weights_of, write_model, write_preset
from safetensors.numpy import save_file

from headstart.backbones import get_backbone
from headstart.backbones.base import BACKBONE_LAYER
from headstart.backbones.hub_images import ATTENTION, BOTH, CLASS, MEAN
from headstart.framework import keras

POOLED = {
    "clip": CLASS,
    "deit": CLASS,
    "dinov2": CLASS,
    "dinov2-registers": CLASS,
    "dinov3": CLASS,
    "dinov3-gated": CLASS,
    "siglip": ATTENTION,
    "siglip2": ATTENTION,
    "vit": CLASS,
    "vit-bare": CLASS,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: write_model(name, root / name) for name in POOLED}


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


def features(row, size: int, pooled: str = "") -> np.ndarray:
    row = dataclasses.replace(row, pooled=pooled or row.pooled)
    return run(row.build("pretrained", size, "avg", 0), size)


def run(encoder: keras.Model, size: int) -> np.ndarray:
    return np.asarray(encoder({"image": images(size).astype(np.float32)}))  # tracing a graph would take longer


def trained_at(family: str) -> int:
    return 70 if "dinov2" in family else 80


@pytest.mark.parametrize("family", POOLED)
def test_features_and_blocks_are_those_of_the_reference(family, folders):
    row, size, wanted = get_backbone(str(folders[family])), trained_at(family), expected(family)
    assert (row.modality, row.pooled, row.default_size) == ("image", POOLED[family], size)
    encoder = row.build("pretrained", size, "avg", 0)
    assert_close(run(encoder, size), wanted[f"{size}/pooled"])
    names = [block.name for block in row.blocks(encoder)]
    assert len(names) == 4  # of patches, and three of the transformer
    base = encoder.get_layer(BACKBONE_LAYER)
    scaled = encoder.get_layer("scaled")(images(size)[:1].astype(np.float32))
    states = keras.Model(base.inputs, [base.get_layer(name).output for name in names[1:]])(scaled)
    for number, state in enumerate(states, 1):
        assert_close(np.asarray(state)[0], wanted[f"hidden/{number}"])


@pytest.mark.parametrize("family", [name for name in POOLED if name not in ("dinov3-gated", "vit-bare")])
def test_positions_are_interpolated_as_in_the_reference(family, folders):
    row, wanted, patch = get_backbone(str(folders[family])), expected(family), 14 if "dinov2" in family else 16
    patch = 14 if family == "siglip2" else patch
    for size in (trained_at(family) - 2 * patch, trained_at(family) + 2 * patch):
        if row.pooled == ATTENTION:
            assert_close(features(row, size), wanted[f"{size}/pooled"])
            continue
        both = np.concatenate([wanted[f"{size}/class"], wanted[f"{size}/patches"]], axis=1)
        assert_close(features(row, size, BOTH), both)


@pytest.mark.parametrize("family", ["clip", "dinov2", "siglip", "vit"])
def test_features_of_more_depths(family, folders):
    """Of three blocks the last one gives the output, and the second one more features."""
    row, size, wanted = get_backbone(str(folders[family])), trained_at(family), expected(family)
    encoder = row.build("pretrained", size, "avg", 0, "half")
    found = run(encoder, size)
    assert_close(found[:, :32], wanted[f"{size}/pooled"])
    tokens = wanted["hidden/2"]
    assert_close(found[0, 32:], tokens.mean(axis=0) if row.pooled == ATTENTION else tokens[0])


def test_where_there_is_no_class_token_the_mean_is_one_of_patches(folders):
    found = features(get_backbone(str(folders["siglip"])), 80, MEAN)
    assert_close(found, expected("siglip")["80/patches"])


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_presets_of_kerashub(family, tmp_path):
    row = get_backbone(str(write_preset(family, tmp_path)))
    assert (row.pooled, row.default_size) == (POOLED[family], 80)
    assert_close(features(row, 80), expected(family)["80/pooled"])
    assert_close(features(row, 112), expected(family)["112/pooled"])


@pytest.mark.parametrize(("write", "size"), [(write_model, 64), pytest.param(write_preset, 96, marks=pytest.mark.slow)])
def test_residual_networks_of_timm_and_under_retinanet(write, size, tmp_path):
    row = get_backbone(str(write("resnet", tmp_path)))
    assert_close(features(row, size), expected("resnet")[f"{size}/pooled"])


def test_the_config_of_a_tower_may_say_only_what_is_unusual(tmp_path):
    """As that of google/siglip-base-patch16-224 does: the rest is as Hugging Face has it by default."""
    folder = write_model("siglip", tmp_path)
    config = {"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model", "num_hidden_layers": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    row = get_backbone(str(folder))
    assert (row.default_size, row.patch, row.pooled) == (224, 16, ATTENTION)
    assert row.build("none", 32, "avg", 0).output_shape == (None, 768)


def test_a_tower_alone_has_the_names_of_newer_or_older_files(tmp_path):
    """Without its text tower, transformers saves it without `vision_model.` since version 5."""
    folder = write_model("clip", tmp_path)
    start = "vision_model."
    weights = {name[len(start) :]: array for name, array in weights_of("clip").items() if name.startswith(start)}
    config = json.loads((folder / "config.json").read_text())["vision_config"]
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "clip_vision_model"}))
    for prefix in ("", start):
        save_file({prefix + name: array for name, array in weights.items()}, folder / "model.safetensors")
        assert_close(features(get_backbone(str(folder)), 80), expected("clip")["80/pooled"])


def test_fixtures_are_small():
    assert sum(file.stat().st_size for file in REFERENCES.rglob("*") if file.suffix != ".pyc") < 400_000

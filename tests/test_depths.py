"""Features of several depths of a network: which layers give them, in which order, and when they are extracted."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, register_short

from headstart.backbones import depths, get_backbone
from headstart.backbones.base import POOL_LAYER, Block
from headstart.config import load_params
from headstart.features import encoders

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3)).astype(np.float32)
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("densenet121", "efficientnetb0", "nasnetmobile")]


def build(name: str, depth: str, pooling: str = "avg") -> keras.Model:
    return get_backbone(name).build("none", 96, pooling, 0, depth)


@pytest.mark.parametrize("pooling", ["avg", pytest.param("max", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["short", "tiny", "vgg16", *SLOW])
def test_features_of_each_depth_follow_those_of_the_last_layer(name, pooling):
    register_short()
    found, sizes = {}, {}
    for depth in depths.DEPTHS:
        encoder = build(name, depth, pooling)
        found[depth], sizes[depth] = np.asarray(encoder({"image": IMAGES})), depths.widths(encoder)
        assert encoder.name == "encoder"
        assert encoder.get_layer(POOL_LAYER)
    assert list(sizes["half"]) == list(depths.DEPTHS)
    assert list(sizes["last"]) == ["last"]
    for shallow, deep in (("last", "quarter"), ("quarter", "half")):
        dim = found[shallow].shape[1]
        assert found[deep][:, :dim] == pytest.approx(found[shallow], abs=1e-4, rel=1e-4)
        assert found[deep].shape[1] == dim + sum(sizes["half"][deep])


@pytest.mark.parametrize("name", ["tiny", *SLOW[:1]])
def test_the_widths_are_in_the_order_of_the_features(name):
    encoder = build(name, "half")
    pools = depths.pooling_layers(encoder)
    assert [pool.output.shape[-1] for pool in pools] == list(itertools.chain(*depths.widths(encoder).values()))
    each = keras.Model(encoder.input, [pool.output for pool in pools])
    features = np.concatenate([np.asarray(one) for one in each({"image": IMAGES})], axis=1)
    assert features == pytest.approx(np.asarray(encoder({"image": IMAGES})), abs=1e-5)


def test_a_block_gives_its_last_activation_else_its_output():
    image = keras.Input((8, 8, 3))
    first = keras.layers.ReLU()(keras.layers.Conv2D(4, 3, padding="same")(image))
    gate = keras.layers.Activation("sigmoid")(keras.layers.GlobalAveragePooling2D(keepdims=True)(first))
    gated = keras.layers.Multiply()([keras.layers.Conv2D(5, 1)(first), keras.layers.Conv2D(5, 1)(gate)])
    last = keras.layers.Conv2D(6, 1)(gated)
    layers = {layer.output.name: layer for layer in keras.Model(image, last).layers}

    def block(*outputs: keras.KerasTensor) -> Block:
        return Block("", tuple(layers[output.name] for output in outputs))

    blocks = [block(image), block(first), block(gate, gated), block(last)]
    taps = depths.find_taps([blocks[0], blocks[1], block(first, gated), block(last, last)], last, "half")
    assert [(depth, layer.output.shape[-1]) for depth, layer in taps] == [("half", 4)]  # the last block is the output
    taps = depths.find_taps(blocks[:3] * 2, last, "half")
    assert [(depth, layer.output.shape[-1]) for depth, layer in taps] == [("quarter", 5), ("quarter", 4), ("half", 3)]
    assert depths.find_taps(blocks[:3] * 2, last, "last") == []


def test_a_block_of_branches_gives_all_of_them():
    image = keras.Input((8, 8, 3))
    blocks, before = [], image
    for channels in (2, 3, 4, 5):
        branches = [keras.layers.ReLU()(keras.layers.Conv2D(channels, 1)(before)) for _ in range(2)]
        joined = keras.layers.Concatenate()(branches)
        blocks.append([*branches, joined])
        before = joined
    dense = keras.layers.Concatenate()([before, keras.layers.ReLU()(keras.layers.Conv2D(6, 1)(before))])
    layers = {layer.output.name: layer for layer in keras.Model(image, dense).layers}
    made = [Block("", tuple(layers[output.name] for output in block)) for block in blocks]
    taps = depths.find_taps(made, before, "half")
    assert [(depth, layer.output.shape[-1]) for depth, layer in taps] == [("half", 8)]  # the last block is the output
    added = Block("", (*(layer for layer in layers.values() if layer.output.shape[-1] == 6), layers[dense.name]))
    taps = depths.find_taps([*made[1:], added], keras.layers.ReLU()(dense), "half")
    assert [(depth, layer.output.shape[-1]) for depth, layer in taps] == [("quarter", 6), ("half", 10)]


def test_the_features_of_an_example_are_bounded(monkeypatch):
    full = depths.widths(build("tiny", "half"))
    monkeypatch.setattr(depths, "MAX_FEATURES", sum(full["last"] + full["quarter"]))
    assert depths.widths(build("tiny", "half")) == {name: full[name] for name in ("last", "quarter")}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "half"),
        ({"depth": "quarter"}, "quarter"),
        ({"pooling": "flatten"}, "last"),
        ({"views": 2}, "half"),
        ({"views": 5}, "last"),
        ({"views": 5, "depth": "half"}, "half"),
    ],
    ids=str,
)
def test_the_depth_follows_from_how_many_features_there_are(monkeypatch, changes, expected):
    monkeypatch.setattr(encoders, "MAX_DEEP", 500)
    manifest = pd.DataFrame({"split": ["train"] * 100 + ["val"] * 100 + ["test"] * 100})
    settings = load_params(ROOT / "params.yaml").extract.model_copy(update=changes)
    assert encoders.choose_depth(settings, manifest) == expected

"""Blocks of every family: named, selected, frozen, and networks that are split in two without a change."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from headstart.backbones import get_backbone
from headstart.backbones.base import BACKBONE_LAYER, POOL_LAYER, Backbone
from headstart.backbones.listing import print_backbones
from headstart.backbones.splitting import (
    MIN_WORK,
    find_split,
    lower_model,
    select_blocks,
    set_trainable,
    upper_model,
    work_below,
)
from headstart.errors import UserError

# A backbone per family, the name of its last block, how many blocks it has, and how many arrays pass its split.
FAMILIES = {
    "vgg16": ("block5", 6, 1),
    "resnet50": ("conv5_block3", 17, 1),
    "resnet50v2": ("conv5_block3", 17, 1),
    "densenet121": ("conv5_block16", 59, 1),
    "mobilenet": ("conv_13", 14, 1),
    "mobilenetv2": ("block_16", 18, 1),
    "mobilenetv3small": ("expanded_conv_10", 12, 1),
    "efficientnetb0": ("block7a", 17, 1),
    "efficientnetv2b0": ("block6h", 22, 1),
    "convnexttiny": ("stage_3_block_2", 21, 1),
    "xception": ("block14", 15, 1),
    "inceptionv3": ("mixed10", 11, 1),
    "inceptionresnetv2": ("top", 44, 1),
    "nasnetmobile": ("block_12", 17, 2),
}
# Each has a shape of its own: a plain stack, residuals, attention to channels with places that are not names, and layer
# scale. The nightly run has the others.
FAST = ("vgg16", "mobilenetv2", "mobilenetv3small", "convnexttiny")


def build(name: str, size: int) -> keras.Model:
    return get_backbone(name).build("none", size, "avg", seed=0)


@pytest.fixture(scope="module", params=[pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in FAMILIES])
def family(request):
    row = get_backbone(request.param)
    size = row.default_size if row.pinned_size else max(row.min_size, 64)
    yield row, build(request.param, size), size
    keras.backend.clear_session()


def test_all_layers_of_a_family_are_in_named_blocks(family):
    backbone, encoder, _ = family
    blocks = backbone.blocks(encoder)
    assert (blocks[-1].name, len(blocks)) == FAMILIES[backbone.name][:2]
    assert len({block.name for block in blocks}) == len(blocks)
    layers = [layer for block in blocks for layer in block.layers]
    assert len(layers) == len(set(map(id, layers))) == len(encoder.get_layer(BACKBONE_LAYER).layers)


def test_the_parts_of_a_split_network_compute_what_the_whole_does(family):
    backbone, encoder, size = family
    split = check_parts(backbone, encoder, (size, size, 3), 2)
    assert len(split.places) == FAMILIES[backbone.name][2]
    if backbone.name == "mobilenetv3small":  # places are not names, which differ in another copy of the network
        batch = {"image": np.random.default_rng(0).uniform(0, 255, (2, size, size, 3)).astype(np.float32)}
        copies = encoder, build(backbone.name, size)
        assert np.allclose(*(lower_model(copy, split)(batch, training=False) for copy in copies), rtol=1e-4, atol=1e-4)


def check_parts(backbone: Backbone, encoder: keras.Model, shape: tuple[int, ...], unfreeze: int):
    """Compare the features of both parts, one after the other, with those of the encoder; returns the split."""
    base = encoder.get_layer(BACKBONE_LAYER)
    split = find_split(base, select_blocks(backbone.blocks(encoder), unfreeze), longest=0)
    assert split is not None
    (name,) = (tensor.name for tensor in encoder.inputs)
    batch = {name: np.random.default_rng(0).uniform(0, 255, (2, *shape)).astype(np.float32)}
    rows = np.asarray(lower_model(encoder, split)(batch, training=False))
    assert rows.shape == (2, split.size)
    parts = split.unpack(rows)
    assert [part.shape[1:] for part in parts.values()] == list(split.shapes)
    features = np.asarray(upper_model(encoder, split)(parts, training=False))
    expected = np.asarray(encoder(batch, training=False))
    assert np.abs(features - expected).max() <= 1e-4 * np.abs(expected).max()
    return split


class Skipping(Backbone):
    """Dense layers, each of which also reads the output of the one before the last: two arrays pass every place."""

    def build(self, weights: str, size: int, pooling: str, seed: int, depth: str = "last") -> keras.Model:
        keras.utils.set_random_seed(seed)
        inner = keras.Input((size,))
        before, last = inner, keras.layers.Dense(8, "tanh")(inner)
        for number in range(4):
            both = keras.layers.Concatenate()([before, last])
            before, last = last, keras.layers.Dense(8 + number, "tanh", name=f"dense_{number}")(both)
        base = keras.Model(inner, last, name=BACKBONE_LAYER)
        inputs = {"input": keras.Input((size,), name="input")}
        features = keras.layers.Identity(name=POOL_LAYER)(base(inputs["input"], training=False))
        return keras.Model(inputs, features, name="encoder")


def test_several_arrays_pass_a_split_with_skip_connections():
    backbone = Skipping("skipping", "numbers", 6, 11, 0.001, "none")
    encoder = backbone.build("none", 6, "avg", 0)
    split = check_parts(backbone, encoder, (6,), 2)
    assert len(split.places) == 2
    assert work_below(encoder.get_layer(BACKBONE_LAYER), split) >= MIN_WORK


def test_only_selected_blocks_are_trainable_and_batch_norm_never_is(family):
    backbone, encoder, _ = family
    base = encoder.get_layer(BACKBONE_LAYER)
    trained = select_blocks(backbone.blocks(encoder), 2)
    scales = set_trainable(base, trained, 0.5)
    trainable = [layer for layer in base.layers if layer.trainable_variables]
    assert {layer.name for layer in trainable} == {
        layer.name
        for block in trained
        for layer in block.layers
        if layer.weights and not isinstance(layer, keras.layers.BatchNormalization)
    }
    assert len(scales) == len(encoder.trainable_variables)
    # The last block has half of the head's learning rate, the one before it a quarter.
    assert set(scales) <= {0.25, 0.5}
    assert scales[-1] == 0.5
    set_trainable(base, [], 1)
    assert not encoder.trainable_variables


@pytest.fixture(scope="module")
def mobilenet():
    return build("mobilenetv2", 32)


def selected(encoder: keras.Model, unfreeze: float | str):
    return select_blocks(get_backbone("mobilenetv2").blocks(encoder), unfreeze)


@pytest.mark.parametrize(
    ("unfreeze", "first", "count"),
    [
        ("none", None, 0),
        ("all", "Conv1", 52),
        (1, "block_16_expand", 4),
        (4, "block_13_expand", 13),
        ("block_13", "block_13_expand", 13),
        ("block_13_depthwise", "block_13_depthwise", 12),
        (0.6, "block_7_expand", 31),
        (0.35, "block_11_expand", 19),
        (0.01, "block_16_expand", 4),
        (0.001, None, 0),
    ],
)
def test_every_form_of_unfreeze(mobilenet, unfreeze, first, count):
    base = mobilenet.get_layer(BACKBONE_LAYER)
    set_trainable(base, selected(mobilenet, unfreeze), 1)
    trainable = [layer.name for layer in base.layers if layer.trainable_variables]
    assert len(trainable) == count
    assert trainable[:1] == ([first] if first else [])


@pytest.mark.parametrize(
    ("unfreeze", "message"),
    [
        ("blok_13", r"'blok_13' is not a block or layer of the backbone; did you mean 'block_13'.*\? Its blocks are"),
        ("nosuch", "of the backbone; its blocks are stem, expanded_conv, block_1, .*, block_16$"),
        (19, "fine_tune.unfreeze 19: the backbone has 18 blocks; use all"),
    ],
)
def test_unknown_blocks_are_reported(mobilenet, unfreeze, message):
    with pytest.raises(UserError, match=message):
        selected(mobilenet, unfreeze)


def test_there_is_no_split_if_everything_is_trained(mobilenet):
    assert find_split(mobilenet.get_layer(BACKBONE_LAYER), selected(mobilenet, "all"), longest=0) is None


def test_the_blocks_of_a_backbone_are_listed(capsys):
    print_backbones("tiny")
    printed = capsys.readouterr().out
    assert "block_16" in printed
    assert printed.index("expanded_conv") < printed.index("block_1 ") < printed.index("block_16")
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        print_backbones("tinyy")

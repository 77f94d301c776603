"""Blocks of every family: found, chosen, frozen, and a network that falls into two at a cut without a change."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from headstart.backbones import blocks, keras_applications, table
from headstart.backbones.table import BACKBONES
from headstart.errors import UserError

# A backbone a family, with the name of its last block, how many blocks it has, and the first layer of the last two.
FAMILIES = {
    "vgg16": ("block5", 6),
    "resnet50": ("conv5_block3", 17),
    "resnet50v2": ("conv5_block3", 17),
    "densenet121": ("conv5_block16", 59),
    "mobilenet": ("conv_13", 14),
    "mobilenetv2": ("block_16", 18),
    "mobilenetv3small": ("expanded_conv_10", 12),
    "efficientnetb0": ("block7a", 17),
    "efficientnetv2b0": ("block6h", 22),
    "convnexttiny": ("stage_3_block_2", 21),
    "xception": ("block14", 15),
    "inceptionv3": ("mixed10", 11),
    "inceptionresnetv2": ("top", 44),
    "nasnetmobile": ("block_12", 17),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    row = BACKBONES[request.param]
    size = row.default_size if row.pinned_size else max(row.min_size, 64)
    yield request.param, keras_applications.build_trunk(request.param, "none", size, "avg", 0), size
    keras.backend.clear_session()


def base_of(trunk):
    return trunk.get_layer(keras_applications.BACKBONE_LAYER)


def test_a_family_falls_into_its_blocks(family):
    name, trunk, _ = family
    found = blocks.blocks(base_of(trunk), BACKBONES[name])
    assert (found[-1].name, len(found)) == FAMILIES[name]
    assert len({block.name for block in found}) == len(found)
    layers = [layer for block in found for layer in block.layers]
    assert len(layers) == len(set(map(id, layers))) == len(base_of(trunk).layers)


def test_what_is_below_the_cut_and_what_is_above_it_are_the_network(family):
    name, trunk, size = family
    base = base_of(trunk)
    trained = blocks.chosen(base, BACKBONES[name], 2)
    where = blocks.cut(base, trained)
    images = np.random.default_rng(0).uniform(0, 255, (2, size, size, 3)).astype(np.float32)
    below = blocks.lower(trunk, name, where)(images, training=False)
    again = blocks.upper(trunk, where)(np.reshape(below, (2, *where.shape)), training=False)
    expected = np.asarray(trunk(images, training=False))
    assert np.abs(np.asarray(again) - expected).max() <= 1e-4 * np.abs(expected).max()
    if name in ("xception", "mobilenetv3small"):  # the cut is a place, not a name: names differ in another copy
        other = keras_applications.build_trunk(name, "none", size, "avg", 0)
        assert np.allclose(blocks.lower(other, name, where)(images, training=False), below, rtol=1e-4, atol=1e-4)


def test_only_the_chosen_blocks_learn_and_batch_norm_never_does(family):
    name, trunk, _ = family
    base = base_of(trunk)
    trained = blocks.chosen(base, BACKBONES[name], 2)
    scales = blocks.unfreeze(base, trained, 0.5)
    learning = [layer for layer in base.layers if layer.trainable_variables]
    assert {layer.name for layer in learning} == {
        layer.name
        for block in trained
        for layer in block.layers
        if layer.weights and not isinstance(layer, keras.layers.BatchNormalization)
    }
    assert len(scales) == len(trunk.trainable_variables)
    # The last block learns at half of the head's rate, the one before it at a quarter.
    assert set(scales) <= {0.25, 0.5}
    assert scales[-1] == 0.5
    blocks.unfreeze(base, [], 1)
    assert not trunk.trainable_variables


@pytest.fixture(scope="module")
def mobilenet():
    return base_of(keras_applications.build_trunk("mobilenetv2", "none", 32, "avg", 0))


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
def test_the_ways_to_say_what_is_trained(mobilenet, unfreeze, first, count):
    trained = blocks.chosen(mobilenet, BACKBONES["mobilenetv2"], unfreeze)
    blocks.unfreeze(mobilenet, trained, 1)
    learning = [layer.name for layer in mobilenet.layers if layer.trainable_variables]
    assert len(learning) == count
    assert learning[:1] == ([first] if first else [])


@pytest.mark.parametrize(
    ("unfreeze", "message"),
    [
        ("blok_13", "fine_tune.unfreeze 'blok_13' is no block or layer of the backbone; did you mean 'block_13'"),
        (19, "fine_tune.unfreeze 19: the backbone has 18 blocks; use all"),
    ],
)
def test_what_is_not_there_cannot_be_trained(mobilenet, unfreeze, message):
    with pytest.raises(UserError, match=message):
        blocks.chosen(mobilenet, BACKBONES["mobilenetv2"], unfreeze)


def test_where_all_is_trained_there_is_no_cut(mobilenet):
    assert blocks.cut(mobilenet, blocks.chosen(mobilenet, BACKBONES["mobilenetv2"], "all")) is None


def test_the_command_lists_the_blocks_of_a_backbone(capsys):
    assert table.main(["tiny"]) == 0
    printed = capsys.readouterr().out
    assert "block_16" in printed
    assert printed.index("expanded_conv") < printed.index("block_1 ") < printed.index("block_16")
    assert table.main(["tinyy"]) == 1
    assert "did you mean 'tiny'" in capsys.readouterr().err

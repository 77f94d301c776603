"""The blocks of a backbone, from its input to its output: what is trained in fine-tuning, and what stays frozen."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pipeline import networks
from pipeline.backbones import BLOCKS, Backbone
from pipeline.engine import keras
from pipeline.errors import UserError, did_you_mean

STEM = "stem"  # what stands before the first block


@dataclass(frozen=True)
class Block:
    """Layers that belong together, by the backbone's own names.

    Attributes:
        name: what their names begin with, e.g. `block_13` or `conv5_block3`.
        layers: in the order of the network.
    """

    name: str
    layers: tuple[keras.Layer, ...]

    @property
    def parameters(self) -> int:
        """How many weights it has."""
        return sum(layer.count_params() for layer in self.layers)


def blocks(base: keras.Model, row: Backbone) -> list[Block]:
    """All layers of a network without top, as blocks; a layer outside the blocks belongs to the one before it."""
    pattern = re.compile(BLOCKS[row.module])
    found: dict[str, list[keras.Layer]] = {}
    name = STEM
    for layer in base.layers:
        match = pattern.match(layer.name)
        name = "_".join(match.groups()) if match else name
        found.setdefault(name, []).append(layer)
    return [Block(name, tuple(layers)) for name, layers in found.items()]


def chosen(base: keras.Model, row: Backbone, unfreeze: Any) -> list[Block]:
    """The blocks that are trained, the first one perhaps in part.

    Args:
        unfreeze: `all`, `none`, a number of blocks, a share in (0, 1) of the layers that have weights, or the name of a
            block or layer; each counted from the output.

    Raises:
        UserError: where there is no block or layer of that name, or there are not so many blocks.
    """
    every = blocks(base, row)
    if unfreeze in ("all", "none"):
        return every if unfreeze == "all" else []
    if isinstance(unfreeze, int):
        if unfreeze > len(every):
            raise UserError(
                f"params.yaml: fine_tune.unfreeze {unfreeze}: the backbone has {len(every)} blocks; use all"
            )
        return every[len(every) - unfreeze :]
    layers = [layer for block in every for layer in block.layers]
    if isinstance(unfreeze, float):
        weighty = [
            layer for layer in layers if layer.weights and not isinstance(layer, keras.layers.BatchNormalization)
        ]
        count = round(unfreeze * len(weighty))
        if not count:
            return []
        first = weighty[-count]
    else:
        names = {block.name: block.layers[0] for block in every} | {layer.name: layer for layer in layers}
        if unfreeze not in names:
            raise UserError(
                f"params.yaml: fine_tune.unfreeze {unfreeze!r} is no block or layer of the backbone"
                f"{did_you_mean(unfreeze, names) or ';'} `python -m pipeline.backbones NAME` lists the blocks"
            )
        first = names[unfreeze]
    trained = layers[layers.index(first) :]
    parts = [Block(block.name, tuple(layer for layer in block.layers if layer in trained)) for block in every]
    return [block for block in parts if block.layers]


def cut(base: keras.Model, trained: list[Block]) -> keras.Layer | None:
    """The last layer before the trained ones through whose output all that follows is computed.

    None where there is none but the input: what is frozen cannot be computed once, apart from the rest.
    """
    order = {layer.name: place for place, layer in enumerate(base.layers)}
    last_use = dict.fromkeys(order, 0)
    for layer in base.layers:
        for node in layer._inbound_nodes[:1]:  # of the network itself; others come from its use in other models
            for parent in node.parent_nodes:
                last_use[parent.operation.name] = max(last_use[parent.operation.name], order[layer.name])
    last_use[base.layers[-1].name] = len(order)
    stop = order[trained[0].layers[0].name] if trained else len(order)
    needed, found = 0, None
    for place, layer in enumerate(base.layers[:stop]):
        if place and needed <= place:
            found = layer
        needed = max(needed, last_use[layer.name])
    return found


def unfreeze(base: keras.Model, trained: list[Block], decay: float) -> list[float]:
    """Make the layers of `trained` trainable and the others not.

    BatchNorm layers stay frozen: their statistics belong to the pretrained weights, and batches of a small data set
    would ruin them (https://keras.io/guides/transfer_learning, "Fine-tuning").

    Args:
        decay: the share of the learning rate that each block has of the one above it; the last one has it of the head.

    Returns:
        That share for each trainable variable of `base`, in its order.
    """
    scales = {
        layer.name: decay ** (len(trained) - number) for number, block in enumerate(trained) for layer in block.layers
    }
    base.trainable = True
    for layer in base.layers:
        layer.trainable = layer.name in scales and not isinstance(layer, keras.layers.BatchNormalization)
    return [scales[layer.name] for layer in base.layers for _ in layer.trainable_variables]


def lower(trunk: keras.Model, backbone: str, cut: str) -> keras.Model:
    """Images as for `trunk` -> the output of its layer `cut`, flattened: (N, floats)."""
    base = trunk.get_layer(networks.BACKBONE_LAYER)
    image = keras.Input(trunk.input_shape[1:], name="image")
    below = keras.Model(base.inputs, base.get_layer(cut).output)
    return keras.Model(
        image, keras.layers.Flatten()(below(networks.preprocess(backbone, image), training=False)), name="lower"
    )


def upper(trunk: keras.Model, cut: str) -> keras.Model:
    """The output of the layer `cut` (N, ...) -> features; with the very layers of `trunk`."""
    base = trunk.get_layer(networks.BACKBONE_LAYER)
    above = keras.Model(base.get_layer(cut).output, base.output)
    start = keras.Input(base.get_layer(cut).output.shape[1:], name="activations")
    return keras.Model(start, trunk.get_layer(networks.POOL_LAYER)(above(start, training=False)), name="upper")


def show(name: str, row: Backbone) -> None:
    """Print the blocks of a backbone."""
    constructor = getattr(keras.applications, row.constructor)
    shape = (row.default_size, row.default_size, 3)
    base = constructor(include_top=False, weights=None, input_shape=shape, **dict(row.arguments))
    every = blocks(base, row)
    print(f"{'from the output':>15}  {'block':<32} {'layers':>6} {'weights':>12}  output")
    for number, block in enumerate(every):
        print(
            f"{len(every) - number:>15}  {block.name:<32} {len(block.layers):>6} {block.parameters:>12,}  "
            f"{' x '.join(map(str, block.layers[-1].output.shape[1:]))}"
        )
    print(f"\nfine_tune.unfreeze: a number of blocks from the output, the name of a block or of a layer of {name},")
    print("a share of its layers, all, or none.")

"""The blocks of a backbone, from its input to its output: what is trained in fine-tuning, and what stays frozen."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from headstart.backbones import keras_applications
from headstart.backbones.table import BLOCKS, NAMED_BY_THE_END, Backbone
from headstart.errors import UserError, did_you_mean
from headstart.framework import keras

STEM, TOP = "stem", "top"  # what stands before the first block, and behind the last one


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
    """All layers of a network without top, as blocks."""
    pattern, backwards = re.compile(BLOCKS[row.module]), row.module in NAMED_BY_THE_END
    found: dict[str, list[keras.Layer]] = {}
    name = ""
    for layer in reversed(base.layers) if backwards else base.layers:
        match = pattern.match(layer.name)
        name = "_".join(match.groups()) if match else name or (TOP if backwards else STEM)
        name = f"block_{name}" if name.isdigit() else name  # a number in fine_tune.unfreeze is a number of blocks
        found.setdefault(name, []).append(layer)
    if backwards:
        return [Block(name, tuple(reversed(layers))) for name, layers in reversed(found.items())]
    return [Block(name, tuple(layers)) for name, layers in found.items()]


def chosen(base: keras.Model, row: Backbone, unfreeze: Any) -> list[Block]:
    """The blocks that are trained, the first one perhaps in part.

    Args:
        unfreeze: `all`, `none`, a number of blocks, a share in (0, 1) of the layers that learn, in whole blocks, or the
            name of a block or layer; each counted from the output.

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
    if isinstance(unfreeze, float):
        sizes = [sum(map(_learns, block.layers)) for block in every]
        wanted = round(unfreeze * sum(sizes))
        held = np.cumsum(sizes[::-1])
        return every[len(every) - int(np.searchsorted(held, wanted)) - 1 :] if wanted else []
    layers = [layer for block in every for layer in block.layers]
    names = {block.name: block.layers[0] for block in every} | {layer.name: layer for layer in layers}
    if unfreeze not in names:
        raise UserError(
            f"params.yaml: fine_tune.unfreeze {unfreeze!r} is no block or layer of the backbone"
            f"{did_you_mean(unfreeze, names) or ';'} `python -m headstart.backbones.table` with its name lists the blocks"
        )
    trained = layers[layers.index(names[unfreeze]) :]
    parts = [Block(block.name, tuple(layer for layer in block.layers if layer in trained)) for block in every]
    return [block for block in parts if block.layers]


def _learns(layer: keras.Layer) -> bool:
    return bool(layer.weights) and not isinstance(layer, keras.layers.BatchNormalization)


@dataclass(frozen=True)
class Cut:
    """Where a network falls into two.

    Attributes:
        place: of the operation, in the order of the network: names are not the same in every copy of it.
        shape: of its output for an image.
    """

    place: int
    shape: tuple[int, ...]


def cut(base: keras.Model, trained: list[Block]) -> Cut | None:
    """The last operation before the trained layers through whose output all that follows is computed.

    None where nothing but rescaling comes before it: there is nothing to be computed once.
    """
    steps = base.operations  # the layers, and what is computed between them, each after what it needs
    order = {step.name: place for place, step in enumerate(steps)}
    last_use = [0] * len(steps)
    for place, step in enumerate(steps):
        for parent in step._inbound_nodes[0].parent_nodes:  # the first is the network's own; others are uses elsewhere
            last_use[order[parent.operation.name]] = place
    last_use[-1] = len(steps)
    stop = min((order[layer.name] for block in trained for layer in block.layers if layer.weights), default=len(steps))
    needed, found, computes = 0, None, False
    for place in range(1, stop):
        needed = max(needed, last_use[place - 1])
        computes |= any(len(weight.shape) > 1 for weight in getattr(steps[place], "weights", ()))
        if needed <= place and computes:
            found = Cut(place, tuple(_output(base, place).shape[1:]))
    return found


def work_below(base: keras.Model, where: Cut) -> float:
    """The share of the network's multiplications that come before the cut, about, in [0, 1]."""
    work = [0.0]
    for place, step in enumerate(base.operations):
        spatial = math.prod(side or 1 for side in _output(base, place).shape[1:-1])
        kernels = (weight for weight in getattr(step, "weights", ()) if len(weight.shape) > 1)
        work.append(work[-1] + spatial * sum(math.prod(kernel.shape) for kernel in kernels))
    return work[where.place + 1] / work[-1]


def _output(base: keras.Model, place: int) -> keras.KerasTensor:
    return base.operations[place]._inbound_nodes[0].output_tensors[0]


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
        layer.trainable = layer.name in scales and _learns(layer)
    return [scales[layer.name] for layer in base.layers for _ in layer.trainable_variables]


def lower(trunk: keras.Model, backbone: str, where: Cut) -> keras.Model:
    """Images as for `trunk` -> what its backbone has at the cut, flattened: (N, floats)."""
    base = trunk.get_layer(keras_applications.BACKBONE_LAYER)
    image = keras.Input(trunk.input_shape[1:], name="image")
    below = keras.Model(base.inputs, _output(base, where.place))
    found = below(keras_applications.preprocess(backbone, image), training=False)
    return keras.Model(image, keras.layers.Flatten()(found), name="lower")


def upper(trunk: keras.Model, where: Cut) -> keras.Model:
    """What the backbone of `trunk` has at the cut (N, ...) -> features; with the very layers of `trunk`."""
    base = trunk.get_layer(keras_applications.BACKBONE_LAYER)
    above = keras.Model(_output(base, where.place), base.output)
    start = keras.Input(where.shape, name="activations")
    return keras.Model(
        start, trunk.get_layer(keras_applications.POOL_LAYER)(above(start, training=False)), name="upper"
    )


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

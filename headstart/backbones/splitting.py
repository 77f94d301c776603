"""Select the blocks that are fine-tuned, and split a network into a frozen and a trained part."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from headstart.backbones.base import BACKBONE_LAYER, POOL_LAYER, Block
from headstart.errors import UserError, did_you_mean
from headstart.framework import keras


def select_blocks(blocks: list[Block], unfreeze: float | str) -> list[Block]:
    """Return the blocks to train; of the first one perhaps only some layers.

    Args:
        blocks: all of a backbone, from input to output.
        unfreeze: `all`, `none`, a number of blocks, a share in (0, 1) of the trainable layers, in whole blocks, or the
            name of a block or layer; each counted from the output.

    Raises:
        UserError: if there is no block or layer of that name, or there are fewer blocks.
    """
    if unfreeze in ("all", "none"):
        return blocks if unfreeze == "all" else []
    if isinstance(unfreeze, int):
        if unfreeze > len(blocks):
            raise UserError(
                f"params.yaml: fine_tune.unfreeze {unfreeze}: the backbone has {len(blocks)} blocks; use all"
            )
        return blocks[len(blocks) - unfreeze :]
    if isinstance(unfreeze, float):
        sizes = [sum(map(_is_trainable, block.layers)) for block in blocks]
        wanted = round(unfreeze * sum(sizes))
        count = int(np.searchsorted(np.cumsum(sizes[::-1]), wanted)) + 1
        return blocks[len(blocks) - count :] if wanted else []
    layers = [layer for block in blocks for layer in block.layers]
    names = {block.name: block.layers[0] for block in blocks} | {layer.name: layer for layer in layers}
    if unfreeze not in names:
        hint = did_you_mean(str(unfreeze), names)
        raise UserError(
            f"params.yaml: fine_tune.unfreeze {unfreeze!r} is not a block or layer of the backbone"
            f"{f'{hint} Its' if hint else '; its'} blocks are {', '.join(block.name for block in blocks)}"
        )
    trained = layers[layers.index(names[unfreeze]) :]
    parts = [Block(block.name, tuple(layer for layer in block.layers if layer in trained)) for block in blocks]
    return [block for block in parts if block.layers]


def set_trainable(base: keras.Model, trained: list[Block], decay: float) -> list[float]:
    """Make the layers of `trained` trainable and the others not.

    BatchNorm layers stay frozen: their statistics belong to the pretrained weights, and batches of a small data set
    would ruin them (https://keras.io/guides/transfer_learning, "Fine-tuning").

    Args:
        decay: factor of the learning rate from each block to the one below it, and from the head to the last block
            (layer-wise learning rate decay, https://arxiv.org/abs/2106.08254).

    Returns:
        The scale of the learning rate for each trainable variable of `base`, in its order.
    """
    scales = {
        layer.name: decay ** (len(trained) - number) for number, block in enumerate(trained) for layer in block.layers
    }
    base.trainable = True
    for layer in base.layers:
        layer.trainable = layer.name in scales and _is_trainable(layer)
    return [scales[layer.name] for layer in base.layers for _ in layer.trainable_variables]


def _is_trainable(layer: keras.Layer) -> bool:
    return bool(layer.weights) and not isinstance(layer, keras.layers.BatchNormalization)


MIN_WORK = 0.1  # share of the work in the lower part from which on a split is worth while


@dataclass(frozen=True)
class Split:
    """Where a network is split, and the named arrays that pass from the lower to the upper part.

    Attributes:
        places: indices, in the order of the network, of the operations whose outputs pass; names differ between copies.
        shapes: of these outputs, for one example.
    """

    places: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def names(self) -> list[str]:
        """Names of the arrays."""
        return [f"activations_{number}" for number in range(len(self.places))]

    @property
    def size(self) -> int:
        """How many numbers pass, for one example."""
        return sum(map(math.prod, self.shapes))

    def unpack(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays by name, (b, ...) each, from the output of `lower_model`, (b, size)."""
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])
        parts = np.split(rows, ends[:-1], axis=1)
        return {
            name: part.reshape(-1, *shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }


def find_split(base: keras.Model, trained: list[Block]) -> Split | None:
    """Find the last place before the trained layers where few arrays pass.

    One array if at least MIN_WORK of the work is below such a place, else as few as possible: in some networks each
    cell reads the outputs of two cells before it. None if only rescaling precedes the trained layers: there is nothing
    to cache.
    """
    steps = base.operations  # layers and the operations between them, each after its inputs
    order = {step.name: place for place, step in enumerate(steps)}
    last_use = [0] * len(steps)
    for place, step in enumerate(steps):
        for parent in step._inbound_nodes[0].parent_nodes:  # the first node is this network's
            last_use[order[parent.operation.name]] = place
    last_use[-1] = len(steps)
    stop = min((order[layer.name] for block in trained for layer in block.layers if layer.weights), default=len(steps))
    last: dict[int, tuple[int, ...]] = {}  # by how many arrays pass
    computes = False
    for place in range(1, stop):
        computes |= any(len(weight.shape) > 1 for weight in getattr(steps[place], "weights", ()))
        if computes:
            passing = tuple(other for other in range(place + 1) if last_use[other] > place)
            last[len(passing)] = passing
    splits = [
        Split(places, tuple(tuple(_output(base, place).shape[1:]) for place in places))
        for _, places in sorted(last.items())
    ]
    splits = [split for split in splits if None not in sum(split.shapes, ())]  # arrays of any length are not cached
    return next((split for split in splits if work_below(base, split) >= MIN_WORK), splits[0] if splits else None)


def work_below(base: keras.Model, split: Split) -> float:
    """Estimate the share of the network's multiplications that come before the split, in [0, 1]."""
    work = [0.0]
    for place, step in enumerate(base.operations):
        spatial = math.prod(side or 1 for side in _output(base, place).shape[1:-1])
        kernels = (weight for weight in getattr(step, "weights", ()) if len(weight.shape) > 1)
        work.append(work[-1] + spatial * sum(math.prod(kernel.shape) for kernel in kernels))
    return work[max(split.places) + 1] / work[-1]


def lower_model(encoder: keras.Model, split: Split) -> keras.Model:
    """Build the lower part: a batch as for `encoder` -> (N, split.size), the arrays that pass, flattened and joined."""
    base = encoder.get_layer(BACKBONE_LAYER)
    below = keras.Model(base.inputs, [_output(base, place) for place in split.places])
    inside = keras.Model(encoder.inputs, base._inbound_nodes[-1].input_tensors)  # preprocessing
    inputs = {
        tensor.name: keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=tensor.name) for tensor in encoder.inputs
    }
    outputs = below(inside(list(inputs.values())), training=False)
    flat = [keras.layers.Flatten()(array) for array in (outputs if isinstance(outputs, (list, tuple)) else [outputs])]
    return keras.Model(inputs, flat[0] if len(flat) == 1 else keras.layers.Concatenate()(flat), name="lower")


def upper_model(encoder: keras.Model, split: Split) -> keras.Model:
    """Build the upper part: the arrays that pass, by name -> features. It shares the layers of `encoder`."""
    base = encoder.get_layer(BACKBONE_LAYER)
    above = keras.Model([_output(base, place) for place in split.places], base.output)
    inputs = {name: keras.Input(shape, name=name) for name, shape in zip(split.names, split.shapes, strict=True)}
    return keras.Model(
        inputs, encoder.get_layer(POOL_LAYER)(above(list(inputs.values()), training=False)), name="upper"
    )


def _output(base: keras.Model, place: int) -> keras.KerasTensor:
    return base.operations[place]._inbound_nodes[0].output_tensors[0]

"""Select the blocks that are fine-tuned, and split a network into a frozen and a trained part."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headstart.backbones.base import BACKBONE_LAYER, Block
from headstart.backbones.operations import depth_first, earliest_first, kernels_of, output_of, parents_of
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
    would ruin them (https://keras.io/guides/transfer_learning, "Fine-tuning"). Layers that are not trained have no
    dropout either: their activations are what they are cached as.

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
        for inner in layer._flatten_layers() if layer.name not in scales else ():
            if isinstance(inner, keras.layers.Dropout):
                inner.rate = 0.0
    return [scales[layer.name] for layer in base.layers for _ in layer.trainable_variables]


def _is_trainable(layer: keras.Layer) -> bool:
    return bool(layer.weights) and not isinstance(layer, keras.layers.BatchNormalization)


MIN_WORK = 0.1  # share of the work in the lower part from which on a split is worth while
MOST_OF_IT = 0.5  # share of the work that any split saves which a split with fewer arrays must save


@dataclass(frozen=True)
class Split:
    """Where a network is split, and the named arrays that pass from the lower to the upper part.

    Arrays of sequences, such as tokens, pass with the mask that says which of their places are filled. A row then holds
    the numbers of one place after those of another, `longest` places in all; those behind the last filled one are zero.

    Attributes:
        places: indices, in the order of the network, of the operations whose outputs pass; names differ between copies.
        shapes: of these outputs, for one example; None stands for the length of a sequence.
        mask: which of them is the mask; None: no sequences pass.
        longest: a row holds so many places of a sequence.
    """

    places: tuple[int, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    mask: int | None = None
    longest: int = 0

    @property
    def names(self) -> list[str]:
        """Names of the arrays."""
        return [f"activations_{number}" for number in range(len(self.places))]

    @property
    def width(self) -> int:
        """How many numbers pass, in all, for one example or for one place of a sequence."""
        return sum(self.widths)

    @property
    def size(self) -> int:
        """How many numbers a row has."""
        return self.width if self.mask is None else self.width * self.longest

    @property
    def widths(self) -> list[int]:
        """How many numbers of each array pass for one example, or for one place of a sequence."""
        return [math.prod(side or 1 for side in shape) for shape in self.shapes]

    def unpack(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays by name, (b, ...) float32 each, from the output of `lower_model`, (b, size).

        Sequences are as long as the longest of them, and their mask is int32.
        """
        ends, mask = np.cumsum(self.widths), self.mask
        if mask is not None:
            rows = rows.reshape(len(rows), self.longest, -1)
            filled = rows[..., ends[mask] - 1].any(axis=0)
            rows = rows[:, : 1 + int(np.flatnonzero(filled).max(initial=0))]
        parts = np.split(rows, ends[:-1], axis=-1)
        dtypes = [np.int32 if number == mask else np.float32 for number in range(len(parts))]
        return {
            name: part.reshape(*rows.shape[:-1], *(side for side in shape if side)).astype(dtype, copy=False)
            for name, part, shape, dtype in zip(self.names, parts, self.shapes, dtypes, strict=True)
        }


def find_split(base: keras.Model, trained: list[Block], longest: int) -> Split | None:
    """Find the last place before the trained layers where few arrays pass.

    As few arrays as leave MOST_OF_IT of the work below that could be there: in some networks each cell reads the
    outputs of two cells before it, in text encoders all layers read the mask, and in WaveNet a sum skips all layers.
    None if only rescaling or embeddings precede the trained layers: there is nothing to cache.

    Args:
        longest: how many places sequences have at most where they enter the network.
    """
    parents = parents_of(base)
    # Inputs are there from the beginning, however late they are read.
    orders = [
        sorted(order, key=lambda place: bool(parents[place]))
        for order in (range(len(parents)), earliest_first(parents), depth_first(parents))
    ]
    found = [split for order in orders for split in _splits(base, trained, longest, parents, order)]
    work = [work_below(base, split) for split in found]
    enough = MOST_OF_IT * max(work, default=0)
    good = [
        (len(split.places), -below, n)
        for n, (split, below) in enumerate(zip(found, work, strict=True))
        if below >= enough
    ]
    return found[min(good)[-1]] if good else None


def _splits(
    base: keras.Model, trained: list[Block], longest: int, parents: list[list[int]], order: Sequence[int]
) -> Iterator[Split]:
    """Yield the last split before the trained layers, in an order of the operations, for each number of arrays."""
    stop_at = {layer.name for block in trained for layer in block.layers if layer.weights}
    last_use = [0] * len(order)
    for time, place in enumerate(order):
        for parent in parents[place]:
            last_use[parent] = time
    last_use[order[-1]] = len(order)
    found: dict[int, list[tuple[int, ...]]] = {}  # by how many arrays pass
    computes = False
    for time, place in enumerate(order):
        step = base.operations[place]  # a layer, or an operation between layers
        if step.name in stop_at:
            break
        computes |= bool(kernels_of(step))
        if computes and time:
            passing = sorted(other for other in order[: time + 1] if last_use[other] > time)
            found.setdefault(len(passing), []).append(tuple(passing))
    for several in found.values():
        last = next(filter(None, (_make_split(base, places, longest) for places in reversed(several))), None)
        if last:
            yield last


def _make_split(base: keras.Model, places: tuple[int, ...], longest: int) -> Split | None:
    """Return the split at some places; None if arrays of any length pass without one mask for all of them.

    A network for sounds has several lengths, and a mask of each: it is split where an array and its own mask pass.
    """
    outputs = [output_of(base, place) for place in places]
    shapes = tuple(tuple(output.shape[1:]) for output in outputs)
    if None not in sum(shapes, ()):
        return Split(places, shapes)
    masks = [n for n, output in enumerate(outputs) if "float" not in output.dtype and shapes[n] in ((None,), (None, 1))]
    sequences = all(shape[:1] == (None,) and None not in shape[1:] for shape in shapes)
    if not sequences or len(masks) != 1:
        return None
    inputs = [_with_length(tensor, longest) for tensor in base.inputs]
    lengths = {one.shape[1] for one in _as_list(keras.Model(base.inputs, outputs).compute_output_spec(inputs))}
    return Split(places, shapes, masks[0], lengths.pop()) if len(lengths) == 1 else None


def _with_length(tensor: keras.KerasTensor, longest: int) -> keras.KerasTensor:
    """Return the input for one example whose sequences have `longest` places."""
    return keras.KerasTensor((1, *(longest if side is None else side for side in tensor.shape[1:])), tensor.dtype)


def _as_list(outputs: Any) -> list[Any]:
    """Return the outputs of a network, which Keras gives without a list if there is one."""
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def work_below(base: keras.Model, split: Split) -> float:
    """Estimate the share of the network's multiplications that come before the split, in [0, 1]."""
    parents, below, waiting = parents_of(base), set(), list(split.places)
    while waiting:
        place = waiting.pop()
        waiting += [parent for parent in parents[place] if parent not in below]
        below.add(place)
    work = [
        math.prod(side or 1 for side in output_of(base, place).shape[1:-1])
        * sum(math.prod(kernel.shape) for kernel in kernels_of(step))
        for place, step in enumerate(base.operations)
    ]
    return sum(work[place] for place in below) / sum(work)


def lower_model(encoder: keras.Model, split: Split) -> keras.Model:
    """Build the lower part: a batch as for `encoder` -> (N, split.size), the arrays that pass as rows, see `Split`."""
    base = encoder.get_layer(BACKBONE_LAYER)
    below = keras.Model(base.inputs, [output_of(base, place) for place in split.places])
    inside = keras.Model(encoder.inputs, base._inbound_nodes[-1].input_tensors)  # preprocessing
    inputs = {
        tensor.name: keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=tensor.name) for tensor in encoder.inputs
    }
    arrays = _as_list(below(inside(list(inputs.values())), training=False))
    if split.mask is not None:
        return keras.Model(inputs, _PackSequences(split, split.mask)(arrays), name="lower")
    flat = [keras.layers.Flatten()(array) for array in arrays]
    return keras.Model(inputs, flat[0] if len(flat) == 1 else keras.layers.Concatenate()(flat), name="lower")


class _PackSequences(keras.layers.Layer):
    """Arrays (N, t, ...) with their mask -> rows (N, split.size)."""

    def __init__(self, split: Split, mask: int) -> None:
        super().__init__(name="pack", dtype="float32", autocast=False)
        self._split, self._mask = split, mask

    def call(self, arrays: list[keras.KerasTensor]) -> keras.KerasTensor:
        split, ops = self._split, keras.ops
        # A batch may be filled up beyond `longest`, to a length at which rounding is always the same.
        arrays = [array[:, : split.longest] for array in arrays]
        length = ops.shape(arrays[self._mask])[1]
        mask = ops.reshape(ops.cast(arrays[self._mask], "float32"), (-1, length, 1))
        flat = [
            ops.cast(ops.reshape(array, (-1, length, width)), "float32")
            for array, width in zip(arrays, split.widths, strict=True)
        ]
        # What lies behind the last filled place is zero; within a sequence empty places count: later ones read them.
        inside = ops.flip(ops.cumsum(ops.flip(mask, 1), axis=1), 1) > 0
        places = ops.concatenate(flat, axis=2) * ops.cast(inside, "float32")
        filled = ops.pad(places, [[0, 0], [0, split.longest - length], [0, 0]])
        return ops.reshape(filled, (-1, split.size))


def upper_model(encoder: keras.Model, split: Split) -> keras.Model:
    """Build the upper part: the arrays that pass, by name -> features. It shares the layers of `encoder`."""
    base = encoder.get_layer(BACKBONE_LAYER)
    above = keras.Model([output_of(base, place) for place in split.places], base.output)
    inputs = [
        keras.Input(shape, dtype="int32" if number == split.mask else None, name=name)
        for number, (name, shape) in enumerate(zip(split.names, split.shapes, strict=True))
    ]
    call, passing = base._inbound_nodes[-1], []  # pooling reads the mask, too, which is an input of the network
    for tensor, outer in zip(base.inputs, call.input_tensors, strict=True):
        passing += [(outer, inputs[n]) for n, place in enumerate(split.places) if output_of(base, place) is tensor]
    pool = keras.Model([call.output_tensors[0], *(outer for outer, _ in passing)], encoder.output)
    features = pool([above(inputs, training=False), *(inner for _, inner in passing)], training=False)
    return keras.Model(dict(zip(split.names, inputs, strict=True)), features, name="upper")

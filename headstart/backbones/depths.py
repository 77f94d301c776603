"""Which layers of a network give features: besides the output, one layer in each of the last blocks.

The pooled outputs of several depths, side by side, can say more about new classes than the last one alone (Head2Toe,
https://arxiv.org/abs/2201.03529). They cost no further pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstart.backbones.base import POOL_LAYER, Block

if TYPE_CHECKING:
    import keras

# Each depth has the features of those before it, then those of the next blocks, from the output downwards.
DEPTHS = ("last", "quarter", "half")
_SHARE_OF_BLOCKS = {"quarter": 0.25, "half": 0.5}
MAX_FEATURES = 16_384  # of an example; blocks beyond it are left out, as those of the widest networks


def find_taps(blocks: list[Block], output: keras.KerasTensor, depth: str) -> list[tuple[str, keras.Layer]]:
    """Return the layers whose outputs are features besides `output`, from the output downwards, each with its depth.

    Of a block that is its last activation, which is where a block is widest and not linear; or its output if it has no
    activation of its own, or if that joins all branches of the block. A block of which all is in `output` has none.

    Args:
        blocks: all of a network, from input to output; their feature maps are (N, ..., channels) as `output`.
        depth: the lowest of DEPTHS that is asked for.
    """
    asked = DEPTHS[1 : DEPTHS.index(depth) + 1]
    found: list[tuple[str, keras.Layer]] = []
    total = output.shape[-1]
    for above, block in enumerate(reversed(blocks)):
        name = next((name for name in asked if above < round(_SHARE_OF_BLOCKS[name] * len(blocks))), None)
        layer = _tap(block, output)
        if name is None or (layer and total + layer.output.shape[-1] > MAX_FEATURES):
            break
        if not layer:
            continue
        found.append((name, layer))
        total += layer.output.shape[-1]
    return found


def _tap(block: Block, output: keras.KerasTensor) -> keras.Layer | None:
    import keras

    *_, last = block.layers
    if isinstance(last, keras.layers.Concatenate) and _joins(last, block):
        return last if last.output is not output else None
    rank = len(output.shape)
    maps = [layer for layer in block.layers if len(layer.output.shape) == rank and layer.output is not output]
    size = last.output.shape[1:-1]  # squeeze-and-excitation has activations of a single place
    kinds = (keras.layers.Activation, keras.layers.ReLU)
    activations = [layer for layer in maps if isinstance(layer, kinds) and layer.output.shape[1:-1] == size]
    return (activations or maps or [None])[-1]


def _joins(layer: keras.layers.Concatenate, block: Block) -> bool:
    """Whether a layer joins outputs of the block alone, and does not add these to what came before."""
    return all(any(tensor is other.output for other in block.layers) for tensor in layer.input)


def widths(encoder: keras.Model) -> dict[str, list[int]]:
    """Return by depth how long the vectors are that it adds to the features, in their order; depths that add none are
    missing."""
    found = {
        depth: [layer.output.shape[-1] for layer in encoder.layers if _depth_of(layer.name) == depth]
        for depth in DEPTHS
    }
    return {depth: values for depth, values in found.items() if values}


def pooling_layers(encoder: keras.Model) -> list[keras.Layer]:
    """Return the layers that turn feature maps into features, in the order of their features."""
    return [layer for layer in encoder.layers if _depth_of(layer.name)]


def pool_name(depth: str, number: int) -> str:
    """Return the name of the layer that pools a tap: the `number`-th of the encoder."""
    return f"{POOL_LAYER}_{depth}_{number}"


def _depth_of(layer_name: str) -> str:
    """Return the depth of a pooling layer of an encoder; empty for other layers."""
    if layer_name == POOL_LAYER:
        return DEPTHS[0]
    parts = layer_name.split("_")
    return parts[1] if len(parts) == 3 and parts[0] == POOL_LAYER else ""

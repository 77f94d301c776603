"""The operations of a network, which are layers and what is computed between them; each has a place in their order."""

from __future__ import annotations

from headstart.framework import keras

_TABLE = "embeddings"  # what Keras calls the weights that are looked up by their row, without any multiplication


def parents_of(base: keras.Model) -> list[list[int]]:
    """Return for each operation those whose outputs it reads."""
    places = {step.name: place for place, step in enumerate(base.operations)}
    # The first node is this network's.
    nodes = (step._inbound_nodes[0].parent_nodes for step in base.operations)
    return [[places[parent.operation.name] for parent in some] for some in nodes]


def earliest_first(parents: list[list[int]]) -> list[int]:
    """Return all operations, each as early as its inputs allow; Keras has each as late as its readers allow, so that
    what skips many layers, as in WaveNet, would pass all of them one by one.
    """
    depth = [0] * len(parents)
    for place, some in enumerate(parents):  # Keras has inputs before those that read them
        depth[place] = max((depth[parent] + 1 for parent in some), default=0)
    return sorted(range(len(parents)), key=lambda place: depth[place])


def depth_first(parents: list[list[int]]) -> list[int]:
    """Return all operations, each right before the first one that reads it, so that masks are computed when it is their
    turn and not some operations ahead.
    """
    order: dict[int, None] = {}
    waiting = list(range(len(parents)))
    while waiting:
        missing = [parent for parent in parents[waiting[-1]] if parent not in order]
        if missing:
            waiting.append(missing[0])
        else:
            order[waiting.pop()] = None
    return list(order)


def kernels_of(step: keras.Operation) -> list[keras.Variable]:
    """Return the weights that inputs are multiplied with."""
    return [weight for weight in getattr(step, "weights", ()) if len(weight.shape) > 1 and weight.name != _TABLE]


def output_of(base: keras.Model, place: int) -> keras.KerasTensor:
    """Return what an operation computes, inside the network."""
    return base.operations[place]._inbound_nodes[0].output_tensors[0]

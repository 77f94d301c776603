"""The network as the model server runs it: by OpenVINO where that answers as Keras does, else by Keras."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from headstart.errors import one_line
from headstart.features.engines.openvino_engine import compile_graph, convert
from headstart.framework import tf
from headstart.modalities.lengths import map_groups
from headstart.serving.batching import MAX_BATCH
from headstart.serving.export import TOLERANCE, compare
from headstart.serving.keras_batches import predict_padded
from headstart.training.networks import Classifier

Network = Callable[[Sequence[np.ndarray]], np.ndarray]  # n <= MAX_BATCH loaded examples -> (n, n_classes)


def open_network(classifier: Classifier) -> tuple[Network, str]:
    """Return the network, and in words what runs it and why; it has computed the smallest and the largest batch."""
    modality, size = classifier.modality, classifier.size
    probes = [modality.load(data, size) for data in modality.probes(size)]
    in_keras: Network = partial(predict_padded, classifier)
    network, words = in_keras, "Keras"
    if probes and not tf.config.list_physical_devices("GPU"):
        try:
            in_openvino = _open_openvino(classifier)
            # By twos: Keras would keep the memory that a large batch takes.
            expected = np.concatenate([in_keras(probes[at : at + 2]) for at in range(0, len(probes), 2)])
            difference, changed = compare(expected, in_openvino(probes))
            version = f"OpenVINO {importlib.metadata.version('openvino')}"
            alike = difference <= TOLERANCE and not changed
            words = f"{version if alike else 'Keras'}; OpenVINO and Keras differ by at most {difference:.1e}"
            network = in_openvino if alike else in_keras
        except Exception as error:  # of many kinds: no wheel for this machine, an operation that is not supported
            words = f"Keras, since OpenVINO cannot run this network here ({one_line(error)})"
    if probes:
        for count in (1, MAX_BATCH):
            network((probes * MAX_BATCH)[:count])
    return network, words


def _open_openvino(classifier: Classifier) -> Network:
    encoder, head = (classifier.network.get_layer(name) for name in ("encoder", "head"))

    def join(batch: dict[str, tf.Tensor], training: bool) -> tf.Tensor:
        return head(encoder(batch, training=training), training=training)

    spec = classifier.modality.spec(classifier.size)
    (compute,) = compile_graph(convert(join, spec), spec, "float32", batch_size=-1, streams=1)
    return partial(map_groups, compute, classifier.modality)

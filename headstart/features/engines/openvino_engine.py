"""OpenVINO, the fastest engine on CPUs."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.errors import UserError
from headstart.features.engines import graphs
from headstart.features.engines.base import Engine, NetworkInfo, Spec, computed_dtype, describe
from headstart.machine import cores, cpu_name
from headstart.modalities.batch import Batch

if TYPE_CHECKING:
    from headstart.framework import keras, tf

OPENVINO_BATCH, SEQUENCES = 3, 16  # default batch sizes: of arrays of a fixed shape, and of sequences of any length
_PRECISION = {"float32": ("f32", "FP32"), "bfloat16": ("bf16", "BF16"), "float16": ("f16", "FP16")}


def convert(network: Callable[..., tf.Tensor], spec: Spec) -> Any:
    """Return the openvino.Model of a network.

    Args:
        network: a Keras model, or a function as one: (inputs by name, training=False) -> outputs.
    """
    from headstart.framework import tf

    names = list(spec)
    graph = tf.function(lambda *arrays: network(dict(zip(names, arrays, strict=True)), training=False))
    signature = [tf.TensorSpec((None, *shape), computed_dtype(dtype)) for shape, dtype in spec.values()]
    # By default it shares weights with the network, and when that is gone they are whatever comes into its memory.
    return _import_openvino().convert_model(graph.get_concrete_function(*signature), share_weights=False)


def compile_graph(
    model: Any, spec: Spec, precision: str, batch_size: int, streams: int
) -> list[Callable[[Batch], np.ndarray]]:
    """Return functions that compute a batch by OpenVINO on the CPU, one for each batch that is computed at once.

    Args:
        model: as `convert` returns it; it is changed.
        batch_size: of all batches; -1: any.
        streams: how many batches are computed at once; the cores are divided between them.

    Raises:
        UserError: if the CPU does not support that precision.
    """
    openvino = _import_openvino()
    core = openvino.Core()
    hint, capability = _PRECISION[precision]
    if capability not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UserError(
            f"params.yaml: extract.precision {precision}: this processor does not support it; use float32, or "
            "extract.engine tensorflow, which is slow at it"
        )
    names = list(spec)
    shapes = ([batch_size, *(side or -1 for side in shape)] for shape, _ in spec.values())
    model.reshape(dict(enumerate(shapes)))
    preprocessor = openvino.preprocess.PrePostProcessor(model)
    for number, (_, dtype) in enumerate(spec.values()):  # the graph casts
        preprocessor.input(number).tensor().set_element_type(openvino.Type(np.dtype(dtype)))
    settings = {
        "INFERENCE_PRECISION_HINT": hint,  # else bfloat16 if the CPU supports it
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": cores(),
        "ENABLE_CPU_PINNING": False,  # decoding threads need the cores, too
    }
    compiled = core.compile_model(preprocessor.build(), "CPU", settings)

    def compute(request: Any, batch: Batch) -> np.ndarray:
        request.infer({number: batch[name] for number, name in enumerate(names)}, share_inputs=True)
        return request.get_output_tensor(0).data.copy()

    return [partial(compute, compiled.create_infer_request()) for _ in range(streams)]


class OpenVINOEngine(Engine):
    """The Keras model, compiled by OpenVINO for the CPU.

    There is one stream of one thread per core: streams do not wait for each other as the threads of a batch do, and the
    bits do not depend on the number of cores.
    """

    name = "openvino"

    def __init__(
        self,
        build: Callable[[], keras.Model],
        spec: Spec,
        precision: str,
        batch_size: int | None,
        network: str | None = None,
    ) -> None:
        info, model = _open_graph(build, spec, network)
        fixed = all(None not in shape for shape, _ in spec.values())
        super().__init__(info, batch_size or (OPENVINO_BATCH if fixed else SEQUENCES), cores())
        self.arithmetic = {"openvino": importlib.metadata.version("openvino")}
        for compute in compile_graph(model, spec, precision, self.batch_size, self.parallel):
            self.pool.put(compute)

    @property
    def device_name(self) -> str:
        return cpu_name()


def _open_graph(build: Callable[[], keras.Model], spec: Spec, network: str | None) -> tuple[NetworkInfo, Any]:
    """Return what is known about the network, and its openvino.Model: the one that is kept, or a new one."""
    openvino, file = _import_openvino(), graphs.find_file(network, spec) if network else None
    kept = graphs.read(file) if file else None
    if file and kept:
        try:
            return kept.info, openvino.Core().read_model(kept.xml, kept.weights)
        except RuntimeError as error:  # what OpenVINO raises
            graphs.remove(file, error)
    encoder = build()
    info, model = describe(encoder), convert(encoder, spec)
    if file:
        graphs.write(file, info, model)
    return info, model


def _import_openvino() -> Any:
    # The converter reports to its makers, with stack traces, unless this module is missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")

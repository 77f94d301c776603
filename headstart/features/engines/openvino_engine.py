"""OpenVINO, the fastest engine on CPUs."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from headstart.errors import UserError
from headstart.features.engines.base import Engine, Spec, computed_dtype
from headstart.framework import keras, tf
from headstart.machine import cores
from headstart.modalities.base import Batch

OPENVINO_BATCH = 3  # default batch size
_PRECISION = {"float32": ("f32", "FP32"), "bfloat16": ("bf16", "BF16"), "float16": ("f16", "FP16")}


def compile_openvino(
    network: Callable[..., tf.Tensor], spec: Spec, precision: str, batch_size: int, streams: int
) -> list[Callable[[Batch], np.ndarray]]:
    """Return functions that compute a batch by OpenVINO on the CPU, one for each batch that is computed at once.

    Args:
        network: a Keras model, or a function as one: (inputs by name, training=False) -> outputs.
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
    graph = tf.function(lambda *arrays: network(dict(zip(names, arrays, strict=True)), training=False))
    signature = [tf.TensorSpec((None, *shape), computed_dtype(dtype)) for shape, dtype in spec.values()]
    model = openvino.convert_model(graph.get_concrete_function(*signature))
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

    def __init__(self, build: Callable[[], keras.Model], spec: Spec, precision: str, batch_size: int | None) -> None:
        encoder = build()
        super().__init__(encoder, batch_size or OPENVINO_BATCH, cores())
        self.arithmetic = {"openvino": importlib.metadata.version("openvino")}
        for compute in compile_openvino(encoder, spec, precision, self.batch_size, self.parallel):
            self.pool.put(compute)


def _import_openvino() -> Any:
    # The converter reports to its makers, with stack traces, unless this module is missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")

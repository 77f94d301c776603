"""Engines that run a frozen encoder over batches, on the CPU or on all GPUs.

All are made from the same Keras model; short batches are padded. With OpenVINO an example has the same features at any
place in any batch. So it does with TensorFlow for most networks; those of ConvNeXt depend on the place by 1e-6.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import queue
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from headstart.backbones.base import weights_sha256
from headstart.errors import UserError
from headstart.framework import gpu_names, keras, policy, tf
from headstart.machine import cores
from headstart.modalities.base import Batch, batch_length, pad_batch

Spec = dict[str, tuple[tuple[int | None, ...], str]]
OPENVINO_BATCH, CPU_BATCH, GPU_BATCH = 3, 32, 256  # default batch sizes
_OPENVINO_PRECISION = {"float32": ("f32", "FP32"), "bfloat16": ("bf16", "BF16"), "float16": ("f16", "FP16")}


class OutOfMemoryError(Exception):
    """A batch of `batch_size` examples does not fit into the memory of the device."""

    def __init__(self, batch_size: int, detail: str) -> None:
        super().__init__(detail)
        self.batch_size = batch_size


class Engine:
    """Runs an encoder; calls may come from several threads. Arguments of the subclasses are those of `open_engine`.

    Attributes:
        name: `tensorflow` or `openvino`.
        arithmetic: what its rounding depends on besides the network and the processor.
        device: its name if its rounding has no fingerprint, since kernels may be chosen by timing them; else empty.
        batch_size: most examples per call.
        parallel: how many calls keep the device busy.
        pool: what computes a full batch, once for each of these calls.
        feature_dim: of the features.
        weights_sha256: see `backbones.base.weights_sha256`.
    """

    name: str
    arithmetic: dict[str, str]
    device = ""

    def __init__(self, encoder: keras.Model, batch_size: int, parallel: int) -> None:
        self.batch_size, self.parallel, self.feature_dim = batch_size, parallel, encoder.output_shape[1]
        self.weights_sha256 = weights_sha256(encoder)
        self.pool: queue.SimpleQueue[Callable[[Batch], Any]] = queue.SimpleQueue()

    def __call__(self, batch: Batch) -> np.ndarray:
        """Compute the features, (b, feature_dim) float32, of a batch of b <= batch_size examples.

        Raises:
            OutOfMemoryError: if a batch of batch_size does not fit; only with TensorFlow.
        """
        count = batch_length(batch)
        return self._run(pad_batch(batch, self.batch_size))[:count]

    def _run(self, batch: Batch) -> np.ndarray:
        compute = self.pool.get()
        try:
            return np.asarray(compute(batch))
        except tf.errors.ResourceExhaustedError as error:
            raise OutOfMemoryError(self.batch_size, str(error).split("\n")[0][:200]) from error
        finally:
            self.pool.put(compute)

    def map(self, batches: Iterable[Batch]) -> Generator[np.ndarray, None, None]:
        """Yield the features of each batch in order; several batches are computed at once."""
        with ThreadPoolExecutor(self.parallel) as pool:
            pending: deque[Future[np.ndarray]] = deque()
            try:
                for batch in batches:
                    pending.append(pool.submit(self, batch))
                    if len(pending) > self.parallel:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)


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
    hint, capability = _OPENVINO_PRECISION[precision]
    if capability not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UserError(
            f"params.yaml: extract.precision {precision}: this processor does not support it; use float32, or "
            "extract.engine tensorflow, which is slow at it"
        )
    names = list(spec)
    graph = tf.function(lambda *arrays: network(dict(zip(names, arrays, strict=True)), training=False))
    signature = [tf.TensorSpec((None, *shape), _computed(dtype)) for shape, dtype in spec.values()]
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


class TensorFlowEngine(Engine):
    """The Keras model itself as a compiled graph, a copy on each of `devices`: by default all GPUs, else the CPU."""

    name = "tensorflow"

    def __init__(
        self,
        build: Callable[[], keras.Model],
        spec: Spec,
        precision: str,
        batch_size: int | None,
        devices: Sequence[str] = (),
    ) -> None:
        gpus = [gpu.name for gpu in tf.config.list_logical_devices("GPU")]
        devices = devices or gpus or ["/CPU:0"]
        encoders = []
        for device in devices:
            with tf.device(device), policy(precision):
                encoders.append(build())
        batch_size = max(2, batch_size or (GPU_BATCH if gpus else CPU_BATCH))  # a batch of one has other bits
        copies = 2 if gpus else 1  # one batch is copied to the GPU while one is computed
        super().__init__(encoders[0], batch_size, copies * len(devices))
        # With some networks TensorFlow's rounding depends on the batch size.
        self.arithmetic = {"tensorflow": tf.__version__, "batch_size": str(batch_size)}
        if gpus:
            self.device = ", ".join(sorted(set(gpu_names())))
        signature = {name: tf.TensorSpec((batch_size, *shape), dtype) for name, (shape, dtype) in spec.items()}
        graphs = [_graph(encoder, device, signature) for encoder, device in zip(encoders, devices, strict=True)]
        for graph in graphs * copies:
            self.pool.put(graph)


def _graph(encoder: keras.Model, device: str, signature: dict[str, tf.TensorSpec]) -> Callable[[Batch], tf.Tensor]:
    # Without XLA: it chooses kernels by timing them, which would change the bits from run to run.
    @tf.function(input_signature=[signature])
    def run(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        inputs = {name: tf.cast(array, _computed(array.dtype.name)) for name, array in batch.items()}
        return tf.cast(encoder(inputs, training=False), tf.float32)

    def compute(batch: Batch) -> tf.Tensor:
        with tf.device(device):
            return run({name: tf.constant(array) for name, array in batch.items()})

    return compute


def _computed(dtype: str) -> str:
    """Return the dtype that a network takes an input of `dtype` as: bytes become float32, other integers stay."""
    return "float32" if dtype in ("uint8", "float16") else dtype


def _import_openvino() -> Any:
    # The converter reports to its makers, with stack traces, unless this module is missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


def open_engine(
    kind: str, build: Callable[[], keras.Model], spec: Spec, precision: str, batch_size: int | None, stage: str
) -> Engine:
    """Open an engine for the encoder that `build` builds.

    Args:
        kind: openvino, tensorflow, or auto: TensorFlow on GPUs, else OpenVINO, else TensorFlow.
        spec: of its inputs, see `Modality.spec`.
        batch_size: None: the engine's default.
        stage: the name of the stage, for messages.

    Raises:
        UserError: if there is no such engine, or it does not support that precision.
    """
    if kind == "tensorflow" or (kind == "auto" and tf.config.list_physical_devices("GPU")):
        return TensorFlowEngine(build, spec, precision, batch_size)
    try:
        return OpenVINOEngine(build, spec, precision, batch_size)
    except UserError:
        raise
    except Exception as error:  # of many kinds: no wheel for this machine, an operation that is not supported
        reason = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
        if kind == "openvino":
            raise UserError(
                f"params.yaml: extract.engine openvino cannot run this backbone here ({reason}); use auto or tensorflow"
            ) from error
        print(f"{stage}: using TensorFlow, since OpenVINO cannot run this backbone here ({reason})")
        return TensorFlowEngine(build, spec, precision, batch_size)

"""Engines: what runs the frozen trunk over batches of images, on the CPU or on every GPU there is.

All are made from the same Keras model; short batches are padded. In OpenVINO an image has the same features in every
batch, at every place. So it has in TensorFlow with most networks; ConvNeXt's differ there by 1e-6 with the place.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import queue
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from headstart.backbones import keras_applications
from headstart.errors import UserError
from headstart.framework import gpu_names, keras, policy, tf
from headstart.machine import cores

OPENVINO_BATCH, CPU_BATCH, GPU_BATCH = 3, 32, 256  # images at once where no param says so
_OPENVINO_PRECISION = {"float32": ("f32", "FP32"), "bfloat16": ("bf16", "BF16"), "float16": ("f16", "FP16")}


class OutOfMemoryError(Exception):
    """A batch of `batch_size` images does not fit into the memory of the device."""

    def __init__(self, batch_size: int, detail: str) -> None:
        super().__init__(detail)
        self.batch_size = batch_size


class Engine(ABC):
    """Runs a trunk; calls may come from several threads.

    Attributes:
        name: `tensorflow` or `openvino`.
        arithmetic: what its rounding depends on beside the network and the processor.
        device: its name where its bits are no fingerprint, since kernels may be chosen by timing them; else empty.
        batch_size: images a call at most.
        parallel: how many calls keep the device busy.
        feature_dim: of the features.
        weights_sha256: see `networks.weights_sha256`.
    """

    name: str
    arithmetic: dict[str, str]
    device = ""
    batch_size: int
    parallel: int
    feature_dim: int
    weights_sha256: str

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """(b, feature_dim) float32 of (b, size, size, 3) uint8, b <= batch_size.

        Raises:
            OutOfMemoryError: where a batch of batch_size does not fit; of TensorFlow alone.
        """
        if len(images) == self.batch_size:
            return self._run(images)
        padded = np.zeros((self.batch_size, *images.shape[1:]), np.uint8)
        padded[: len(images)] = images
        return self._run(padded)[: len(images)]

    @abstractmethod
    def _run(self, images: np.ndarray) -> np.ndarray:
        """As calls, of a full batch."""

    def map(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The features of each batch, in order; some batches are under way at once."""
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


class OpenVINOEngine(Engine):
    """The graph of the Keras model, compiled by OpenVINO for the CPU.

    One stream of one thread per core: streams do not wait for each other as the threads of one batch do, and the bits
    do not depend on the number of cores.

    Args:
        build: makes the trunk.
        precision: float32, bfloat16 or float16, of the arithmetic.

    Raises:
        UserError: where the CPU does not compute in that precision.
    """

    name = "openvino"

    def __init__(self, build: Callable[[], keras.Model], precision: str, batch_size: int | None) -> None:
        openvino = _import_openvino()
        core = openvino.Core()
        hint, capability = _OPENVINO_PRECISION[precision]
        if capability not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise UserError(
                f"params.yaml: extract.precision {precision}: this processor does not compute in it; use float32, or "
                "extract.engine tensorflow, which is slow at it"
            )
        trunk = build()
        size = trunk.input_shape[1:]
        graph = tf.function(lambda images: trunk(images, training=False))
        model = openvino.convert_model(graph.get_concrete_function(tf.TensorSpec((None, *size), tf.float32)))
        self.batch_size = batch_size or OPENVINO_BATCH
        self.parallel = cores()
        self.feature_dim = trunk.output_shape[1]
        self.weights_sha256 = keras_applications.weights_sha256(trunk)
        self.arithmetic = {"openvino": importlib.metadata.version("openvino")}
        model.reshape([self.batch_size, *size])
        preprocessor = openvino.preprocess.PrePostProcessor(model)
        preprocessor.input().tensor().set_element_type(openvino.Type.u8)  # the cast is part of the graph
        settings = {
            "INFERENCE_PRECISION_HINT": hint,  # else bfloat16 where the CPU has it
            "NUM_STREAMS": self.parallel,
            "INFERENCE_NUM_THREADS": self.parallel,
            "ENABLE_CPU_PINNING": False,  # the threads that decode need the cores too
        }
        compiled = core.compile_model(preprocessor.build(), "CPU", settings)
        self._requests: queue.SimpleQueue = queue.SimpleQueue()
        for _ in range(self.parallel):
            self._requests.put(compiled.create_infer_request())

    def _run(self, images: np.ndarray) -> np.ndarray:
        request = self._requests.get()
        try:
            request.infer({0: images}, share_inputs=True)
            return request.get_output_tensor(0).data.copy()
        finally:
            self._requests.put(request)


class TensorFlowEngine(Engine):
    """The Keras model itself as a compiled graph, a copy on each GPU, or one on the CPU.

    Args:
        build: makes the trunk.
        precision: float32, or mixed with bfloat16 or float16.
        devices: names of TensorFlow's devices; by default all GPUs, else the CPU.
    """

    name = "tensorflow"

    def __init__(
        self,
        build: Callable[[], keras.Model],
        precision: str,
        batch_size: int | None,
        devices: list[str] | None = None,
    ) -> None:
        gpus = [gpu.name for gpu in tf.config.list_logical_devices("GPU")]
        devices = devices or gpus or ["/CPU:0"]
        self.batch_size = max(2, batch_size or (GPU_BATCH if gpus else CPU_BATCH))  # one alone gets other bits
        self.parallel = 2 * len(devices) if gpus else len(devices)  # one copies to the GPU while one computes
        # With some networks TensorFlow rounds otherwise in batches of another size.
        self.arithmetic = {"tensorflow": tf.__version__, "batch_size": str(self.batch_size)}
        if gpus:
            self.device = ", ".join(sorted(set(gpu_names())))
        trunks = []
        for device in devices:
            with tf.device(device), policy(precision):
                trunks.append(build())
        self.feature_dim = trunks[0].output_shape[1]
        self.weights_sha256 = keras_applications.weights_sha256(trunks[0])
        specification = tf.TensorSpec((self.batch_size, *trunks[0].input_shape[1:]), tf.uint8)
        self._graphs: queue.SimpleQueue = queue.SimpleQueue()
        graphs = [_graph(trunk, device, specification) for trunk, device in zip(trunks, devices, strict=True)]
        for _ in range(self.parallel // len(devices)):
            for graph in graphs:
                self._graphs.put(graph)

    def _run(self, images: np.ndarray) -> np.ndarray:
        graph = self._graphs.get()
        try:
            return graph(images).numpy()
        except tf.errors.ResourceExhaustedError as error:
            raise OutOfMemoryError(self.batch_size, str(error).split("\n")[0][:200]) from error
        finally:
            self._graphs.put(graph)


def _graph(trunk: keras.Model, device: str, specification: tf.TensorSpec) -> Callable[[np.ndarray], tf.Tensor]:
    # Without XLA: it picks kernels by timing them, and the same bits would not come again.
    @tf.function(input_signature=[specification])
    def run(images: tf.Tensor) -> tf.Tensor:
        return tf.cast(trunk(tf.cast(images, tf.float32), training=False), tf.float32)

    def on_device(images: np.ndarray) -> tf.Tensor:
        with tf.device(device):
            return run(tf.constant(images))

    return on_device


def _import_openvino() -> Any:
    # Its converter reports to its makers, with stack traces, unless this module is missing; it does without it then.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


def open_engine(
    kind: str, build: Callable[[], keras.Model], precision: str, batch_size: int | None
) -> OpenVINOEngine | TensorFlowEngine:
    """The engine of that kind for the trunk that `build` makes.

    Args:
        kind: openvino, tensorflow, or auto: TensorFlow on GPUs, OpenVINO on CPUs, TensorFlow where OpenVINO cannot.
        batch_size: images; None for the engine's own.

    Raises:
        UserError: where there is no such engine, or it does not compute in that precision.
    """
    if kind == "tensorflow" or (kind == "auto" and tf.config.list_physical_devices("GPU")):
        return TensorFlowEngine(build, precision, batch_size)
    try:
        return OpenVINOEngine(build, precision, batch_size)
    except UserError:
        raise
    except Exception as error:  # of many kinds: no wheel for this machine, an operation that is not supported
        reason = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
        if kind == "openvino":
            raise UserError(
                f"params.yaml: extract.engine openvino: it cannot run this backbone here ({reason}); "
                "use auto or tensorflow"
            ) from error
        print(f"extract: TensorFlow takes the place of OpenVINO, which cannot run this backbone here ({reason})")
        return TensorFlowEngine(build, precision, batch_size)

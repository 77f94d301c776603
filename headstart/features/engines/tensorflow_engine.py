"""TensorFlow, the engine for GPUs, and for what OpenVINO cannot run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headstart.features.engines.base import CPU_BATCH, GPU_BATCH, Engine, Spec, computed_dtype, describe
from headstart.framework import gpu_names, keras, policy, tf
from headstart.modalities.batch import Batch


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
        super().__init__(describe(encoders[0]), batch_size, copies * len(devices))
        # With some networks TensorFlow's rounding depends on the batch size.
        self.arithmetic = {"tensorflow": tf.__version__, "batch_size": str(batch_size)}
        if gpus:
            self.device = ", ".join(sorted(set(gpu_names())))
        signature = {name: tf.TensorSpec((batch_size, *shape), dtype) for name, (shape, dtype) in spec.items()}
        graphs = [_graph(encoder, device, signature) for encoder, device in zip(encoders, devices, strict=True)]
        for graph in graphs * copies:
            self.pool.put(graph)

    def _is_out_of_memory(self, error: Exception) -> bool:
        return isinstance(error, tf.errors.ResourceExhaustedError)


def _graph(encoder: keras.Model, device: str, signature: dict[str, tf.TensorSpec]) -> Callable[[Batch], tf.Tensor]:
    # Without XLA: it chooses kernels by timing them, which would change the bits from run to run.
    @tf.function(input_signature=[signature])
    def run(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        inputs = {name: tf.cast(array, computed_dtype(array.dtype.name)) for name, array in batch.items()}
        return tf.cast(encoder(inputs, training=False), tf.float32)

    def compute(batch: Batch) -> tf.Tensor:
        with tf.device(device):
            return run({name: tf.constant(array) for name, array in batch.items()})

    return compute

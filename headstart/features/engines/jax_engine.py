"""JAX: the network compiled by XLA, for GPUs. Nothing here is imported where Keras runs on TensorFlow."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax

from headstart.features.engines.base import CPU_BATCH, GPU_BATCH, Engine, Spec, computed_dtype, describe
from headstart.framework import keras, policy
from headstart.modalities.batch import Batch

# By default XLA times kernels on a GPU and takes the fastest, which differ in their rounding and from run to run.
REPEATABLE = {"xla_gpu_autotune_level": 0, "xla_gpu_deterministic_ops": True}

Weights = tuple[list[jax.Array], list[jax.Array]]  # those that could be trained, and the others


class JaxEngine(Engine):
    """The Keras model, compiled by XLA, a copy on each of `devices`: by default all GPUs, else the CPU.

    On GPUs two batches are under way: one is computed while the next one is copied to the device.
    """

    name, libraries = "jax", ("jax", "jaxlib")

    def __init__(
        self,
        build: Callable[[], keras.Model],
        spec: Spec,
        precision: str,
        batch_size: int | None,
        devices: Sequence[jax.Device] = (),
    ) -> None:
        with policy(precision):
            encoder = build()
        devices = devices or jax.local_devices()
        on_cpu = devices[0].platform == "cpu"
        copies = 1 if on_cpu else 2  # one batch is copied to the device while one is computed
        super().__init__(describe(encoder), batch_size or (CPU_BATCH if on_cpu else GPU_BATCH), copies * len(devices))
        self.arithmetic = {
            **{library: importlib.metadata.version(library) for library in self.libraries},
            "batch_size": str(self.batch_size),  # rounding may depend on it
            "devices": ", ".join(sorted({device.device_kind for device in devices})),
        }
        run = jax.jit(_forward(encoder, precision), compiler_options=REPEATABLE)
        for device in devices:
            weights = jax.device_put(_get_weights(encoder), device)
            for _ in range(copies):
                self.pool.put(partial(_compute, run, weights, device))

    def _is_out_of_memory(self, error: Exception) -> bool:
        words = ("RESOURCE_EXHAUSTED", "Out of memory")  # the second is said within other errors
        return isinstance(error, jax.errors.JaxRuntimeError) and any(word in str(error) for word in words)


def _forward(encoder: keras.Model, precision: str) -> Callable[[Weights, dict[str, jax.Array]], jax.Array]:
    """Return a pure function, for jax.jit: weights and a batch -> features, (b, feature_dim) float32."""

    def run(weights: Weights, batch: dict[str, jax.Array]) -> jax.Array:
        inputs = {name: array.astype(computed_dtype(array.dtype.name)) for name, array in batch.items()}
        # GPUs would multiply float32 as TensorFloat-32, with 10 of 23 bits; see headstart.framework.
        with jax.default_matmul_precision("highest" if precision == "float32" else None):
            features, _ = encoder.stateless_call(*weights, inputs, training=False)
        return features.astype("float32")

    return run


def _get_weights(encoder: keras.Model) -> Weights:
    """Return the arrays of all weights, as `_forward` takes them."""
    groups = (encoder.trainable_variables, encoder.non_trainable_variables)
    trainable, others = ([variable.value for variable in group] for group in groups)
    return trainable, others


def _compute(run: Callable[..., jax.Array], weights: Weights, device: jax.Device, batch: Batch) -> Any:
    # Blocks, since NumPy ends the process if it reads an array whose computation ran out of memory.
    return run(weights, jax.device_put(batch, device)).block_until_ready()

"""Keras on TensorFlow, imported quietly and configured once.

TensorFlow writes lines to stderr while it loads that its own TF_CPP_MIN_LOG_LEVEL does not silence
(https://github.com/tensorflow/tensorflow/issues/100442). If that is set already (0: everything), nothing is silenced.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache

from headstart import locks
from headstart.machine import cores


@contextmanager
def _discard_stderr() -> Iterator[None]:
    """Discard what is written to file descriptor 2, which is below Python's own stderr."""
    stderr, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)


# On CPUs, keep memory between steps. By default each large tensor is allocated from the system and returned to it, and
# clearing its pages took up to two fifths of the processor's time in fine-tuning. Results are the same.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
os.environ.setdefault("TF_CPU_BFC_MEM_LIMIT_IN_MB", str(2**24))  # no limit; the default is 64 GB

_QUIET = "TF_CPP_MIN_LOG_LEVEL" not in os.environ
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # from here on; errors are still raised
with _discard_stderr() if _QUIET else nullcontext():
    import keras
    import tensorflow as tf
if _QUIET:
    tf.get_logger().setLevel("ERROR")  # it warns about functions compiled often, as in a search

for _gpu in tf.config.list_physical_devices("GPU"):  # by default the first process takes all memory
    tf.config.experimental.set_memory_growth(_gpu, True)
# TensorFloat-32, the default on GPUs that have it, keeps 10 of 23 bits: features would agree between stages to half a
# percent only, so that the joined model would not be what its head was trained on.
tf.config.experimental.enable_tensor_float_32_execution(False)

__all__ = ["device_name", "distribution", "gpu_names", "keras", "make_repeatable", "policy", "take_gpus", "tf"]


@cache  # a process that has its GPUs keeps them
def take_gpus(stage: str) -> None:
    """Claim GPUs that no other run of this repository uses, until the process ends; call it before any use of them.

    Raises:
        UserError: see `locks.claim_gpus`.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        tf.config.set_visible_devices([gpus[index] for index in locks.claim_gpus(len(gpus), stage)], "GPU")


def make_repeatable(seed: int) -> None:
    """Make the same seed give the same bits on the same machine from here on, at some cost in speed."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def device_name() -> str:
    """Return what networks run on, e.g. `NVIDIA H100`, `2 x NVIDIA H100` or `CPU, 2 cores`."""
    names = Counter(gpu_names())
    if not names:
        return f"CPU, {cores()} cores"
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in names.items())


def gpu_names() -> list[str]:
    """Return the model of each visible GPU."""
    details = tf.config.experimental.get_device_details
    return [details(gpu).get("device_name", gpu.name) for gpu in tf.config.get_visible_devices("GPU")]


def distribution() -> tf.distribute.Strategy:
    """Return how training is distributed: over all GPUs if there are several, with a copy of the network on each."""
    gpus = tf.config.list_logical_devices("GPU")
    return tf.distribute.MirroredStrategy([gpu.name for gpu in gpus]) if len(gpus) > 1 else tf.distribute.get_strategy()


@contextmanager
def policy(precision: str) -> Iterator[None]:
    """Let layers that are made inside compute in float32, bfloat16 or float16; their weights are always float32."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision if precision == "float32" else f"mixed_{precision}")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)

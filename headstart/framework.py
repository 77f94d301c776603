"""Keras on TensorFlow, imported quietly and configured once; or on JAX, see `keras_backend`, and then without `tf`.

TensorFlow writes lines to stderr while it loads that its own TF_CPP_MIN_LOG_LEVEL does not silence
(https://github.com/tensorflow/tensorflow/issues/100442). If that is set already (0: everything), nothing is silenced.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache

from headstart import keras_backend, locks
from headstart.machine import cpu_name
from headstart.quiet import discard_stderr


class _HidesFromKeras(importlib.abc.MetaPathFinder):
    """Lets packages seem missing to the thread that loads Keras, which then goes without them.

    It would load what draws pictures and what makes it an estimator of scikit-learn: a third of the time that it takes.
    """

    NAMES = ("matplotlib", "sklearn")

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name in self.NAMES and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"{name} is hidden from Keras", name=name)

    def __enter__(self) -> None:
        sys.meta_path.insert(0, self)

    def __exit__(self, *exception: object) -> None:
        sys.meta_path.remove(self)


# On CPUs, keep memory between steps. By default each large tensor is allocated from the system and returned to it, and
# clearing its pages took up to two fifths of the processor's time in fine-tuning. Results are the same.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
os.environ.setdefault("TF_CPU_BFC_MEM_LIMIT_IN_MB", str(2**24))  # no limit; the default is 64 GB

JAX = keras_backend.name == "jax"
os.environ["KERAS_BACKEND"] = keras_backend.name
_QUIET = "TF_CPP_MIN_LOG_LEVEL" not in os.environ
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # from here on; errors are still raised; JAX reads it too
with discard_stderr() if _QUIET else nullcontext(), _HidesFromKeras():
    import keras

    if JAX:
        import jax
    else:
        import tensorflow as tf

if JAX:
    # By default the first process takes three quarters of a GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from keras.src.utils import module_utils

    module_utils.tensorflow._available = False  # else Keras loads it wherever it is installed, to seed it
else:
    if _QUIET:
        tf.get_logger().setLevel("ERROR")  # it warns about functions compiled often, as in a search
    for _gpu in tf.config.list_physical_devices("GPU"):  # by default the first process takes all memory
        tf.config.experimental.set_memory_growth(_gpu, True)
    # TensorFloat-32, the default on GPUs that have it, keeps 10 of 23 bits: features would agree between stages to half
    # a percent only, so that the joined model would not be what its head was trained on.
    tf.config.experimental.enable_tensor_float_32_execution(False)

__all__ = ["JAX", "device_name", "distribution", "gpu_names", "keras", "make_repeatable", "policy", "take_gpus", "tf"]


@cache  # a process that has its GPUs keeps them
def take_gpus(stage: str) -> None:
    """Claim GPUs that no other run of this repository uses, until the process ends; call it before any use of them.

    Raises:
        UserError: see `locks.claim_gpus`.
    """
    if JAX:
        count = _count_cuda_gpus()
        if count:
            numbers = locks.claim_gpus(count, stage)
            jax.config.update("jax_cuda_visible_devices", ",".join(map(str, numbers)))
        return
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        tf.config.set_visible_devices([gpus[index] for index in locks.claim_gpus(len(gpus), stage)], "GPU")


def _count_cuda_gpus() -> int:
    """Count the GPUs that JAX would use. JAX itself would take memory on each of them to answer."""
    plugins = [f"jax_plugins.xla_cuda{version}" for version in (12, 13)]
    if not importlib.util.find_spec("jax_plugins") or not any(map(importlib.util.find_spec, plugins)):
        return 0  # JAX for CPUs
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    import pynvml

    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:  # there is no GPU
        return 0


def make_repeatable(seed: int) -> None:
    """Make the same seed give the same bits on the same machine from here on, at some cost in speed."""
    keras.utils.set_random_seed(seed)
    if not JAX:  # whose engine asks XLA for it
        tf.config.experimental.enable_op_determinism()


def device_name() -> str:
    """Return what networks run on, e.g. `NVIDIA H100`, `2 x NVIDIA H100` or `CPU, 2 cores`."""
    names = Counter(gpu_names())
    if not names:
        return cpu_name()
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in names.items())


def gpu_names() -> list[str]:
    """Return the model of each visible GPU."""
    if JAX:
        return [device.device_kind for device in jax.local_devices() if device.platform != "cpu"]
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

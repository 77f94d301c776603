"""Keras on TensorFlow, loaded without the lines that TensorFlow writes while it loads; what both are told once.

TF_CPP_MIN_LOG_LEVEL, TensorFlow's own switch, does not reach those lines (https://github.com/tensorflow/tensorflow/issues/100442).
Where it is set already (0: everything), nothing is held back.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from headstart import locks
from headstart.machine import cores


@contextmanager
def _quiet() -> Iterator[None]:
    """Send what is written to file descriptor 2, below Python's own stderr, to nowhere."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


# On CPUs, keep memory between steps: by default each large tensor is taken from the system and given back, and clearing
# its pages took up to two fifths of the processor's time in fine-tuning. No result changes.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
os.environ.setdefault("TF_CPU_BFC_MEM_LIMIT_IN_MB", str(2**24))  # else 64 GB; so the machine's memory is the limit

if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
    import keras
    import tensorflow as tf
else:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # from here on; an error still raises
    with _quiet():
        import keras
        import tensorflow as tf
    tf.get_logger().setLevel("ERROR")  # a search compiles many heads, which is no mistake here

for _gpu in tf.config.list_physical_devices("GPU"):  # else the first process takes all of their memory
    tf.config.experimental.set_memory_growth(_gpu, True)
# TensorFloat-32, which TensorFlow uses where a GPU has it, keeps 10 bits of 23: what one stage calls float32 would be
# another's only to half a percent, and the joined model no longer what its head was trained on.
tf.config.experimental.enable_tensor_float_32_execution(False)

__all__ = ["device_name", "distribution", "gpu_names", "keras", "make_repeatable", "policy", "take_gpus", "tf"]


@cache  # a process that has its GPUs keeps them
def take_gpus(stage: str) -> None:
    """See only GPUs that no other run of this repository uses, until the process ends; to be called before any use.

    Raises:
        UserError: see `locks.claim_gpus`.
    """
    found = tf.config.list_physical_devices("GPU")
    if found:
        tf.config.set_visible_devices([found[place] for place in locks.claim_gpus(len(found), stage)], "GPU")


def make_repeatable(seed: int) -> None:
    """The same seed on the same machine gives the same bits from here on, at some cost in speed."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def device_name() -> str:
    """What the networks run on, e.g. `NVIDIA H100`, `2 x NVIDIA H100` or `CPU, 2 cores`."""
    names = Counter(gpu_names())
    if not names:
        return f"CPU, {cores()} cores"
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in names.items())


def gpu_names() -> list[str]:
    """The model of each GPU that is visible."""
    details = tf.config.experimental.get_device_details
    return [details(gpu).get("device_name", gpu.name) for gpu in tf.config.get_visible_devices("GPU")]


def distribution() -> tf.distribute.Strategy:
    """How training is spread: over all GPUs where there are several, a copy of the network on each."""
    gpus = tf.config.list_logical_devices("GPU")
    return tf.distribute.MirroredStrategy([gpu.name for gpu in gpus]) if len(gpus) > 1 else tf.distribute.get_strategy()


@contextmanager
def policy(precision: str) -> Iterator[None]:
    """Layers made inside compute in float32, or in bfloat16 or float16; their weights are float32 all the same."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision if precision == "float32" else f"mixed_{precision}")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)

"""Engines run a frozen encoder over batches, on the CPU or on all GPUs.

All are made from the same Keras model; short batches are padded. With OpenVINO an example has the same features at any
place in any batch. So it does with TensorFlow and JAX for most networks; those of ConvNeXt depend on the place by 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from headstart import keras_backend
from headstart.errors import UserError
from headstart.features.engines.base import Engine, OutOfMemoryError, Spec
from headstart.machine import may_have_gpu

if TYPE_CHECKING:
    from headstart.framework import keras

__all__ = ["Engine", "OutOfMemoryError", "Spec", "open_engine"]


def open_engine(
    kind: str,
    build: Callable[[], keras.Model],
    spec: Spec,
    precision: str,
    batch_size: int | None,
    stage: str,
    network: str | None = None,
) -> Engine:
    """Open an engine for the encoder that `build` builds.

    Args:
        kind: openvino, tensorflow, jax (only where Keras runs on it, see `keras_backend`), or auto: TensorFlow on GPUs,
            else OpenVINO, else TensorFlow.
        spec: of its inputs, see `Modality.spec`.
        batch_size: None: the engine's default.
        stage: the name of the stage, for messages.
        network: names everything that shapes the encoder, but code and libraries, so that OpenVINO need not build and
            convert it again; None: nothing does.

    Raises:
        UserError: if there is no such engine, or it does not support that precision.
    """
    # Imported here: JAX may be missing, a process has TensorFlow or JAX, never both, and TensorFlow takes seconds.
    if kind == "jax":
        if keras_backend.name != "jax":
            raise RuntimeError("Keras runs on TensorFlow here; call keras_backend.choose before it is imported")
        from headstart.features.engines.jax_engine import JaxEngine

        return JaxEngine(build, spec, precision, batch_size)
    if kind == "tensorflow" or (kind == "auto" and _has_gpu()):
        return _open_tensorflow(build, spec, precision, batch_size, network)
    try:
        from headstart.features.engines.openvino_engine import OpenVINOEngine

        return OpenVINOEngine(build, spec, precision, batch_size, network)
    except UserError:
        raise
    except Exception as error:  # of many kinds: no wheel for this machine, an operation that is not supported
        reason = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
        if kind == "openvino":
            raise UserError(
                f"params.yaml: extract.engine openvino cannot run this backbone here ({reason}); use auto or tensorflow"
            ) from error
        print(f"{stage}: using TensorFlow, since OpenVINO cannot run this backbone here ({reason})")
        return _open_tensorflow(build, spec, precision, batch_size, network)


def _open_tensorflow(
    build: Callable[[], keras.Model], spec: Spec, precision: str, batch_size: int | None, network: str | None
) -> Engine:
    from headstart.features.engines.tensorflow_engine import TensorFlowEngine

    engine = TensorFlowEngine(build, spec, precision, batch_size)
    engine.network = network
    return engine


def _has_gpu() -> bool:
    if not may_have_gpu():
        return False
    from headstart.framework import tf

    return bool(tf.config.list_physical_devices("GPU"))

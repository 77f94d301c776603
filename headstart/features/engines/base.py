"""The interface of an engine, which runs a frozen encoder over batches."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headstart.backbones.base import weights_sha256
from headstart.backbones.depths import widths
from headstart.modalities.batch import Batch, batch_length, pad_batch

if TYPE_CHECKING:
    from headstart.framework import keras

Spec = dict[str, tuple[tuple[int | None, ...], str]]
CPU_BATCH, GPU_BATCH = 32, 256  # default batch sizes


class OutOfMemoryError(Exception):
    """A batch of `batch_size` examples does not fit into the memory of the device."""

    def __init__(self, batch_size: int, detail: str) -> None:
        super().__init__(detail)
        self.batch_size = batch_size


class NetworkInfo(NamedTuple):
    """What an engine has to know about its encoder.

    Attributes:
        feature_dim: of the features.
        weights_sha256: see `backbones.base.weights_sha256`.
        depths: see `backbones.depths.widths`.
    """

    feature_dim: int
    weights_sha256: str
    depths: dict[str, list[int]]


def describe(encoder: keras.Model) -> NetworkInfo:
    """Return what an engine has to know about an encoder."""
    return NetworkInfo(encoder.output_shape[1], weights_sha256(encoder), widths(encoder))


class Engine:
    """Runs an encoder; calls may come from several threads. Arguments of the subclasses are those of `open_engine`.

    Attributes:
        name: what `extract.engine` says.
        libraries: packages whose versions features/meta.json names, besides those of every install.
        arithmetic: what its rounding depends on besides the network and the processor.
        device: its name if its rounding has no fingerprint, since kernels may be chosen by timing them; else empty.
        network: what `open_engine` says of the encoder.
        batch_size: most examples per call.
        parallel: how many calls keep the device busy.
        pool: what computes a full batch, once for each of these calls.
        feature_dim, weights_sha256, depths: of the encoder, see `NetworkInfo`.
    """

    name: str
    libraries: tuple[str, ...] = ()
    arithmetic: dict[str, str]
    device = ""
    network: str | None = None

    def __init__(self, info: NetworkInfo, batch_size: int, parallel: int) -> None:
        self.batch_size, self.parallel = batch_size, parallel
        self.feature_dim, self.weights_sha256, self.depths = info
        self.pool: queue.SimpleQueue[Callable[[Batch], Any]] = queue.SimpleQueue()

    @property
    def device_name(self) -> str:
        """What it runs on, in words, see `framework.device_name`."""
        from headstart.framework import device_name

        return device_name()

    def __call__(self, batch: Batch) -> np.ndarray:
        """Compute the features, (b, feature_dim) float32, of a batch of b <= batch_size examples.

        Raises:
            OutOfMemoryError: if a batch of batch_size does not fit; not with OpenVINO.
        """
        count = batch_length(batch)
        return self._run(pad_batch(batch, self.batch_size))[:count]

    def _run(self, batch: Batch) -> np.ndarray:
        compute = self.pool.get()
        try:
            return np.asarray(compute(batch))
        except Exception as error:
            if not self._is_out_of_memory(error):
                raise
            raise OutOfMemoryError(self.batch_size, str(error).split("\n")[0][:200]) from error
        finally:
            self.pool.put(compute)

    def _is_out_of_memory(self, error: Exception) -> bool:
        return False

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


def computed_dtype(dtype: str) -> str:
    """Return the dtype that a network takes an input of `dtype` as: bytes become float32, other integers stay."""
    return "float32" if dtype in ("uint8", "float16") else dtype

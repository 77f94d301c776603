"""What a stage takes of the machine while it works, sampled beside it: processor, memory, disk, network, GPUs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

INTERVAL = 1.0  # seconds to the first sample, and between samples at first: what is over sooner leaves none
MOST = 240  # samples; of a longer stage two neighbours become one, and the interval doubles

Sample = tuple[int, dict[str, float]]  # milliseconds since 1970; figures under the names that MLflow gives its own


class Sampler:
    """Samples inside of `with`. What goes wrong ends the sampling, never the work.

    Attributes:
        samples: oldest first; complete when `with` has ended.
    """

    def __init__(self, interval: float = INTERVAL) -> None:
        self.samples: list[Sample] = []
        self._interval, self._over = interval, threading.Event()
        self._thread = threading.Thread(target=self._work, name="resources", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(5)

    def _work(self) -> None:
        with contextlib.suppress(Exception):
            look = _looking()
            while not self._over.wait(self._interval):
                self.samples.append((round(1000 * time.time()), look()))
                if len(self.samples) >= MOST:
                    self.samples = merged(self.samples)
                    self._interval *= 2


def merged(samples: list[Sample]) -> list[Sample]:
    """Of each two neighbours one, with the time of the later and the mean of both; of an odd number the last stays."""
    pairs = zip(samples[::2], samples[1::2], strict=False)
    means = [
        (time_, {name: (earlier.get(name, value) + value) / 2 for name, value in later.items()})
        for (_, earlier), (time_, later) in pairs
    ]
    return means + (samples[-1:] if len(samples) % 2 else [])


def _looking() -> Callable[[], dict[str, float]]:
    """A function that looks at the machine; disk and network are counted from now."""
    import psutil  # not in the way of a stage that is about to start

    process, gpus = psutil.Process(), _gpus()
    psutil.cpu_percent()  # each call tells of the time since the one before

    def counted() -> dict[str, float]:
        disk, network = psutil.disk_io_counters(), psutil.net_io_counters()
        return {
            "disk_read_megabytes": disk.read_bytes / 1e6 if disk else 0.0,
            "disk_write_megabytes": disk.write_bytes / 1e6 if disk else 0.0,
            "network_receive_megabytes": network.bytes_recv / 1e6 if network else 0.0,
            "network_transmit_megabytes": network.bytes_sent / 1e6 if network else 0.0,
        }

    before = counted()

    def look() -> dict[str, float]:
        memory = psutil.virtual_memory()
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.percent,
            "process_memory_megabytes": process.memory_info().rss / 1e6,
            **{name: value - before[name] for name, value in counted().items()},
            **gpus(),
        }

    return look


def _gpus() -> Callable[[], dict[str, float]]:
    """A function that looks at NVIDIA's GPUs; at none where there is no driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
    except Exception:  # the library has errors of its own, and may be missing
        return dict

    def look() -> dict[str, float]:
        found = {}
        for number, handle in enumerate(handles):
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            found[f"gpu_{number}_memory_usage_megabytes"] = memory.used / 1e6
            found[f"gpu_{number}_memory_usage_percentage"] = 100 * memory.used / memory.total
            found[f"gpu_{number}_utilization_percentage"] = float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        return found

    return look

"""What stages take of the machine."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import pytest

from headstart.tracking import resources


def test_it_samples_while_the_work_goes_on():
    begun = 1000 * time.time()
    with resources.Sampler(interval=0.01) as sampler:
        while len(sampler.samples) < 3:
            time.sleep(0.01)
    count = len(sampler.samples)
    moments = [moment for moment, _ in sampler.samples]
    assert moments == sorted(moments)
    assert begun - 1 <= moments[0] <= 1000 * time.time() + 1
    for _, figures in sampler.samples:
        assert 0 <= figures["cpu_utilization_percentage"] <= 100
        assert 1 < figures["process_memory_megabytes"] < figures["system_memory_usage_megabytes"] * 10
        assert figures["disk_write_megabytes"] >= 0
    assert len(sampler.samples) == count


def test_a_short_stage_leaves_nothing_and_an_error_passes():
    with pytest.raises(ZeroDivisionError), resources.Sampler() as sampler:
        _ = 1 / 0
    assert sampler.samples == []


def test_a_long_stage_leaves_a_bounded_number(monkeypatch):
    monkeypatch.setattr(resources, "MOST", 4)
    monkeypatch.setattr(resources, "_looking", lambda: lambda: {"cpu": 1.0})
    with resources.Sampler(interval=0.001) as sampler:
        time.sleep(0.1)
    assert 2 <= len(sampler.samples) <= 4


def test_neighbours_become_their_mean():
    samples = [
        (1, {"cpu": 10.0}),
        (2, {"cpu": 20.0}),
        (3, {"cpu": 0.0}),
        (4, {"cpu": 1.0, "gpu": 5.0}),
        (5, {"cpu": 9.0}),
    ]
    assert resources.merged(samples) == [(2, {"cpu": 15.0}), (4, {"cpu": 0.5, "gpu": 5.0}), (5, {"cpu": 9.0})]


def test_what_goes_wrong_ends_the_sampling_alone(monkeypatch):
    def broken() -> None:
        raise OSError("no counters here")

    monkeypatch.setattr(resources, "_looking", broken)
    with resources.Sampler(interval=0.001) as sampler:
        sampler._thread.join(5)
    assert sampler.samples == []


def test_gpus_are_sampled_by_nvidias_library(monkeypatch):
    class Library:
        """NVIDIA's, with two GPUs."""

        nvmlInit = staticmethod(lambda: None)  # noqa: N815
        nvmlDeviceGetCount = staticmethod(lambda: 2)  # noqa: N815
        nvmlDeviceGetHandleByIndex = staticmethod(int)  # noqa: N815

        @staticmethod
        def nvmlDeviceGetMemoryInfo(handle: int) -> SimpleNamespace:  # noqa: N802
            return SimpleNamespace(used=(handle + 1) * 2e9, total=8e9)

        @staticmethod
        def nvmlDeviceGetUtilizationRates(handle: int) -> SimpleNamespace:  # noqa: N802
            return SimpleNamespace(gpu=90 + handle)

    monkeypatch.setitem(sys.modules, "pynvml", Library)
    figures = resources._looking()()
    assert figures["gpu_0_memory_usage_megabytes"] == 2000
    assert figures["gpu_1_memory_usage_percentage"] == 50
    assert (figures["gpu_0_utilization_percentage"], figures["gpu_1_utilization_percentage"]) == (90, 91)


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch):
    def missing() -> None:
        raise RuntimeError("NVML Shared Library Not Found")

    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(nvmlInit=missing))
    assert not [name for name in resources._looking()() if name.startswith("gpu")]

"""What this process may use of the machine."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

# What drivers of GPUs make that TensorFlow may have been built for: NVIDIA's, AMD's, and Windows' for Linux inside it.
GPU_FILES = ("nvidia*", "nvhost*", "kfd", "dxg")


CORES = "HEADSTART_CORES"  # an environment variable: how many cores a worker of a cluster may use


def cores() -> int:
    """Return how many CPU cores this process may use."""
    given = os.environ.get(CORES, "")
    if given.isdecimal() and int(given):
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """Return what networks run on where there is no GPU, e.g. `CPU, 2 cores`."""
    return f"CPU, {cores()} cores"


def may_have_gpu() -> bool:
    """Whether there may be a GPU that TensorFlow or JAX can use; False only if there is none. They know, and take
    seconds to load."""
    found = any(any(Path("/dev").glob(name)) for name in GPU_FILES)
    return found or importlib.util.find_spec("tensorflow-plugins") is not None  # as of Apple's GPUs

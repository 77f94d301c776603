"""What this process may use of the machine."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.checks import read_yaml
from pipeline.errors import UserError


def cores() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def onednn(params: Path) -> str:
    """The TF_ENABLE_ONEDNN_OPTS by which the backbone of a params.yaml trains faster on CPUs.

    By itself TensorFlow uses oneDNN only on processors with AVX-512 VNNI or the like. Its own kernels are compiled
    without AVX2 and FMA: where a processor has no more, a step of MobileNetV2 takes them 1.4 times as long, but one of
    `tiny`, whose layers are narrow, is 1.4 times as fast.
    """
    try:
        backbone = read_yaml(params).get("backbone")
    except UserError:  # which the stage will tell
        backbone = None
    return "0" if backbone == "tiny" else "1"

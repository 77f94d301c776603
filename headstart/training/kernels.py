"""Which kernels TensorFlow uses on CPUs: to be set before it is imported."""

from __future__ import annotations

from pathlib import Path

from headstart.errors import UserError
from headstart.validation import read_yaml


def onednn(params: Path) -> str:
    """Return the TF_ENABLE_ONEDNN_OPTS with which the backbone of a params.yaml trains faster on CPUs.

    By default TensorFlow uses oneDNN only on processors with AVX-512 VNNI or the like. Its own kernels are compiled
    without AVX2 and FMA: on other processors an epoch of MobileNetV2 takes them 1.4 times as long
    (benchmarks/trunk_cache.py, also run with TF_ENABLE_ONEDNN_OPTS=0). With `tiny`, whose layers are narrow, they are
    1.4 times as fast (fine_tune in benchmarks/default_run.py, also run with 1).
    """
    try:
        backbone = read_yaml(params).get("backbone")
    except UserError:  # the stage reports it
        backbone = None
    return "0" if backbone == "tiny" else "1"

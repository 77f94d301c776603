"""What TensorFlow is to compute with on CPUs; to be asked before it loads."""

from __future__ import annotations

from pathlib import Path

from headstart.errors import UserError
from headstart.validation import read_yaml


def onednn(params: Path) -> str:
    """The TF_ENABLE_ONEDNN_OPTS by which the backbone of a params.yaml trains faster on CPUs.

    By itself TensorFlow uses oneDNN only on processors with AVX-512 VNNI or the like. Its own kernels are compiled
    without AVX2 and FMA: where a processor has no more, an epoch of MobileNetV2 takes them 1.4 times as long
    (benchmarks/trunk_cache.py, against the same with TF_ENABLE_ONEDNN_OPTS=0), but one of `tiny`, whose layers are
    narrow, is 1.4 times as fast (fine_tune in benchmarks/default_run.py, against the same with 1).
    """
    try:
        backbone = read_yaml(params).get("backbone")
    except UserError:  # which the stage will tell
        backbone = None
    return "0" if backbone == "tiny" else "1"

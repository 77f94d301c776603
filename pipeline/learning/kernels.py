"""What TensorFlow is to compute with on CPUs; to be asked before it loads."""

from __future__ import annotations

from pathlib import Path

from pipeline.checks import read_yaml
from pipeline.errors import UserError


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

"""metrics/extract.json and the features it speaks of.

It holds how long the extraction took. No two runs share that, so it cannot be an output of the stage: dvc.lock would
change where no result did. But then DVC does not bring it back when it restores features from its cache. So each is
also kept under the fingerprint of its features, and brought back from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from pipeline.outputs import Outputs
from pipeline.paths import FEATURES_META, kept, metrics

METRICS = metrics("extract")


def write(outputs: Outputs, values: dict[str, object], meta: Path) -> None:
    """Write `values` as the stage's metrics, and keep them for the features whose meta.json lies at `meta`."""
    fingerprint = _fingerprint(meta)
    values = {**values, "features": fingerprint[:12]}
    outputs.json(METRICS, values)
    outputs.json(_kept(fingerprint), values)


def follow() -> None:
    """Make metrics/extract.json that of the features in the workspace; no figures are better than others' figures."""
    if not FEATURES_META.is_file():
        return
    fingerprint = _fingerprint(FEATURES_META)
    if METRICS.is_file() and json.loads(METRICS.read_bytes()).get("features") == fingerprint[:12]:
        return
    METRICS.unlink(missing_ok=True)
    if _kept(fingerprint).is_file():
        METRICS.parent.mkdir(exist_ok=True)
        partial = METRICS.with_name(f".{METRICS.stem}.partial{METRICS.suffix}")
        shutil.copyfile(_kept(fingerprint), partial)
        os.replace(partial, METRICS)


def _fingerprint(meta: Path) -> str:
    return hashlib.sha256(meta.read_bytes()).hexdigest()


def _kept(fingerprint: str) -> Path:
    return kept(f"extract-metrics/{fingerprint}.json")

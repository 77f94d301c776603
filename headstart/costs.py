"""What results cost: seconds, rates, latency. No two runs share such figures, so they are no outputs of a stage.

They are kept beside the caches, under DVC's fingerprint of the result that they belong to: when DVC restores a result,
its costs are still known, on the machine that computed it.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from blake3 import blake3

from headstart import paths
from headstart.lockfile import Workspace, md5_of
from headstart.outputs import Outputs

# The file of a stage that names its result: equal files, equal results.
RESULTS = {
    "prepare": paths.MANIFEST,
    "extract": paths.FEATURES_META,
    "train_head": paths.HEAD,
    "fine_tune": paths.MODEL,
    "evaluate": paths.PREDICTIONS,
}


def write(stage: str, figures: dict[str, Any], fingerprint: str | None = None) -> None:
    """Keep what a result of `stage` cost.

    Args:
        fingerprint: as for `read`.

    Raises:
        UserError: if the file cannot be written.
    """
    fingerprint = fingerprint or (md5_of(Workspace(), RESULTS[stage].as_posix()) if stage in RESULTS else None)
    if fingerprint:
        outputs = Outputs()
        outputs.json(_file(stage, fingerprint), {"figures": figures, "blake3": _checksum(figures)}, exact=True)
        outputs.commit()


def read(stage: str, fingerprint: str | None = None) -> dict[str, Any]:
    """What a result of `stage` cost, by figure; empty if that is not known here. A damaged file is removed.

    Args:
        fingerprint: DVC's md5 of the file in RESULTS; None: of the one in the workspace.
    """
    if stage not in RESULTS:
        return {}
    fingerprint = fingerprint or md5_of(Workspace(), RESULTS[stage].as_posix())
    file = _file(stage, fingerprint or "none")
    try:
        saved = json.loads(file.read_bytes())
        if saved["blake3"] == _checksum(saved["figures"]):
            return dict(saved["figures"])
    except OSError:
        return {}
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    print(f"{file}: damaged, or of another version; what this {stage} cost is unknown", file=sys.stderr)
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)
    return {}


def _checksum(figures: dict[str, Any]) -> str:
    return blake3(json.dumps(figures, sort_keys=True).encode()).hexdigest(length=16)


def _file(stage: str, fingerprint: str) -> Path:
    return paths.cache_path(f"costs/{stage}-{fingerprint}.json")

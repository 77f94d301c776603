"""What results cost: metrics/extract.json tells of the extraction, metrics/cost.json of every stage and of the model.

No two runs share such figures, so they cannot be outputs of a stage: dvc.lock would change where no result did. But
then DVC does not bring them back when it restores the results from its cache. So each is also kept under the
fingerprint of what it speaks of, and brought back from there. A file beside them holds the fingerprints: where another
machine made the results, the figures came with Git and stay.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from pipeline import paths
from pipeline.outputs import Outputs
from pipeline.paths import kept

METRICS = paths.metrics("extract")
MADE = Path("metrics/fingerprints.json")  # no metrics: a word among these would be a column of every table
# The file of a stage that names its result: equal files, equal results.
RESULTS = {
    "prepare": paths.MANIFEST,
    "extract": paths.FEATURES_META,
    "train_head": paths.HEAD,
    "fine_tune": paths.MODEL,
    "evaluate": paths.PREDICTIONS,
}
FIGURES = {"evaluate": ("latency_ms",)}  # of a stage's result, beside its seconds


def write(outputs: Outputs, values: dict[str, object], meta: Path) -> None:
    """Write `values` as the metrics of extract, and keep them for the features whose meta.json lies at `meta`."""
    fingerprint = _fingerprint(meta)
    outputs.json(METRICS, values)
    outputs.json(MADE, {**read(MADE), METRICS.stem: fingerprint[:12]})
    outputs.json(_kept("extract-metrics", fingerprint), values)


def note(stage: str, seconds: float, figures: dict[str, float]) -> None:
    """Keep what the result of `stage`, which has just been made, cost: its seconds, and other figures by name."""
    if stage in RESULTS:
        values = {f"{stage}_seconds": seconds, **figures}
        _write(_kept(f"costs-{stage}", _fingerprint(RESULTS[stage])), values)


def of(stage: str) -> dict[str, float]:
    """What is known of the cost of the result of `stage` that lies in the workspace."""
    result = RESULTS.get(stage)
    if result is None or not result.is_file():
        return {}
    kept_here = _numbers(read(_kept(f"costs-{stage}", _fingerprint(result))))
    if kept_here:
        return kept_here
    told = read(paths.COST)
    names = (f"{stage}_seconds", *FIGURES.get(stage, ()))
    of_these = read(MADE).get(paths.COST.stem) == _all_results()
    return _numbers({name: told[name] for name in names if name in told}) if of_these else {}


def follow() -> None:
    """Make all three files those of the results in the workspace; no figures are better than others' figures."""
    costs = {name: value for stage in RESULTS for name, value in of(stage).items()}
    features = _fingerprint(paths.FEATURES_META) if paths.FEATURES_META.is_file() else ""
    # Experiments that share features have a ledger each: the one that is there stays where it is of these features.
    extraction = read(METRICS) if read(MADE).get(METRICS.stem) == features[:12] else {}
    extraction = extraction or read(_kept("extract-metrics", features))
    made = {}
    for file, values, fingerprint in ((paths.COST, costs, _all_results()), (METRICS, extraction, features[:12])):
        _replace(file, values)
        made |= {file.stem: fingerprint} if values else {}
    _replace(MADE, made)


def read(file: Path) -> dict[str, Any]:
    """The figures in `file`; none where it is not there, or not readable, as Git leaves it in a conflict."""
    try:
        values = json.loads(file.read_bytes(), parse_constant=_no_number)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no JSON")  # and could not be written back


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """Those that can be added up."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf
    }


def _all_results() -> str:
    """A fingerprint of the results in the workspace."""
    found = [_fingerprint(file) if file.is_file() else "" for file in RESULTS.values()]
    return hashlib.sha256(" ".join(found).encode()).hexdigest()[:12]


def _replace(file: Path, values: dict[str, Any]) -> None:
    if not values:
        file.unlink(missing_ok=True)
    elif read(file) != values:
        _write(file, values)


def _write(file: Path, values: dict[str, Any]) -> None:
    outputs = Outputs()
    outputs.json(file, values)
    outputs.commit()


def _fingerprint(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _kept(name: str, fingerprint: str) -> Path:
    return kept(f"{name}/{fingerprint}.json")

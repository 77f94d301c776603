"""What a stage leaves for the tracker: params, metrics, curves and artifacts, read from the files that dvc.yaml names.

A stage that DVC restores or skips does not run, so it cannot log. Its record is made from its files all the same.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from headstart import costs, paths, provenance
from headstart.lockfile import LOCK, PIPELINE, is_as_locked, md5_of, outs_of, read_stages, sha256_of, standing
from headstart.tracking import headline
from headstart.tracking.resources import Sample

MAX_ARTIFACT_BYTES = 200 * 2**20  # larger files stay with DVC alone
# What makes the content of a record; the rest is about its making, or follows from these.
LEFT = ("key", "stage", "experiment_params", "params", "metrics", "curves", "artifacts", "trials")


@dataclass(frozen=True)
class Record:
    """One stage of one experiment.

    Attributes:
        key: names the experiment; equal params, code and data have equal keys.
        experiment_params: all leaves of params.yaml as text; `params` are those that the stage uses.
        metrics: nested metrics under joined names, e.g. `head/accuracy`.
        curves: (metric, epoch, value).
        artifacts: relative path and SHA-256.
        restored: True where DVC brought the outputs back and the stage did not run.
        started: milliseconds since 1970; that of the record where the stage did not run.
        time: milliseconds since 1970, of the making of the record.
        trials: rows of a search, to be shown as runs of their own.
        costs: figures of what the stage cost, which no two runs share.
        headline: figures for the row of the experiment, under short names.
        dataset: name, digest, source_type, source, schema and profile of the data; empty where they are not known yet.
        note: Markdown for the row.
        shown: those paths that the row shows too, and files that are no outputs.
        samples: (figure, milliseconds since 1970, value) of what the stage took of the machine.
        model: SHA-256 of the model that evaluate judged.
    """

    key: str
    stage: str
    experiment_params: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    curves: list[tuple[str, int, float]]
    artifacts: dict[str, str]
    tags: dict[str, str]
    restored: bool
    started: int
    time: int
    trials: list[dict[str, Any]] = field(default_factory=list)
    costs: dict[str, float] = field(default_factory=dict)
    headline: dict[str, float] = field(default_factory=dict)
    dataset: dict[str, str] = field(default_factory=dict)
    note: str = ""
    shown: list[str] = field(default_factory=list)
    samples: list[tuple[str, int, float]] = field(default_factory=list)
    model: str = ""

    def content(self) -> str:
        """A fingerprint of what the stage left, whenever and however it came about."""
        parts = asdict(self)
        return hashlib.sha256(json.dumps({name: parts[name] for name in LEFT}, sort_keys=True).encode()).hexdigest()


def collect(
    params: dict[str, Any], just_ran: str | None, started: float | None = None, samples: list[Sample] | None = None
) -> list[Record]:
    """The records of `just_ran`, and of all other stages whose outputs in the workspace are what dvc.lock says.

    Args:
        started: when `just_ran` began, in seconds since 1970.
        samples: what `just_ran` took of the machine.

    Raises:
        UserError: where dvc.yaml or dvc.lock cannot be read.
    """
    now, params = time.time(), _of_runs(params)
    stages, lock = read_stages(PIPELINE), read_stages(LOCK) if LOCK.is_file() else {}
    if not paths.MANIFEST.is_file():
        return []
    key = _experiment_key(stages, params)
    digest = sha256_of(paths.MANIFEST)[:12]
    data = headline.dataset(params["data.source"], digest)
    tags = {**provenance.tags(), "data_version": digest}
    command = provenance.command(tags.get("git_commit", ""), params)
    way = headline.way(command, tags.get("git_dirty") == "true", params["data.source"], digest)
    records = []
    for place, stage in enumerate(standing(stages, lock, params, md5_of, is_as_locked, just_ran)):
        ran, metrics, spent = stage == just_ran, _metrics(stage, params), costs.of(stage)
        artifacts = _artifacts(stages[stage])
        figures = headline.metrics(stage, metrics, spent)
        records.append(
            Record(
                key,
                stage,
                {name: _text(value) for name, value in params.items()},
                {name: _text(params[name]) for name in stages[stage]["params"]},
                metrics,
                _curves(stage),
                {path: sha256_of(Path(path)) for path in artifacts},
                {**tags, **_made_by(stage, ran)},
                restored=not ran,
                started=round(1000 * (started if started and ran else now)),
                time=round(1000 * now) + place,  # of figures that two stages have the later one is shown
                trials=_trials(params) if stage == "train_head" else [],
                costs=spent,
                headline=figures,
                dataset=data,
                note="\n\n".join([*filter(None, [_note(stage, figures)]), way]),
                shown=[path for path in artifacts if path.startswith(("plots/", "reports/"))] + _page(stage, started),
                samples=[(name, at, value) for at, row in samples or () for name, value in row.items()] if ran else [],
                model=sha256_of(paths.MODEL) if stage == "evaluate" and paths.MODEL.is_file() else "",
            )
        )
    return records


def begin(params: dict[str, Any], stage: str) -> Record:
    """The record of a stage that has just begun: what there is before any result."""
    stages = read_stages(PIPELINE)
    now, params = round(1000 * time.time()), _of_runs(params)
    everything = {name: _text(value) for name, value in params.items()}
    used = {name: everything[name] for name in stages[stage]["params"]}
    tags = {**provenance.tags(), **provenance.versions()}
    return Record(_experiment_key(stages, params), stage, everything, used, {}, [], {}, tags, False, now, now)


def state() -> str:
    """A fingerprint of all that `collect` depends on, cheap to have."""
    files = (LOCK, Path("params.yaml"), paths.metrics("extract"))
    return hashlib.sha256(b"\0".join(file.read_bytes() if file.is_file() else b"" for file in files)).hexdigest()


def _of_runs(params: dict[str, Any]) -> dict[str, Any]:
    """Without the gate's, which judge runs and shape none: the same run under other rules is the same experiment."""
    return {name: value for name, value in params.items() if not name.startswith("gate.")}


def _experiment_key(stages: dict[str, Any], params: dict[str, Any]) -> str:
    code = {dep for stage in stages.values() for dep in stage["deps"] if dep.startswith("pipeline/")}
    hashes = {path: sha256_of(Path(path)) for path in sorted([*code, paths.MANIFEST.as_posix()])}
    return hashlib.sha256(json.dumps([params, hashes], sort_keys=True).encode()).hexdigest()[:16]


def _artifacts(definition: dict[str, Any]) -> list[str]:
    """Outputs to look at and to ship; feature matrices stay with DVC alone."""
    return [
        path
        for path, _ in outs_of(definition)
        if not path.endswith(".npy") and Path(path).stat().st_size <= MAX_ARTIFACT_BYTES
    ]


def _metrics(stage: str, params: dict[str, Any]) -> dict[str, float]:
    """The stage's metrics, and what it chose where params leave it open, which MLflow has one place for."""
    found, chosen = (costs.read(file) if file.is_file() else {} for file in (paths.metrics(stage), paths.report(stage)))
    return _flat(found | {name: value for name, value in chosen.items() if params.get(f"{stage}.{name}") != value})


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            flat[prefix + name] = float(value)
    return flat


def _curves(stage: str) -> list[tuple[str, int, float]]:
    file = paths.curves(stage)
    if not file.is_file():
        return []
    table = pd.read_csv(file)
    return [
        (name, int(row["epoch"]), float(row[name]))
        for row in table.to_dict("records")
        for name in table.columns
        if name != "epoch" and pd.notna(row[name])
    ]


def _trials(params: dict[str, Any]) -> list[dict[str, Any]]:
    if not params["train_head.log_trials"] or not paths.TRIALS.is_file():
        return []
    # The word null is the value of a param here, not a gap.
    return pd.read_csv(paths.TRIALS, keep_default_na=False, na_values=[""]).to_dict("records")


def _made_by(stage: str, ran: bool) -> dict[str, str]:
    """The versions that made the result, and the device; of a stage that did not run, as far as the features tell."""
    found = provenance.versions() if ran else {}
    if stage != "prepare":
        if not ran and paths.FEATURES_META.is_file():
            known = costs.read(paths.FEATURES_META).get("versions", {})
            found = {name: known[name] for name in provenance.LIBRARIES if name in known}
        device = costs.read(paths.metrics("extract")).get("device")
        found |= {"device": device} if device else {}
    return found


def _note(stage: str, figures: dict[str, float]) -> str:
    """What a stage that stands says of itself; a note is not worth an error."""
    if stage == "train_head":
        told = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in figures.items())
        return f"**{told}** of the head; nothing is fine-tuned yet." if told else ""
    if stage != "evaluate":
        return ""
    try:
        evaluation = json.loads(paths.report("evaluate").read_bytes())
        tuned = json.loads(paths.metrics("fine_tune").read_bytes()).get("fine_tuned")
        without = {name: value for name, value in figures.items() if name not in evaluation["final"]["metrics"]}
        for bound in ("accuracy_low", "accuracy_high"):
            without.pop(bound, None)
        return headline.results(evaluation, without, tuned)
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _page(stage: str, started: float | None) -> list[str]:
    """The page of all results, which evaluate leaves; one of an earlier experiment is not shown for this one's."""
    file = paths.RESULTS_PAGE
    fresh = stage == "evaluate" and file.is_file() and started is not None and file.stat().st_mtime >= started
    return [file.as_posix()] if fresh else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

"""Writes what a stage left behind into its run and into the row of its experiment."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from headstart.tracking import describe
from headstart.tracking.snapshot import Snapshot, mlflow_metrics
from headstart.tracking.store import PARENT, Point, children, finish_deletion, log

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LIVE = "headstart.live"  # the run was begun by the stage itself
CONTENT = "headstart.content"  # fingerprint of what the stage left behind; a run without it is not complete
MISSING = "headstart.missing"  # files that were out of reach when the run was completed
DESCRIBED = "headstart.described"  # how many stages the description covers, and its hash: another text is the user's
VERSION = "model_version"  # of the row: name and version of the registered model
NOTE, NOTE_CHARACTERS = "mlflow.note.content", 5000  # what every store of MLflow takes
TRIAL_METRICS = ("val_loss", "val_accuracy", "rank")


def fill(client: MlflowClient, row: Run, run: Run, snapshot: Snapshot, stage: str) -> None:
    """Complete the run of `stage` and what the row shows of it; what is there already is not written again."""
    row, run = client.get_run(row.info.run_id), client.get_run(run.info.run_id)
    metrics = snapshot.report(stage) | snapshot.metrics(stage)
    metrics |= {f"cost/{name}": value for name, value in mlflow_metrics(snapshot.costs(stage)).items()}
    curves = [(f"epoch/{name}", epoch, value) for name, epoch, value in snapshot.curves(stage)]
    log(client, run, snapshot.param_texts(stage), _changed(run, metrics) + _unknown(client, run, curves))
    figures = describe.row_figures(snapshot, stage)
    if stage == "train_head" and "fine_tune/val_loss" in row.data.metrics:
        figures = {name: value for name, value in figures.items() if not name.startswith("val_")}
    curves = [(f"{stage}/{name}", step, value) for name, step, value in curves]
    log(client, row, None, _changed(row, figures) + _unknown(client, row, curves), describe.row_tags(snapshot, stage))
    if stage == "train_head":
        _log_trials(client, run, snapshot)
    missing = _log_files(client, row, run, snapshot, stage)
    _log_dataset(client, row, run, snapshot, stage)
    _log_description(client, row, snapshot)
    if stage == "evaluate" and VERSION in row.data.tags:  # of another model
        client.delete_tag(row.info.run_id, VERSION)
    under = children(client, row.info.experiment_id, row.info.run_id)
    others = [child for child in under if child.info.run_id != run.info.run_id]
    is_running = any(is_unfinished(child) and child.info.status == "RUNNING" for child in others)
    for shown in (run,) if is_running else (run, row):
        client.set_terminated(shown.info.run_id, end_time=snapshot.times(stage)[1])
    # The last thing: a run without it is not complete.
    log(client, run, tags={MISSING: json.dumps(missing), CONTENT: snapshot.content(stage)})


def is_unfinished(run: Run) -> bool:
    """Whether a stage has begun the run, and has not completed it: it still runs, or it failed or was killed."""
    return LIVE in run.data.tags and CONTENT not in run.data.tags


def _changed(run: Run, metrics: dict[str, float]) -> list[Point]:
    return [(name, 0, value) for name, value in metrics.items() if run.data.metrics.get(name) != value]


def _unknown(client: MlflowClient, run: Run, curves: list[Point]) -> list[Point]:
    """The points that `run` does not show yet. Live values are those of the file, before they were rounded."""
    shown: dict[tuple[str, int], list[float]] = {}
    for name in {name for name, _, _ in curves} & run.data.metrics.keys():
        for point in client.get_metric_history(run.info.run_id, name):
            shown.setdefault((name, point.step), []).append(point.value)
    return [
        (name, step, value)
        for name, step, value in curves
        if not any(math.isclose(value, other, rel_tol=1e-4, abs_tol=1e-5) for other in shown.get((name, step), []))
    ]


def _log_trials(client: MlflowClient, run: Run, snapshot: Snapshot) -> None:
    experiment, stage_run = run.info.experiment_id, run.info.run_id
    known = {trial.info.run_name for trial in children(client, experiment, stage_run)}
    start, end = snapshot.times("train_head")
    for trial in snapshot.trials():
        name = f"trial-{trial.pop('trial')}"
        if name not in known:
            made = client.create_run(experiment, start_time=start, tags={PARENT: stage_run}, run_name=name)
            points = [(key, 0, float(trial.pop(key))) for key in TRIAL_METRICS]
            log(client, made, {f"train_head.{key}": str(value) for key, value in trial.items()}, points)
            client.set_terminated(made.info.run_id, end_time=end)
    finish_deletion(client, run)


def _log_files(client: MlflowClient, row: Run, run: Run, snapshot: Snapshot, stage: str) -> list[str]:
    """Copy the outputs of `stage` into its run, plots and reports also into the row; returns those out of reach."""
    missing = []
    for path in snapshot.artifacts(stage):
        content = snapshot.read(path)
        if content is None:
            missing.append(path)
            continue
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(path).name
            file.write_bytes(content)
            for shown in (run, row) if path.startswith(("plots/", "reports/")) else (run,):
                client.log_artifact(shown.info.run_id, str(file), os.path.dirname(path))
    return missing


def _log_dataset(client: MlflowClient, row: Run, run: Run, snapshot: Snapshot, stage: str) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    new = [shown for shown in (row, run) if not (shown.inputs and shown.inputs.dataset_inputs)]
    found = describe.dataset(snapshot) if new else None
    if found:
        tags = [InputTag("mlflow.data.context", describe.CONTEXTS.get(stage, "data"))]
        for shown in new:
            client.log_inputs(shown.info.run_id, [DatasetInput(Dataset(**found), tags)])


def _log_description(client: MlflowClient, row: Run, snapshot: Snapshot) -> None:
    """Write the description of the row, unless a user has, or it covers more stages."""

    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    known = row.data.tags
    covered, _, ours = known.get(DESCRIBED, "0 ").partition(" ")
    if (NOTE not in known or digest(known[NOTE]) == ours) and int(covered) <= len(snapshot.stages):
        note = describe.description(snapshot)[:NOTE_CHARACTERS]
        log(client, row, tags={NOTE: note, DESCRIBED: f"{len(snapshot.stages)} {digest(note)}"})

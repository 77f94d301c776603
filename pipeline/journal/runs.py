"""How a record becomes runs in MLflow: a row an experiment, under it a run a stage, under that a run a trial."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.journal import headline
from pipeline.journal.records import Record
from pipeline.journal.tracker import experiment_id

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

KEY, STAGE, CONTENT, RESTORED = "headstart.key", "headstart.stage", "headstart.content", "headstart.restored"
LIVE = "headstart.live"  # a run that shows a stage while it runs; its record finds it and completes it
NOTED = "headstart.noted"  # the stage that wrote the note, and the note's hash: another one is the user's
MODEL = "headstart.model_version"  # of the model that evaluate judged; WAITING until it is registered
WAITING = "waiting"
JUDGED = "headstart.model_sha256"  # of models/model.keras that evaluate judged
TRIAL_METRICS = ("val_loss", "val_accuracy", "rank")
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
NOTE_CHARACTERS = 5000  # what every store of MLflow takes
METRICS_AT_ONCE = 1000  # the most that one call of MLflow takes

Series = dict[str, list[tuple[int, float]]]  # (step, value)s by name


def send(client: MlflowClient, item: Record, files: Path) -> None:
    """Put a record into the store; one that is there already changes nothing.

    Args:
        files: the folder that the artifacts' paths start from.
    """
    experiment = experiment_id(client)
    parent = row(client, experiment, item)
    content = item.content()
    siblings = stage_runs(client, experiment, parent, item.stage)
    if any(run.data.tags.get(CONTENT) == content or (item.restored and CONTENT in run.data.tags) for run in siblings):
        for run in siblings:  # of the same again there is nothing to show
            if is_live(run):
                client.delete_run(run.info.run_id)
                client.set_terminated(parent, end_time=item.time)
        return  # what DVC restored does not take the place of the run that made it
    begun = [run.info.run_id for run in siblings if is_live(run) and not item.restored][:1]
    for run in siblings:  # of another content, or broken off on the way
        if run.info.run_id not in begun:
            for trial in client.search_runs([experiment], f"tags.`{PARENT}` = '{run.info.run_id}'"):
                client.delete_run(trial.info.run_id)
            client.delete_run(run.info.run_id)
    tags = {PARENT: parent, STAGE: item.stage, **({RESTORED: "true"} if item.restored else {})}
    child = begun[0] if begun else new_run(client, experiment, item, tags)
    log(client, child, item.params, _at_once(item.metrics), item.time)
    curves: Series = {}
    for name, epoch, value in item.curves:
        curves.setdefault(f"epoch/{name}", []).append((epoch, value))
    _log_curves(client, child, curves, item.time)
    _log_samples(client, child, item.samples)
    for trial in item.trials:
        _send_trial(client, experiment, child, item, trial)
    for path in item.artifacts:
        client.log_artifact(child, str(files / path), os.path.dirname(path))
    _log_row(client, parent, item, curves, files)
    for run in (child, parent):
        _log_dataset(client, run, item)
        client.set_terminated(run, end_time=item.time)
    if item.model:
        log(client, child, {}, {}, item.time, {JUDGED: item.model, MODEL: WAITING})
    client.set_tag(child, CONTENT, content)  # the last thing: without it the run counts as broken off


def _log_row(client: MlflowClient, parent: str, item: Record, curves: Series, files: Path) -> None:
    """What the row of the experiment shows of a stage."""
    metrics = {f"{item.stage}/{name}": value for name, value in item.metrics.items()}
    metrics |= {f"cost/{name}": value for name, value in item.costs.items()} | item.headline
    log(client, parent, {}, _at_once(metrics), item.time)
    _log_curves(client, parent, {f"{item.stage}/{name}": series for name, series in curves.items()}, item.time)
    for path in item.shown:
        client.log_artifact(parent, str(files / path), os.path.dirname(path))
    known = client.get_run(parent).data.tags
    stage, _, ours = known.get(NOTED, "").partition(" ")
    if NOTE in known and _hash(known[NOTE]) != ours:
        return
    if NOTE not in known or (item.stage == "evaluate" and not (item.restored and stage == "evaluate")):
        note = item.note[:NOTE_CHARACTERS]
        log(client, parent, {}, {}, item.time, {NOTE: note, NOTED: f"{item.stage} {_hash(note)}"})


def _hash(note: str) -> str:
    return hashlib.sha256(note.encode()).hexdigest()[:16]


def _at_once(metrics: dict[str, float]) -> Series:
    return {name: [(0, value)] for name, value in metrics.items()}


def _log_curves(client: MlflowClient, run: str, curves: Series, moment: int) -> None:
    """Curves, without what the run shows of them already: they came live, or the stage ran before."""
    known = client.get_run(run).data.metrics
    new: Series = {}
    for name, series in curves.items():
        shown: dict[int, list[float]] = {}
        for point in client.get_metric_history(run, name) if name in known else []:
            shown.setdefault(point.step, []).append(point.value)
        # Live values are those of the file, before they were rounded.
        new[name] = [
            (step, value)
            for step, value in series
            if not any(math.isclose(value, other, rel_tol=1e-4, abs_tol=1e-5) for other in shown.get(step, []))
        ]
    log(client, run, {}, new, moment)


def _log_samples(client: MlflowClient, run: str, samples: Iterable[tuple[str, int, float]]) -> None:
    """What the stage took of the machine, under the names that MLflow draws as system metrics."""
    from mlflow.entities import Metric

    steps: dict[str, int] = {}
    points = []
    for name, moment, value in samples:
        steps[name] = steps.get(name, -1) + 1
        points.append(Metric(f"system/{name}", value, moment, steps[name]))
    for start in range(0, len(points), METRICS_AT_ONCE):
        client.log_batch(run, metrics=points[start : start + METRICS_AT_ONCE])


def _log_dataset(client: MlflowClient, run: str, item: Record) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    if item.dataset:
        tags = [InputTag("mlflow.data.context", headline.CONTEXTS.get(item.stage, "data"))]
        client.log_inputs(run, [DatasetInput(Dataset(**item.dataset), tags)])


def is_live(run: Run) -> bool:
    """Whether the record of a run that was begun live has not come yet."""
    return LIVE in run.data.tags and CONTENT not in run.data.tags


def new_run(client: MlflowClient, experiment: str, item: Record, tags: dict[str, str]) -> str:
    """A run for a stage; its id."""
    return client.create_run(experiment, start_time=item.started, tags=tags, run_name=item.stage).info.run_id


def _send_trial(client: MlflowClient, experiment: str, stage_run: str, item: Record, trial: dict[str, Any]) -> None:
    """A run of a trial, under that of the stage."""
    name, tags = f"trial-{trial['trial']}", {PARENT: stage_run}
    run = client.create_run(experiment, start_time=item.started, tags=tags, run_name=name).info.run_id
    params = {f"train_head.{key}": str(value) for key, value in trial.items() if key not in ("trial", *TRIAL_METRICS)}
    log(client, run, params, {key: [(0, float(trial[key]))] for key in TRIAL_METRICS}, item.time)
    client.set_terminated(run, end_time=item.time)


def stage_runs(client: MlflowClient, experiment: str, parent: str, stage: str) -> list[Run]:
    """The runs of a stage under a row: one, or others on the way to that."""
    return client.search_runs([experiment], f"tags.`{PARENT}` = '{parent}' AND tags.`{STAGE}` = '{stage}'")


def row(client: MlflowClient, experiment: str, item: Record) -> str:
    """The row of the experiment, made where there is none; its id."""
    found = client.search_runs([experiment], f"tags.`{KEY}` = '{item.key}'", max_results=1)
    tags = dict(item.tags)
    if "git_commit" in tags:
        tags["mlflow.source.git.commit"] = tags["git_commit"]  # the UI's column Version
    if found:
        run, known = found[0].info.run_id, found[0].data.tags
        # What ran at another commit stays its own.
        tags = {
            name: value
            for name, value in tags.items()
            if known.get(name) != value and not (name in known and item.restored)
        }
    else:
        tags = {KEY: item.key, "mlflow.source.name": "dvc.yaml", **tags}
        name = item.tags.get("dvc_experiment") or f"{item.experiment_params['backbone']}-{item.key[:6]}"
        run, tags = client.create_run(experiment, start_time=item.started, tags=tags, run_name=name).info.run_id, {}
    # Equal values are taken again without complaint: this also fills a row that was broken off.
    log(client, run, item.experiment_params, {}, item.time, tags)
    return run


def log(
    client: MlflowClient,
    run: str,
    params: dict[str, str],
    metrics: Series,
    moment: int,
    tags: dict[str, str] | None = None,
) -> None:
    """Params, tags and metrics, in as few calls as MLflow allows."""
    from mlflow.entities import Metric, Param, RunTag

    points = [Metric(name, value, moment, step) for name, series in metrics.items() for step, value in series]
    if params or tags:
        client.log_batch(
            run,
            params=[Param(name, value) for name, value in params.items()],
            tags=[RunTag(name, value) for name, value in (tags or {}).items()],
        )
    for start in range(0, len(points), METRICS_AT_ONCE):
        client.log_batch(run, metrics=points[start : start + METRICS_AT_ONCE])

"""How a record becomes runs in MLflow: a row an experiment, under it a run a stage, under that a run a trial."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.tracking import headline
from headstart.tracking.records import Record
from headstart.tracking.store import RefusedError, experiment_id, is_refused, line

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
NOTING = ("train_head", "evaluate")  # what a later one of these says takes the place of what was said before
NOTE_CHARACTERS = 5000  # what every store of MLflow takes
METRICS_AT_ONCE = 1000  # the most that one call of MLflow takes
TRIES = 3  # of a record: another clone may delete what both make at once

Series = dict[str, list[tuple[int, float]]]  # (step, value)s by name


def send(client: MlflowClient, item: Record, files: Path) -> None:
    """Put a record into the store; one that is there already changes nothing.

    Other clones may do the same at once, and a store of MLflow keeps no two from making the same run. So each looks
    again when it has made one, and all let the same one stay: the first by start and id.

    Args:
        files: the folder that the artifacts' paths start from.

    Raises:
        RefusedError: where the store will never take it.
    """
    for left in reversed(range(TRIES)):
        try:
            if _send(client, item, files):
                return
        except Exception as error:
            if not is_refused(error):
                raise
            if not left:
                raise RefusedError(line(error)) from error
    raise RuntimeError(f"the run of {item.stage} was deleted {TRIES} times")


def _send(client: MlflowClient, item: Record, files: Path) -> bool:
    """Put a record into the store once; whether it is there then."""
    experiment = experiment_id(client)
    parent = row(client, experiment, item)
    content = item.content()
    siblings = stage_runs(client, experiment, parent, item.stage)
    complete = [run for run in siblings if CONTENT in run.data.tags]
    known = [run.data.tags[CONTENT] for run in complete]
    if content in known or (item.restored and known):
        # Of the same again there is nothing to show, and what DVC restored does not take the place of its maker.
        doubles = [run for place, run in enumerate(complete) if known[place] in known[:place]]
        for run in siblings:
            if run in doubles or run not in complete:
                _delete(client, experiment, run.info.run_id)
                client.set_terminated(parent, end_time=item.time)
        return True
    begun = [run.info.run_id for run in siblings if is_live(run) and not item.restored][:1]
    tags = {PARENT: parent, STAGE: item.stage, **({RESTORED: "true"} if item.restored else {})}
    child = begun[0] if begun else new_run(client, experiment, item, tags)
    try:
        _fill(client, experiment, parent, child, item, files)
        for run in complete:  # of another content
            _delete(client, experiment, run.info.run_id)
        client.set_tag(child, CONTENT, content)  # the last thing: without it the run counts as broken off
    except Exception as error:
        if is_refused(error):  # else the next try finds it, and puts a whole one in its place
            _delete(client, experiment, child)
        raise
    return _settle(client, experiment, parent, item.stage)


def _settle(client: MlflowClient, experiment: str, parent: str, stage: str) -> bool:
    """Of the runs of a stage let the first that is complete stay; whether there is one."""
    found = stage_runs(client, experiment, parent, stage)
    kept = next((run for run in found if CONTENT in run.data.tags), None)
    for run in found if kept else []:
        if run is not kept:
            _delete(client, experiment, run.info.run_id)
    # Another clone may have let another one stay, of which this one did not know yet that it was complete.
    return any(CONTENT in run.data.tags for run in stage_runs(client, experiment, parent, stage))


def _delete(client: MlflowClient, experiment: str, run: str) -> None:
    """Delete the run of a stage with those of its trials."""
    for trial in client.search_runs([experiment], f"tags.`{PARENT}` = '{run}'"):
        client.delete_run(trial.info.run_id)
    client.delete_run(run)


def _fill(client: MlflowClient, experiment: str, parent: str, child: str, item: Record, files: Path) -> None:
    """Put all that a record holds into the run of its stage and into the row."""
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
    old, new = (NOTING.index(name) if name in NOTING else -1 for name in (stage, item.stage))
    if NOTE not in known or new > old or (new == old >= 0 and not item.restored):
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
    """The runs of a stage under a row, the first first: one, or others on the way to that."""
    wanted = f"tags.`{PARENT}` = '{parent}' AND tags.`{STAGE}` = '{stage}'"
    return sorted(client.search_runs([experiment], wanted), key=_age)


def rows(client: MlflowClient, experiment: str, key: str) -> list[Run]:
    """The rows of an experiment, the first first: one, or none; of several that were made at once the first stays."""
    return sorted(client.search_runs([experiment], f"tags.`{KEY}` = '{key}'"), key=_age)


def _age(run: Run) -> tuple[int, str]:
    return run.info.start_time, run.info.run_id


def row(client: MlflowClient, experiment: str, item: Record) -> str:
    """The row of the experiment, made where there is none; its id."""
    found = rows(client, experiment, item.key)
    if not found:
        tags = {KEY: item.key, "mlflow.source.name": "dvc.yaml"}
        name = item.tags.get("dvc_experiment") or f"{item.experiment_params['backbone']}-{item.key[:6]}"
        client.create_run(experiment, start_time=item.started, tags=tags, run_name=name)
        found = rows(client, experiment, item.key)
    for double in found[1:]:
        _merge(client, experiment, double, found[0])
    run, known = found[0].info.run_id, found[0].data.tags
    tags = dict(item.tags)
    if "git_commit" in tags:
        tags["mlflow.source.git.commit"] = tags["git_commit"]  # the UI's column Version
    # What ran at another commit stays its own.
    tags = {
        name: value
        for name, value in tags.items()
        if known.get(name) != value and not (name in known and item.restored)
    }
    # Equal values are taken again without complaint: this also fills a row that was broken off.
    log(client, run, item.experiment_params, {}, item.time, tags)
    return run


def _merge(client: MlflowClient, experiment: str, double: Run, row: Run) -> None:
    """Bring what a row has that was made twice to the one that stays, and delete it."""
    run, known = row.info.run_id, row.data
    for child in client.search_runs([experiment], f"tags.`{PARENT}` = '{double.info.run_id}'"):
        client.set_tag(child.info.run_id, PARENT, run)
    metrics = {
        name: [(point.step, point.value) for point in client.get_metric_history(double.info.run_id, name)]
        for name in double.data.metrics
        if name not in known.metrics
    }
    tags = {name: value for name, value in double.data.tags.items() if name not in known.tags}
    log(client, run, {}, metrics, double.info.start_time, tags)
    client.delete_run(double.info.run_id)


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

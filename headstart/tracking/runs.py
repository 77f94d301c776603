"""How MLflow shows an experiment: a row, under it a run per stage, under that a run per trial of a search.

MLflow cannot create a run only if there is none, and several clones may write to one server. So whoever creates a row
or a run looks again afterwards; of several the first by start time and id stays, and all delete the others.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from headstart import provenance
from headstart.tracking import store
from headstart.tracking.fill import CONTENT, LIVE, MISSING, fill, is_unfinished
from headstart.tracking.snapshot import Snapshot

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STAGE = "headstart.stage"
RESTORED = "headstart.restored"  # it was made from what DVC recorded
TRIES = 3  # another clone may delete what both create at once


def show(client: MlflowClient, snapshot: Snapshot) -> tuple[Run, bool]:
    """Make MLflow show all stages of `snapshot`; what is complete stays as it is.

    Returns:
        The row, and whether anything was written.
    """
    from mlflow.exceptions import MlflowException

    changed = False
    for tries_left in reversed(range(TRIES)):
        row = None
        try:
            row, created = _row(client, snapshot)
            changed |= created
            for stage in snapshot.stages:
                changed |= _show_stage(client, row, snapshot, stage)
            if store.rows(client, row.info.experiment_id, row.data.tags[store.KEY])[0].info.run_id == row.info.run_id:
                return client.get_run(row.info.run_id), changed
        except (MlflowException, LookupError) as error:
            if not tries_left or (isinstance(error, MlflowException) and not store.is_rejection(error)):
                raise
        if row:
            store.finish_deletion(client, row)
    raise RuntimeError(f"the row of {snapshot.name} was deleted {TRIES} times while it was written")


def begin(client: MlflowClient, snapshot: Snapshot) -> tuple[Run, Run]:
    """The row and the run of the stage that runs. A stage that goes on after it was killed goes on in the same run."""
    assert snapshot.running
    row, _ = _row(client, snapshot)
    run = next(filter(is_unfinished, _stage_runs(client, row, snapshot.running)), None)
    run = run or _create(client, row, snapshot, snapshot.running)
    for shown in (row, run):
        client.update_run(shown.info.run_id, status="RUNNING")
    store.log(client, run, params=snapshot.param_texts(snapshot.running))
    return row, run


def log_epoch(client: MlflowClient, row: Run, run: Run, stage: str, figures: dict[str, float]) -> None:
    """Add the figures of an epoch, whose number is under `epoch`, to the run of a stage and to its row."""
    epoch = int(figures["epoch"])
    points = [(f"epoch/{name}", epoch, value) for name, value in figures.items() if name != "epoch"]
    store.log(client, run, points=points)
    store.log(client, row, points=[(f"{stage}/{name}", step, value) for name, step, value in points])


def _row(client: MlflowClient, snapshot: Snapshot) -> tuple[Run, bool]:
    """The row of an experiment, and whether it was created, or renamed, now."""
    experiment, key, changed = store.experiment_id(client), snapshot.key, False
    assert key, "an experiment has a manifest"
    found = store.rows(client, experiment, key)
    if not found:
        start = min(snapshot.times(stage)[0] for stage in ([snapshot.running] if snapshot.running else snapshot.stages))
        tags = {store.KEY: key, "mlflow.source.name": "dvc.yaml"}
        client.create_run(experiment, start_time=start, tags=tags, run_name=snapshot.name)
        found, changed = store.rows(client, experiment, key), True
    for double in found[1:]:
        store.delete(client, double)
    row, tags = found[0], snapshot.tags
    unnamed = row.info.run_name == provenance.run_name(snapshot.backbone, key)
    if unnamed and "dvc_experiment" in tags:  # the workspace was shown before it was saved as an experiment
        client.update_run(row.info.run_id, name=snapshot.name)
        changed = True
    if "git_commit" in tags:
        tags = {**tags, "mlflow.source.git.commit": tags["git_commit"]}  # the column Version of the UI
    # A stage that runs says where the results come from; what was recorded elsewhere only adds to it.
    new = {name: value for name, value in tags.items() if snapshot.running or name not in row.data.tags}
    store.log(client, row, params=snapshot.param_texts(), tags=new)
    return row, changed


def _stage_runs(client: MlflowClient, row: Run, stage: str) -> list[Run]:
    """The runs of a stage under a row, in the order of their start: one, or others on the way to that."""
    found = store.children(client, row.info.experiment_id, row.info.run_id)
    return [run for run in found if run.data.tags.get(STAGE) == stage]


def _show_stage(client: MlflowClient, row: Run, snapshot: Snapshot, stage: str) -> bool:
    """Make one complete run of `stage`; whether anything was written."""
    runs, content = _stage_runs(client, row, stage), snapshot.content(stage)
    complete = [run for run in runs if CONTENT in run.data.tags]
    same = next((run for run in complete if run.data.tags[CONTENT] == content), None)
    changed = len(runs) > 1
    if same:  # nothing new, but for files that were out of reach
        if any(snapshot.read(path) is not None for path in json.loads(same.data.tags.get(MISSING, "[]"))):
            fill(client, row, same, snapshot, stage)
            changed = True
    elif not complete or stage == snapshot.running:
        run = next(filter(is_unfinished, runs), None) or _create(client, row, snapshot, stage)
        fill(client, row, run, snapshot, stage)
        for replaced in complete:
            store.delete(client, replaced)
        changed = True
    # Else another machine came to slightly different figures; those of the one that was first are shown.
    if changed:
        runs = _stage_runs(client, row, stage)
        kept = next((run for run in runs if CONTENT in run.data.tags), None)
        if kept is None:
            raise LookupError(f"another clone has deleted the run of {stage}")
        for run in runs:
            if run is not kept:
                store.delete(client, run)
    return changed


def _create(client: MlflowClient, row: Run, snapshot: Snapshot, stage: str) -> Run:
    tags = {store.PARENT: row.info.run_id, STAGE: stage, (LIVE if stage == snapshot.running else RESTORED): "true"}
    start, _ = snapshot.times(stage)
    return client.create_run(row.info.experiment_id, start_time=start, tags=tags, run_name=stage)

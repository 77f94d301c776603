"""The record in MLflow: a row an experiment with a nested run a stage. The only module that knows MLflow.

By default the store is mlflow.db with mlartifacts/ in the root of the repository, shared by the workspace and by DVC's
temporary and queued experiments. MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME name another one. What cannot be sent
is kept, with copies of its files, and sent the next time: tracking never costs a result.

Command: python -m pipeline.tracking                   # send what was kept; record what DVC restored without a run
         python -m pipeline.tracking ui [--port 5000]  # the MLflow UI on localhost
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from pipeline import paths, records, timings
from pipeline.errors import UserError
from pipeline.params import load_params
from pipeline.paths import kept, workspace_root
from pipeline.records import Record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "headstart"
KEY, STAGE, CONTENT, RESTORED = "headstart.key", "headstart.stage", "headstart.content", "headstart.restored"
LIVE = "headstart.live"  # a run that shows a stage while it runs; its record finds it and completes it
TRIAL_METRICS = ("val_loss", "val_accuracy", "rank")
PARENT = "mlflow.parentRunId"
METRICS_AT_ONCE = 1000  # the most that one call of MLflow takes
SERVER_REFUSES = range(400, 500)
ASKS_TO_TRY_AGAIN = {401, 403, 408, 429}  # answers that another moment or another login may change


class UnreachableError(Exception):
    """The store did not take a record, and may take it later."""


def record(stage: str, params: dict[str, Any], started: float) -> None:
    """Record `stage`, which has just run, and the other stages as far as they stand. Never raises.

    Args:
        params: all leaves of params.yaml.
        started: seconds since 1970.
    """
    try:
        _send_or_keep(records.collect(params, stage, started))
    except Exception as error:
        _warn(f"{stage} could not be recorded: {_line(error)}")


def complete() -> None:
    """Record what DVC restored or skipped, and send what was kept."""
    timings.follow()
    seen, state = kept("tracking-state"), f"{_store_uri()} {_experiment_name()} {records.state()}"
    if not _outbox_entries() and _store_is_there() and seen.is_file() and seen.read_text(encoding="utf-8") == state:
        return
    if _send_or_keep(records.collect(load_params().leaves(), None)):
        seen.parent.mkdir(parents=True, exist_ok=True)
        seen.write_text(state, encoding="utf-8")


def _send_or_keep(found: list[Record]) -> bool:
    """Send what was kept and what was found, in this order; keep what the store does not take."""
    try:
        with _connected() as client:
            for entry in _outbox_entries():
                _send_entry(client, entry)
            for item in found:
                _send(client, item, Path())
        return True
    except UnreachableError as error:
        advice = "; if it stays so, move mlflow.db away and run `python -m pipeline.tracking`" if _embedded() else ""
        _warn(f"the record is kept and sent later, since {_store_uri()} cannot be reached: {_line(error)}{advice}")
    fresh = [item for item in found if not item.restored]
    for item in fresh:
        _keep(item)
    return False


def address() -> str | None:
    """Where a browser finds the row of the run in the workspace; None without a tracking server or such a row."""
    if not _store_uri().startswith("http") or not paths.MANIFEST.is_file():
        return None
    item = records.begin(load_params().leaves(), records.stage_names()[-1])
    try:
        with _connected() as client:
            experiment = _experiment_id(client)
            found = client.search_runs([experiment], f"tags.`{KEY}` = '{item.key}'", max_results=1)
    except UnreachableError as error:
        _warn(f"no link to the run, since {_store_uri()} cannot be reached: {_line(error)}")
        return None
    return f"{_store_uri().rstrip('/')}/#/experiments/{experiment}/runs/{found[0].info.run_id}" if found else None


# --- the store


def _embedded() -> bool:
    return not os.environ.get("MLFLOW_TRACKING_URI")


def _store_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(workspace_root() / 'mlflow.db').as_posix()}"


def _store_is_there() -> bool:
    return not _embedded() or (workspace_root() / "mlflow.db").is_file()


def _experiment_name() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


@contextmanager
def _connected() -> Iterator[MlflowClient]:
    """A client of the store, alone among the processes of this repository: a fresh store must be opened by one.

    Raises:
        UnreachableError: for whatever goes wrong inside that may go right another time.
    """
    environment = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    for name, value in {**environment, "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}.items():
        os.environ.setdefault(name, value)
    lock = kept("tracking.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock):
            import logging

            from mlflow import MlflowClient  # takes two seconds, and sets its own logger

            for name in ("alembic", "mlflow"):
                logging.getLogger(name).setLevel(logging.WARNING)
            yield MlflowClient(_store_uri())
    except Exception as error:
        raise UnreachableError(_line(error)) from error


def _experiment_id(client: MlflowClient) -> str:
    name = _experiment_name()
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        artifacts = (workspace_root() / "mlartifacts").as_uri() if _embedded() else None
        return client.create_experiment(name, artifact_location=artifacts)
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return experiment.experiment_id


def _send(client: MlflowClient, item: Record, files: Path) -> None:
    """Put a record into the store; one that is there already changes nothing.

    Args:
        files: the folder that the artifacts' paths start from.
    """
    experiment = _experiment_id(client)
    parent = _parent(client, experiment, item)
    content = item.content()
    siblings = _stage_runs(client, experiment, parent, item.stage)
    if any(run.data.tags.get(CONTENT) == content or (item.restored and CONTENT in run.data.tags) for run in siblings):
        for run in siblings:  # of the same again there is nothing to show
            if _is_live(run):
                client.delete_run(run.info.run_id)
                client.set_terminated(parent, end_time=item.time)
        return  # what DVC restored does not take the place of the run that made it
    begun = [run.info.run_id for run in siblings if _is_live(run) and not item.restored][:1]
    for run in siblings:  # of another content, or broken off on the way
        if run.info.run_id not in begun:
            for trial in client.search_runs([experiment], f"tags.`{PARENT}` = '{run.info.run_id}'"):
                client.delete_run(trial.info.run_id)
            client.delete_run(run.info.run_id)
    tags = {PARENT: parent, STAGE: item.stage, **({RESTORED: "true"} if item.restored else {})}
    child = begun[0] if begun else _new_run(client, experiment, item, tags)
    _log(client, child, item.params, {name: [(0, value)] for name, value in item.metrics.items()}, item.time)
    curves: dict[str, list[tuple[int, float]]] = {}
    for name, epoch, value in item.curves:
        curves.setdefault(f"epoch/{name}", []).append((epoch, value))
    for name in curves if begun else ():
        shown = {point.step for point in client.get_metric_history(child, name)}
        curves[name] = [point for point in curves[name] if point[0] not in shown]
    _log(client, child, {}, curves, item.time)
    for trial in item.trials:
        _send_trial(client, experiment, child, item, trial)
    for path in item.artifacts:
        client.log_artifact(child, str(files / path), os.path.dirname(path))
    metrics = {f"{item.stage}/{name}": [(0, value)] for name, value in item.metrics.items()}
    metrics |= {f"cost/{name}": [(0, value)] for name, value in item.costs.items()}
    _log(client, parent, {}, metrics, item.time)
    client.set_terminated(child, end_time=item.time)
    client.set_terminated(parent, end_time=item.time)
    client.set_tag(child, CONTENT, content)  # the last thing: without it the run counts as broken off


def _is_live(run: Run) -> bool:
    return LIVE in run.data.tags and CONTENT not in run.data.tags


def _new_run(client: MlflowClient, experiment: str, item: Record, tags: dict[str, str]) -> str:
    return client.create_run(experiment, start_time=item.started, tags=tags, run_name=item.stage).info.run_id


def _send_trial(client: MlflowClient, experiment: str, stage_run: str, item: Record, trial: dict[str, Any]) -> None:
    """A run of a trial, under that of the stage."""
    name, tags = f"trial-{trial['trial']}", {PARENT: stage_run}
    run = client.create_run(experiment, start_time=item.started, tags=tags, run_name=name).info.run_id
    params = {f"train_head.{key}": str(value) for key, value in trial.items() if key not in ("trial", *TRIAL_METRICS)}
    _log(client, run, params, {key: [(0, float(trial[key]))] for key in TRIAL_METRICS}, item.time)
    client.set_terminated(run, end_time=item.time)


class Live:
    """Shows the curves of a stage in MLflow as they come. What goes wrong costs the stage nothing but a line.

    A stage that goes on after a kill goes on in the same run. One that fails is shown as failed.
    """

    def __init__(self, stage: str, params: dict[str, Any]) -> None:
        self._stage, self._params = stage, params
        self._run, self._works = "", True

    def __call__(self, row: dict[str, float]) -> None:
        """Show what is known of an epoch, by its number under `epoch`."""
        if not self._works:
            return
        try:
            with _connected() as client:
                self._run = self._run or self._begin(client)
                points = {
                    f"epoch/{name}": [(int(row["epoch"]), value)] for name, value in row.items() if name != "epoch"
                }
                _log(client, self._run, {}, points, round(1000 * time.time()))
        except Exception as error:
            self._works = False
            _warn(f"{self._stage} is not shown while it runs: {_line(error)}")

    def __enter__(self) -> Live:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not self._run:
            return
        with contextlib.suppress(Exception), _connected() as client:
            for run in (self._run, client.get_run(self._run).data.tags[PARENT]):
                client.set_terminated(run, status="FAILED")

    def _begin(self, client: MlflowClient) -> str:
        item, experiment = records.begin(self._params, self._stage), _experiment_id(client)
        parent = _parent(client, experiment, item)
        client.update_run(parent, status="RUNNING")
        for run in _stage_runs(client, experiment, parent, item.stage):
            if _is_live(run):
                client.update_run(run.info.run_id, status="RUNNING")
                return run.info.run_id
        run = _new_run(client, experiment, item, {PARENT: parent, STAGE: item.stage, LIVE: "true"})
        _log(client, run, item.params, {}, item.time)
        return run


def _stage_runs(client: MlflowClient, experiment: str, parent: str, stage: str) -> list[Run]:
    return client.search_runs([experiment], f"tags.`{PARENT}` = '{parent}' AND tags.`{STAGE}` = '{stage}'")


def _parent(client: MlflowClient, experiment: str, item: Record) -> str:
    """The row of the experiment; made where there is none."""
    found = client.search_runs([experiment], f"tags.`{KEY}` = '{item.key}'", max_results=1)
    tags = dict(item.tags)
    if "git_commit" in tags:
        tags["mlflow.source.git.commit"] = tags["git_commit"]  # the UI's column Version
    if found:
        run = found[0].info.run_id
        for name, value in tags.items():
            known = found[0].data.tags.get(name)
            if known != value and not (known and item.restored):  # what ran at another commit stays its own
                client.set_tag(run, name, value)
    else:
        tags = {KEY: item.key, "mlflow.source.name": "dvc.yaml", **tags}
        name = item.tags.get("dvc_experiment") or f"{item.experiment_params['backbone']}-{item.key[:6]}"
        run = client.create_run(experiment, start_time=item.started, tags=tags, run_name=name).info.run_id
    # Equal values are taken again without complaint: this also fills a row that was broken off.
    _log(client, run, item.experiment_params, {}, item.time)
    return run


def _log(
    client: MlflowClient, run: str, params: dict[str, str], metrics: dict[str, list[tuple[int, float]]], moment: int
) -> None:
    """Params, and metrics as (epoch, value), in as few calls as MLflow allows."""
    from mlflow.entities import Metric, Param

    points = [Metric(name, value, moment, step) for name, series in metrics.items() for step, value in series]
    client.log_batch(run, params=[Param(name, value) for name, value in params.items()])
    for start in range(0, len(points), METRICS_AT_ONCE):
        client.log_batch(run, metrics=points[start : start + METRICS_AT_ONCE])


# --- what could not be sent


def _outbox() -> Path:
    return kept("tracking-outbox")


def _outbox_entries() -> list[Path]:
    """The kept records, oldest first."""
    return sorted(entry for entry in _outbox().glob("*") if entry.name[0].isdigit())


def _keep(item: Record) -> None:
    """Put a record with copies of its files into the outbox; it appears there at once or not at all."""
    name = f"{time.time_ns()}-{item.stage}"
    partial = _outbox() / f".{name}.partial"
    for path in item.artifacts:
        (partial / "files" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, partial / "files" / path)
    (partial / "record.json").write_text(json.dumps(asdict(item)), encoding="utf-8")
    os.replace(partial, _outbox() / name)


def _send_entry(client: MlflowClient, entry: Path) -> None:
    """Send a kept record and forget it; one that can never be sent is put aside."""
    from mlflow.exceptions import RestException

    try:
        values = json.loads((entry / "record.json").read_text(encoding="utf-8"))
        item = Record(**{**values, "curves": [tuple(point) for point in values["curves"]]})
        missing = [path for path in item.artifacts if not (entry / "files" / path).is_file()]
        if missing:
            raise ValueError(f"without its file {missing[0]}")
        _send(client, item, entry / "files")
    except RestException as error:
        status = error.get_http_status_code()
        if status not in SERVER_REFUSES or status in ASKS_TO_TRY_AGAIN:
            raise
        _put_aside(entry, error)
    except (OSError, ValueError, TypeError, KeyError) as error:
        if not isinstance(error, (FileNotFoundError, ValueError, TypeError, KeyError)):
            raise
        _put_aside(entry, error)
    else:
        shutil.rmtree(entry)


def _put_aside(entry: Path, error: Exception) -> None:
    aside = _outbox() / f"damaged-{entry.name}"
    os.replace(entry, aside)
    _warn(f"a kept record cannot be sent and was put aside as {aside}: {_line(error)}")


# --- words


def _warn(message: str) -> None:
    print(f"tracking: {message}", file=sys.stderr)


def _line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


def _ui(port: int) -> int:
    """The MLflow UI, on localhost alone; a tracking server has its own."""
    if _store_uri().startswith("http"):
        print(f"The tracking server is {_store_uri()}: open it in a browser.")
        return 0
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UserError(f"port {port} is taken; name another: make ui PORT={port + 1}")
    with _connected() as client:
        experiment = _experiment_id(client)
    # Without the last part the UI opens on its pages for language models.
    print(f"Open http://127.0.0.1:{port}/#/experiments/{experiment}/runs?workflowType=machine_learning", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    try:
        return subprocess.run([*command, "--backend-store-uri", _store_uri()], env=environment, check=False).returncode
    except KeyboardInterrupt:
        return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.tracking", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("ui", help="open the MLflow UI").add_argument("--port", type=int, default=5000)
    arguments = parser.parse_args(argv)
    try:
        complete()
        return _ui(arguments.port) if arguments.command == "ui" else 0
    except (UserError, UnreachableError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

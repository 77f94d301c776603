"""What stages call to be seen in MLflow: a record when they have run, curves while they run. It costs no result."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.errors import UserError
from headstart.tracking import outbox, records, runs
from headstart.tracking.records import Record
from headstart.tracking.resources import Sample
from headstart.tracking.store import RefusedError, UnreachableError, connected, line, warn

if TYPE_CHECKING:
    from mlflow import MlflowClient


def record(stage: str, params: dict[str, Any], started: float, samples: list[Sample]) -> None:
    """Record `stage`, which has just run, and the other stages as far as they stand. Never raises.

    Args:
        params: all leaves of params.yaml.
        started: seconds since 1970.
        samples: what the stage took of the machine.
    """
    try:
        found = records.collect(params, stage, started, samples)
        try:
            send_or_keep(found)
        except UserError as error:
            warn(f"{stage} could not be recorded, but is kept: {error}")
    except Exception as error:
        warn(f"{stage} could not be recorded: {line(error)}")


def send_or_keep(found: list[Record]) -> bool:
    """Send what was kept and what was found, in this order; keep what the store does not take.

    Raises:
        UserError: where MLFLOW_TRACKING_URI is no address of a store; what was found is kept all the same.
    """
    waiting = list(found)
    try:
        with connected() as client:
            client.experiment_id(client)  # a store that answers: what is refused from here on is the record's fault
            for entry in outbox.entries():
                outbox.send(entry, lambda item, files: runs.send(client, item, files))
            for item in found:
                try:
                    runs.send(client, item, Path())
                except RefusedError as error:
                    waiting.remove(item)
                    _give_up(item, error)
        return True
    except UnreachableError as error:
        _keep(waiting)
        advice = "; if it stays so, move mlflow.db away and run `python -m headstart.tracking.commands`"
        warn(
            f"{'the record is kept and sent later' if outbox.entries() else 'nothing is sent'}, since {client.uri()} "
            f"cannot be reached: {line(error)}{advice if client.embedded() else ''}"
        )
    except UserError:
        _keep(waiting)
        raise
    return False


def _keep(found: list[Record]) -> None:
    for item in found:
        if not item.restored:
            outbox.keep(item)


def _give_up(item: Record, error: Exception) -> None:
    """Put a record aside; one that the files in the workspace can give again is not worth it."""
    if item.restored:
        warn(f"{item.stage} is not recorded: {line(error)}")
    else:
        outbox.put_aside(outbox.keep(item), error)


class Live:
    """Shows the curves of a stage in MLflow as they come. What goes wrong costs the stage nothing but a line.

    A stage that goes on after a kill goes on in the same run. One that fails is shown as failed.
    """

    def __init__(self, stage: str, params: dict[str, Any]) -> None:
        self._stage, self._params = stage, params
        self._run, self._row, self._works = "", "", True

    def __call__(self, row: dict[str, float]) -> None:
        """Show what is known of an epoch, by its number under `epoch`: in the stage's run, and in the row above it."""
        if not self._works:
            return
        try:
            with connected() as client:
                try:
                    self._show(client, row)
                except Exception as error:
                    if not client.is_refused(error):
                        raise
                    self._run = ""  # another process may have deleted the run
                    self._show(client, row)
        except Exception as error:
            self._works = False
            warn(f"{self._stage} is not shown while it runs: {line(error)}")

    def __enter__(self) -> Live:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not self._run:
            return
        with contextlib.suppress(Exception), connected() as client:
            for run in (self._run, self._row):
                client.set_terminated(run, status="FAILED")

    def _show(self, client: MlflowClient, row: dict[str, float]) -> None:
        if not self._run:
            self._begin(client)
        points = {f"epoch/{name}": [(int(row["epoch"]), value)] for name, value in row.items() if name != "epoch"}
        now = round(1000 * time.time())
        runs.log(client, self._run, {}, points, now)
        above = {f"{self._stage}/{name}": series for name, series in points.items()}
        runs.log(client, self._row, {}, above, now)

    def _begin(self, client: MlflowClient) -> None:
        """Find the run and the row, or make them."""
        item, experiment = records.begin(self._params, self._stage), client.experiment_id(client)
        self._row = runs.row(client, experiment, item)
        client.update_run(self._row, status="RUNNING")
        for run in runs.stage_runs(client, experiment, self._row, item.stage):
            if runs.is_live(run):
                client.update_run(run.info.run_id, status="RUNNING")
                self._run = run.info.run_id
                return
        tags = {runs.PARENT: self._row, runs.STAGE: item.stage, runs.LIVE: "true"}
        self._run = runs.new_run(client, experiment, item, tags)
        runs.log(client, self._run, item.params, {}, item.time)

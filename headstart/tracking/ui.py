"""The MLflow UI on localhost, and the address of a row in it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from headstart import provenance
from headstart.config import load_params
from headstart.errors import UserError
from headstart.lockfile import Workspace
from headstart.tracking import store

if TYPE_CHECKING:
    from mlflow import MlflowClient

VIEW = "headstart"  # of the table of runs, under a name of its own: nobody's view is changed
FIGURES = ("accuracy", "accuracy_low", "accuracy_high", "macro_f1", "log_loss", "val_loss", "val_accuracy")
COLUMNS = (
    "params.`backbone`",
    *(f"metrics.`{name}`" for name in (*FIGURES, "latency_ms", "model_mb", "total_seconds")),
    "tags.`model_version`",
    "tags.`git_dirty`",
)


def run_address() -> str | None:
    """The address of the workspace's row; None without a tracking server that has one. Never raises."""
    if store.is_off() or not store.is_server():
        return None
    try:
        key = provenance.experiment_key(Workspace(), load_params())
        return store.within(store.DEADLINE, lambda: _address(key)) if key else None
    except Exception as error:  # a page without a link is better than none
        store.warn(f"no link to the run: {store.one_line(error)}")
        return None


def _address(key: str) -> str | None:
    with store.connected() as client:
        experiment = store.experiment_id(client)
        found = store.rows(client, experiment, key)
    return f"{store.uri().rstrip('/')}/#/experiments/{experiment}/runs/{found[0].info.run_id}" if found else None


def ui(port: int) -> int:
    """Serve the MLflow UI on localhost until it is stopped; returns the exit code. A tracking server has its own.

    Raises:
        UserError: if the port is taken, or the store cannot be opened.
    """
    if store.is_server():
        print(f"The tracking server is {store.uri()}: open it in a browser.")
        return 0
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UserError(f"port {port} is already in use; choose another: headstart ui --port {port + 1}")
    try:
        with store.connected() as client:
            experiment = store.experiment_id(client)
            _share_view(client, experiment)
    except UserError:
        raise
    except Exception as error:  # another process holds it, or a database does not answer
        raise UserError(f"{store.uri()}: {store.one_line(error)}; run `headstart ui` again later") from error
    # Without the last part the UI opens on its pages for language models.
    page = f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs?workflowType=machine_learning"
    print(f"Open {page}\nor, the best experiment first, {page}&viewStateShareKey={VIEW}", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # Without the processes that work for language models it starts in half the time.
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    server = subprocess.Popen([*command, "--backend-store-uri", store.uri()], env=environment)
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        server.terminate()  # whoever ends this process ends the server


def _share_view(client: MlflowClient, experiment: str) -> None:
    """Put a view into the experiment as the UI itself does under Share: a row per experiment, the best first."""
    state = {
        "selectedColumns": COLUMNS,
        "columnOrder": COLUMNS,
        "columnWidths": {column: max(100, 36 + 7 * len(column.split("`")[1])) for column in COLUMNS},  # px
        "searchFilter": f"tags.`{store.KEY}` != ''",
        "orderByKey": "metrics.`val_loss`",  # whoever chooses by the test split has nothing left to test with
        "orderByAsc": True,
    }
    client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{VIEW}", json.dumps(state))

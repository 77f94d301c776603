"""The record in MLflow: a row an experiment with a nested run a stage, and a registered model with its versions.

By default the store is mlflow.db with mlartifacts/ in the root of the repository, shared by the workspace and by DVC's
temporary and queued experiments. MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME name another one. What cannot be sent
is kept, with copies of its files, and sent the next time: tracking never costs a result.

Command: python -m headstart.tracking.commands                   # send what was kept; record what DVC restored without a run
         python -m headstart.tracking.commands ui [--port 5000]  # the MLflow UI on localhost
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from headstart import costs, lockfile, paths
from headstart.config import load_params
from headstart.errors import UserError
from headstart.paths import cache_path
from headstart.tracking import outbox, recording, records, registry, runs, store

if TYPE_CHECKING:
    from mlflow import MlflowClient

VIEW = "headstart"  # of the table of runs, under a name of its own: nobody's view is changed
COLUMNS = (
    "params.`backbone`",
    *(f"metrics.`{name}`" for name in ("accuracy", "accuracy_low", "accuracy_high", "macro_f1", "log_loss")),
    *(f"metrics.`{name}`" for name in ("val_loss", "val_accuracy", "latency_ms", "model_mb", "total_seconds")),
    "tags.`model_version`",
    "tags.`git_dirty`",
)


def complete() -> None:
    """Record what DVC restored or skipped, send what was kept, and register the models that wait for it."""
    costs.follow()
    seen, state = cache_path("tracking-state"), f"{store.uri()} {store.experiment_name()} {records.state()}"
    if not outbox.entries() and store.is_there() and seen.is_file() and seen.read_text(encoding="utf-8") == state:
        return
    if recording.send_or_keep(records.collect(load_params().leaves(), None)) and registry.register():
        seen.parent.mkdir(parents=True, exist_ok=True)
        seen.write_text(state, encoding="utf-8")


def address() -> str | None:
    """Where a browser finds the row of the run in the workspace; None without a tracking server or such a row."""
    if not store.uri().startswith("http") or not paths.MANIFEST.is_file():
        return None
    item = records.begin(load_params().leaves(), lockfile.stage_names()[-1])
    try:
        with store.connected() as client:
            experiment = store.experiment_id(client)
            found = runs.rows(client, experiment, item.key)
    except (store.UnreachableError, UserError) as error:
        store.warn(f"no link to the run, since {store.uri()} cannot be reached: {store.line(error)}")
        return None
    return f"{store.uri().rstrip('/')}/#/experiments/{experiment}/runs/{found[0].info.run_id}" if found else None


def ui(port: int) -> int:
    """The MLflow UI, on localhost alone; a tracking server has its own."""
    if store.uri().startswith("http"):
        print(f"The tracking server is {store.uri()}: open it in a browser.")
        return 0
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UserError(f"port {port} is taken; name another: make ui PORT={port + 1}")
    with store.connected() as client:
        experiment = store.experiment_id(client)
        _share_view(client, experiment)
    # Without the last part the UI opens on its pages for language models.
    page = f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs?workflowType=machine_learning"
    print(f"Open {page}\nor, the best experiment first, {page}&viewStateShareKey={VIEW}", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # Without the processes that work for language models it is there in half the time.
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
    """Put a view into the experiment as the UI itself does under Share: a row an experiment, the best first."""
    state = {
        "selectedColumns": COLUMNS,
        "columnOrder": COLUMNS,
        "columnWidths": {column: max(100, 36 + 7 * len(column.split("`")[1])) for column in COLUMNS},  # pixels
        "searchFilter": f"tags.`{runs.KEY}` != ''",
        "orderByKey": "metrics.`val_loss`",  # who chooses by the test split has nothing left to test with
        "orderByAsc": True,
    }
    client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{VIEW}", json.dumps(state))


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m headstart.tracking.commands", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("ui", help="open the MLflow UI").add_argument("--port", type=int, default=5000)
    arguments = parser.parse_args(argv)
    try:
        complete()
        return ui(arguments.port) if arguments.command == "ui" else 0
    except (UserError, store.UnreachableError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

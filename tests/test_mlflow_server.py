"""A tracking server, named by MLFLOW_TRACKING_URI alone, that dies on the way and comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import recorded
from conftest import free_port, wait_for
from mlflow import MlflowClient
from test_registry import _light as _light  # fixtures
from test_registry import versions
from test_tracking import by_stage, files, found
from test_tracking import here as here

from headstart.errors import UserError
from headstart.tracking import ui
from headstart.tracking.rebuild import rebuild


class Server:
    """`mlflow server` with a database and artifacts of its own."""

    def __init__(self, root: Path) -> None:
        self._root, self._port = root, free_port()
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)),
            *("--workers", "1", "--backend-store-uri", f"sqlite:///{self._root}/server.db"),
            *("--artifacts-destination", str(self._root / "artifacts")),
        ]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, cwd=self._root, env=environment, start_new_session=True, **silent)
        wait_for(f"{self.uri}/health", self._process)

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def server(here, tmp_path_factory, monkeypatch, fresh_store) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("server")
    (root / "server.db").write_bytes(fresh_store.read_bytes())
    server = Server(root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server.start()
    yield server
    server.kill()


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_costs_nothing_and_gets_nothing_twice(server, here, monkeypatch):
    for number, (name, wrong) in enumerate([("a", 10), ("b", 0), ("c", 20)]):
        recorded.experiment(name, results={"wrong": wrong}, **{"train_head.dropout": number / 10})

    def dies(step: str, calls: int) -> None:
        """The server dies when `step` is called that often; `headstart track` says what is missing."""
        whole, left = getattr(MlflowClient, step), [calls]

        def call(self, *args, **kwargs):
            left[0] -= 1
            if not left[0]:
                server.kill()
            return whole(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, step, call)
            with pytest.raises(UserError, match=r"lacks all or parts of \d experiments? \(.*c\): "):
                rebuild()
        server.start()

    dies("log_batch", 5)  # while the first is shown
    dies("log_artifact", 60)  # while the second is
    dies("log_artifacts", 1)  # while a model is registered
    for _ in range(2):
        rebuild()
        client, rows, stages, trials = found()
        assert sorted(row.info.run_name for row in rows) == ["a", "b", "c"]
        assert trials == []
        for row in rows:
            own = by_stage([run for run in stages if run.data.tags["mlflow.parentRunId"] == row.info.run_id])
            assert set(own) == set(recorded.STAGES)
            assert files(client, own["fine_tune"], "models") == {"models/model.keras"}
            assert len(client.get_metric_history(row.info.run_id, "train_head/epoch/loss")) == 2
        assert versions() == {1: ("first", []), 2: ("better", ["champion"]), 3: ("worse", ["challenger"])}
    assert not (here / "mlartifacts").exists()
    assert not (here / "mlruns").exists()


def test_a_pull_request_links_to_the_row_of_the_workspace(server, here):
    for stage in recorded.STAGES:
        recorded.leave(stage)
    recorded.lock()
    assert ui.run_address() is None
    rebuild()
    _, (row,), _, _ = found()
    experiment = row.info.experiment_id
    assert ui.run_address() == f"{server.uri}/#/experiments/{experiment}/runs/{row.info.run_id}"

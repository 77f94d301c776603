"""A tracking server, named by MLFLOW_TRACKING_URI alone, that dies on the way and comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import free_port, wait_for
from mlflow import MlflowClient
from test_registry import _light as _light  # a fixture
from test_registry import evaluated, run, versions
from test_tracking import rows

from headstart.tracking import outbox


class Server:
    """`mlflow server` with a database and artifacts of its own."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._port = free_port()
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
def server(workspace, monkeypatch, fresh_store):
    (workspace / "server.db").write_bytes(fresh_store.read_bytes())
    server = Server(workspace)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server.start()
    yield server
    server.kill()


def test_a_server_that_dies_in_the_middle_costs_nothing_and_gets_nothing_twice(server, workspace, monkeypatch, capsys):
    def dying(step: str, calls: int) -> None:
        """The server dies when `step` is called that often; what was on the way reaches nobody."""
        whole, left = getattr(MlflowClient, step), [calls]

        def call(self, *args, **kwargs):
            left[0] -= 1
            if not left[0]:
                server.kill()
            return whole(self, *args, **kwargs)

        patch.setattr(MlflowClient, step, call)

    assert run(*evaluated("a", wrong=10))
    with monkeypatch.context() as patch:  # while a record is sent
        dying("log_artifact", 2)
        assert not run(*evaluated("b", wrong=0, time=1_700_000_000_001))
    assert [entry.name.split("-")[1] for entry in outbox.entries()] == ["fine_tune", "evaluate"]
    assert not run(*evaluated("c", wrong=20, time=1_700_000_000_002))  # nobody is there
    printed = capsys.readouterr()
    assert printed.err.count("kept and sent later") == 2
    assert printed.out.count("\n") == 1  # of the model, not of each run
    server.start()
    with monkeypatch.context() as patch:  # while a model is registered
        dying("log_model_artifacts", 1)
        assert not run()
    assert outbox.entries() == []
    server.start()
    assert run()

    client, parents, children = rows(workspace, server.uri)
    assert sorted(row.data.tags["headstart.key"] for row in parents) == ["a", "b", "c"]
    assert sorted(run.info.run_name for run in children) == ["evaluate"] * 3 + ["fine_tune"] * 3
    for child in children:
        folder, file = ("models", "model.keras") if child.info.run_name == "fine_tune" else ("predictions", "test.csv")
        assert [item.path for item in client.list_artifacts(child.info.run_id, folder)] == [f"{folder}/{file}"]
    expected = {1: ("first", []), 2: ("better", ["champion"]), 3: ("worse", ["challenger"])}
    assert versions(server.uri) == expected
    assert run()
    assert versions(server.uri) == expected
    assert not (workspace / "mlartifacts").exists()
    assert not (workspace / "copy" / "mlruns").exists()

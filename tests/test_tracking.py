"""What MLflow shows of a stage that runs, and of what Git and DVC recorded."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import recorded
from conftest import ROOT
from mlflow import MlflowClient
from mlflow.entities import Run
from recorded import STAGES, git, leave, lock

from headstart import provenance, tracking
from headstart.config import load_params
from headstart.errors import UserError
from headstart.lockfile import Revision, Workspace, git_objects
from headstart.tracking import live, runs, snapshot, store, ui
from headstart.tracking.rebuild import rebuild


@pytest.fixture
def here(tmp_path: Path, monkeypatch, fresh_store: Path) -> Iterator[Path]:
    """A repository with an empty store, before any stage has run."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV",
                 "HEADSTART_TRACKING"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    recorded.make_repository()
    shutil.copy(fresh_store, "mlflow.db")
    yield tmp_path
    for thread in threading.enumerate():  # one that outlives its stage would write into the store of the next test
        if thread.name == "tracking":
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture
def done(here: Path) -> Path:
    """The same after all stages."""
    for stage in STAGES[:-1]:
        leave(stage)
    leave("evaluate")
    lock()
    return here


@pytest.fixture(autouse=True)
def _no_models(monkeypatch) -> None:
    """The registry is tested elsewhere."""
    monkeypatch.setattr("headstart.tracking.registry.register", lambda *_: "")


def found(uri: str = "") -> tuple[MlflowClient, list[Run], list[Run], list[Run]]:
    """A client, the rows, the runs of stages, and those below them."""
    client = MlflowClient(uri or store.uri())
    experiment = client.get_experiment_by_name("headstart")
    every = client.search_runs([experiment.experiment_id]) if experiment else []
    rows = [run for run in every if "headstart.key" in run.data.tags]
    stages = [run for run in every if "headstart.stage" in run.data.tags]
    return client, rows, stages, [run for run in every if run not in rows and run not in stages]


def by_stage(runs: list[Run]) -> dict[str, Run]:
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {run.info.run_name: run for run in runs}


def points(client: MlflowClient, run: Run, name: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))


def files(client: MlflowClient, run: Run, folder: str) -> set[str]:
    return {file.path for file in client.list_artifacts(run.info.run_id, folder)}


def run_stage(stage: str, epochs: list[dict[str, float]] | None = None, deadline: float = 60, **results) -> None:
    """As a stage does it: log epochs, leave the outputs, finish."""
    logger = live.LiveLogger(stage, load_params(), deadline)
    for epoch in epochs or []:
        logger.log_epoch(epoch)
    leave(stage, **results)
    logger.finish()


# --- what is shown


def test_an_experiment_is_a_row_with_a_run_per_stage(done):
    rebuild()
    client, (row,), runs, _ = found()
    stages = by_stage(runs)
    assert set(stages) == set(STAGES)
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {row.info.run_id}
    assert {run.info.status for run in (row, *runs)} == {"FINISHED"}
    assert row.info.run_name.startswith("tiny-")

    figures = row.data.metrics
    expected = {
        "accuracy": 0.75, "accuracy_low": 0.65, "accuracy_high": 0.85, "macro_f1": 0.5, "log_loss": 0.5,
        "calibration_error": 0.1, "val_accuracy": 0.75, "val_loss": 0.5, "latency_ms": 7.5, "examples_per_second": 100,
        "model_mb": 2.5, "total_seconds": 7.5, "cost/fine_tune_seconds": 1.5, "train_head/head_val_loss": 0.7,
        "prepare/examples": 60,
    }  # fmt: skip
    assert {name: figures[name] for name in expected} == expected
    assert points(client, row, "fine_tune/epoch/val_loss") == [(1, 1.0), (2, 0.5)]
    assert (row.data.params["backbone"], row.data.params["train_head.search"]) == ("tiny", "{}")
    assert not [name for name in row.data.params if name.startswith("gate.") or name == "train_head.log_trials"]
    tags = row.data.tags
    assert tags["git_commit"] == tags["mlflow.source.git.commit"] == git("rev-parse", "HEAD")
    assert (tags["git_dirty"], tags["device"], tags["keras"], tags["selected"]) == ("false", "CPU", "3.0", "fine_tuned")
    assert len(tags["data_version"]) == 12
    note = tags["mlflow.note.content"]
    assert note.startswith("**Accuracy 0.7500** (95 % interval 0.6500 to 0.8500) of the fine-tuned network on 40 test")
    assert "**better** than the head alone" in note
    assert "- log_loss 0.5000 (0.4000 to 0.6000)\n" in note
    assert "- latency_ms 7.5\n- model_mb 2.5\n- total_seconds 7.5" in note
    assert f"    git checkout {tags['git_commit']} && dvc repro\n" in note
    assert f"    photos (version {tags['data_version']})" in note
    assert files(client, row, "reports") == {f"reports/{stage}.json" for stage in STAGES if stage != "extract"}
    assert "plots/confusion.csv" in files(client, row, "plots")

    head = stages["train_head"]
    assert head.data.metrics["temperature"] == 1.5
    assert head.data.params["train_head.dropout"] == "null"
    assert "fine_tune.epochs" not in head.data.params
    assert points(client, head, "epoch/loss") == [(1, 0.9), (2, 0.4)]
    assert files(client, head, "models") == {"models/head.keras"}
    assert stages["evaluate"].data.metrics["final/metrics/accuracy/low"] == 0.65
    assert stages["evaluate"].data.metrics["cost/latency_ms"] == 7.5
    assert files(client, stages["extract"], "features") == {"features/meta.json"}  # feature matrices stay with DVC
    for run, context in ((head, "training"), (stages["evaluate"], "testing")):
        (used,) = run.inputs.dataset_inputs
        assert (used.dataset.name, [tag.value for tag in used.tags]) == ("photos", [context])
        assert json.loads(used.dataset.profile)["splits"] == {"train": 40, "val": 10, "test": 10}


@pytest.fixture
def writes(monkeypatch) -> list[str]:
    """The calls that change anything in MLflow."""
    made: list[str] = []

    def call(self, *args, whole: Callable, name: str, **kwargs):
        made.append(name)
        return whole(self, *args, **kwargs)

    for name in dir(MlflowClient):
        if name.startswith(("create_", "log_", "set_", "delete_", "update_")):
            whole = getattr(MlflowClient, name)
            monkeypatch.setattr(MlflowClient, name, functools.partialmethod(call, whole=whole, name=name))
    return made


def test_what_is_complete_is_left_alone(done, writes, capsys):
    recorded.experiment("other", **{"train_head.dropout": 0.5})
    rebuild()
    assert capsys.readouterr().out.startswith("track: MLflow shows 1 experiment (other); 1 had to be completed")
    writes.clear()
    rebuild()
    assert writes == []
    assert capsys.readouterr().out == "track: MLflow shows 1 experiment (other); nothing had to be completed\n"


def test_a_stage_that_ran_and_what_dvc_skipped_are_shown(here):
    for stage in ("prepare", "extract"):
        leave(stage)
    lock(("prepare", "extract"))
    run_stage("train_head")
    _, (row,), stages, _ = found()
    restored = {run.info.run_name: run.data.tags.get("headstart.restored") for run in stages}
    assert restored == {"prepare": "true", "extract": "true", "train_head": None}
    assert row.data.metrics["val_loss"] == 0.7  # of the head, until fine_tune has its own
    assert row.data.tags["mlflow.note.content"].startswith("**val loss 0.7000, val accuracy 0.5000** of the head;")
    assert row.data.tags["dvc"]
    lock(("prepare", "extract", "train_head"))
    run_stage("fine_tune")
    _, (row,), stages, _ = found()
    assert set(by_stage(stages)) == set(STAGES[:-1])
    assert row.data.metrics["val_loss"] == 0.5


def test_prepare_belongs_to_the_data_that_it_leaves(here):
    leave("prepare")
    Path("data/prepared/manifest.parquet").write_bytes(b"of other data")
    run_stage("prepare")
    _, (row,), (run,), _ = found()
    assert run.info.run_name == "prepare"
    lock(("prepare",))
    rebuild()
    assert [run.info.run_id for run in found()[1]] == [row.info.run_id]


def test_however_often_it_runs_it_is_one_row(done):
    rebuild()
    before = {run.info.run_id for run in found()[2]}
    run_stage("train_head", [{"epoch": 1, "loss": 0.9}])  # dvc repro --force, and the same results
    _, (row,), stages, _ = found()
    assert {run.info.run_id for run in stages} == before
    run_stage("train_head", text="other weights")
    _, (row,), stages, _ = found()
    assert set(by_stage(stages)) == set(STAGES)
    assert len({run.info.run_id for run in stages} & before) == 4
    assert row.info.status == "FINISHED"
    recorded.change(**{"train_head.dropout": 0.5, "gate.min_accuracy": 0.5})
    run_stage("train_head")
    assert len(found()[1]) == 2


def test_trials_of_a_search_are_runs_under_their_stage(done):
    Path("plots/train_head_search.csv").write_text(
        "trial,weight_decay,hidden,val_loss,val_accuracy,rank\n1,null,[],0.5,0.8,2\n2,0.1,[64],0.4,0.9,1\n"
    )
    lock()
    rebuild()
    _, _, stages, trials = found()
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {by_stage(stages)["train_head"].info.run_id}
    first, second = sorted(trials, key=lambda run: run.info.run_name)
    assert first.data.params == {"train_head.weight_decay": "null", "train_head.hidden": "[]"}
    assert second.data.metrics == {"val_loss": 0.4, "val_accuracy": 0.9, "rank": 1}
    run_stage("train_head", text="a search less")
    assert found()[3] == []


def test_a_description_of_the_users_own_stays(here):
    for stage in ("prepare", "extract"):
        leave(stage)
    lock(("prepare", "extract"))
    run_stage("train_head")
    client, (row,), _, _ = found()
    assert "of the head" in row.data.tags["mlflow.note.content"]
    client.set_tag(row.info.run_id, "mlflow.note.content", "mine")
    leave("fine_tune")
    lock(STAGES[:-1])
    run_stage("evaluate")
    assert found()[1][0].data.tags["mlflow.note.content"] == "mine"


def test_a_row_keeps_the_commit_that_its_stages_ran_at(done):
    rebuild()
    first = git("rev-parse", "HEAD")
    recorded.commit("results")
    rebuild()
    assert found()[1][0].data.tags["git_commit"] == first
    run_stage("evaluate", text="again")
    assert found()[1][0].data.tags["git_commit"] == git("rev-parse", "HEAD")


def test_files_that_come_into_reach_later_are_added(done):
    revision = recorded.commit("results")
    model = provenance.md5_of(Workspace(), "models/model.keras")
    for path in ("models/model.keras", "reports/evaluate.json"):
        recorded.cache_file(provenance.md5_of(Workspace(), path)).rename(f"{Path(path).name}.away")
        Path(path).unlink()
    rebuild()
    client, (row,), stages, _ = found()
    assert "accuracy_low" not in row.data.metrics
    assert files(client, by_stage(stages)["fine_tune"], "models") == set()
    Path("model.keras.away").rename(recorded.cache_file(model))
    report = next(Path().glob("evaluate.json.away"))
    report.rename(recorded.cache_file(provenance.md5_of(Workspace(), report.as_posix())))
    rebuild()
    client, (row,), again, _ = found()
    assert {run.info.run_id for run in again} == {run.info.run_id for run in stages}
    assert row.data.metrics["accuracy_low"] == 0.65
    assert files(client, by_stage(again)["fine_tune"], "models") == {"models/model.keras"}
    assert len(client.get_metric_history(row.info.run_id, "accuracy")) == 1
    assert row.data.tags["git_commit"] == revision


def test_the_pages_of_the_workspace_are_in_its_row(done, monkeypatch, writes, capsys):
    page, current = Path("reports/report.html"), {}
    page.write_text("<p>results")
    monkeypatch.setattr("headstart.report.pages.current_pages", lambda _: current)
    rebuild()
    client, (row,), _, _ = found()
    assert page.as_posix() not in files(client, row, "reports")
    current[page] = "fingerprint"
    capsys.readouterr()
    rebuild()
    assert "; nothing had to be completed; the pages of the workspace were added" in capsys.readouterr().out
    assert page.as_posix() in files(client, row, "reports")
    writes.clear()
    rebuild()
    assert writes == []


def test_long_curves_and_many_params_are_sent_whole(done):
    table = "epoch,loss\n" + "".join(f"{epoch},{epoch / 7}\n" for epoch in range(1, 2502))
    Path("plots/train_head.csv").write_text(table)
    lock()
    rebuild()
    client, _, stages, _ = found()
    assert len(points(client, by_stage(stages)["train_head"], "epoch/loss")) == 2501


# --- the key


def test_the_key_is_the_same_in_workspace_copy_and_commit(done, tmp_path_factory, monkeypatch):
    params, key = load_params(), provenance.experiment_key(Workspace(), load_params())
    revision = recorded.commit("results")
    shutil.rmtree("data")
    assert provenance.experiment_key(Workspace(), params) == key  # of a fresh clone, by dvc.lock
    with git_objects(Path()) as objects:
        assert provenance.experiment_key(Revision(objects, revision), params) == key
    git("clone", "-q", ".", str(copy := tmp_path_factory.mktemp("temp") / "copy"))
    monkeypatch.chdir(copy)
    assert provenance.experiment_key(Workspace(), load_params()) == key


def test_the_key_follows_what_shapes_results_alone(done):
    def key() -> str | None:
        return provenance.experiment_key(Workspace(), load_params())

    before = key()
    for place in recorded.UNRELATED:
        Path(place).write_text("edited")
    recorded.change(**{"gate.min_accuracy": 0.5, "train_head.log_trials": False})
    assert key() == before
    Path("headstart/training/__init__.py").write_text("edited")
    assert key() != before
    git("checkout", "-q", "headstart/training")
    recorded.change(**{"train_head.dropout": 0.5})
    assert key() != before
    recorded.change()
    Path("data/prepared/manifest.parquet").write_bytes(b"other data")
    assert key() != before


# --- while a stage runs


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def curve(name: str = "epoch/val_loss", stage: str = "fine_tune") -> list[tuple[int, float]]:
    with contextlib.suppress(IndexError):
        client, _, stages, _ = found()
        return points(client, [run for run in stages if run.info.run_name == stage][0], name)  # noqa: RUF015
    return []


@pytest.fixture
def tuning(here: Path) -> Path:
    """The repository when fine_tune begins."""
    for stage in STAGES[:3]:
        leave(stage)
    lock(STAGES[:3])
    return here


def test_curves_are_shown_as_they_come(tuning):
    logger = live.LiveLogger("fine_tune", load_params())
    logger.log_epoch({"epoch": 0, "val_loss": 1.5})
    logger.log_epoch({"epoch": 1, "val_loss": 1.0000001})
    until(lambda: len(curve()) == 2)
    client, (row,), (begun,), _ = found()
    assert (row.info.status, begun.info.status) == ("RUNNING", "RUNNING")
    assert points(client, row, "fine_tune/epoch/val_loss") == [(0, 1.5), (1, 1.0000001)]
    leave("fine_tune")  # its file has rounded values, and one more
    logger.finish()
    client, (row,), stages, _ = found()
    done = by_stage(stages)["fine_tune"]
    assert done.info.run_id == begun.info.run_id
    assert (row.info.status, done.info.status) == ("FINISHED", "FINISHED")
    assert points(client, done, "epoch/val_loss") == [(0, 1.5), (1, 1.0000001), (2, 0.5)]
    assert points(client, row, "fine_tune/epoch/val_loss") == [(0, 1.5), (1, 1.0000001), (2, 0.5)]


def test_a_stage_that_lasts_is_shown_with_the_metrics_of_its_machine(tuning, monkeypatch):
    monkeypatch.setattr(live, "SHOWN_AFTER", 0.1)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    logger = live.LiveLogger("fine_tune", load_params())
    until(lambda: len(curve("system/cpu_utilization_percentage")) >= 2)
    leave("fine_tune")
    logger.finish()
    count = len(curve("system/cpu_utilization_percentage"))
    time.sleep(0.5)
    assert len(curve("system/cpu_utilization_percentage")) == count


def test_a_row_whose_stage_runs_is_not_closed(tuning):
    logger = live.LiveLogger("fine_tune", load_params())
    logger.log_epoch({"epoch": 1, "val_loss": 1.0})
    until(lambda: len(curve()) == 1)
    rebuild()  # adds the stages that ran before
    _, (row,), stages, _ = found()
    ran = by_stage(stages)
    assert (row.info.status, ran.pop("fine_tune").info.status) == ("RUNNING", "RUNNING")
    assert {run.info.status for run in ran.values()} == {"FINISHED"}
    leave("fine_tune")
    logger.finish()
    assert {run.info.status for run in (*found()[1], *found()[2])} == {"FINISHED"}


def test_a_stage_that_goes_on_after_a_kill_goes_on_in_its_run(tuning):
    killed = live.LiveLogger("fine_tune", load_params())
    killed.log_epoch({"epoch": 1, "val_loss": 1.0})
    until(lambda: len(curve()) == 1)
    run_stage("fine_tune", [{"epoch": 2, "val_loss": 0.5}])
    assert curve() == [(1, 1.0), (2, 0.5)]
    assert len(by_stage(found()[2])) == 4
    killed.fail()


def test_a_stage_that_fails_is_shown_as_failed(tuning):
    logger = live.LiveLogger("fine_tune", load_params())
    logger.log_epoch({"epoch": 1, "val_loss": 0.5})
    until(lambda: len(curve()) == 1)
    logger.fail()
    _, (row,), (run,), _ = found()
    assert (row.info.status, run.info.status) == ("FAILED", "FAILED")


def test_a_stage_that_fails_at_once_leaves_no_row(tuning):
    live.LiveLogger("fine_tune", load_params()).fail()
    assert found()[1:] == ([], [], [])


def test_a_run_that_was_deleted_meanwhile_is_made_again(tuning, capsys):
    logger = live.LiveLogger("fine_tune", load_params())
    logger.log_epoch({"epoch": 1, "val_loss": 1.0})
    until(lambda: len(curve()) == 1)
    client, rows, stages, _ = found()
    for run in (*rows, *stages):
        client.delete_run(run.info.run_id)
    logger.log_epoch({"epoch": 2, "val_loss": 0.5})
    leave("fine_tune")
    logger.finish()
    assert curve() == [(1, 1.0), (2, 0.5)]
    assert capsys.readouterr().err == ""


# --- stores that do not answer


def answer(status: str, body: bytes = b"", *headers: str) -> bytes:
    """An answer of HTTP."""
    head = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "Connection: close"]
    return "\r\n".join([*head, "", ""]).encode() + body


@dataclass(frozen=True)
class BadServer:
    """What a server sends: all of it after `wait` seconds, or a byte each `drip` seconds; nothing: it never answers."""

    sends: bytes = b""
    wait: float = 0
    drip: float = 0
    says: str = ""  # that the warning holds
    resets: bool = False
    is_down: bool = False


JSON, HTML = "Content-Type: application/json", "Content-Type: text/html"
BAD_SERVERS = {
    "asks to wait an hour": BadServer(answer("503 Busy", b"", "Retry-After: 3600")),
    "has a limit for an hour": BadServer(answer("429 Too many", b"", "Retry-After: 3600")),
    "drips": BadServer(answer("200 OK", b" " * 200, JSON), drip=0.05, says="took longer than"),
    "hangs": BadServer(says="took longer than"),
    "is slow": BadServer(answer("200 OK", b"{}", JSON), wait=0.4),
    "redirects to itself": BadServer(answer("302 Found", b"", "Location: /api/2.0/mlflow/experiments/get-by-name")),
    "is a web site": BadServer(answer("200 OK", b"<html>welcome</html>", HTML)),
    "does not speak HTTP": BadServer(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "resets": BadServer(resets=True),
    "wants a login": BadServer(answer("401 Unauthorized", b"who?"), says="MLFLOW_TRACKING_USERNAME"),
    "forbids": BadServer(
        answer("403 Forbidden", b'{"error_code": "PERMISSION_DENIED", "message": "no"}', JSON),
        says="MLFLOW_TRACKING_TOKEN",
    ),
    "is broken": BadServer(answer("500 Internal Server Error", b"oops")),
    "answers nothing": BadServer(answer("200 OK", b"{}", JSON), says="does not answer as a tracking server of MLflow"),
    "is down": BadServer(is_down=True),
}
# What the nightly run adds to these is met by the same lines of code.
EACH_ITS_OWN_WAY = ("asks to wait an hour", "drips", "hangs", "is a web site", "wants a login", "is down")


@pytest.fixture
def serve(monkeypatch) -> Iterator[Callable[[BadServer], None]]:
    """Starts a bad server, whose address MLFLOW_TRACKING_URI names."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listening.getsockname()[1]}")

        def reply(connection: socket.socket, bad: BadServer) -> None:
            with contextlib.suppress(OSError):
                connection.recv(65536)
                time.sleep(bad.wait)
                for place in range(len(bad.sends)) if bad.drip else ():
                    connection.sendall(bad.sends[place : place + 1])
                    time.sleep(bad.drip)
                if bad.resets:  # what closes a connection then sends RST
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                if bad.resets or bad.sends:
                    if not bad.drip:
                        connection.sendall(bad.sends)
                    connection.close()

        def start(bad: BadServer) -> None:
            def accept() -> None:
                with contextlib.suppress(OSError):
                    while True:
                        connection, _ = listening.accept()
                        stack.push(contextlib.suppress(OSError))
                        stack.callback(connection.shutdown, socket.SHUT_RDWR)
                        threading.Thread(target=reply, args=(connection, bad), daemon=True).start()

            if bad.is_down:
                listening.close()
            else:
                stack.callback(listening.shutdown, socket.SHUT_RDWR)
                threading.Thread(target=accept, daemon=True).start()

        yield start


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(bad, id=name, marks=() if name in EACH_ITS_OWN_WAY else pytest.mark.slow)
        for name, bad in BAD_SERVERS.items()
    ],
)
def test_a_server_that_does_not_work_costs_a_line_and_the_deadline(tuning, serve, monkeypatch, capfd, bad):
    deadline = 1.0
    serve(bad)
    began = time.monotonic()
    run_stage("fine_tune", [{"epoch": 1, "val_loss": 1.0}], deadline=deadline)
    assert time.monotonic() - began < deadline + 3
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("tracking: fine_tune is incomplete in MLflow: http://127.0.0.1:")
    assert bad.says in line
    assert line.endswith("; run `headstart track` to complete it")
    leave("evaluate")
    lock()
    began = time.monotonic()
    with pytest.raises(
        UserError, match=r"lacks all or parts of 1 experiment \(the workspace\): .*run `headstart track`"
    ):
        rebuild(deadline=deadline)
    assert time.monotonic() - began < deadline + 10  # it also reads what Git and DVC have
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # now it works
    rebuild()
    _, (row,), stages, _ = found()
    assert set(by_stage(stages)) == set(STAGES)
    assert row.data.metrics["accuracy"] == 0.75


def test_a_process_does_not_wait_at_its_end_for_threads_that_mlflow_left_behind():
    """Such as those that download files from a server that drips."""
    program = (
        "import time; from concurrent.futures import ThreadPoolExecutor; from headstart.tracking import store\n"
        "try: store.within(0.2, lambda: ThreadPoolExecutor().submit(time.sleep, 60).result())\n"
        "except TimeoutError: print('late')"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=30)
    assert done.stdout == "late\n"


def test_track_names_what_it_could_not_send(done, serve):
    recorded.commit("results")
    recorded.experiment("other", **{"train_head.dropout": 0.5})
    serve(BAD_SERVERS["hangs"])
    began = time.monotonic()
    lacks = r"lacks all or parts of 2 experiments \(\w{7}, other\): took longer than 1 s; run `headstart track` again"
    with pytest.raises(UserError, match=lacks):
        rebuild(deadline=1)
    assert time.monotonic() - began < 10


@pytest.mark.slow
def test_a_stage_whose_logging_is_interrupted_has_succeeded(tuning, serve):
    serve(BAD_SERVERS["hangs"])
    program = (
        "import signal; from headstart.stage import stage\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # what is started with & ignores it
        "with stage('fine_tune') as run:\n"
        "    for path in ('models/model.keras',): run.path(__import__('pathlib').Path(path)).write_text('whole')"
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        Path("photos").mkdir(exist_ok=True)
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen([sys.executable, "-c", program], env=env, stderr=subprocess.PIPE, text=True)
        until(Path("models/model.keras").is_file)
        time.sleep(1)  # it waits for MLflow now
        assert process.poll() is None
        process.send_signal(number)
        _, printed = process.communicate(timeout=20)
        assert process.returncode == 0, printed
        assert f"tracking: fine_tune is incomplete in MLflow: {store.uri()}: interrupted;" in printed
        Path("models/model.keras").unlink()


WRONG = ["ftp://x/y", "file:///tmp/mlruns", "./mlruns", "127.0.0.1:5000", "http://", "http://[::1", "http:/x",
         "sqlite:///no.db", "nodriver+x://y"]  # fmt: skip


@pytest.mark.parametrize("uri", WRONG)
def test_a_wrong_address_is_one_message(tuning, monkeypatch, capfd, uri):
    Path("no.db").write_text("no database" * 1000)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run_stage("fine_tune", [{"epoch": 1, "val_loss": 1.0}])
    (line,) = capfd.readouterr().err.splitlines()
    assert f"MLFLOW_TRACKING_URI: no runs can be kept at {uri!r}" in line
    assert "sqlite:///mlflow.db" in line
    with pytest.raises(UserError, match=r"^MLFLOW_TRACKING_URI: no runs can be kept at"):
        rebuild()


def test_a_sweep_without_mlflow_is_complete_after_track(here, monkeypatch):
    recorded.commit("start")
    recorded.experiment("zero")
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        for number in range(1, 4):
            recorded.experiment(f"exp-{number}", **{"train_head.dropout": number / 10})
            with pytest.raises(UserError, match="lacks"):
                rebuild()
    rebuild()
    _, rows, stages, _ = found()
    assert {row.info.run_name for row in rows} == {"zero", "exp-1", "exp-2", "exp-3"}
    assert {row.data.tags["dvc_experiment"] for row in rows} == {row.info.run_name for row in rows}
    for row in rows:
        own = [run for run in stages if run.data.tags["mlflow.parentRunId"] == row.info.run_id]
        assert set(by_stage(own)) == set(STAGES)
        assert row.data.metrics["accuracy"] == 0.75
    assert {row.data.tags["git_commit"] for row in rows} == {git("rev-parse", "HEAD")}


def test_what_another_version_of_the_project_made_is_left_out(done, capsys):
    git("branch", "before")
    Path("params.yaml").write_text("backbone: tiny\n")
    recorded.commit("of another version")
    git("checkout", "-q", "before", "--", "params.yaml")
    rebuild(commits=2)
    printed = capsys.readouterr()
    assert printed.err.startswith("track: left out, made by another version of this project: ")
    assert "MLflow shows 1 experiment (the workspace)" in printed.out


def test_a_workspace_that_becomes_an_experiment_gets_its_name(done):
    rebuild()
    (row,) = found()[1]
    assert row.info.run_name == f"tiny-{row.data.tags['headstart.key'][:6]}"
    recorded.experiment("saved")
    rebuild()
    assert [run.info.run_name for run in found()[1]] == ["saved"]


def test_tracking_can_be_turned_off(done, monkeypatch, capsys):
    monkeypatch.setenv("HEADSTART_TRACKING", "off")
    logger = tracking.start("evaluate", load_params())
    logger.log_epoch({"epoch": 1})
    logger.finish()
    rebuild()
    assert "tracking is off" in capsys.readouterr().out
    assert ui.run_address() is None
    assert found()[1] == []


# --- several at once

CALLS = ("search_runs", "create_run", "log_batch", "log_artifact", "set_terminated", "set_tag", "get_run")


@pytest.mark.parametrize(("ran", "first"), [(False, 0), (True, 2)])
def test_two_clones_at_once_make_one_row_and_one_run_per_stage(tuning, monkeypatch, ran, first):
    """Another clone shows the same at every fourth call that this one makes, its moment a little off."""
    Path("plots/train_head_search.csv").write_text("trial,hidden,val_loss,val_accuracy,rank\n1,[],0.5,0.8,1\n")
    lock(STAGES[:3])
    monkeypatch.setattr(store, "FileLock", lambda *_, **__: contextlib.nullcontext())  # each clone has its own
    running, count, reached = ("train_head" if ran else None), 0, True
    while reached:
        mine, other = (snapshot.of_workspace(load_params(), running) for _ in range(2))
        mine.key = other.key = f"key-{count}"
        mine.stages = other.stages = ["train_head"]
        other.moment = mine.moment + (-1) ** count
        left, reached = first + 4 * count, False

        def call(self, *args, whole, other=other, **kwargs):
            nonlocal left, reached
            left -= 1
            if left == -1:
                reached = True
                with store.connected() as client:
                    runs.show(client, other)
            return whole(self, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            for name in CALLS:
                patch.setattr(MlflowClient, name, functools.partialmethod(call, whole=getattr(MlflowClient, name)))
            with store.connected() as client:
                runs.show(client, mine)
        count += 1
    assert count > 5
    _, rows, stages, trials = found()
    assert sorted(row.data.tags["headstart.key"] for row in rows) == sorted(f"key-{number}" for number in range(count))
    assert sorted(run.data.tags["mlflow.parentRunId"] for run in stages) == sorted(row.info.run_id for row in rows)
    assert sorted(run.data.tags["mlflow.parentRunId"] for run in trials) == sorted(run.info.run_id for run in stages)
    assert all(row.data.metrics["train_head/head_val_loss"] == 0.7 for row in rows)
    assert all("headstart.content" in run.data.tags for run in stages)


def test_what_was_created_twice_is_healed(done):
    rebuild()
    recorded.experiment("other", **{"train_head.dropout": 0.5})
    rebuild()
    client, rows, _, _ = found()
    key = next(row.data.tags["headstart.key"] for row in rows if row.info.run_name == "other")
    for row in rows:
        client.set_tag(row.info.run_id, "headstart.key", key)
    rebuild()
    _, (row,), stages, _ = found()
    assert set(by_stage(stages)) == set(STAGES)
    assert {run.data.tags["mlflow.parentRunId"] for run in stages} == {row.info.run_id}


@pytest.mark.slow
def test_several_processes_may_open_a_fresh_store(done):
    Path("mlflow.db").unlink()
    code = "from headstart.tracking.rebuild import rebuild; rebuild()"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen([sys.executable, "-c", code], env=env) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    _, (_,), stages, _ = found()
    assert set(by_stage(stages)) == set(STAGES)


def test_a_process_that_holds_the_database_is_not_waited_for_without_limit(tuning, capfd):
    with store.connected():
        began = time.monotonic()
        run_stage("fine_tune", deadline=1)
        assert time.monotonic() - began < 3
    assert "fine_tune is incomplete in MLflow" in capfd.readouterr().err


def test_the_store_of_a_temporary_experiment_is_that_of_the_repository(tuning, monkeypatch):
    shutil.copytree(".", copy := tuning / "copy", ignore=shutil.ignore_patterns("copy", "mlflow.db", ".dvc", ".git"))
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(tuning))
    monkeypatch.setenv("DVC_EXP_NAME", "nice-name")
    run_stage("fine_tune")
    assert not (copy / "mlflow.db").exists()
    assert (tuning / "mlartifacts").is_dir()
    assert [row.info.run_name for row in found()[1]] == ["nice-name"]


@pytest.mark.slow
def test_a_sweep_of_dvcs_queue_without_mlflow_is_complete_after_track(project):
    dead = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "TQDM_DISABLE": "1"}
    project.run("dvc exp run --queue -S train_head.dropout=0,0.1,0.2,0.3")
    try:
        project.run("dvc exp run --run-all --jobs 2", **dead)
    finally:
        project.run("dvc queue stop --kill", code=None)
    assert not (project.root / "mlflow.db").exists()
    project.run("python -m headstart track")
    _, rows, stages, _ = found(f"sqlite:///{project.root}/mlflow.db")
    assert len({row.data.params["train_head.dropout"] for row in rows}) == len(rows) == 4
    for row in rows:
        own = by_stage([run for run in stages if run.data.tags["mlflow.parentRunId"] == row.info.run_id])
        assert set(own) == set(STAGES)
        assert {"accuracy", "val_loss", "total_seconds", "latency_ms", "accuracy_low"} <= row.data.metrics.keys()
        assert row.data.tags["model_version"].startswith("headstart ")
        assert files(MlflowClient(f"sqlite:///{project.root}/mlflow.db"), own["fine_tune"], "models")
    assert "nothing had to be completed" in project.run("python -m headstart track")

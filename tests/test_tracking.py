from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2

from headstart.config import load_params
from headstart.errors import UserError
from headstart.tracking import commands, outbox, recording, registry, store
from headstart.tracking.records import Record

PARAMS = {"backbone": "tiny", "seed": "42", "train_head.hidden": "[128]"}


def make_record(stage: str = "train_head", key: str = "k1", **changes) -> Record:
    file = Path("models/head.keras")
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"model")
    values = {
        "experiment_params": PARAMS,
        "params": {"seed": "42"},
        "metrics": {"val_accuracy": 0.5, "head/loss": 1.5},
        "curves": [("loss", 1, 0.9), ("loss", 2, 0.4)],
        "artifacts": {"models/head.keras": "aa"},
        "tags": {"git_commit": "c0ffee", "dvc_experiment": "nice-name"},
        "restored": False,
        "started": 1_699_999_995_000,
        "time": 1_700_000_000_000,
    }
    return Record(key, stage, **{**values, **changes})


def rows(root: Path, uri: str | None = None) -> tuple[MlflowClient, list, list]:
    """A client, the parent runs and the nested runs."""
    client = MlflowClient(uri or f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("headstart")
    runs = client.search_runs([experiment.experiment_id])
    return (
        client,
        [run for run in runs if "headstart.key" in run.data.tags],
        [run for run in runs if "headstart.stage" in run.data.tags],
    )


def test_an_experiment_is_one_row_with_a_run_a_stage(workspace):
    recording.send_or_keep([make_record("prepare", restored=True), make_record("train_head")])
    client, parents, children = rows(workspace)
    (parent,) = parents
    assert parent.info.run_name == "nice-name"
    assert parent.info.status == "FINISHED"
    assert parent.data.params == PARAMS
    assert parent.data.metrics["train_head/val_accuracy"] == 0.5
    assert parent.data.metrics["prepare/head/loss"] == 1.5
    assert parent.data.tags["git_commit"] == "c0ffee"
    assert parent.data.tags["dvc_experiment"] == "nice-name"
    assert {run.info.run_name: run.data.tags.get("headstart.restored") for run in children} == {
        "prepare": "true", "train_head": None,
    }  # fmt: skip
    child = next(run for run in children if run.info.run_name == "train_head")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.params == {"seed": "42"}
    curve = client.get_metric_history(child.info.run_id, "epoch/loss")
    assert sorted((point.step, point.value) for point in curve) == [(1, 0.9), (2, 0.4)]
    assert [file.path for file in client.list_artifacts(child.info.run_id, "models")] == ["models/head.keras"]
    assert (workspace / "mlartifacts").is_dir()  # in the workspace, not in the copy of it
    assert not (workspace / "copy" / "mlflow.db").exists()


def test_the_same_again_makes_no_second_run(workspace):
    recording.send_or_keep([make_record()])
    first = [run.info.run_id for run in rows(workspace)[2]]
    recording.send_or_keep([make_record(time=1_800_000_000_000, restored=True)])
    recording.send_or_keep(
        [make_record(metrics={"val_accuracy": 0.500001}, restored=True)]
    )  # as another machine rounds
    _, parents, children = rows(workspace)
    assert len(parents) == 1
    assert [run.info.run_id for run in children] == first


def test_another_result_of_the_same_stage_replaces_the_first(workspace):
    recording.send_or_keep([make_record()])
    recording.send_or_keep([make_record(metrics={"val_accuracy": 0.7})])
    _, (parent,), (child,) = rows(workspace)
    assert child.data.metrics["val_accuracy"] == 0.7
    assert parent.data.metrics["train_head/val_accuracy"] == 0.7


def test_the_row_says_at_a_glance_what_came_of_it(workspace):
    """Short names beside the long ones, the curves of all stages, the data, a note, files to look at."""
    Path("reports").mkdir()
    Path("reports/report.html").write_text("<p>all")
    dataset = {
        "name": "photos", "digest": "abc", "source_type": "local", "source": "{}", "schema": "{}", "profile": "{}",
    }  # fmt: skip
    item = make_record(
        headline={"accuracy": 0.5}, dataset=dataset, note="# Note", shown=["reports/report.html"],
        samples=[("cpu_utilization_percentage", 1_699_999_996_000, 50.0),
                 ("cpu_utilization_percentage", 1_699_999_997_000, 70.0)],
    )  # fmt: skip
    recording.send_or_keep([item])
    client, (parent,), (child,) = rows(workspace)
    assert (parent.data.metrics["accuracy"], parent.data.metrics["train_head/val_accuracy"]) == (0.5, 0.5)
    assert points(client, parent, "train_head/epoch/loss") == [(1, 0.9), (2, 0.4)]
    assert parent.data.tags["mlflow.note.content"] == "# Note"
    assert [file.path for file in client.list_artifacts(parent.info.run_id, "reports")] == ["reports/report.html"]
    for run, context in ((parent, "training"), (child, "training")):
        (used,) = run.inputs.dataset_inputs
        assert (used.dataset.name, used.dataset.digest) == ("photos", "abc")
        assert [tag.value for tag in used.tags] == [context]
    sampled = client.get_metric_history(child.info.run_id, "system/cpu_utilization_percentage")
    assert [(point.step, point.timestamp, point.value) for point in sampled] == [
        (0, 1_699_999_996_000, 50.0), (1, 1_699_999_997_000, 70.0),
    ]  # fmt: skip


def test_the_note_tells_of_the_results_and_is_never_written_over_the_users_own(workspace):
    def note() -> str:
        return rows(workspace)[1][0].data.tags["mlflow.note.content"]

    recording.send_or_keep([make_record("train_head", note="way")])
    recording.send_or_keep([make_record("evaluate", note="results, way", restored=True)])
    assert note() == "results, way"
    recording.send_or_keep([make_record("fine_tune", note="way")])
    assert note() == "results, way"
    recording.send_or_keep([make_record("evaluate", note="other results", metrics={"accuracy": 0.7})])
    assert note() == "other results"
    client, (parent,), _ = rows(workspace)
    client.set_tag(parent.info.run_id, "mlflow.note.content", "mine")
    recording.send_or_keep([make_record("evaluate", note="results", metrics={"accuracy": 0.8})])
    assert note() == "mine"


def test_a_run_that_was_broken_off_is_made_anew(workspace, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "log_artifact", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        recording.send_or_keep([make_record()])
    recording.send_or_keep([])
    _, (_,), (child,) = rows(workspace)
    assert child.data.tags["headstart.content"] == make_record().content()


def test_a_row_keeps_the_commit_that_its_stages_ran_at(workspace):
    recording.send_or_keep([make_record()])
    recording.send_or_keep([make_record("prepare", restored=True, tags={"git_commit": "beef"})])
    assert rows(workspace)[1][0].data.tags["git_commit"] == "c0ffee"
    recording.send_or_keep([make_record("extract", tags={"git_commit": "beef"})])
    assert rows(workspace)[1][0].data.tags["mlflow.source.git.commit"] == "beef"


def test_other_params_make_another_row(workspace):
    recording.send_or_keep([make_record(), make_record(key="k2", experiment_params={**PARAMS, "seed": "43"})])
    assert len(rows(workspace)[1]) == 2


def test_what_cannot_be_sent_is_kept_with_its_files_and_sent_later(workspace, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    item = make_record()
    assert not recording.send_or_keep([item, make_record("prepare", restored=True)])
    assert "kept and sent later, since http://127.0.0.1:9 cannot be reached" in capsys.readouterr().err
    Path("models/head.keras").unlink()  # a temporary experiment's folder goes away

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert recording.send_or_keep([])
    client, (_,), (child,) = rows(workspace)
    assert (child.info.start_time, child.info.end_time) == (item.started, item.time)
    assert [file.path for file in client.list_artifacts(child.info.run_id, "models")] == ["models/head.keras"]
    assert outbox.entries() == []


def test_a_damaged_kept_record_does_not_hold_up_the_others(workspace, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    recording.send_or_keep([make_record("prepare")])
    recording.send_or_keep([make_record("train_head")])
    first, _ = outbox.entries()
    (first / "record.json").write_text("{half")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert recording.send_or_keep([])
    assert "put aside" in capsys.readouterr().err
    assert [run.info.run_name for run in rows(workspace)[2]] == ["train_head"]
    assert [path.name for path in first.parent.iterdir()] == [f"damaged-{first.name}"]


@pytest.mark.parametrize("content", ["[]", "null", "5", "{}", '{"curves": [1]}', "a file"])
def test_what_is_no_record_does_not_hold_up_the_others(workspace, capsys, content):
    for stage in ("prepare", "train_head"):
        outbox.keep(make_record(stage))
    first, _ = outbox.entries()
    if content == "a file":
        first = first.parent / "1note.txt"
        first.write_text(content)
    else:
        (first / "record.json").write_text(content)
    assert recording.send_or_keep([make_record("extract")])
    assert capsys.readouterr().err.count("put aside") == 1
    assert "train_head" in [run.info.run_name for run in rows(workspace)[2]]
    assert [path.name for path in first.parent.iterdir()] == [f"damaged-{first.name}"]


POISON = [
    {"metrics": {'a b:c*"?': 1.0}},
    {"params": {'a b:c*"?': "1"}},
    {"experiment_params": {**PARAMS, "seed": "43"}},
]


@pytest.mark.parametrize("changes", POISON)
def test_what_the_store_refuses_is_put_aside_and_leaves_no_half_run(workspace, capsys, changes):
    assert recording.send_or_keep([make_record("prepare")])
    outbox.keep(make_record("extract", **changes))
    assert recording.send_or_keep([make_record("fine_tune", **changes), make_record("train_head")])
    assert capsys.readouterr().err.count("put aside") == 2
    assert outbox.entries() == []
    assert sorted(run.info.run_name for run in rows(workspace)[2]) == ["prepare", "train_head"]
    assert recording.send_or_keep([make_record("fine_tune", **changes, restored=True)])  # the files are still there
    assert "fine_tune is not recorded" in capsys.readouterr().err


@pytest.mark.parametrize("error", [
    MlflowException("database is locked", error_code=databricks_pb2.TEMPORARILY_UNAVAILABLE),
    MlflowException("no login", error_code=databricks_pb2.UNAUTHENTICATED),
    MlflowException("connection lost"),
    OSError("disk full"),
])  # fmt: skip
def test_what_may_go_right_another_time_is_kept(workspace, monkeypatch, error):
    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "set_terminated", lambda *_, **__: (_ for _ in ()).throw(error))
        assert not recording.send_or_keep([make_record()])
        assert len(outbox.entries()) == 1
    assert recording.send_or_keep([])
    assert len(rows(workspace)[2]) == 1


def test_where_nothing_is_kept_nothing_is_promised(workspace, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert not recording.send_or_keep([make_record(restored=True)])
    said = capsys.readouterr().err
    assert "nothing is sent, since http://127.0.0.1:9 cannot be reached" in said
    assert "kept" not in said


WRONG = ["ftp://x/y", "file:///tmp/mlruns", "./mlruns", "127.0.0.1:5000", "http://", "http://[::1", "http:/x",
         "sqlite:///no.db", "nodriver+x://y"]  # fmt: skip


@pytest.mark.parametrize("uri", WRONG)
def test_a_wrong_address_is_told_as_what_it_is_and_costs_no_result(workspace, monkeypatch, capsys, uri):
    Path("no.db").write_text("no database" * 1000)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(recording.records, "collect", lambda *_: [make_record()])
    recording.record("train_head", {}, 0.0, [])
    said = capsys.readouterr().err
    assert f"train_head could not be recorded, but is kept: MLFLOW_TRACKING_URI: no runs can be kept at {uri!r}" in said
    assert "sqlite:///mlflow.db" in said
    assert "reached" not in said
    assert len(outbox.entries()) == 1
    monkeypatch.setattr(commands.records, "state", lambda: "")
    monkeypatch.setattr(commands.timings, "follow", lambda: None)
    monkeypatch.setattr(commands, "load_params", lambda: load_params(ROOT / "params.yaml"))
    assert commands.main([]) == 1
    assert capsys.readouterr().err.startswith("MLFLOW_TRACKING_URI: no runs can be kept at")
    assert not registry.register()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert recording.send_or_keep([])
    assert len(rows(workspace)[2]) == 1


CALLS = ("search_runs", "create_run", "log_batch", "log_artifact", "set_terminated", "set_tag")


@pytest.mark.parametrize("restored", [True, False])
def test_two_clones_at_once_make_one_row_and_one_run_a_stage(workspace, restored):
    """Another clone sends the same, a little older or newer, at every call that this one makes of the store."""
    trials = [{"trial": 1, "hidden": "[]", "val_loss": 0.5, "val_accuracy": 0.8, "rank": 1}]
    count, reached = 0, True
    while reached:
        mine = make_record(key=f"k{count}", trials=trials, restored=restored)
        other = dataclasses.replace(mine, started=mine.started + (-1) ** count)
        left, reached = count, False

        def call(self, *args, whole, other=other, **kwargs):
            nonlocal left, reached
            left -= 1
            if left == -1:
                reached = True
                assert recording.send_or_keep([other])
            return whole(self, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store, "FileLock", lambda _: contextlib.nullcontext())  # each clone has a lock of its own
            for name in CALLS:
                patch.setattr(MlflowClient, name, functools.partialmethod(call, whole=getattr(MlflowClient, name)))
            assert recording.send_or_keep([mine])
        count += 1
    assert count > 10
    _, parents, children = rows(workspace)
    assert sorted(run.data.tags["headstart.key"] for run in parents) == sorted(f"k{number}" for number in range(count))
    assert sorted(run.data.tags["mlflow.parentRunId"] for run in children) == sorted(run.info.run_id for run in parents)
    assert all(run.data.metrics["train_head/val_accuracy"] == 0.5 for run in parents)
    client = MlflowClient(store.uri())
    runs = client.search_runs([store.experiment_id(client)])
    assert len(runs) == 3 * count  # with a trial each
    assert outbox.entries() == []


def test_what_was_made_twice_is_healed(workspace):
    """The first stays, with all that the others had."""
    recording.send_or_keep([make_record(key="k2", metrics={"val_accuracy": 0.5})])
    recording.send_or_keep([make_record("prepare", started=1_699_999_990_000), make_record(started=1_699_999_990_001)])
    client, parents, _ = rows(workspace)
    double, first = sorted(parents, key=lambda run: -run.info.start_time)
    client.set_tag(double.info.run_id, "headstart.key", "k1")
    (of_double,) = [run for run in rows(workspace)[2] if run.data.tags["mlflow.parentRunId"] == double.info.run_id]
    client.set_tag(of_double.info.run_id, "headstart.content", make_record().content())
    recording.send_or_keep([make_record(restored=True)])
    _, (parent,), children = rows(workspace)
    assert parent.info.run_id == first.info.run_id
    assert sorted(run.info.run_name for run in children) == ["prepare", "train_head"]
    assert of_double.info.run_id not in {run.info.run_id for run in children}


def test_curves_go_on_where_another_process_deleted_the_run(workspace, monkeypatch, capsys):
    show = live(monkeypatch)
    show({"epoch": 1, "val_loss": 0.5})
    client, (parent,), (run,) = rows(workspace)
    for deleted in (parent, run):
        client.delete_run(deleted.info.run_id)
    show({"epoch": 2, "val_loss": 0.4})
    client, (_,), (run,) = rows(workspace)
    assert points(client, run, "epoch/val_loss") == [(2, 0.4)]
    assert capsys.readouterr().err == ""


def test_the_ui_stays_on_localhost_and_names_its_page(workspace, monkeypatch, capsys):
    commands = []

    class Server:
        wait = terminate = staticmethod(lambda: 0)

    monkeypatch.setattr(commands.signal, "signal", lambda *_: None)
    monkeypatch.setattr(commands.subprocess, "Popen", lambda command, **_: commands.append(command) or Server)
    assert commands.ui(5001) == 0
    assert "Open http://127.0.0.1:5001/#/experiments/1/runs?workflowType=machine_learning" in capsys.readouterr().out
    (command,) = commands
    given = dict(zip(command[4::2], command[5::2], strict=True))
    host, port, uri = given["--host"], given["--port"], given["--backend-store-uri"]
    assert (host, port, uri) == ("127.0.0.1", "5001", f"sqlite:///{workspace}/mlflow.db")

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="is taken; name another: make ui PORT="):
            commands.ui(taken.getsockname()[1])

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example.org")
    assert commands.ui(5001) == 0
    assert "http://tracking.example.org: open it" in capsys.readouterr().out
    assert len(commands) == 1


def test_tracking_never_costs_a_result(workspace, capsys):
    recording.record("train_head", {"seed": 1}, 0.0, [])  # there is no dvc.yaml here
    assert "tracking: train_head could not be recorded" in capsys.readouterr().err


def test_long_curves_are_sent_whole(workspace):
    curves = [("loss", epoch, 1.0) for epoch in range(1, 2502)]
    recording.send_or_keep([make_record(curves=curves)])
    client, _, (child,) = rows(workspace)
    assert len(client.get_metric_history(child.info.run_id, "epoch/loss")) == 2501


def test_several_processes_may_open_a_fresh_store_at_once(workspace):
    (workspace / "mlflow.db").unlink()
    values = json.dumps(dataclasses.asdict(make_record()))
    code = (
        "import json, sys; from headstart.tracking import recording; from headstart.tracking.records import Record;"
        "values = json.loads(sys.argv[1]); values['key'] = sys.argv[2];"
        "sys.exit(not recording.send_or_keep([Record(**values)]))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, values, key], env={**__import__("os").environ, "PYTHONPATH": str(ROOT)}
        )
        for key in ("a", "b", "a")
    ]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert len(rows(workspace)[1]) == 2


def live(monkeypatch, key: str = "k1") -> recording.Live:
    begun = make_record("fine_tune", key, metrics={}, curves=[], artifacts={})
    monkeypatch.setattr(recording.records, "begin", lambda params, stage: begun)
    return recording.Live("fine_tune", {})


def points(client: MlflowClient, run, name: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))


def test_curves_are_shown_as_they_come_and_the_record_completes_the_run(workspace, monkeypatch):
    show = live(monkeypatch)
    show({"epoch": 0, "val_loss": 1.5})
    show({"epoch": 1, "loss": 0.9000001, "val_loss": 0.75})
    client, (_,), (begun,) = rows(workspace)
    assert points(client, begun, "epoch/val_loss") == [(0, 1.5), (1, 0.75)]
    assert begun.info.status == "RUNNING"
    assert begun.data.params == {"seed": "42"}
    assert points(client, rows(workspace)[1][0], "fine_tune/epoch/val_loss") == [(0, 1.5), (1, 0.75)]
    curves = [("loss", 1, 0.9), ("val_loss", 1, 0.75), ("val_loss", 2, 0.25)]  # as rounded in the file
    recording.send_or_keep([make_record("fine_tune", curves=curves)])
    client, (parent,), (done,) = rows(workspace)
    assert done.info.run_id == begun.info.run_id
    assert done.info.status == "FINISHED"
    assert points(client, done, "epoch/val_loss") == [(0, 1.5), (1, 0.75), (2, 0.25)]
    assert points(client, done, "epoch/loss") == [(1, 0.9000001)]
    assert points(client, parent, "fine_tune/epoch/val_loss") == [(0, 1.5), (1, 0.75), (2, 0.25)]
    assert parent.data.metrics["fine_tune/val_accuracy"] == 0.5


def test_a_stage_that_goes_on_goes_on_in_the_same_run(workspace, monkeypatch):
    live(monkeypatch)({"epoch": 1, "val_loss": 0.5})
    live(monkeypatch)({"epoch": 2, "val_loss": 0.4})
    client, _, (run,) = rows(workspace)
    assert points(client, run, "epoch/val_loss") == [(1, 0.5), (2, 0.4)]
    live(monkeypatch, "k2")({"epoch": 1, "val_loss": 0.3})
    assert len(rows(workspace)[2]) == 2


def test_a_server_that_is_down_is_told_once_and_costs_nothing(workspace, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    show = live(monkeypatch)
    show({"epoch": 1, "val_loss": 0.5})
    show({"epoch": 2, "val_loss": 0.5})
    assert capsys.readouterr().err.count("fine_tune is not shown while it runs") == 1


def test_each_trial_of_a_search_is_a_run_under_its_stage(workspace):
    trials = [
        {"trial": 1, "hidden": "[]", "val_loss": 0.5, "val_accuracy": 0.8, "rank": 2},
        {"trial": 2, "hidden": "[64]", "val_loss": 0.4, "val_accuracy": 0.9, "rank": 1},
    ]
    recording.send_or_keep([make_record(trials=trials)])
    client, _, (stage,) = rows(workspace)

    def shown() -> list:
        experiment = client.get_experiment_by_name("headstart").experiment_id
        return client.search_runs(
            [experiment], "attributes.run_name LIKE 'trial-%'", order_by=["attributes.run_name ASC"]
        )

    assert [run.data.tags["mlflow.parentRunId"] for run in shown()] == [stage.info.run_id] * 2
    assert [run.data.params for run in shown()] == [{"train_head.hidden": "[]"}, {"train_head.hidden": "[64]"}]
    assert shown()[1].data.metrics == {"val_loss": 0.4, "val_accuracy": 0.9, "rank": 1}
    # Another search takes the place of the first.
    recording.send_or_keep([make_record(trials=trials[:1])])
    (left,) = shown()
    assert left.data.tags["mlflow.parentRunId"] == rows(workspace)[2][0].info.run_id


def test_the_same_again_leaves_no_run_that_never_ends(workspace, monkeypatch):
    recording.send_or_keep([make_record("fine_tune")])
    live(monkeypatch)({"epoch": 1, "val_loss": 0.5})
    assert len(rows(workspace)[2]) == 2
    recording.send_or_keep([make_record("fine_tune")])
    _, (parent,), (stage,) = rows(workspace)
    assert (parent.info.status, stage.info.status) == ("FINISHED", "FINISHED")


def test_a_stage_that_fails_is_shown_as_failed(workspace, monkeypatch):
    show = live(monkeypatch)
    show({"epoch": 1, "val_loss": 0.5})
    show.__exit__(ZeroDivisionError, None, None)
    _, (parent,), (stage,) = rows(workspace)
    assert (parent.info.status, stage.info.status) == ("FAILED", "FAILED")
    live(monkeypatch)({"epoch": 2, "val_loss": 0.4})  # what goes on is alive again
    _, (parent,), (stage,) = rows(workspace)
    assert (parent.info.status, stage.info.status) == ("RUNNING", "RUNNING")

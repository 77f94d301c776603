"""Experiments as people run them: a sweep through DVC's queue, the leaderboard, sharing, another clone, the gate.

One project, whose tests go on from each other's state.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest
import yaml
from conftest import Project, make_project
from mlflow import MlflowClient

from pipeline import leaderboard

SECONDS = 300  # that a sweep may take on a machine that is busy


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Project:
    """A fresh clone after a sweep of two heads by two workers at once: nothing is in any store before."""
    root = tmp_path_factory.mktemp("experiments")
    project = make_project(root / "project")
    project.run("git init -q --bare ../origin.git && git remote add origin ../origin.git")
    project.run("dvc remote add -q --default store ../store && git commit -qam remote && git push -q origin HEAD")
    project.run("dvc exp run --queue -S 'train_head.hidden=[],[4]' train_head")
    project.run("dvc queue start --jobs 2")
    until = time.monotonic() + SECONDS
    while "Running" in (status := project.run("dvc queue status")) or "Queued" in status:
        assert time.monotonic() < until, status
        time.sleep(1)
    assert status.count("Success") == 2, status
    return project


@pytest.fixture(scope="module", autouse=True)
def ended(swept):
    """Workers stop before their folder goes."""
    yield
    swept.run("dvc queue stop --kill", code=None)


def rows(project: Project, options: str = "") -> list[dict]:
    return json.loads(project.run(f"python -m pipeline.leaderboard --format json {options} 2>/dev/null"))


def test_a_sweep_lands_in_one_store_of_mlflow(swept):
    client = MlflowClient(f"sqlite:///{swept.root}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("headstart").experiment_id])
    parents = {run.info.run_id: run.info.run_name for run in runs if "headstart.key" in run.data.tags}
    stages = [
        (run.data.tags["mlflow.parentRunId"], run.info.run_name) for run in runs if run.info.run_id not in parents
    ]
    assert set(parents.values()) == {row["experiment"] for row in rows(swept)}
    assert sorted(stages) == sorted((parent, s) for parent in parents for s in ("prepare", "extract", "train_head"))


def test_what_two_want_at_once_is_computed_once(swept):
    commits = swept.run("git for-each-ref --format='%(objectname)' refs/exps").split()
    ledgers = [json.loads(swept.run(f"git show {commit}:metrics/extract.json")) for commit in commits]
    assert [ledger["images"] for ledger in ledgers] == [48, 48]
    assert sorted(ledger["computed"] for ledger in ledgers) == [0, 48]


def test_the_leaderboard_ranks_heads_before_anything_is_fine_tuned(swept):
    found = rows(swept)
    assert [row["rank"] for row in found] == [1, 2]
    assert {json.dumps(row["train_head.hidden"]) for row in found} == {"[]", "[4]"}
    assert {row["reached"] for row in found} == {"train_head"}
    assert found[0]["val_loss"] <= found[1]["val_loss"]
    by_accuracy = rows(swept, "--by val_accuracy")
    assert by_accuracy[0]["val_accuracy"] >= by_accuracy[1]["val_accuracy"]
    said = swept.run("python -m pipeline.leaderboard --test")
    assert "Without a head of these params and this code, see `dvc status`: workspace" in said
    assert "The test split has no say" in said


def test_the_best_is_applied_completed_and_kept(swept):
    best, other = (row["experiment"] for row in rows(swept))
    # DVC misses what later stages would have made, says so, and applies all else.
    assert "models/head.keras" not in swept.run(f"dvc exp apply {best}", code=None)
    assert "results in the workspace are not those of its params" in swept.run("python -m pipeline.gate", code=1)
    output = swept.run("dvc repro")
    assert output.count("Running stage") == 2, output  # the head is there: fine_tune and evaluate
    swept.run("git add -A && git commit -qm best")
    (row,) = rows(swept)
    assert row["reached"] == "evaluate"
    assert "accuracy" not in row  # on test: it has no say
    assert {"accuracy", "accuracy_low", "accuracy_high", "latency_ms", "model_mb"} <= set(rows(swept, "--test")[0])
    assert len(rows(swept, "--commits 2")) == 3
    heads = {row["experiment"]: row["reached"] for row in rows(swept, "--commits 2 --heads")}
    assert set(heads) > {other}
    swept.run(f"dvc exp branch {other} other")
    assert "other" in swept.run("git branch --list other")


def test_another_clone_runs_nothing(swept):
    swept.run("git push -q origin HEAD && dvc push -q --run-cache")
    swept.run("dvc exp push -q origin --rev HEAD~1")
    shared = swept.run("dvc exp list --names-only --rev HEAD~1").split()
    assert len(shared) == 2
    clone = Project(swept.root.parent / "clone", swept.env)
    swept.run(f"git clone -q {swept.root.parent}/origin.git {clone.root}")
    clone.run("dvc pull -q")
    assert "Running stage" not in clone.run("dvc repro")
    assert clone.run("git status --porcelain") == ""
    clone.run("dvc exp pull -q origin --rev HEAD~1")
    assert {row["experiment"] for row in rows(clone, "--commits 2")} >= set(shared)
    # The base of a pull request, out of the remote.
    assert "No evidence" in clone.run("python -m pipeline.review HEAD")
    assert "max_drop" in clone.run("python -m pipeline.gate HEAD")


def described(epochs: int = 2, head: str = "aa") -> dict[Path, bytes]:
    """The files of an experiment whose lock file tells of 2 epochs on head aa."""

    def stage(name: str, params: list[str], deps: list[str], out: str) -> dict:
        metrics = [{f"metrics/{name}.json": {"cache": False}}]
        return {"cmd": name, "params": params, "deps": deps, "outs": [out], "metrics": metrics}

    def locked(name: str, params: dict, deps: list[dict], out: dict) -> dict:
        outs = [out, {"path": f"metrics/{name}.json", "md5": hashlib.md5(files[f"metrics/{name}.json"]).hexdigest()}]
        return {"cmd": name, "params": {"params.yaml": params}, "deps": deps, "outs": outs}

    head_file, model_file = "models/head.keras", "models/model.keras"
    files = {
        "params.yaml": yaml.safe_dump({"seed": 1, "fine_tune": {"epochs": epochs}, "gate": {"max_drop": 0}}).encode(),
        "metrics/train_head.json": b'{"val_loss": 0.5, "val_accuracy": 0.8}',
        "metrics/fine_tune.json": b'{"val_loss": 0.2, "val_accuracy": 0.9}',
        "metrics/cost.json": b'{"train_head_seconds": 3, "fine_tune_seconds": 40}',
    }
    stages = {
        "train_head": stage("train_head", ["seed"], [], head_file),
        "fine_tune": stage("fine_tune", ["fine_tune.epochs"], [head_file], model_file),
    }
    lock = {
        "train_head": locked("train_head", {"seed": 1}, [], {"path": head_file, "md5": head}),
        "fine_tune": locked(
            "fine_tune", {"fine_tune.epochs": 2}, [{"path": head_file, "md5": "aa"}], {"path": model_file, "md5": "bb"}
        ),
    }
    files["dvc.yaml"] = yaml.safe_dump({"stages": stages}).encode()
    files["dvc.lock"] = yaml.safe_dump({"stages": lock}).encode()
    return {Path(name): content for name, content in files.items()}


@pytest.mark.parametrize(
    ("files", "val_loss", "seconds"),
    [
        (described(), 0.2, 43),
        (described(epochs=3), 0.5, 3),  # DVC leaves the metrics of a stage that did not run as they were
        (described(head="cc"), 0.5, 3),
        ({**described(), Path("metrics/fine_tune.json"): b'{"val_loss": 0.1, "val_accuracy": 1}'}, 0.5, 3),
    ],
)
def test_figures_that_do_not_belong_to_the_params_are_left_out(files, val_loss, seconds):
    found = leaderboard.entry("some-name", files.get, heads=False)
    assert (found.figures["val_loss"], found.figures["seconds"]) == (val_loss, seconds)
    assert "gate.max_drop" not in found.params
    assert leaderboard.entry("some-name", files.get, heads=True).figures["val_loss"] == 0.5


def test_without_a_head_there_is_nothing_to_rank():
    files = {**described(), Path("params.yaml"): b"seed: 2"}
    assert leaderboard.entry("some-name", files.get, heads=False).figures == {}

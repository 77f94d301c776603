"""Experiments as people run them: a sweep through DVC's queue, the leaderboard, sharing, another clone, the gate.

One project, whose tests go on from each other's state.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from conftest import Project, make_project
from mlflow import MlflowClient

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Iterator[Project]:
    """A fresh clone after a sweep of two heads by two workers at once: nothing is in any store before."""
    root = tmp_path_factory.mktemp("experiments")
    (root / "project").mkdir()
    project = make_project(root / "project")
    project.set(**{"fine_tune.unfreeze": "none"})  # nothing here is about it
    project.run("git init -q --bare ../origin.git && git remote add origin ../origin.git")
    project.run("dvc remote add -q --default store ../store && git commit -qam remote && git push -q origin HEAD")
    project.run("dvc exp run --queue -S 'train_head.hidden=[],[4]' train_head")
    project.run("dvc exp run --run-all --jobs 2")
    yield project
    project.run("dvc queue stop --kill", code=None)  # before the folder goes


def rows(project: Project, options: str = "") -> list[dict]:
    return json.loads(project.run(f"python -m headstart leaderboard --format json {options} 2>/dev/null"))


@pytest.fixture(scope="module")
def found(swept) -> list[dict]:
    """The leaderboard after the sweep."""
    return rows(swept)


def test_a_sweep_lands_in_one_store_of_mlflow(swept, found):
    swept.run("python -m headstart track")
    client = MlflowClient(f"sqlite:///{swept.root}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("headstart").experiment_id])
    parents = {run.info.run_id: run.info.run_name for run in runs if "headstart.key" in run.data.tags}
    stages = [
        (run.data.tags["mlflow.parentRunId"], run.info.run_name) for run in runs if run.info.run_id not in parents
    ]
    assert set(parents.values()) >= {row["experiment"] for row in found}
    assert sorted(stages) == sorted((parent, s) for parent in parents for s in ("prepare", "extract", "train_head"))


def test_two_workers_compute_features_once(swept, found):
    logs = [swept.run(f"dvc queue logs {row['experiment']}") for row in found]
    assert sorted(int(re.search(r"extract: (\d+) computed", log)[1]) for log in logs) == [0, 48]


def test_heads_are_ranked_before_anything_is_fine_tuned(swept, found):
    assert [row["rank"] for row in found] == [1, 2]
    assert {json.dumps(row["train_head.hidden"]) for row in found} == {"[]", "[4]"}
    assert {row["reached"] for row in found} == {"train_head"}
    assert found[0]["val_loss"] <= found[1]["val_loss"]
    assert "Without a head that belongs to their params and code" in swept.run("python -m headstart leaderboard")


def test_the_best_is_applied_and_completed(swept, found):
    best, other = (row["experiment"] for row in found)
    # DVC misses what later stages would have made, says so, and applies all else.
    assert "models/head.keras" not in swept.run(f"dvc exp apply {best}", code=None)
    output = swept.run("python -m headstart gate", code=1)
    assert "results in the workspace do not belong to its params" in output
    output = swept.run("dvc repro")
    assert output.count("Running stage") == 2, output  # the head is there: fine_tune and evaluate
    swept.run("git add -A && git commit -qm best")
    now = rows(swept, "--commits 2 --test")
    assert len(now) == 3
    done = next(row for row in now if row["reached"] == "evaluate")
    assert 0 <= done["accuracy_low"] <= done["accuracy"] <= done["accuracy_high"] <= 1
    assert done["latency_ms"] > 0 < done["model_mb"]
    heads = rows(swept, "--commits 2 --test --heads")
    assert [0 <= row["accuracy"] <= 1 for row in heads if row["experiment"] == done["experiment"]] == [True]
    swept.run(f"dvc exp branch {other} other")
    assert "other" in swept.run("git branch --list other")


def test_the_gate_measures_latency(swept):
    swept.run("sed -i 's/max_latency_ms:.*/max_latency_ms: 10000/' params.yaml")
    output = swept.run("python -m headstart gate")
    assert re.search(r"^ok +max_latency_ms +10000 +\d", output, re.MULTILINE), output
    swept.run("git checkout -q params.yaml")


def test_a_damaged_file_costs_its_entry_alone(swept, found):
    """In a commit and in the workspace; the test leaves all as it was."""
    metrics, params = swept.root / "metrics/train_head.json", swept.root / "params.yaml"
    good = metrics.read_text()
    metrics.write_text("<<<<<<< HEAD")
    lock = swept.root / "dvc.lock"
    lock.write_text("<<<<<<< HEAD")
    swept.run("git commit -qam damaged")
    metrics.write_text(good)
    params.write_text("<<<<<<< HEAD\na: [\n")
    output = swept.run("python -m headstart leaderboard --commits 3")
    branch = swept.run("git rev-parse --abbrev-ref HEAD").strip()
    assert f"leaderboard: left out: {branch}: dvc.lock: cannot be read" in output
    assert "leaderboard: left out: workspace: params.yaml cannot be read" in output
    assert found[1]["experiment"] in output
    swept.run("git reset -q --hard HEAD~1")
    assert "Error" not in swept.run("python -m headstart leaderboard | true")


def test_another_clone_runs_nothing(swept, found):
    swept.run("git push -q origin HEAD && dvc push -q --run-cache && dvc exp push -q origin --rev HEAD~1")
    clone = Project(swept.root.parent / "clone", swept.env)
    clone.env["KERAS_HOME"] = str(clone.root.parent / "keras")
    swept.run(f"git clone -q ../origin.git {clone.root}")
    clone.run("dvc pull -q")
    assert "Running stage" not in clone.run("dvc repro")
    assert clone.run("git status --porcelain") == ""
    # A mistake there: what came with Git alone is back too.
    params = clone.root / "params.yaml"
    params.write_text(params.read_text().replace("epochs: 3", "epochs: -3"))
    assert "train_head.epochs must be" in clone.run("dvc repro", code=255)
    assert clone.run("git status --porcelain") == " M params.yaml\n"
    clone.run("git checkout -q params.yaml")
    clone.run("dvc exp pull -q origin --rev HEAD~1")
    assert set(clone.run("dvc exp list --names-only --rev HEAD~1").split()) == {row["experiment"] for row in found}
    # The base of a pull request, out of the remote.
    assert "No evidence" in clone.run("python -m headstart review HEAD")
    assert re.search(r"^ok +max_drop", clone.run("python -m headstart gate HEAD"), re.MULTILINE)
    assert found[0]["experiment"] in clone.run("python -m headstart leaderboard --commits 2")
    assert "does not exist" in clone.run(f"python -m headstart compare {found[0]['experiment']}", code=1)

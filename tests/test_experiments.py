"""Experiments as people run them: a sweep through DVC's queue, the leaderboard, sharing, another clone, the gate.

One project, whose tests go on from each other's state.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import Project, make_project
from mlflow import MlflowClient

from headstart.errors import UserError
from headstart.evaluation import leaderboard
from headstart.evaluation.leaderboard import Entry


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Project:
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
    return json.loads(project.run(f"python -m headstart.evaluation.leaderboard --format json {options} 2>/dev/null"))


@pytest.fixture(scope="module")
def found(swept) -> list[dict]:
    """The leaderboard after the sweep."""
    return rows(swept)


def test_a_sweep_lands_in_one_store_of_mlflow(swept, found):
    client = MlflowClient(f"sqlite:///{swept.root}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("headstart").experiment_id])
    parents = {run.info.run_id: run.info.run_name for run in runs if "headstart.key" in run.data.tags}
    stages = [
        (run.data.tags["mlflow.parentRunId"], run.info.run_name) for run in runs if run.info.run_id not in parents
    ]
    assert set(parents.values()) == {row["experiment"] for row in found}
    assert sorted(stages) == sorted((parent, s) for parent in parents for s in ("prepare", "extract", "train_head"))


def test_what_two_want_at_once_is_computed_once(swept):
    commits = swept.run("git for-each-ref --format='%(objectname)' refs/exps").split()
    ledgers = [json.loads(swept.run(f"git show {commit}:metrics/extract.json")) for commit in commits]
    assert [ledger["images"] for ledger in ledgers] == [48, 48]
    assert sorted(ledger["computed"] for ledger in ledgers) == [0, 48]


def test_the_leaderboard_ranks_heads_before_anything_is_fine_tuned(swept, found):
    assert [row["rank"] for row in found] == [1, 2]
    assert {json.dumps(row["train_head.hidden"]) for row in found} == {"[]", "[4]"}
    assert {row["reached"] for row in found} == {"train_head"}
    assert found[0]["val_loss"] <= found[1]["val_loss"]
    assert "Without a head of these params and this code" in swept.run("python -m headstart.evaluation.leaderboard")


def test_the_best_is_applied_completed_and_kept(swept, found):
    best, other = (row["experiment"] for row in found)
    # DVC misses what later stages would have made, says so, and applies all else.
    assert "models/head.keras" not in swept.run(f"dvc exp apply {best}", code=None)
    assert "results in the workspace are not those of its params" in swept.run(
        "python -m headstart.evaluation.gate", code=1
    )
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


def test_a_damaged_file_costs_its_entry_alone(swept, found):
    """In a commit and in the workspace; the test leaves all as it was."""
    cost, params = swept.root / "metrics/cost.json", swept.root / "params.yaml"
    cost.write_text("<<<<<<< HEAD")
    swept.run("git commit -qam damaged")
    swept.run("git checkout -q HEAD~1 -- metrics")
    params.write_text("<<<<<<< HEAD\na: [\n")
    output = swept.run("python -m headstart.evaluation.leaderboard --commits 3")
    branch = swept.run("git rev-parse --abbrev-ref HEAD").strip()
    assert f"leaderboard: left out: {branch}: metrics/cost.json cannot be read" in output
    assert "leaderboard: left out: workspace: params.yaml cannot be read" in output
    assert found[1]["experiment"] in output
    swept.run("git reset -q --hard HEAD~1")
    assert "Error" not in swept.run("python -m headstart.evaluation.leaderboard | true")


def test_another_clone_runs_nothing(swept, found):
    swept.run("git push -q origin HEAD && dvc push -q --run-cache && dvc exp push -q origin --rev HEAD~1")
    clone = Project(swept.root.parent / "clone", swept.env)
    clone.env["KERAS_HOME"] = str(clone.root.parent / "keras")
    swept.run(f"git clone -q ../origin.git {clone.root}")
    clone.run("dvc pull -q")
    assert "Running stage" not in clone.run("dvc repro")
    clone.run("python -m headstart.tracking.commands")  # here nothing was computed: what it cost stays as Git has it
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
    assert "No evidence" in clone.run("python -m headstart.evaluation.review HEAD")
    assert re.search(r"^ok +max_drop", clone.run("python -m headstart.evaluation.gate HEAD"), re.MULTILINE)


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
    files["dvc.yaml"] = yaml.safe_dump({"stages": stages}, sort_keys=False).encode()
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


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("params.yaml", b"[1]"), ("params.yaml", b"a: ["), ("dvc.yaml", b"\xff"), ("dvc.lock", b"<<<<<<< HEAD"),
        ("dvc.lock", b"stages: [1]"), ("metrics/cost.json", b"<<<<<<< HEAD"), ("metrics/cost.json", b"[]"),
        ("metrics/extract.json", b"null"), ("metrics/extract.json", b"\xff"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_named_with_its_experiment(file, content):
    with pytest.raises(UserError, match=f"some-name: {file} cannot be read"):
        leaderboard.entry("some-name", {**described(), Path(file): content}.get, heads=False)


def test_what_is_no_number_is_no_figure():
    told = b'{"train_head_seconds": null, "fine_tune_seconds": "4", "latency_ms": NaN}'
    found = leaderboard.entry("some-name", {**described(), Path("metrics/cost.json"): told}.get, heads=False)
    assert (found.figures["val_loss"], found.figures["seconds"]) == (0.2, None)


def test_without_a_head_there_is_nothing_to_rank():
    files = {**described(), Path("params.yaml"): b"seed: 2"}
    assert leaderboard.entry("some-name", files.get, heads=False).figures == {}


def board(**figures: list[float]) -> list[Entry]:
    """Experiments a, b, ..., by the values of their figures."""
    return [
        Entry([name], {"seed": number, "gate": 1}, ["train_head"], dict(zip(figures, values, strict=True)), "data")
        for number, (name, values) in enumerate(zip("abc", zip(*figures.values(), strict=True), strict=False))
    ]


def test_the_order_is_that_of_val_and_never_of_test():
    entries = board(val_loss=[0.5, 0.3, 0.4], val_accuracy=[0.95, 0.8, 0.9], accuracy=[0.1, 0.2, 0.99],
                    accuracy_low=[0, 0.1, 0.9], accuracy_high=[0.2, 0.3, 1.0])  # fmt: skip
    assert list(leaderboard.ranked(entries, "val_loss").experiment) == ["b", "c", "a"]
    by_accuracy = leaderboard.ranked(entries, "val_accuracy")
    assert list(by_accuracy.experiment) == ["a", "c", "b"]
    header, lines = leaderboard.table(by_accuracy, test=False)
    assert header == ["", "experiment", "reached", "seed", "val log loss", "val accuracy"]
    assert "0.1000" not in lines[0]
    header, lines = leaderboard.table(by_accuracy, test=True)
    assert (header[-1], lines[0][-1]) == ("test accuracy (95 %)", "0.1000 (0.0000 to 0.2000)")


def test_runs_of_other_data_are_told():
    a, b = board(val_loss=[0.5, 0.3], val_accuracy=[0.9, 0.8])
    said = leaderboard.remarks([a, replace(b, data="other")], {"Failed": 1}, "val_loss", test=False)
    assert "Not all are of the same images and splits" in " ".join(said)
    assert "Not done: 1 failed." in said
    assert "same images" not in " ".join(leaderboard.remarks([a, b], {}, "val_loss", test=False))

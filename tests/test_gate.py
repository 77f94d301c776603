"""What the gate lets pass, and what not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import write_params

from headstart import paths
from headstart.config import load_params
from headstart.evaluation import gate
from headstart.tracking import records

RIGHT = 80  # of 100 test images, half of each of two classes


def write_run(right: int = RIGHT, latency_ms: float = 12.0, file: Path | None = None) -> None:
    """What evaluate leaves of a model that has the first `right` of 100 images right, or its predictions in `file`."""
    labels = np.where(np.arange(100) % 2 == 0, "cat", "7")
    other = np.where(labels == "cat", "7", "cat")
    predicted = np.where(np.arange(100) < right, labels, other)
    table = pd.DataFrame({"path": labels, "item_id": np.arange(100), "label": labels, "predicted": predicted})
    for name in ("7", "cat"):
        table[f"p_{name}"] = np.where(predicted == name, 0.9, 0.1)
    if file:
        table.to_csv(file, index=False)
        return
    for folder in ("metrics", "reports", "predictions"):
        Path(folder).mkdir(exist_ok=True)
    table.to_csv(paths.PREDICTIONS, index=False)
    recalls = {name: float((predicted == labels)[labels == name].mean()) for name in ("7", "cat")}
    rows = [
        {"class": name, "recall": recall, "recall_low": recall - 0.1, "recall_high": recall + 0.1, "support": 50}
        for name, recall in recalls.items()
    ]
    final = {"metrics": {"accuracy": {"value": right / 100}}, "classes": rows}
    paths.metrics("evaluate").write_text(json.dumps({"accuracy": right / 100, "model_mb": 9.5}))
    paths.report("evaluate").write_text(json.dumps({"final": final}))
    paths.COST.write_text(json.dumps({"latency_ms": latency_ms}))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command under those rules on those files: its exit code, what it printed, and the reasons."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(records, "reached", lambda params: ["evaluate"])
    write_run()

    def call(*argv: str, **rules: object) -> tuple[int, str, str]:
        write_params(Path("params.yaml"), **{f"gate.{name}": value for name, value in rules.items()})
        code = gate.main(list(argv))
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize(
    ("rule", "good", "bad", "reason"),
    [
        ("min_accuracy", 0.8, 0.81, "min_accuracy 0.81 is broken: 0.8"),
        ("min_recall", 0.8, 0.9, "min_recall 0.9 is broken: 7 0.8000 (50 images, 95 % interval 0.7000 to 0.9000); cat"),
        ("min_recall_of", {7: 0.8}, {7: 0.85}, "min_recall_of.7 0.85 is broken: 7 0.8000 (50 images"),
        ("max_latency_ms", 12, 11.9, "max_latency_ms 11.9 is broken: 12"),
        ("max_model_mb", 9.5, 9, "max_model_mb 9 is broken: 9.5"),
    ],
)
def test_each_rule_holds_or_is_broken(run, rule, good, bad, reason):
    code, said, reasons = run(**{rule: good})
    assert (code, reasons) == (0, "")
    assert f"ok          {rule}" in said
    code, said, reasons = run(**{rule: bad})
    assert code == 1
    assert f"BROKEN      {rule}" in said
    assert reasons.startswith(f"gate: {reason}")
    assert reasons.count("gate:") == 1


@pytest.mark.parametrize(
    ("right", "most", "code"),
    [
        (RIGHT, 0, 0),
        (RIGHT + 3, 0, 0),  # worse by three images: chance
        (RIGHT + 15, 0, 1),  # surely worse
        (RIGHT + 15, 0.14, 1),
        (RIGHT + 15, 0.15, 0),  # surely worse, but by no more than that
        (RIGHT + 15, None, 0),
        (RIGHT - 15, 0, 0),
    ],
)
def test_a_drop_is_one_that_is_real_and_larger_than_is_allowed(run, right, most, code):
    write_run(right, file=Path("base.csv"))
    found, said, reasons = run("base.csv", max_drop=most)
    assert found == code
    assert ("workspace is worse than base.csv" in reasons) == bool(code)
    assert "BROKEN" in said or not code


@pytest.mark.parametrize(
    ("gone", "rules"),
    [
        (paths.metrics("evaluate"), {"min_accuracy": 0}),
        (paths.metrics("evaluate"), {"max_model_mb": 100}),
        (paths.report("evaluate"), {"min_recall": 0}),
        (paths.report("evaluate"), {"min_recall_of": {"cat": 0}}),
        (paths.COST, {"max_latency_ms": 100}),
        (paths.PREDICTIONS, {"max_drop": 1}),
        (Path("base.csv"), {"max_drop": 1}),
    ],
)
def test_a_figure_that_is_missing_breaks_the_rule_that_needs_it(run, gone, rules):
    write_run(file=Path("base.csv"))
    assert run("base.csv", **rules)[0] == 0
    gone.unlink()
    code, _, reasons = run("base.csv", **rules)
    assert code == 1
    assert "is broken: missing" in reasons
    assert gone.name in reasons
    assert "Traceback" not in reasons


def test_without_another_run_and_without_rules_there_is_nothing_to_break(run):
    code, said, _ = run()
    assert code == 0
    assert "not judged  max_drop        0  no BASE is given" in said
    assert said.count("not asked") == 4


def test_a_class_that_is_not_there_is_told(run):
    code, _, reasons = run(min_recall_of={"cats": 0.5})
    assert code == 1
    assert reasons == "gate: params.yaml: gate.min_recall_of.cats: there is no such class; did you mean 'cat'?\n"


def test_a_class_with_a_floor_of_its_own_is_spared_the_general_one(run):
    assert run(min_recall=0.9, min_recall_of={"cat": 0.1, "7": 0.1})[0] == 0


def test_figures_of_two_runs_are_not_mixed(run):
    paths.metrics("evaluate").write_text(json.dumps({"accuracy": 0.99}))
    code, _, reasons = run(min_accuracy=0.9)
    assert code == 1
    assert "metrics/evaluate.json and reports/evaluation.json are of two runs; run `dvc checkout`" in reasons


def test_results_of_other_params_are_not_judged(run, monkeypatch):
    monkeypatch.setattr(records, "reached", lambda params: ["prepare", "extract", "train_head"])
    code, said, reasons = run()
    assert (code, said) == (1, "")
    assert reasons == "gate: the results in the workspace are not those of its params and code; run `dvc repro`\n"


def test_other_rules_make_no_other_experiment(run, monkeypatch):
    monkeypatch.setattr(records, "PIPELINE", Path("pipeline.yaml"))
    Path("pipeline.yaml").write_text("stages: {evaluate: {deps: [], params: [seed]}}")
    monkeypatch.setattr(paths, "MANIFEST", Path("params.lock"))
    Path("params.lock").write_text("")

    def begun(**rules: object) -> records.Record:
        run(**rules)
        return records.begin(load_params().leaves(), "evaluate")

    strict, lax = begun(min_accuracy=0.9), begun()
    assert strict.key == lax.key
    assert strict.experiment_params == lax.experiment_params
    assert "seed" in lax.experiment_params


def test_a_drop_of_exactly_what_is_allowed_holds():
    """0.98 - 0.96 is a little more than 0.02 in floating point."""
    accuracy = {
        "metric": "accuracy",
        "base": 0.98,
        "head": 0.96,
        "difference": 0.96 - 0.98,
        "low": -0.03,
        "high": -0.01,
    }
    found = {"verdict": "worse", "base": "a", "head": "b", "metrics": [accuracy], "images": {"compared": 300},
             "mended": 0, "broken": 6, "p": 0.03}  # fmt: skip
    assert gate._drop(0.02, lambda: found).verdict == gate.OK
    assert gate._drop(0.0199, lambda: found).verdict == gate.BROKEN

"""What the gate lets pass, and what it does not."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, write_params

from headstart import paths
from headstart.config import load_params
from headstart.errors import UserError
from headstart.evaluation.gate import FAILED, OK, Figures, gate, judge
from headstart.evaluation.results import load_results

CORRECT = 80  # of 100 test examples, half of each of two classes


def write_run(correct: int = CORRECT, file: Path | None = None, examples: int = 100) -> None:
    """Write what evaluate leaves of a model that is right on the first `correct` of its test examples.

    Args:
        file: where to write its predictions alone.
    """
    labels = np.where(np.arange(examples) % 2 == 0, "cat", "7")
    other = np.where(labels == "cat", "7", "cat")
    predicted = np.where(np.arange(examples) < correct, labels, other)
    table = pd.DataFrame({"path": labels, "item_id": np.arange(examples), "label": labels, "predicted": predicted})
    for name in ("7", "cat"):
        table[f"p_{name}"] = np.where(predicted == name, 0.9, 0.1)
    if file:
        table.to_csv(file, index=False)
        return
    for folder in ("metrics", "reports", "predictions", "models"):
        Path(folder).mkdir(exist_ok=True)
    table.to_csv(paths.PREDICTIONS, index=False)
    recalls = {name: float((predicted == labels)[labels == name].mean()) for name in ("7", "cat")}
    rows = [
        {"class": name, "recall": recall, "recall_low": recall - 0.1, "recall_high": recall + 0.1, "support": 50}
        for name, recall in recalls.items()
    ]
    final = {"metrics": {"accuracy": {"value": correct / 100 + 1e-9}}, "classes": rows}  # metrics are rounded
    paths.metrics("evaluate").write_text(json.dumps({"accuracy": correct / 100}))
    paths.report("evaluate").write_text(json.dumps({"final": final, "model_mb": 9.5}))
    paths.MODEL.write_text("")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the gate with those rules on those files: its exit code, what it printed, and the reasons."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("headstart.evaluation.gate.up_to_date_stages", lambda *_: ["evaluate"])
    monkeypatch.setattr("headstart.evaluation.shipped_model.latency_ms", lambda model: 12.0)
    write_run()

    def call(base: str | None = None, **rules: object) -> tuple[int, str, str]:
        write_params(Path("params.yaml"), **{f"gate.{name}": value for name, value in rules.items()})
        code = gate(base)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def model(monkeypatch):
    """A model of which only the latency is asked."""
    monkeypatch.setattr("headstart.training.networks.load_classifier", lambda file: None)


@pytest.mark.parametrize(
    ("rule", "good", "bad", "reason"),
    [
        ("min_accuracy", 0.8, 0.81, "min_accuracy 0.81 failed: 0.8"),
        ("min_recall", 0.8, 0.9,
         "min_recall 0.9 failed: 7 0.8000 (50 examples, 95 % interval 0.7000 to 0.9000); cat"),
        ("min_recall_of", {7: 0.8}, {7: 0.85}, "min_recall_of.7 0.85 failed: 7 0.8000 (50 examples"),
        ("max_latency_ms", 12, 11.9, "max_latency_ms 11.9 failed: 12"),
        ("max_model_mb", 9.5, 9, "max_model_mb 9 failed: 9.5"),
    ],
)  # fmt: skip
def test_each_rule_holds_or_is_broken(run, model, rule, good, bad, reason):
    code, said, reasons = run(**{rule: good})
    assert (code, reasons) == (0, "")
    assert f"ok       {rule}" in said
    code, said, reasons = run(**{rule: bad})
    assert code == 1
    assert f"FAILED   {rule}" in said
    assert reasons.startswith(f"gate: {reason}")
    assert reasons.count("gate:") == 1


@pytest.mark.parametrize(
    ("correct", "bound", "code"),
    [
        (CORRECT, 0, 0),
        (CORRECT + 3, 0, 0),  # worse by three examples: chance
        (CORRECT + 15, 0, 1),  # surely worse
        (CORRECT + 15, 0.14, 1),
        (CORRECT + 15, 0.15, 0),  # surely worse, but by no more than that
        (CORRECT + 15, None, 0),
        (CORRECT - 15, 0, 0),
    ],
)
def test_only_a_drop_that_is_real_and_too_large_breaks_the_rule(run, correct, bound, code):
    write_run(correct, Path("base.csv"))
    found, said, reasons = run("base.csv", max_drop=bound)
    assert found == code
    assert ("workspace is worse than base.csv" in reasons) == bool(code)
    assert "FAILED" in said or not code


@pytest.mark.parametrize(
    ("gone", "rules"),
    [
        (paths.metrics("evaluate"), {"min_accuracy": 0}),
        (paths.report("evaluate"), {"max_model_mb": 100}),
        (paths.report("evaluate"), {"min_recall": 0}),
        (paths.report("evaluate"), {"min_recall_of": {"cat": 0}}),
        (paths.PREDICTIONS, {"max_drop": 1}),
        (Path("base.csv"), {"max_drop": 1}),
    ],
)
def test_a_missing_figure_fails_the_rule_that_needs_it(run, gone, rules):
    write_run(file=Path("base.csv"))
    assert run("base.csv", **rules)[0] == 0
    gone.unlink()
    code, said, reasons = run("base.csv", **rules)
    assert code == 1
    assert "UNKNOWN" in said
    assert "cannot be checked: " in reasons
    assert gone.name in reasons


def test_without_a_model_there_is_no_latency(run):
    paths.MODEL.unlink()
    assert run()[0] == 0
    code, _, reasons = run(max_latency_ms=100)
    assert code == 1
    assert "gate: max_latency_ms cannot be checked: models/model.keras does not exist" in reasons


def test_without_base_and_rules_nothing_is_broken(run):
    code, said, _ = run()
    assert code == 0
    for rule, bound in (("max_drop", "0"), ("allow_class_changes", "false")):
        assert re.search(rf"^skipped  {rule} +{bound} +there is no BASE to compare with$", said, re.MULTILINE)
    assert said.count("not set") == 4


def test_an_unknown_class_is_refused(run):
    with pytest.raises(UserError, match=r"^params.yaml: gate.min_recall_of.cats: there is no such class; did you mean"):
        run(min_recall_of={"cats": 0.5})


def test_a_class_with_its_own_bound_is_exempt_from_the_general_one(run):
    assert run(min_recall=0.9, min_recall_of={"cat": 0.1, "7": 0.1})[0] == 0


def test_figures_of_two_runs_are_not_mixed(run):
    paths.metrics("evaluate").write_text(json.dumps({"accuracy": 0.99}))
    with pytest.raises(
        UserError, match=r"metrics/evaluate.json and reports/evaluate.json come from two runs; run `dvc"
    ):
        run(min_accuracy=0.9)


@pytest.mark.parametrize("spoil", [
    lambda final: final.update(classes=5),
    lambda final: final["classes"][0].pop("recall_low"),
    lambda final: final["classes"][0].update(recall="high"),
    lambda final: final.update(classes=None),
])  # fmt: skip
def test_a_damaged_report_is_named(run, spoil):
    report = json.loads(paths.report("evaluate").read_text())
    spoil(report["final"])
    paths.report("evaluate").write_text(json.dumps(report))
    with pytest.raises(UserError, match=r"^reports/evaluate\.json is not what its stage writes .*or run `dvc repro`"):
        run()


def test_predictions_that_were_changed_are_not_compared(run):
    write_run(file=Path("base.csv"))
    lock = {"outs": [{"path": str(paths.PREDICTIONS), "md5": hashlib.md5(paths.PREDICTIONS.read_bytes()).hexdigest()}]}
    Path("dvc.lock").write_text(json.dumps({"stages": {"evaluate": lock}}))
    assert run("base.csv", max_drop=0)[0] == 0
    write_run(CORRECT + 1, paths.PREDICTIONS)
    code, _, reasons = run("base.csv", max_drop=0)
    assert code == 1
    problem = "max_drop cannot be checked: predictions/test.csv in the workspace is not the file that dvc.lock records"
    assert f"{problem}; run `dvc checkout predictions/test.csv` for that one, or `dvc repro`" in reasons


@pytest.mark.parametrize("file", [paths.report("evaluate"), paths.MODEL])
def test_results_that_dvc_lock_does_not_record_are_not_judged(run, file):
    out = {"path": file.as_posix(), "md5": hashlib.md5(file.read_bytes()).hexdigest()}
    Path("dvc.lock").write_text(json.dumps({"stages": {"evaluate": {"outs": [out]}}}))
    run()
    Path("dvc.lock").write_text(json.dumps({"stages": {"evaluate": {"outs": [{**out, "md5": "0" * 32}]}}}))
    with pytest.raises(
        UserError, match=rf"^{file} is not the file that dvc\.lock records; run `dvc checkout`, or `dvc"
    ):
        run()


def test_results_of_other_params_are_not_judged(run, monkeypatch):
    monkeypatch.setattr("headstart.evaluation.gate.up_to_date_stages", lambda *_: ["prepare", "extract", "train_head"])
    with pytest.raises(UserError, match=r"^the results in the workspace do not belong to its params and code; run"):
        run()


@pytest.mark.parametrize(("bound", "status"), [(0.02, OK), (0.0199, FAILED)])
def test_a_drop_of_exactly_the_bound_holds(run, bound, status):
    """0.98 - 0.96 is a little more than 0.02 in floating point."""
    results = []
    for correct in (294, 288):
        write_run(correct, Path("run.csv"), examples=300)
        results.append(load_results("run.csv"))
    rules = load_params(ROOT / "params.yaml").gate.model_copy(update={"max_drop": bound})
    verdicts = judge(rules, Figures(0.96, 9.5, {}), lambda: (results[0], results[1]))
    assert {row.rule: row.status for row in verdicts}["max_drop"] == status


def write_base(file: str, correct: int = CORRECT, **names: str) -> None:
    """Write predictions as `write_run`, but of classes of other names, and of 50 owls if there is such a class."""
    write_run(correct, Path(file))
    table = pd.read_csv(file, dtype=str)
    if "owl" in names:
        table = table.assign(p_owl="0.0")
        owls = table.head(50).assign(
            item_id=[f"o{n}" for n in range(50)], label="owl", predicted="owl", p_7="0.0", p_cat="0.0", p_owl="1.0"
        )
        table = pd.concat([table, owls])
    renamed = table.rename(columns={f"p_{name}": f"p_{new}" for name, new in names.items()})
    renamed.assign(label=table.label.replace(names), predicted=table.predicted.replace(names)).to_csv(file, index=False)


CHANGES = [
    ({"owl": "owl"}, "removed: owl"),
    ({"cat": "feline"}, "renamed: feline -> cat (50 examples)"),
    ({"cat": "7", "7": "cat"}, "renamed: 7 -> cat (50 examples), cat -> 7 (50 examples)"),
]


@pytest.mark.parametrize(("names", "listed"), CHANGES)
@pytest.mark.parametrize("max_drop", [None, 0])
def test_other_classes_fail_unless_they_are_allowed(run, names, listed, max_drop):
    write_base("base.csv", **names)
    code, said, reasons = run("base.csv", max_drop=max_drop)
    why = f"the classes are not those of base.csv: {listed}; if that is meant, set gate.allow_class_changes: true"
    assert (code, reasons) == (1, f"gate: allow_class_changes false failed: {why}\n")
    assert re.search(rf"^FAILED   allow_class_changes  false  {re.escape(why)}$", said, re.MULTILINE)
    code, said, reasons = run("base.csv", max_drop=max_drop, allow_class_changes=True)
    assert (code, reasons) == (0, "")
    assert f"ok       allow_class_changes  true  the classes are not those of base.csv: {listed}\n" in said


def test_added_classes_fail_too_and_the_same_ones_pass(run):
    write_base("more.csv", owl="owl")
    write_run(file=Path("base.csv"))
    assert run("base.csv")[0] == 0
    Path("more.csv").replace(paths.PREDICTIONS)
    code, _, reasons = run("base.csv", max_drop=None)
    assert code == 1
    assert "the classes are not those of base.csv: added: owl; if" in reasons


def test_a_drop_is_judged_on_the_classes_that_both_know(run):
    """All 50 owls of base are right, which are gone; among the others it has 15 more, or 15 fewer."""
    for correct, code in ((CORRECT + 15, 1), (CORRECT - 15, 0)):
        write_base("base.csv", correct, owl="owl")
        found, said, _ = run("base.csv", max_drop=0, allow_class_changes=True)
        assert found == code
        assert f"on 100 test examples of the 2 classes that both know; {0 if code else 15} fixed" in said


def test_classes_that_cannot_be_compared_fail_unless_changes_are_allowed(run):
    code, _, reasons = run("base.csv", max_drop=None)
    assert code == 1
    assert reasons.startswith("gate: allow_class_changes cannot be checked: base.csv: No such file")
    code, said, reasons = run("base.csv", max_drop=None, allow_class_changes=True)
    assert (code, reasons) == (0, "")
    assert "skipped  allow_class_changes  true  base.csv: No such file" in said


def test_no_name_of_a_class_can_add_a_line(run):
    """Else it could pass for a verdict, or end the block of code that CI shows."""
    evil = "x\n```\r<img>\x1b[2J\nok       min_recall"
    report = json.loads(paths.report("evaluate").read_text())
    report["final"]["classes"][0]["class"] = evil
    paths.report("evaluate").write_text(json.dumps(report))
    write_base("base.csv", owl=evil)
    code, said, reasons = run("base.csv", min_recall=0.9, min_recall_of={evil: 0.99})
    assert code == 1
    rules = ("min_accuracy", "min_recall", "min_recall_of", "max_drop", "allow_class", "max_latency", "max_model")
    for line, rule in zip(said.splitlines(), rules, strict=True):
        assert re.match(f"(ok|FAILED|not set) +{rule}", line)
    assert all(line.startswith("gate: ") for line in reasons.splitlines())
    assert all(character.isprintable() or character == "\n" for character in said + reasons)

"""Comparisons of two runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import Project, write_params

from headstart import costs
from headstart.config import load_params
from headstart.errors import UserError
from headstart.evaluation.compare import compare, compare_results, pair_results
from headstart.evaluation.formatting import comparison_as_markdown, comparison_as_text, escape_markdown
from headstart.evaluation.metrics import Predictions, bootstrap_interval
from headstart.evaluation.results import flatten, load_results, parse_figures, parse_params


def table(
    count: int, wrong: range = range(0), first: int = 0, classes: tuple[str, ...] = ("cat", "dog")
) -> pd.DataFrame:
    """Predictions of images `first` to `first + count`, of each class in turns; those numbered in `wrong` are wrong."""
    numbers = np.arange(first, first + count)
    labels = np.array(classes)[numbers % len(classes)]
    predicted = np.where(np.isin(numbers, wrong), np.array(classes)[(numbers + 1) % len(classes)], labels)
    rows = pd.DataFrame({"path": [f"{n}.png" for n in numbers], "item_id": [f"id{n}" for n in numbers]})
    rows = rows.assign(label=labels, predicted=predicted)
    return rows.assign(**{f"p_{name}": np.where(predicted == name, 0.8, 0.2 / (len(classes) - 1)) for name in classes})


def write(file: Path, rows: pd.DataFrame) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows.to_csv(file, index=False)
    return str(file)


def compare_tables(tmp_path: Path, base: pd.DataFrame, head: pd.DataFrame) -> dict:
    runs = (load_results(write(tmp_path / f"{name}.csv", rows)) for name, rows in (("base", base), ("head", head)))
    return compare_results(*runs)


def test_changed_predictions_are_listed(tmp_path):
    comparison = compare_tables(tmp_path, table(100, range(10)), table(100, range(2)))
    assert comparison["verdict"] == "better"
    assert (comparison["fixed"], comparison["regressed"]) == (8, 0)
    assert [row["path"] for row in comparison["changed_predictions"]] == [f"{n}.png" for n in range(2, 10)]
    accuracy = comparison["metrics"][0]
    assert (accuracy["metric"], accuracy["base"], accuracy["head"]) == ("accuracy", 0.9, 0.98)
    assert {row["class"]: row["fixed"] for row in comparison["classes"]} == {"cat": 4, "dog": 4}


def test_metrics_are_those_of_evaluate(tmp_path):
    rows = table(90, range(7), classes=("cat", "dog", "owl"))
    base, head = rows, table(90, range(2), classes=("cat", "dog", "owl"))
    targets = rows.label.map({"cat": 0, "dog": 1, "owl": 2}).to_numpy()
    alone = Predictions(targets, rows[["p_cat", "p_dog", "p_owl"]].to_numpy(), 3).metrics()
    found = {row["metric"]: row["base"] for row in compare_tables(tmp_path, base, head)["metrics"]}
    assert found == pytest.approx(alone)


def test_different_test_sets_are_compared_on_shared_examples(tmp_path):
    base, head = table(60, range(6)), table(60, range(6), first=20)
    head.loc[head.item_id == "id30", "label"] = "dog"
    comparison = compare_tables(tmp_path, base, head)
    assert comparison["examples"] == {"compared": 39, "only_base": 20, "only_head": 20, "relabelled": 1}
    text = comparison_as_text(comparison)
    assert "The test sets differ: 20 examples only in" in text
    assert "1 examples have different labels" in text


def rename(rows: pd.DataFrame, **names: str) -> pd.DataFrame:
    """The predictions with other names of classes."""
    renamed = rows.rename(columns={f"p_{name}": f"p_{new}" for name, new in names.items()})
    return renamed.assign(label=rows.label.replace(names), predicted=rows.predicted.replace(names))


def test_classes_that_both_know_are_compared_as_if_there_were_no_others(tmp_path):
    """The first 9 answers of base are owl in place of cat; among cat and dog it is right on 6 of these."""
    base, head = table(60, classes=("cat", "dog", "owl")), table(60, classes=("cat", "dog"))
    head = head.assign(label=base.label, predicted=base.label, p_cat=base.p_cat, p_dog=1 - base.p_cat)[
        base.label != "owl"
    ]
    cats = base.index[base.label == "cat"][:9]
    base.loc[cats, ["predicted", "p_cat", "p_dog", "p_owl"]] = ["owl", 0.3, 0.1, 0.6]
    base.loc[cats[6:], ["p_cat", "p_dog"]] = [0.1, 0.3]
    comparison = compare_tables(tmp_path, base, head)
    assert comparison["class_changes"] == [{"change": "removed", "base": ["owl"], "head": [], "examples": 0}]
    assert comparison["examples"]["compared"] == 40
    assert comparison["classes_left_out"] == {"owl": 20}
    assert comparison["answers_left_out"] == {"base": 9, "head": 0}
    assert comparison["metrics"][0]["base"] == pytest.approx(37 / 40)
    assert (comparison["fixed"], comparison["verdict"]) == (3, "no evidence")
    assert {row["base"] for row in comparison["changed_predictions"]} == {"dog"}
    said = comparison_as_text(comparison)
    assert "on 40 test examples of the 2 classes that both know; 3 fixed, 0 regressed" in said
    assert "\nThe classes differ: removed: owl.\nCompared are 40 examples of the 2 classes that both know" in said
    assert re.search(r"\(9 answers of \S+ and 0 answers of \S+ were others\); left out: 20 of owl\.", said)


def test_who_knows_fewer_classes_gets_no_advantage(tmp_path):
    """The same network, asked for two classes of five: whatever it took for another class no longer counts."""
    classes = ("a", "b", "c", "d", "e")
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(5), 500)
    many = table(500, classes=classes)
    many[[f"p_{name}" for name in classes]] = probabilities
    many["predicted"] = np.array(classes)[probabilities.argmax(axis=1)]
    few = many[many.label.isin(["a", "b"])].drop(columns=["p_c", "p_d", "p_e"])
    few[["p_a", "p_b"]] = few[["p_a", "p_b"]].div(few[["p_a", "p_b"]].sum(axis=1), axis=0)
    few["predicted"] = np.where(few.p_a > few.p_b, "a", "b")
    for pair in ((many, few), (few, many)):
        comparison = compare_tables(tmp_path, *pair)
        assert (comparison["fixed"], comparison["regressed"], comparison["verdict"]) == (0, 0, "no evidence")
        assert [row["difference"] for row in comparison["metrics"]] == pytest.approx([0] * len(comparison["metrics"]))


def test_without_any_probability_for_a_common_class_the_answer_is_wrong(tmp_path):
    base, head = table(60, classes=("cat", "dog", "owl")), table(60, classes=("cat", "dog"))
    base.loc[base.label == "cat", ["predicted", "p_cat", "p_dog", "p_owl"]] = ["owl", 0, 0, 1]
    head = head.assign(label=base.label, predicted="cat", p_cat=0.9, p_dog=0.1)[base.label != "owl"]
    comparison = compare_tables(tmp_path, base, head)
    assert {row["class"]: (row["base"], row["head"]) for row in comparison["classes"]} == {"cat": (0, 1), "dog": (1, 0)}
    assert {row["base"] for row in comparison["changed_predictions"]} == {"owl", "dog"}
    assert all(np.isfinite(row["base"]) for row in comparison["metrics"])


def test_renamed_classes_are_compared_under_their_new_names(tmp_path):
    base, head = table(60, range(6)), rename(table(60, range(3)), cat="feline", dog="canine")
    comparison = compare_tables(tmp_path, base, head)
    same = compare_tables(tmp_path, base, table(60, range(3)))
    assert comparison["metrics"] == same["metrics"]
    assert (comparison["fixed"], comparison["examples"], comparison["classes_left_out"]) == (3, same["examples"], {})
    assert {row["class"] for row in comparison["classes"]} == {"feline", "canine"}
    assert comparison["changed_predictions"][0] == {
        "item_id": "id3", "path": "3.png", "label": "canine", "base": "feline", "head": "canine", "fixed": True,
    }  # fmt: skip
    said = comparison_as_text(comparison)
    assert "The classes differ: renamed: cat -> feline (30 examples), dog -> canine (30 examples)." in said
    assert "Renamed classes are compared under their new names." in said
    assert "both know" not in said


def test_two_classes_that_swap_their_names(tmp_path):
    comparison = compare_tables(tmp_path, table(60), rename(table(60, range(3)), cat="dog", dog="cat"))
    assert [(row["change"], row["base"], row["head"]) for row in comparison["class_changes"]] == [
        ("renamed", ["cat"], ["dog"]), ("renamed", ["dog"], ["cat"]),
    ]  # fmt: skip
    assert (comparison["regressed"], comparison["metrics"][0]["head"]) == (3, pytest.approx(57 / 60))


@pytest.mark.parametrize(
    ("base_names", "head_names", "change"),
    [
        ({}, {"owl": "cat"}, "merged: cat, owl -> cat (40 examples)"),
        ({"owl": "cat"}, {}, "split: cat -> cat, owl (40 examples)"),
    ],
)
def test_split_and_merged_classes_are_left_out(tmp_path, base_names, head_names, change):
    four = table(80, classes=("cat", "dog", "emu", "owl"))
    base, head = four, four
    for names, side in ((base_names, "base"), (head_names, "head")):
        if names:
            less = four.assign(p_cat=four.p_cat + four.p_owl).drop(columns="p_owl")
            less = less.assign(label=less.label.replace(names), predicted=less.predicted.replace(names))
            base, head = (less, head) if side == "base" else (base, less)
    comparison = compare_tables(tmp_path, base, head)
    assert f"The classes differ: {change}." in comparison_as_text(comparison)
    assert comparison["examples"]["compared"] == 40
    assert sum(comparison["classes_left_out"].values()) == 40
    assert comparison["classes_compared"] == 2


def test_the_same_classes_in_another_order_are_no_change(tmp_path):
    base, head = table(60, range(6)), table(60, range(3))
    reordered = head[["path", "item_id", "label", "predicted", "p_dog", "p_cat"]]
    assert compare_tables(tmp_path, base, reordered) == compare_tables(tmp_path, base, head)
    assert compare_tables(tmp_path, base, reordered)["class_changes"] == []


def test_few_shared_examples_are_counted_and_warned_of(tmp_path):
    said = comparison_as_text(compare_tables(tmp_path, table(60), table(60, first=40)))
    assert "The test sets differ: 40 examples only in" in said
    assert "Only 20 examples are compared: McNemar's test sees no difference unless at least 6 of them" in said
    assert "Only" not in comparison_as_text(compare_tables(tmp_path, table(140), table(140, first=40)))


def test_names_of_classes_stay_on_their_line(tmp_path):
    base = table(60, classes=("cat", "dog", "x\nok  ```<img>"))
    head = table(60).assign(label=base.label)[base.label.isin(["cat", "dog"])]
    comparison = compare_tables(tmp_path, base, head)
    said = comparison_as_text(comparison)
    assert "removed: 'x\\nok  ```<img>'." in said
    assert "left out: 20 of 'x\\nok  ```<img>'." in said
    assert "\nok" not in said
    made = comparison_as_markdown(comparison)
    assert r"removed: 'x\\nok \`\`\`&#60;img&#62;'." in made
    assert "\nok" not in made


def test_the_predicted_class_counts_if_rounded_probabilities_are_equal(tmp_path):
    rows = table(40)
    rows[["p_cat", "p_dog"]] = 0.5
    assert compare_tables(tmp_path, rows, rows)["metrics"][0]["base"] == 1


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("macro_f1", "macro_f1"), ("[256]", "[256]"), ("_a_ __b__", r"\_a\_ \_\_b\_\_"), ("[a](b)", r"[a\](b)"),
        ("`a` *b* #1", r"\`a\` \*b\* \#1"), ("<b>@a|", "&#60;b&#62;&#64;a&#124;"),
    ],
)  # fmt: skip
def test_only_what_markdown_would_interpret_is_escaped(name, shown):
    assert escape_markdown(name) == shown
    assert escape_markdown(f"run `dvc repro`: {name}", keep_code=True).startswith("run `dvc repro`: ")


def test_names_of_runs_are_escaped(tmp_path):
    runs = [load_results(write(tmp_path / f"{name}*<img>.csv", table(40))) for name in "ab"]
    made = comparison_as_markdown(compare_results(*runs))
    assert "<img" not in made
    assert r"a\*&#60;img" in made


@pytest.mark.parametrize("content", [b"<<<<<<< HEAD\n{}", b"[]", b"\xff", b'{"loss": NaN}', b"[" * 100_000])
def test_figures_that_git_could_not_merge_are_refused(content):
    with pytest.raises(UserError, match=r"^other: metrics/evaluate\.json (is not JSON|does not hold figures)"):
        parse_figures(content, "other: metrics/evaluate.json")


def test_markdown_shows_names_as_they_are(tmp_path):
    base, head = (table(40, wrong, classes=("<img src=x>", "a|b*c")) for wrong in (range(1), range(1, 2)))
    base["path"] = head["path"] = base.path + "</details>"
    made = comparison_as_markdown(compare_tables(tmp_path, base, head))
    assert "<img" not in made
    assert "a&#124;b\\*c" in made
    assert "\\_" not in made  # macro_f1 needs no escape
    assert made.count("</details>") == made.count("<details>") == 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows.drop(columns="label"), "label"),
        (lambda rows: rows.drop(columns=["p_cat", "p_dog"]), "at least two classes"),
        (lambda rows: pd.concat([rows, rows]), "an item_id is there twice"),
        (lambda rows: rows.assign(p_cat="much"), "could not convert"),
        (lambda rows: rows.assign(label="bird"), "no column of probabilities"),
        (lambda rows: rows.assign(predicted="bird"), "a predicted has no column of probabilities"),
        (lambda rows: rows.assign(p_cat=0.0, p_dog=0.0), "does not sum to 1"),
        (lambda rows: rows.assign(p_cat=-0.5, p_dog=1.5), "below 0"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, spoil, message):
    good, bad = write(tmp_path / "good.csv", table(9)), write(tmp_path / "bad.csv", spoil(table(9)))
    with pytest.raises(UserError, match=f"bad.csv: not predictions: .*{message}"):
        compare(good, bad)
    with pytest.raises(UserError, match=r"none\.csv: No such file"):
        compare(good, str(tmp_path / "none.csv"))


def test_runs_must_share_examples(tmp_path):
    runs = (load_results(write(tmp_path / f"{first}.csv", table(9, first=first))) for first in (0, 100))
    with pytest.raises(UserError, match="do not have two examples and two classes in common: they share 0 examples"):
        pair_results(*runs)


STAGE = {
    "cmd": "true",
    "params": ["train_head", "evaluate"],
    "outs": ["predictions/test.csv", "reports/evaluate.json"],
    "deps": ["pipeline/evaluate.py"],
}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch) -> Project:
    """Two commits, whose predictions DVC has in its cache, with their costs; the workspace is a third state."""
    root = tmp_path / "repository"
    root.mkdir()
    project = Project(root)
    project.run("git init -q && dvc init -q")
    for folder in ("predictions", "reports", "pipeline"):
        (root / folder).mkdir()
    (root / "pipeline/evaluate.py").write_text("")
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"evaluate": STAGE}}))

    def write_state(wrong: range, hidden: list[int], model_mb: float) -> None:
        write(root / "predictions" / "test.csv", table(100, wrong))
        params = {"seed": 7, "train_head": {"hidden": hidden}, "evaluate": {"top_k": 3, "resamples": 200}}
        (root / "params.yaml").write_text(yaml.safe_dump(params))
        (root / "reports/evaluate.json").write_text(json.dumps({"model_mb": model_mb}))

    for number, (wrong, hidden) in enumerate([(range(10), [128]), (range(2), [256])], 1):
        write_state(wrong, hidden, 10.0 * number)
        project.run("dvc commit -q -f && git add -A && git commit -qm state")
        md5 = yaml.safe_load((root / "dvc.lock").read_text())["stages"]["evaluate"]["outs"][0]["md5"]
        monkeypatch.setenv("DVC_ROOT", str(root))
        costs.write("evaluate", {"latency_ms": 5.0 * number, "seconds_saved": 3}, md5)
    write_state(range(30), [8], 5.0)
    monkeypatch.chdir(root)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return project


def test_revisions_and_the_workspace(repository, capsys):
    compare("HEAD~1", "HEAD", "json")
    comparison = json.loads(capsys.readouterr().out)
    assert comparison["verdict"] == "better"
    assert comparison["params"] == {"train_head.hidden": {"base": [128], "head": [256]}}
    cost = {"latency_ms": {"base": 5.0, "head": 10.0}, "model_mb": {"base": 10.0, "head": 20.0}}
    assert comparison["cost"] == cost
    assert comparison["outdated"] == {}
    compare("HEAD")
    first, verdict, *_ = capsys.readouterr().out.splitlines()
    assert verdict.startswith("workspace is worse than HEAD: accuracy 0.9800 (HEAD) -> 0.7000 (workspace), difference")
    assert first == (
        "Warning: workspace has no results of its own: evaluate did not run with its params and code. These are the "
        "results of an earlier run; run `dvc repro`."
    )
    compare("HEAD~1", "HEAD", "markdown", Path("report.md"))
    assert r"**HEAD is better** than HEAD\~1" in Path("report.md").read_text()


def test_a_run_that_stopped_early_is_compared_with_a_warning(repository, capsys):
    evaluate = {**STAGE, "deps": ["pipeline/evaluate.py", "models/head.keras"]}
    stages = {"train_head": {"cmd": "x", "outs": ["models/head.keras"]}, "evaluate": evaluate}
    head = repository.root / "models/head.keras"
    head.parent.mkdir()

    def commit(content: str, *commands: str) -> None:
        head.write_text(content)
        repository.run(" && ".join(["dvc commit -q -f " + " ".join(commands), "git add -A && git commit -qm run"]))

    (repository.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    commit("old")
    commit("new", "train_head")
    compare("HEAD~1", "HEAD", "json")
    assert json.loads(capsys.readouterr().out)["outdated"] == {
        "HEAD": "HEAD has no results of its own: evaluate did not run with its params and code. These are the results "
        "of an earlier run; run `dvc repro` there (`dvc exp apply HEAD` for an experiment)"
    }
    compare("HEAD~1", "HEAD", "markdown")
    assert capsys.readouterr().out.startswith("Warning: HEAD has no results of its own: ")


def test_predictions_that_dvc_lock_does_not_record_are_compared_with_a_warning(repository, capsys):
    """As after `git checkout .` without `dvc checkout`."""
    repository.run("git checkout -q .")
    compare("HEAD")
    assert capsys.readouterr().out.startswith(
        "Warning: predictions/test.csv in the workspace is not the file that dvc.lock records; run `dvc checkout "
        "predictions/test.csv` for that one, or `dvc repro`.\n"
    )
    repository.run("dvc checkout -q -f")
    compare("HEAD")
    assert "Warning" not in capsys.readouterr().out


def test_params_are_leaves_as_config_has_them(tmp_path):
    write_params(tmp_path / "params.yaml", **{"train_head.search": {"dropout": [0, 0.5]}, "train_head.dropout": 1e-5})
    params = parse_params((tmp_path / "params.yaml").read_bytes(), "workspace")
    assert flatten(params) == load_params(tmp_path / "params.yaml").leaves()


def test_params_of_head_set_the_resamples(repository, monkeypatch):
    asked = set()

    def spy(statistic, count: int, resamples: int, seed: int) -> tuple[float, float]:
        asked.add((resamples, seed))
        return bootstrap_interval(statistic, count, resamples, seed)

    monkeypatch.setattr("headstart.evaluation.paired.bootstrap_interval", spy)
    compare("HEAD~1", "HEAD")
    assert asked == {(200, 7)}


def test_names_that_stand_for_nothing(repository):
    with pytest.raises(UserError, match=r"^nowhere is not a revision, an experiment or a \.csv file"):
        compare("nowhere")
    with pytest.raises(UserError, match=r"^HEAD:params.yaml is not a revision"):
        compare("HEAD:params.yaml")
    repository.run("rm -rf .dvc/cache")
    with pytest.raises(UserError, match=r"HEAD~1: predictions/test\.csv does not exist; `dvc pull`"):
        compare("HEAD~1")

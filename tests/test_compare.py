from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import Project

from headstart.errors import UserError
from headstart.evaluation import compare
from headstart.evaluation.metrics import Predictions


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


def compared(tmp_path: Path, base: pd.DataFrame, head: pd.DataFrame) -> dict:
    sides = [compare.load(write(tmp_path / f"{name}.csv", rows)) for name, rows in (("base", base), ("head", head))]
    return compare.compare(*sides, 3)


def test_what_was_mended_is_named(tmp_path):
    found = compared(tmp_path, table(100, range(10)), table(100, range(2)))
    assert found["verdict"] == "better"
    assert (found["mended"], found["broken"]) == (8, 0)
    assert [row["path"] for row in found["flipped"]] == [f"{n}.png" for n in range(2, 10)]
    accuracy = found["metrics"][0]
    assert (accuracy["metric"], accuracy["base"], accuracy["head"]) == ("accuracy", 0.9, 0.98)
    assert {row["class"]: row["mended"] for row in found["classes"]} == {"cat": 4, "dog": 4}


def test_the_metrics_are_those_of_evaluate(tmp_path):
    rows = table(90, range(7), classes=("cat", "dog", "owl"))
    base, head = rows, table(90, range(2), classes=("cat", "dog", "owl"))
    targets = rows.label.map({"cat": 0, "dog": 1, "owl": 2}).to_numpy()
    alone = Predictions(targets, rows[["p_cat", "p_dog", "p_owl"]].to_numpy(), 3).metrics()
    found = {row["metric"]: row["base"] for row in compared(tmp_path, base, head)["metrics"]}
    assert found == pytest.approx(alone)


def test_other_test_sets_are_compared_on_what_they_share(tmp_path):
    base, head = table(60, range(6)), table(60, range(6), first=20)
    head.loc[head.item_id == "id30", "label"] = "dog"
    found = compared(tmp_path, base, head)
    assert found["images"] == {"compared": 39, "only_base": 20, "only_head": 20, "relabelled": 1}
    told = compare.text(found)
    assert "The test sets differ: 20 images only in" in told
    assert "1 images have another label now" in told


def test_an_answer_that_the_other_side_cannot_give_is_a_wrong_one(tmp_path):
    base = table(60, classes=("cat", "dog", "owl"))
    head = table(60, classes=("cat", "dog"))
    head["label"] = base.label
    head = head[head.label != "owl"]
    found = compared(tmp_path, base, head)
    assert found["classes_left_out"] == ["owl"]
    assert found["images"]["compared"] == 40
    macro_f1 = next(row for row in found["metrics"] if row["metric"] == "macro_f1")
    assert macro_f1["base"] == 1  # of the classes that both know
    base.loc[base.item_id == "id0", ["predicted", "p_cat", "p_dog", "p_owl"]] = ["owl", 0.1, 0.1, 0.8]
    assert compared(tmp_path, base, head)["metrics"][0]["base"] == pytest.approx(39 / 40)


def test_what_was_named_counts_where_rounded_probabilities_are_alike(tmp_path):
    rows = table(40)
    rows[["p_cat", "p_dog"]] = 0.5
    assert compared(tmp_path, rows, rows)["metrics"][0]["base"] == 1


@pytest.mark.parametrize("content", [b"<<<<<<< HEAD\n{}", b"[]", b"\xff"])
def test_figures_that_git_could_not_merge_are_told(content):
    with pytest.raises(UserError, match=r"^other: metrics/cost\.json (is no JSON|holds no figures)"):
        compare.figures(content, "other: metrics/cost.json")


def test_names_are_text_in_markdown(tmp_path):
    base, head = (table(40, wrong, classes=("<img src=x>", "a|b*c")) for wrong in (range(1), range(1, 2)))
    base["path"] = head["path"] = base.path + "</details>"
    made = compare.markdown(compared(tmp_path, base, head))
    assert "<img" not in made
    assert "a&#124;b\\*c" in made
    assert made.count("</details>") == made.count("<details>") == 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows.drop(columns="label"), "label"),
        (lambda rows: rows.drop(columns=["p_cat", "p_dog"]), "two classes or more"),
        (lambda rows: pd.concat([rows, rows]), "there twice"),
        (lambda rows: rows.assign(p_cat="much"), "could not convert"),
        (lambda rows: rows.assign(label="bird"), "no column of probabilities"),
        (lambda rows: rows.assign(predicted="bird"), "with a predicted that has no column of probabilities"),
        (lambda rows: rows.assign(p_cat=0.0, p_dog=0.0), "do not sum to 1"),
        (lambda rows: rows.assign(p_cat=-0.5, p_dog=1.5), "below 0"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, capsys, spoil, message):
    good, bad = write(tmp_path / "good.csv", table(9)), write(tmp_path / "bad.csv", spoil(table(9)))
    assert compare.main([good, bad]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"{bad}: not predictions: ")
    assert message in told
    assert compare.main([good, str(tmp_path / "none.csv")]) == 1
    assert "none.csv: No such file" in capsys.readouterr().err


def test_nothing_in_common_is_told(tmp_path, capsys):
    files = [write(tmp_path / f"{first}.csv", table(9, first=first)) for first in (0, 100)]
    assert compare.main(files) == 1
    assert "have no two test images of the same label in common" in capsys.readouterr().err


@pytest.fixture
def repository(tmp_path: Path) -> Project:
    """Two commits with predictions in DVC's cache and figures in Git; the workspace is a third state."""
    root = tmp_path / "repository"
    root.mkdir()
    project = Project(root)
    (root / "pipeline").symlink_to(Path(compare.__file__).parent)
    project.run("git init -q && dvc init -q")

    def state(wrong: range, hidden: list[int], seconds: float) -> None:
        write(root / "predictions" / "test.csv", table(100, wrong))
        (root / "params.yaml").write_text(yaml.safe_dump({"train_head": {"hidden": hidden}, "evaluate": {"top_k": 3}}))
        (root / "metrics").mkdir(exist_ok=True)
        (root / "metrics" / "cost.json").write_text(json.dumps({"latency_ms": seconds}))

    for number, (wrong, hidden) in enumerate([(range(10), [128]), (range(2), [256])]):
        state(wrong, hidden, 10.0 * (number + 1))
        project.run("dvc add -q predictions/test.csv && git add -A && git commit -qm state")
    state(range(30), [8], 5.0)
    return project


def test_revisions_and_the_workspace(repository):
    found = json.loads(repository.run("python -m headstart.evaluation.compare HEAD~1 HEAD --format json"))
    assert found["verdict"] == "better"
    assert found["params"] == {"train_head.hidden": {"base": [128], "head": [256]}}
    assert found["cost"] == {"latency_ms": {"base": 10.0, "head": 20.0}}
    told = repository.run("python -m headstart.evaluation.compare HEAD")
    assert told.startswith(
        "workspace is worse than HEAD: accuracy 0.9800 (HEAD) -> 0.7000 (workspace), difference -0.2800 ("
    )
    repository.run("python -m headstart.evaluation.compare HEAD~1 HEAD --format markdown --output report.md")
    assert "**HEAD is better** than HEAD~1" in (repository.root / "report.md").read_text()


def test_what_names_nothing_is_told(repository):
    told = repository.run("python -m headstart.evaluation.compare nowhere", code=1)
    assert told.startswith("nowhere is no revision, experiment or .csv file")
    repository.run("rm -rf .dvc/cache")
    told = repository.run("python -m headstart.evaluation.compare HEAD~1", code=1)
    assert "HEAD~1: predictions/test.csv is not there; `dvc pull`" in told
    assert "Traceback" not in told

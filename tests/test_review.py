"""The report about a pull request."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from conftest import write_params
from test_compare import table, write

from headstart import paths
from headstart.errors import UserError
from headstart.evaluation.review import MARK, confusion, curves, make_report, review

EVIL = "</details><img src=x>|`*"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A repository whose base never ran, and a run in the workspace that is wrong on 4 of 60 examples."""
    monkeypatch.chdir(tmp_path)
    write_params(Path("params.yaml"))
    git = "git -c user.name=t -c user.email=t@example.org"
    subprocess.run(f"git init -qb main && dvc init -q && git add -A && {git} commit -qm base", shell=True, check=True)
    write_params(Path("params.yaml"), **{"train_head.hidden": [256]})
    write(paths.PREDICTIONS, table(60, range(4), classes=("cat", EVIL)))
    for folder in ("reports", "plots"):
        Path(folder).mkdir()
    metrics = {"accuracy": {"value": 56 / 60, "low": 0.84, "high": 0.97}}
    paths.report("evaluate").write_text(json.dumps({"final": {"metrics": metrics, "classes": []}}))
    curves = pd.DataFrame({"epoch": [1, 2, 3], "loss": [0.9, 0.5, 0.3], "val_loss": [0.8, 0.6, 0.55]})
    curves.to_csv(paths.curves("train_head"), index=False)
    return tmp_path


def test_it_compares_with_the_base(here, capsys):
    base = write(here / "base.csv", table(60, range(20), classes=("cat", EVIL)))
    review(base, links={"Build": "https://example.org/1"})
    report = capsys.readouterr().out
    assert report.startswith("<!-- headstart -->\n")
    assert "**workspace is better** than" in report
    assert "**Metrics**" in report
    assert "[Build](https://example.org/1)" in report
    assert EVIL not in report
    assert "<img" not in report


def test_it_says_how_the_classes_differ(here):
    base = write(here / "base.csv", table(60, range(20), classes=("cat", EVIL, "owl")).assign(label=table(60).label))
    rows = pd.read_csv(base)
    rows[["label", "predicted"]] = rows[["label", "predicted"]].replace("dog", EVIL)
    report = make_report(write(here / "base.csv", rows), {})
    assert "\n\nThe classes differ: removed: owl.\n\nCompared are 60 examples of the 2 classes that both know" in report
    assert "test examples of the 2 classes that both know; " in report


def test_without_common_classes_it_says_so_and_shows_the_run(here):
    base = write(here / "base.csv", table(60, first=1000, classes=("a", f"b{EVIL}")))
    report = make_report(base, {})
    assert "they share 0 examples, 0 of them under the same label, and 0 classes (added: " in report
    assert ". There is too little that both have; these are the figures of this run" in report
    assert "remote" not in report
    assert "<img" not in report


def test_without_results_of_the_base_it_says_so_and_shows_the_run(here):
    report = make_report("main", {})
    assert "**Nothing to compare with**: main: predictions/test.csv does not exist; `dvc pull`, or" in report
    assert "| accuracy | 0.9333 | 0.8400 to 0.9700 |" in report


def test_params_that_differ_from_the_base_are_shown_as_they_are(here):
    write_params(Path("params.yaml"), **{"train_head.hidden": [256], "prepare.group_by": f"(a|b){EVIL}"})
    report = make_report("main", {})
    assert "| train_head.hidden | null | [256] |" in report
    assert "| prepare.group_by | null | (a&#124;b)&#60;/details&#62;" in report
    assert "<img" not in report


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (paths.PREDICTIONS, "<<<<<<< HEAD"),
        (paths.report("evaluate"), "{"),
        (paths.report("evaluate"), '{"final": {"metrics": {"accuracy": {"value": NaN}}}}'),
        (paths.report("evaluate"), '{"final": {"metrics": {"accuracy": {"value": "much"}}}}'),
        (paths.report("evaluate"), '{"final": 3}'),
        (paths.metrics("evaluate"), "[]"),
    ],
)
def test_a_damaged_file_is_named(here, file, content):
    file.parent.mkdir(exist_ok=True)
    file.write_text(content)
    with pytest.raises(UserError, match=f"{file}.* (is not JSON|is not what|not predictions|does not hold)"):
        make_report("main", {})


def test_a_base_that_does_not_exist_is_a_mistake(here):
    with pytest.raises(UserError, match=r"mian is not a revision, an experiment or a \.csv file"):
        review("mian")


def test_it_draws_confusion_and_curves(here):
    report = make_report("main", {})
    assert re.search(r"\| cat \|\s*2 \| 28 \||\| cat \| 28 \| 2 \|", report)
    assert "line [0.9000, 0.5000, 0.3000]" in report
    assert "line [0.8000, 0.6000, 0.5500]" in report
    assert "Fine-tuning" not in report  # there is no curve of it
    assert report.count("<details>") == report.count("</details>") == 3


def test_of_many_classes_it_names_those_confused_most(here):
    names = tuple(f"class {number}" for number in range(30))
    report = confusion(table(300, range(0, 300, 30), classes=names).set_index("item_id"))
    assert "| class 0 | class 1 | 10 |" in report
    assert report.count("\n| class") == 1


def test_it_fits_into_a_comment(here):
    names = tuple(f"a class of a rather long name, number {number}" for number in range(60))
    write(paths.PREDICTIONS, table(600, range(0, 600, 2), classes=names))
    base = write(here / "base.csv", table(600, range(0, 600, 3), classes=names))
    assert len(make_report(base, {})) < 65536  # GitHub's limit


def test_the_file_appears_whole(here):
    review("main", Path("report.md"))
    assert Path("report.md").read_text().startswith(MARK)
    assert not list(Path().glob("*partial*"))


def test_losses_that_are_not_numbers_are_not_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("plots").mkdir()
    for content in (
        "epoch,loss\n",
        "epoch,loss\n1,a\n2,b\n",
        "loss\n1\n2\n",
        "epoch,loss\n1,0.5\n2,nan\n",
        "epoch,loss\n1,0.5\n2,inf\n",
        "",
    ):
        Path("plots/train_head.csv").write_text(content)
        assert curves() == []
    Path("plots/train_head.csv").write_text("epoch,loss\n1,0.5\n2,0.4\n")
    assert "line [0.5000, 0.4000]" in curves()[0]

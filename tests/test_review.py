"""What a pull request is told."""

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
from headstart.evaluation import review

EVIL = "</details><img src=x>|`*"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A repository whose base never ran, and a run in the workspace that has 4 of 60 images wrong."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
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
    assert review.main([base, "--link", "Build=https://example.org/1"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("<!-- headstart -->\n")
    assert "**workspace is better** than" in said
    assert "**Metrics**" in said
    assert "[Build](https://example.org/1)" in said
    assert EVIL not in said
    assert "<img" not in said


def test_without_a_base_in_reach_it_says_so_and_shows_the_run(here, capsys):
    assert review.main(["main"]) == 0
    said = capsys.readouterr().out
    assert "**Nothing to compare with**: main: predictions/test.csv is not there" in said
    assert "| accuracy | 0.9333 | 0.8400 to 0.9700 |" in said
    assert r"| train\_head.hidden | null | \[256\] |" in said


def test_a_base_that_is_none_is_a_mistake(here, capsys):
    assert review.main(["mian"]) == 1
    assert "mian is no revision, experiment or .csv file" in capsys.readouterr().err


def test_it_draws_confusion_and_curves(here):
    said = review.report("main", {})
    assert re.search(r"\| cat \|\s*2 \| 28 \||\| cat \| 28 \| 2 \|", said)
    assert "line [0.9000, 0.5000, 0.3000]" in said
    assert "line [0.8000, 0.6000, 0.5500]" in said
    assert "Fine-tuning" not in said  # there is no curve of it
    assert said.count("<details>") == said.count("</details>") == 3


def test_of_many_classes_it_names_what_is_confused_most(here):
    names = tuple(f"class {number}" for number in range(30))
    predictions = table(300, range(0, 300, 30), classes=names)
    said = review.confusion(predictions.set_index("item_id"))
    assert "| class 0 | class 1 | 10 |" in said
    assert said.count("\n| class") == 1


def test_it_fits_into_a_comment(here):
    names = tuple(f"a class of a rather long name, number {number}" for number in range(60))
    write(paths.PREDICTIONS, table(600, range(0, 600, 2), classes=names))
    base = write(here / "base.csv", table(600, range(0, 600, 3), classes=names))
    assert len(review.report(base, {})) < 65536  # GitHub's limit


def test_the_file_appears_whole(here):
    assert review.main(["main", "--output", "report.md"]) == 0
    assert Path("report.md").read_text().startswith(review.MARK)
    assert not list(Path().glob("*partial*"))


def test_losses_that_are_no_numbers_are_not_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("plots").mkdir()
    for content in ("epoch,loss\n1,0.5\n2,nan\n", "epoch,loss\n1,0.5\n2,inf\n", ""):
        Path("plots/train_head.csv").write_text(content)
        assert review.curves() == []
    Path("plots/train_head.csv").write_text("epoch,loss\n1,0.5\n2,0.4\n")
    assert "line [0.5000, 0.4000]" in review.curves()[0]

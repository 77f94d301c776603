"""benchmarks/frontier.py: who is scored on what, which splits its peers get, what it says and draws."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from PIL import Image


@pytest.fixture(scope="module")
def frontier():
    """The module; benchmarks import each other by their bare names."""
    path, sys.path = sys.path, [str(ROOT / "benchmarks"), *sys.path]
    yield importlib.import_module("frontier")
    sys.path = path


LABELS = pd.Series({"cat/1": "cat", "cat/2": "cat", "dog/1": "dog", "dog/2": "dog"})


def predictions(dog: list[float]) -> pd.DataFrame:
    """Probabilities by the images of LABELS."""
    return pd.DataFrame({"dog": dog, "cat": 1 - np.array(dog)}, index=LABELS.index)


def test_scores_do_not_depend_on_the_order_of_images_and_classes(frontier):
    scores = frontier.score(predictions([0.2, 0.6, 0.9, 1.0]).iloc[::-1], LABELS, "peer")
    assert scores["accuracy"] == 0.75
    assert scores["log_loss"] == pytest.approx(-np.log([0.8, 0.4, 0.9, 1]).mean())


def test_being_sure_and_wrong_costs_what_it_does_in_keras(frontier):
    assert frontier.score(predictions([0, 0, 0, 1]), LABELS, "peer")["log_loss"] == pytest.approx(-np.log(1e-7) / 4)


def test_predictions_of_other_images_are_refused(frontier):
    with pytest.raises(SystemExit, match=r"peer: .* the 4 test images, e\.g\. dog/2"):
        frontier.score(predictions([0, 0, 1, 1]).iloc[:3], LABELS, "peer")
    with pytest.raises(SystemExit, match="peer: no probabilities of the class cat"):
        frontier.score(predictions([0, 0, 1, 1])[["dog"]], LABELS, "peer")


def test_as_many_images_of_each_class_are_copied(frontier, tmp_path, capsys):
    for label in ("cat", "dog"):
        for split in ("train", "val"):  # the same names in two folders
            folder = tmp_path / "source" / split / label
            folder.mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (9, 9), (number, 0, 0)).save(folder / f"{number}.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "source" / "train" / "cat" / "3.webp")
    said = frontier.sample(str(tmp_path / "source"), 4, tmp_path / "images")
    assert capsys.readouterr().err == "left out, since Keras' loader reads only .jpg, .jpeg, .png, .bmp: 1\n"
    assert said == "source: 8 images of 2 classes"
    assert [len(list((tmp_path / "images" / label).iterdir())) for label in ("cat", "dog")] == [4, 4]


def test_runs_in_the_file_are_not_repeated(frontier, tmp_path):
    file, ran = tmp_path / "runs.csv", []

    def run() -> dict[str, float]:
        ran.append(1)
        return {"cpu_s": 2.0, "wall_s": 1.0, "accuracy": 0.5, "log_loss": 1.0}

    keys = [{"task": "a, b", "made_by": made_by, "split": 0, "name": "head"} for made_by in ("", "c0ffee", "")]
    for key in keys:
        frontier.Runs(file).add(key, run)
    assert len(ran) == 2
    assert list(pd.read_csv(file, keep_default_na=False).made_by) == ["", "c0ffee"]


def test_the_cpu_time_of_children_counts_and_failures_show_their_output(frontier, tmp_path):
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    took = frontier.measure(
        [sys.executable, "-c", f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])"], tmp_path
    )
    assert took["cpu_s"] > 0.3
    with pytest.raises(SystemExit, match="no such peer"):
        frontier.measure([sys.executable, "-c", "raise ValueError('no such peer')"], tmp_path)


@pytest.mark.parametrize("splits", [1, 2])
def test_table_and_picture(frontier, tmp_path, splits):
    rows = [
        {
            "name": name,
            "split": split,
            "accuracy": accuracy,
            "log_loss": 1 - accuracy,
            "cpu_s": cpu * (1 + split),
            "wall_s": cpu,
        }
        for split in range(splits)
        for name, accuracy, cpu in (
            ("Headstart, default", 0.9, 60.0),
            ("classic recipe", 0.8, 40.0),
            ("other", 0.7, 10.0),
        )
    ]
    lines = frontier.markdown(pd.DataFrame(rows)).splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == ["other", "classic recipe", "Headstart, default"]
    assert [line.split("|")[6].strip() for line in lines] == ["0.25 times", "1.00 times", "1.50 times"]
    assert ("±" in lines[0]) == (splits > 1)
    frontier.draw(pd.DataFrame(rows), "title", tmp_path / "frontier.svg")
    svg = (tmp_path / "frontier.svg").read_text(encoding="utf-8")
    assert svg.count("<!-- default -->") == 2

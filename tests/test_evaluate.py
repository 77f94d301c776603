"""What the stage evaluate leaves: files that agree with each other."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from headstart import paths
from headstart.data.predictions import parse_predictions
from headstart.training import networks
from pipeline.evaluate import compare_with_head


@pytest.fixture
def report(finished_photos, monkeypatch) -> dict:
    monkeypatch.chdir(finished_photos)
    return json.loads(paths.report("evaluate").read_text())


def test_with_unfreeze_none_the_head_is_shipped(report):
    tuned = json.loads(paths.report("fine_tune").read_text())
    assert (tuned["selected"], tuned["settings"]) == ("head", {})
    assert tuned["val_loss"] == tuned["head_val_loss"]
    assert pd.read_csv(paths.curves("fine_tune")).empty
    val = parse_predictions(paths.VAL_PREDICTIONS.read_bytes(), "val.csv")
    assert (val.label == val.predicted).mean() == pytest.approx(tuned["val_accuracy"])


def test_the_report_compares_both_models(report):
    # The head through its features is the shipped model on images: nothing was fine-tuned.
    values = [{name: row["value"] for name, row in report[model]["metrics"].items()} for model in ("final", "head")]
    assert values[0] == pytest.approx(values[1], abs=1e-5)
    assert (report["gain"]["fixed"], report["gain"]["regressed"], report["gain"]["verdict"]) == (0, 0, "no evidence")


def test_only_a_fine_tuned_network_is_compared_with_the_head(report):
    (head, _), model = networks.load(paths.HEAD), networks.load_classifier(paths.MODEL)
    verdicts = {"no evidence": "no evidence of a difference from", "better": "better than", "worse": "worse than"}
    gains = {words: {**report["gain"], "verdict": verdict} for verdict, words in verdicts.items()}
    assert {compare_with_head(head, model, gain) for gain in gains.values()} == {""}
    kernel = model.network.get_layer("head").weights[0]
    kernel.assign(kernel + 1e-6)
    accuracy = report["head"]["metrics"]["accuracy"]["value"]
    for words, gain in gains.items():
        assert compare_with_head(head, model, gain) == f"{words} the head alone ({accuracy:.4f}); "


def test_plots_cover_all_test_examples(report):
    count = (pd.read_parquet(paths.MANIFEST).split == "test").sum()
    confusion = pd.read_csv(paths.CONFUSION)
    assert (confusion.actual == confusion.predicted).mean() == report["final"]["metrics"]["accuracy"]["value"]
    assert report["examples"] == len(confusion) == pd.read_csv(paths.RELIABILITY).examples.sum() == count
    assert pd.read_csv(paths.CLASSES_PLOT).support.sum() == count
    for file in (paths.PRECISION_RECALL, paths.ROC):
        assert pd.read_csv(file).iloc[:, 0].is_monotonic_increasing


def test_whole_images_are_tried(report):
    whole = report["whole_images"]
    assert whole["examples"] == report["examples"]
    assert whole["pipeline_accuracy"] == report["final"]["metrics"]["accuracy"]["value"]
    assert whole["max_difference"] < 0.05  # images of 24 x 20 pixels are only enlarged

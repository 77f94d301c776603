"""What the stage evaluate leaves: files that agree with each other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import SMALL, run_stages, write_params

from headstart import paths
from headstart.training import networks
from pipeline.evaluate import compare_with_head


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, extracted) -> Path:
    """A folder after all stages; nothing is fine-tuned."""
    folder = tmp_path_factory.mktemp("evaluated") / "here"
    shutil.copytree(extracted, folder)
    changes = {"data.source": "photos", "train_head.epochs": 30, "fine_tune.unfreeze": "none"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_params(Path("params.yaml"), **{**SMALL, **changes})
        run_stages("train_head", "fine_tune", "evaluate")
    return folder


@pytest.fixture
def report(evaluated, monkeypatch) -> dict:
    monkeypatch.chdir(evaluated)
    return json.loads(paths.report("evaluate").read_text())


def test_metrics_are_those_of_the_predictions(report):
    metrics, predictions = json.loads(paths.metrics("evaluate").read_text()), pd.read_csv(paths.PREDICTIONS)
    final = report["final"]["metrics"]
    assert metrics == pytest.approx({name: final[name]["value"] for name in metrics}, abs=1e-6)
    assert metrics["accuracy"] == pytest.approx((predictions.label == predictions.predicted).mean(), abs=1e-6)
    assert metrics["accuracy"] > 0.9  # plain, upright and level stripes
    probabilities = predictions[["p_blue", "p_green", "p_red"]]
    assert probabilities.sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    assert (probabilities.idxmax(axis=1) == "p_" + predictions.predicted).all()


def test_the_report_has_both_models_with_intervals(report):
    for model in ("final", "head"):
        metrics = report[model]["metrics"]
        assert set(metrics) == {"accuracy", "macro_f1", "log_loss", "calibration_error", "top_2_accuracy"}
        assert all(row["low"] <= row["value"] <= row["high"] for row in metrics.values())
        assert [row["class"] for row in report[model]["classes"]] == json.loads(paths.CLASSES.read_text())
    # The head through its features is the shipped model on images: nothing was fine-tuned.
    values = [{name: row["value"] for name, row in report[model]["metrics"].items()} for model in ("final", "head")]
    assert values[0] == pytest.approx(values[1], abs=1e-5)
    assert (report["gain"]["fixed"], report["gain"]["regressed"], report["gain"]["verdict"]) == (0, 0, "no evidence")


@pytest.mark.parametrize(
    ("verdict", "words"),
    [("no evidence", "no evidence of a difference from"), ("better", "better than"), ("worse", "worse than")],
)
def test_only_a_fine_tuned_network_is_compared_with_the_head(report, verdict, words):
    gain = {**report["gain"], "verdict": verdict}
    (head, _), model = networks.load(paths.HEAD), networks.load_classifier(paths.MODEL)
    assert compare_with_head(head, model, gain) == ""
    kernel = model.network.get_layer("head").weights[0]
    kernel.assign(kernel + 1e-6)
    accuracy = report["head"]["metrics"]["accuracy"]["value"]
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

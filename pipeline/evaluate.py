"""Judge the final model, and the head alone, on the test split, which nothing was trained or chosen on.

Reads:   data/prepared, the images, features/test.npy, models/head.keras, models/model.keras.
Writes:  metrics/evaluate.json: the figures to compare; reports/evaluation.json: all of them, with intervals;
         plots/confusion.csv (actual, predicted: a row a test image), plots/classes.csv, reliability.csv,
         precision_recall.csv, roc.csv; predictions/test.csv (path, item_id, label, predicted, then the probability of
         each class as p_CLASS). Its latency goes into metrics/cost.json, see timings.py; the page of results, which
         tells all of it, is made when they are there, see results.py.
Params:  seed, data, evaluate.
Command: python -m pipeline.evaluate
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import softmax
from tqdm import tqdm

from headstart import paths
from headstart.data.manifest import load_classes, load_split
from headstart.data.predictions import prediction_table
from headstart.data.sources import open_source
from headstart.evaluation.metrics import Predictions
from headstart.evaluation.paired import Pair
from headstart.framework import take_gpus
from headstart.modalities import Batch
from headstart.modalities.loading import read_batches
from headstart.stage import stage
from headstart.training import heads, networks
from headstart.training.examples import load_features

COMPARED = ("accuracy", "macro_f1", "log_loss")  # what metrics/evaluate.json holds
TIMED = 15  # images that the latency is the median of


def latency(model: networks.Classifier, batch: Batch) -> float:
    """Seconds from one loaded example to its probabilities, the median of several."""
    seconds = []
    for _ in range(1 + TIMED):
        start = time.perf_counter()
        model.predict(batch, 1)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])  # the first one compiles


def judged(predictions: Predictions, per_class: pd.DataFrame, resamples: int, seed: int) -> dict[str, Any]:
    """Metrics with their intervals, and a row a class, as JSON can hold them."""
    low_high = predictions.intervals(resamples, seed)
    metrics = {
        name: {"value": value, "low": low_high[name][0], "high": low_high[name][1]}
        for name, value in predictions.metrics().items()
    }
    rows = per_class.astype(object)
    return {"metrics": metrics, "classes": rows.where(rows.notna(), None).to_dict("records")}


def main() -> None:
    """Run the stage."""
    with stage("evaluate") as run:
        take_gpus("evaluate")
        params, test, classes = run.params, load_split("test"), load_classes()
        head, _ = networks.load(paths.HEAD)
        model = networks.load_classifier(paths.MODEL)
        targets, top_k = test.target.to_numpy(), params.evaluate.top_k
        of_head = Predictions(targets, softmax(heads.logits(head, load_features("test")), axis=1), top_k)
        with open_source(params.data.source, params.data.root) as source:
            rows, batch_size = (list(test.path), list(test.file_hash)), networks.PREDICTION_BATCH
            batches = read_batches(source, model.modality, *rows, model.size, batch_size)
            bar = tqdm(batches, total=-(-len(test) // batch_size), desc="evaluate", unit=" batches", disable=None)
            probabilities = np.concatenate([model.predict(batch) for batch in bar])
            first = next(read_batches(source, model.modality, rows[0][:1], rows[1][:1], model.size, 1))
        final = Predictions(targets, probabilities, top_k)

        resamples, seed, per_class = params.evaluate.resamples, params.seed, final.per_class(classes)
        gain = Pair(of_head, final)
        run.report(
            {
                "final": judged(final, per_class, resamples, seed),
                "head": judged(of_head, of_head.per_class(classes), resamples, seed),
                "gain": {
                    "verdict": gain.verdict(),
                    "p": gain.p_value(),
                    "mended": gain.mended,
                    "broken": gain.broken,
                    "metrics": gain.differences().to_dict("records"),
                },
                "examples": len(test),
                "model_mb": paths.MODEL.stat().st_size / 1e6,
            }
        )
        metrics = final.metrics()
        run.metrics({name: metrics[name] for name in COMPARED})
        table = prediction_table(test, classes, probabilities)
        run.csv(paths.PREDICTIONS, table)
        run.csv(paths.CONFUSION, table[["label", "predicted"]].rename(columns={"label": "actual"}))
        run.csv(paths.CLASSES_PLOT, per_class)
        run.csv(paths.RELIABILITY, final.reliability())
        curves = final.curves()
        for name, file, columns in (
            ("precision_recall", paths.PRECISION_RECALL, ("recall", "precision")),
            ("roc", paths.ROC, ("false_positive_rate", "true_positive_rate")),
        ):
            run.csv(file, curves.loc[curves.curve == name, ["x", "y"]].set_axis(columns, axis=1))
        run.cost(latency_ms=1000 * latency(model, first))
        low, high = final.intervals(resamples, seed)["accuracy"]
        print(
            f"evaluate: {len(test)} test images: accuracy {metrics['accuracy']:.4f} (95 % interval {low:.4f} to "
            f"{high:.4f}), the head alone {of_head.metrics()['accuracy']:.4f}: {gain.verdict()}; macro F1 "
            f"{metrics['macro_f1']:.4f}"
        )


if __name__ == "__main__":
    main()

"""Judge the final model, and the head alone, on the test split, which nothing was trained or chosen on.

Reads:   data/prepared, the images, features/test.npy, models/head.keras, models/model.keras.
Writes:  metrics/evaluate.json: the figures to compare; reports/evaluation.json: all of them, with intervals;
         plots/confusion.csv (actual, predicted: a row a test image), plots/classes.csv, reliability.csv,
         precision_recall.csv, roc.csv; predictions/test.csv (path, image_id, label, predicted, then the probability of
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

from pipeline import paths, results, stage
from pipeline.data.pixels import read_images
from pipeline.data.sources import open_source
from pipeline.journal import registry
from pipeline.judging.paired import Pair
from pipeline.judging.scores import Predictions
from pipeline.learning import heads, networks
from pipeline.learning.dataset import load_classes, load_examples, load_split
from pipeline.learning.engine import keras, take_gpus
from pipeline.outputs import Outputs
from pipeline.params import Params

TIMED = 15  # images that the latency is the median of


def latency(model: keras.Model, image: np.ndarray) -> float:
    """Seconds from the pixels of one image (size, size, 3) to its probabilities, the median of several."""
    seconds = []
    for _ in range(1 + TIMED):
        start = time.perf_counter()
        model.predict_on_batch(image[None])
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


def main(params: Params, outputs: Outputs) -> dict[str, float]:
    """Run the stage; returns the latency."""
    take_gpus("evaluate")
    test = load_split("test")
    classes = load_classes()
    head, _ = networks.load(paths.HEAD)
    model, _ = networks.load(paths.MODEL)
    targets, top_k = test.target.to_numpy(), params.evaluate.top_k
    of_head = Predictions(targets, softmax(heads.logits(head, load_examples("test")), axis=1), top_k)
    with open_source(params.data.source, params.data.root) as source:
        size, batch_size = networks.image_size(model), networks.PREDICTION_BATCH
        batches = read_images(source, list(test.path), list(test.file_hash), size, batch_size)
        bar = tqdm(batches, total=-(-len(test) // batch_size), desc="evaluate", unit=" batches", disable=None)
        probabilities = np.concatenate([networks.predict(model, batch, batch_size) for batch in bar])
    final = Predictions(targets, probabilities, top_k)

    resamples, seed, per_class = params.evaluate.resamples, params.seed, final.per_class(classes)
    found = {
        "final": judged(final, per_class, resamples, seed),
        "head": judged(of_head, of_head.per_class(classes), resamples, seed),
    }
    gain = Pair(of_head, final)
    found["gain"] = {
        "verdict": gain.verdict(),
        "p": gain.p_value(),
        "mended": gain.mended,
        "broken": gain.broken,
        "metrics": gain.differences().to_dict("records"),
    }
    metrics = final.metrics()
    low_high = found["final"]["metrics"]["accuracy"]
    headline: dict[str, Any] = {"accuracy": metrics.pop("accuracy")}
    headline |= {"accuracy_low": low_high["low"], "accuracy_high": low_high["high"], **metrics, "images": len(test)}
    outputs.json(
        paths.metrics("evaluate"),
        {**headline, "model_mb": paths.MODEL.stat().st_size / 1e6, "head": of_head.metrics()},
    )
    outputs.json(paths.EVALUATION, found)
    predicted = np.array(classes)[final.predicted]
    outputs.csv(paths.CONFUSION, pd.DataFrame({"actual": test.label, "predicted": predicted}))
    outputs.csv(paths.CLASSES_PLOT, per_class)
    outputs.csv(paths.RELIABILITY, final.reliability())
    curves = final.curves()
    for name, file, columns in (
        ("precision_recall", paths.PRECISION_RECALL, ("recall", "precision")),
        ("roc", paths.ROC, ("false_positive_rate", "true_positive_rate")),
    ):
        points = curves.loc[curves.curve == name, ["x", "y"]]
        outputs.csv(file, points.set_axis(columns, axis=1))
    table = test[["path", "image_id", "label"]].assign(predicted=predicted)
    columns = [f"p_{name}" for name in classes]
    outputs.csv(paths.PREDICTIONS, pd.concat([table, pd.DataFrame(probabilities, columns=columns)], axis=1))
    print(
        f"evaluate: {len(test)} test images: accuracy {headline['accuracy']:.4f} (95 % interval {low_high['low']:.4f} "
        f"to {low_high['high']:.4f}), the head alone {of_head.metrics()['accuracy']:.4f}: {gain.verdict()}; macro F1 "
        f"{metrics['macro_f1']:.4f}"
    )
    return {"latency_ms": 1000 * latency(model, np.zeros((size, size, 3), np.uint8))}


if __name__ == "__main__":
    stage.run("evaluate", main, after=results.write, recorded=registry.register)

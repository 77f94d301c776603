"""Judge the final model, and the head alone, on the test split, which nothing was trained or chosen on.

Reads:   data/prepared, the images, features/test.npy, models/head.keras, models/model.keras.
Writes:  metrics/evaluate.json; plots/confusion.csv (actual, predicted: a row a test image);
         predictions/test.csv (path, image_id, label, predicted, then the probability of each class as p_CLASS).
Params:  data, evaluate.
Command: python -m pipeline.evaluate
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import softmax
from sklearn.metrics import accuracy_score, f1_score, log_loss, top_k_accuracy_score
from tqdm import tqdm

from pipeline import calibration, heads, networks, paths, stage
from pipeline.dataset import load_classes, load_examples, load_split
from pipeline.outputs import Outputs
from pipeline.params import Params
from pipeline.pixels import read_images
from pipeline.sources import open_source


def score(targets: np.ndarray, probabilities: np.ndarray, top_k: int) -> dict[str, float]:
    """Metrics of (N, n_classes) probabilities against (N,) int targets; top-k where there are more than k classes."""
    labels = np.arange(probabilities.shape[1])
    probabilities = probabilities.astype("float64")
    probabilities /= probabilities.sum(axis=1, keepdims=True)  # in float32 a row's sum strays from 1 by 1e-7
    predicted = probabilities.argmax(axis=1)
    metrics = {
        "accuracy": accuracy_score(targets, predicted),
        "macro_f1": f1_score(targets, predicted, labels=labels, average="macro", zero_division=0),
        "log_loss": log_loss(targets, probabilities, labels=labels),
        "calibration_error": calibration.calibration_error(probabilities, targets),
    }
    if len(labels) > top_k:
        metrics[f"top_{top_k}_accuracy"] = top_k_accuracy_score(targets, probabilities, k=top_k, labels=labels)
    return {name: float(value) for name, value in metrics.items()}


def main(params: Params, outputs: Outputs) -> None:
    """Run the stage."""
    test = load_split("test")
    classes = load_classes()
    head, _ = networks.load(paths.HEAD)
    model, _ = networks.load(paths.MODEL)
    head_probabilities = softmax(heads.logits(head, load_examples("test")), axis=1)
    with open_source(params.data.source, params.data.root) as source:
        size, batch_size = networks.image_size(model), networks.PREDICTION_BATCH
        batches = read_images(source, list(test.path), list(test.file_hash), size, batch_size)
        bar = tqdm(batches, total=-(-len(test) // batch_size), desc="evaluate", unit=" batches", disable=None)
        probabilities = np.concatenate([networks.predict(model, batch, batch_size) for batch in bar])

    metrics = score(test.target.to_numpy(), probabilities, params.evaluate.top_k)
    head_metrics = score(test.target.to_numpy(), head_probabilities, params.evaluate.top_k)
    outputs.json(paths.metrics("evaluate"), {**metrics, "images": len(test), "head": head_metrics})
    predicted = np.array(classes)[probabilities.argmax(axis=1)]
    outputs.csv(paths.CONFUSION, pd.DataFrame({"actual": test.label, "predicted": predicted}))
    table = test[["path", "image_id", "label"]].assign(predicted=predicted)
    columns = [f"p_{name}" for name in classes]
    outputs.csv(paths.PREDICTIONS, pd.concat([table, pd.DataFrame(probabilities, columns=columns)], axis=1))
    print(
        f"evaluate: {len(test)} test images: accuracy {metrics['accuracy']:.4f} "
        f"(the head alone {head_metrics['accuracy']:.4f}), macro F1 {metrics['macro_f1']:.4f}"
    )


if __name__ == "__main__":
    stage.run("evaluate", main)

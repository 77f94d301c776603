"""Evaluate the shipped model, and the head alone, on the test split, which nothing was trained or chosen on.

Reads:   data/prepared, the data source, features/test.npy, models/head.keras, models/model.keras.
Writes:  metrics/evaluate.json: the figures to compare;
         reports/evaluate.json: all metrics with intervals, and each class, of both models (final, head); gain, what the
         shipped model gains over the head alone; whole_images, how far `model(images)` with whole images is from the
         pipeline's own decoding; examples, model_mb;
         predictions/test.csv: path, item_id, label, predicted, and the probability of each class as p_CLASS;
         plots/confusion.csv: actual, predicted, a row per example; plots/classes.csv, reliability.csv,
         precision_recall.csv, roc.csv.
Params:  seed, data, evaluate.
Command: python -m pipeline evaluate
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import softmax
from tqdm import tqdm

from headstart import paths
from headstart.data.layouts import open_examples
from headstart.data.predictions import prediction_table
from headstart.data.prepared import load_classes, load_split
from headstart.evaluation.metrics import Predictions
from headstart.evaluation.paired import NO_EVIDENCE, PairedPredictions
from headstart.evaluation.shipped_model import compare_whole_images, latency_ms
from headstart.framework import keras, take_gpus
from headstart.modalities.loading import read_batches
from headstart.stage import stage
from headstart.training import heads, networks
from headstart.training.examples import load_features
from headstart.training.saved_head import check_classes, load_head

COMPARED = ("accuracy", "macro_f1", "log_loss")  # what metrics/evaluate.json holds


def main() -> None:
    """Run the stage."""
    with stage("evaluate") as run:
        take_gpus("evaluate")
        params, seed, test, classes = run.params, run.params.seed, load_split("test"), load_classes()
        features, model = load_features("test"), networks.load_classifier(paths.MODEL)
        check_classes(paths.MODEL, model.classes, "fine_tune")
        head, _ = load_head(features.dim)

        head_probabilities = softmax(heads.logits(head, features.prefix(head.input_shape[1])), axis=1)
        with open_examples(params.data, model.modality) as source:
            files, batch_size = (list(test.path), list(test.file_hash)), networks.PREDICTION_BATCH
            batches = read_batches(source, model.modality, *files, model.size, batch_size)
            bar = tqdm(batches, total=-(-len(test) // batch_size), desc="evaluate", unit=" batches", disable=None)
            probabilities = np.concatenate([model.predict(batch) for batch in bar])
            whole_images = compare_whole_images(model, source, test, probabilities, seed)

        targets, top_k, resamples = test.target.to_numpy(), params.evaluate.top_k, params.evaluate.resamples
        head_predictions = Predictions(targets, head_probabilities, top_k)
        final_predictions = Predictions(targets, probabilities, top_k)
        gain = PairedPredictions(head_predictions, final_predictions).summary(resamples, seed)
        final = final_predictions.summary(classes, resamples, seed)
        metrics, accuracy = final_predictions.metrics(), final["metrics"]["accuracy"]
        predictions = prediction_table(test, classes, probabilities)
        precision_recall, roc = final_predictions.curves()

        run.metrics({name: metrics[name] for name in COMPARED})
        run.report(
            {
                "final": final,
                "head": head_predictions.summary(classes, resamples, seed),
                "gain": gain,
                "whole_images": whole_images,
                "examples": len(test),
                "model_mb": paths.MODEL.stat().st_size / 1e6,
            }
        )
        run.csv(paths.PREDICTIONS, predictions)
        run.csv(paths.CONFUSION, predictions[["label", "predicted"]].rename(columns={"label": "actual"}))
        run.csv(paths.CLASSES_PLOT, final_predictions.per_class(classes))
        run.csv(paths.RELIABILITY, final_predictions.reliability())
        run.csv(paths.PRECISION_RECALL, precision_recall)
        run.csv(paths.ROC, roc)
        run.cost(latency_ms=latency_ms(model))
        print(
            f"evaluate: {len(test)} test examples: accuracy {accuracy['value']:.4f} (95 % interval "
            f"{accuracy['low']:.4f} to {accuracy['high']:.4f}); {compare_with_head(head, model, gain)}"
            f"macro F1 {metrics['macro_f1']:.4f}"
        )


def compare_with_head(head: keras.Model, model: networks.Classifier, gain: dict[str, Any]) -> str:
    """Return how the fine-tuned network compares with the head alone; nothing if the head itself was selected."""
    shipped = model.network.get_layer("head").get_weights()
    if len(shipped) == len(head.weights) and all(
        map(np.array_equal, head.get_weights(), shipped)
    ):  # fine-tuning changes them
        return ""
    verdict = "no evidence of a difference from" if gain["verdict"] == NO_EVIDENCE else f"{gain['verdict']} than"
    return f"{verdict} the head alone ({gain['metrics'][0]['base']:.4f}); "


if __name__ == "__main__":
    main()

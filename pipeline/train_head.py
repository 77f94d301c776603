"""Train a classifier on the features. No image is touched, so an epoch takes a moment, and a search seconds.

Reads:   data/prepared, features/train.npy, train_views.npy, val.npy.
Writes:  models/head.keras: (N, feature_dim) float32 -> (N, n_classes), a temperature fitted on val in its weights;
         plots/train_head.csv; plots/train_head_search.csv: a row a trial; metrics/train_head.json;
         reports/train_head.json: how it was trained, with nothing left open.
Params:  seed, train_head.
Command: python -m pipeline.train_head
"""

from __future__ import annotations

import json

from pipeline import paths, stage
from pipeline.learning import calibration, heads, networks
from pipeline.learning.dataset import load_classes, load_examples, load_split
from pipeline.learning.engine import make_repeatable, take_gpus
from pipeline.learning.search import search
from pipeline.outputs import Outputs
from pipeline.params import Params


def main(params: Params, outputs: Outputs) -> None:
    """Run the stage."""
    head_file = outputs.path(paths.HEAD)
    take_gpus("train_head")
    make_repeatable(params.seed)
    classes, images = load_classes(), load_split("train")
    train_set, val_set = load_examples("train"), load_examples("val")

    connected = images.connected.to_numpy()
    found, trials = search(train_set, val_set, len(classes), connected, params.train_head, params.seed)
    choice = params.train_head.choice(**found).settled(len(train_set), len(classes))
    head, epochs = heads.train(train_set, val_set, len(classes), choice, params.seed)

    raw = heads.logits(head, val_set)
    temperature = calibration.temperature(raw, val_set.targets)
    networks.divide_logits(head, temperature)
    metrics = calibration.metrics(raw / temperature, val_set.targets)
    unscaled = calibration.metrics(raw, val_set.targets)

    outputs.csv(paths.curves("train_head"), epochs.curves())
    outputs.csv(paths.TRIALS, trials)
    networks.save(head, head_file, classes)
    outputs.json(paths.choices("train_head"), choice.model_dump() | {"optimizer": choice.solver()}, exact=True)
    outputs.json(
        paths.metrics("train_head"),
        {
            **metrics,
            "unscaled_val_loss": unscaled["val_loss"],
            "unscaled_val_calibration_error": unscaled["val_calibration_error"],
            "temperature": temperature,
            "best_epoch": epochs.kept["epoch"],
        },
    )
    if found:
        best = trials[trials["rank"] == 1].iloc[0]
        words = ", ".join(f"{key} {json.dumps(value)}" for key, value in found.items())
        print(
            f"train_head: the best of {len(trials)} trials is {words}: log loss {best.val_loss:.4f}; all of them: "
            f"{paths.TRIALS}"
        )
    asked = params.train_head.choice(**found)
    if asked.hidden is None and not choice.hidden and asked.optimizer != "lbfgs" and "hidden" not in found:
        print(
            f"train_head: a linear head, for {len(train_set) / len(classes):.0f} images of a class on average; "
            "train_head.hidden overrules"
        )
    unit = "iteration" if choice.solver() == "lbfgs" else "epoch"
    print(
        f"train_head: val loss {metrics['val_loss']:.4f}, accuracy {metrics['val_accuracy']:.4f}, after "
        f"{epochs.kept['epoch']} {unit}{'' if epochs.kept['epoch'] == 1 else 's'}; temperature {temperature:.2f}"
    )


if __name__ == "__main__":
    stage.run("train_head", main)

"""Train a classifier on the features. No example is read, so a head takes moments, and a search seconds.

Cross-validation chooses the head, unless params.yaml asks for one: see `training.head_choice`.

Reads:   data/prepared, features/meta.json, features/train.npy, features/train_views.npy, features/val.npy.
Writes:  models/head.keras: (N, dim) float32, the first features of an example -> (N, n_classes), a temperature in its
         weights; predictions/head.npy: logits of train, then val, by heads that have not seen them;
         plots/train_head.csv: a row per epoch; plots/train_head_search.csv: a row per trial; metrics/train_head.json;
         reports/train_head.json: `settings`, with nothing left open, `choice`, and figures of val.
Params:  seed, train_head.
Command: python -m pipeline train_head
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from headstart import paths
from headstart.data.prepared import load_classes, load_split
from headstart.features_meta import FeaturesMeta, read_meta
from headstart.head_config import TrainHead
from headstart.stage import Run, stage
from headstart.training import calibration
from headstart.training.examples import FeatureSet, load_features
from headstart.training.head_settings import resolve_head
from headstart.training.refit import choose_refit
from headstart.training.search import search
from headstart.training.trained_head import TrainedHead, train_as_asked, train_chosen


def main() -> None:
    """Run the stage."""
    with stage("train_head") as run:
        head_file, classes, meta = run.path(paths.HEAD), load_classes(), read_meta()
        train_set, val_set = load_features("train", meta.feature_dim), load_features("val", meta.feature_dim)
        trained = train(run, train_set, val_set, len(classes), meta)

        val_logits = trained.held_out[len(train_set) :]
        metrics = calibration.val_metrics(val_logits, val_set.targets)
        unscaled = calibration.val_metrics(val_logits * trained.temperature, val_set.targets)
        trained.save(head_file, classes)
        np.save(run.path(paths.HELD_OUT), trained.held_out)
        run.csv(paths.curves("train_head"), trained.curves)
        run.metrics({"head_val_loss": metrics["val_loss"]})
        run.report(
            {
                "settings": trained.settings.model_dump(),
                "choice": trained.choice,
                "refitted": trained.refitted,
                **metrics,
                "unscaled_val_loss": unscaled["val_loss"],
                "unscaled_val_calibration_error": unscaled["val_calibration_error"],
                "temperature": trained.temperature,
                "best_epoch": trained.best_epoch,
            }
        )
        print_summary(trained, metrics)


def train(run: Run, train_set: FeatureSet, val_set: FeatureSet, n_classes: int, meta: FeaturesMeta) -> TrainedHead:
    """Train the head that params.yaml asks for, after a search if there is one; else one chosen by cross-validation."""
    params, seed, last = run.params.train_head, run.params.seed, meta.dim("last")
    examples = pd.concat([load_split("train"), load_split("val")], ignore_index=True)
    groups = examples.connected.to_numpy()
    parts = train_set.prefix(last), val_set.prefix(last)
    best, trials = search(*parts, n_classes, groups[: len(train_set)], params, seed)
    run.csv(paths.TRIALS, trials)
    if asked := params.asked_for():
        print_search(params, asked, best, trials)
        return train_as_asked(*parts, n_classes, resolve_head(params.choice(**best), n_classes), seed)
    refit = choose_refit(None, examples)
    return train_chosen(train_set, val_set, groups, n_classes, meta.depths, params, refit, seed)


def print_search(params: TrainHead, asked: list[str], best: dict[str, object], trials: pd.DataFrame) -> None:
    """Say why cross-validation does not choose the head, and which trial of a search is best."""
    if best:
        loss = trials.loc[trials["rank"] == 1, "val_loss"].item()
        text = ", ".join(f"{key} {json.dumps(value)}" for key, value in best.items())
        print(f"train_head: best of {len(trials)} trials: {text}, log loss {loss:.4f}; see {paths.TRIALS}")
    elif "hidden" not in asked:
        print(
            f"train_head: trained as params.yaml asks, since it sets {', '.join(asked)}; without that, "
            "cross-validation chooses the head"
        )


def print_summary(trained: TrainedHead, metrics: dict[str, float]) -> None:
    """Say which head was chosen and how good it is."""
    choice, count = trained.choice, trained.dim
    where = f"after {trained.best_epoch} epochs"
    if choice:
        where = "in cross-validation" if trained.refitted else "on val"
        kinds = {"average": "the average of linear heads", "hidden": "a hidden layer"}
        kind = kinds.get(choice["head"], "a linear head")
        losses = ", ".join(f"{name} {loss:.4f}" for name, loss in choice["losses"].items())
        print(
            f"train_head: {kind} on {count:,} features down to depth {choice['depth']} is selected; log loss in "
            f"{choice['folds']} folds: {losses}"
        )
    refitted = "; refitted on train + val" if trained.refitted else ""
    print(
        f"train_head: val loss {metrics['val_loss']:.4f}, accuracy {metrics['val_accuracy']:.4f} {where}; "
        f"temperature {trained.temperature:.2f}{refitted}"
    )


if __name__ == "__main__":
    main()

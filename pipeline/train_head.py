"""Train a classifier on the features. No example is read, so an epoch takes a moment, and a search seconds.

Reads:   data/prepared, features/train.npy, features/train_views.npy, features/val.npy.
Writes:  models/head.keras: (N, feature_dim) float32 -> (N, n_classes), a temperature fitted on val in its weights;
         plots/train_head.csv: a row per epoch; plots/train_head_search.csv: a row per trial; metrics/train_head.json;
         reports/train_head.json: `settings`, with nothing left open, and figures of val.
Params:  seed, train_head.
Command: python -m pipeline train_head
"""

from __future__ import annotations

import json

import pandas as pd

from headstart import paths
from headstart.data.prepared import load_classes, load_split
from headstart.framework import make_repeatable, take_gpus
from headstart.head_config import ResolvedHead, TrainHead
from headstart.stage import stage
from headstart.training import calibration, heads, networks
from headstart.training.examples import load_features
from headstart.training.head_settings import resolve_head
from headstart.training.search import search


def main() -> None:
    """Run the stage."""
    with stage("train_head") as run:
        params, head_file = run.params.train_head, run.path(paths.HEAD)
        take_gpus("train_head")
        make_repeatable(run.params.seed)
        classes, groups = load_classes(), load_split("train").connected.to_numpy()
        train_set = load_features("train")
        val_set = load_features("val", train_set.dim)

        best, trials = search(train_set, val_set, len(classes), groups, params, run.params.seed)
        settings = resolve_head(params.choice(**best), len(train_set), len(classes))
        head, history = heads.train(train_set, val_set, len(classes), settings, run.params.seed)

        logits = heads.logits(head, val_set)
        temperature = calibration.fit_temperature(logits, val_set.targets)
        networks.divide_logits(head, temperature)
        metrics = calibration.val_metrics(logits / temperature, val_set.targets)
        unscaled = calibration.val_metrics(logits, val_set.targets)

        networks.save(head, head_file, classes)
        run.csv(paths.curves("train_head"), history.curves())
        run.csv(paths.TRIALS, trials)
        run.metrics({"head_val_loss": metrics["val_loss"]})
        run.report(
            {
                "settings": settings.model_dump(),
                **metrics,
                "unscaled_val_loss": unscaled["val_loss"],
                "unscaled_val_calibration_error": unscaled["val_calibration_error"],
                "temperature": temperature,
                "best_epoch": history.kept["epoch"],
            }
        )
        print_summary(params, best, trials, settings, len(train_set) / len(classes))
        epoch, unit = history.kept["epoch"], "iteration" if settings.optimizer == "lbfgs" else "epoch"
        print(
            f"train_head: val loss {metrics['val_loss']:.4f}, accuracy {metrics['val_accuracy']:.4f}, after {epoch} "
            f"{unit}{'' if epoch == 1 else 's'}; temperature {temperature:.2f}"
        )


def print_summary(
    params: TrainHead, best: dict[str, object], trials: pd.DataFrame, settings: ResolvedHead, per_class: float
) -> None:
    """Print the best trial of a search, and whether the head is linear because there are few examples per class."""
    if best:
        loss = trials.loc[trials["rank"] == 1, "val_loss"].item()
        text = ", ".join(f"{key} {json.dumps(value)}" for key, value in best.items())
        print(f"train_head: best of {len(trials)} trials: {text}, log loss {loss:.4f}; see {paths.TRIALS}")
    asked = params.choice(**best)
    if asked.hidden is None and not settings.hidden and asked.optimizer != "lbfgs" and "hidden" not in best:
        print(
            f"train_head: the head is linear, since there are {per_class:.0f} examples per class on average; "
            "set train_head.hidden to choose another"
        )


if __name__ == "__main__":
    main()

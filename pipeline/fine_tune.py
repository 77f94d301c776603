"""Train the last blocks of the backbone with the head, on augmented examples; select the result if it is better.

Training the head first, then both, is LP-FT (https://arxiv.org/abs/2202.10054).

Reads:   data/prepared, the examples, features/*.npy, features/meta.json, models/head.keras, reports/train_head.json.
Writes:  models/model.keras: whole examples, for images (N, height, width, 3) RGB in [0, 255] -> (N, n_classes), with
         preprocessing and a temperature inside; predictions/val.csv: by the selected network before it has seen val;
         plots/fine_tune.csv: a row per epoch; metrics/fine_tune.json; reports/fine_tune.json: `settings`, those that
         params.yaml leaves open, and the figures by which head and fine-tuned network were compared.
Params:  backbone, weights, seed, data, fine_tune.
Command: python -m pipeline fine_tune
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError
from scipy.special import softmax

from headstart.training import kernels

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", kernels.onednn(Path("params.yaml")))  # before TensorFlow loads

from headstart import paths
from headstart.config import Params
from headstart.data.predictions import prediction_table
from headstart.data.prepared import load_split
from headstart.errors import UserError
from headstart.features.encoding import read_meta
from headstart.features.extraction import retry_on_oom
from headstart.framework import distribution, make_repeatable, take_gpus
from headstart.head_config import ResolvedHead
from headstart.modalities import get_modality
from headstart.stage import Run, stage
from headstart.training import calibration, defaults, heads, networks
from headstart.training.examples import concat, load_features
from headstart.training.folds import Fold, make_folds
from headstart.training.history import COLUMNS
from headstart.training.planning import build_encoder, build_plan
from headstart.training.saved_head import load_head
from headstart.training.selection import explain, fine_tune


def main() -> None:
    """Run the stage."""
    with stage("fine_tune") as run:
        take_gpus("fine_tune")
        retry_on_oom("fine_tune", lambda batch_size: train_and_select(run, batch_size), None)


def train_and_select(run: Run, batch_size: int | None) -> None:
    """Train, compare with the head, and write the better network; `batch_size` is for computing activations."""
    params, settings = run.params, run.params.fine_tune
    model_file = run.path(paths.MODEL)
    make_repeatable(params.seed)
    meta, val_set, devices = read_meta(), load_features("val"), distribution()
    with devices.scope():
        encoder = build_encoder(params, meta, settings.precision)
        head, classes = load_head(val_set.dim)
    val_logits = heads.logits(head, val_set)
    metrics = head_metrics = calibration.val_metrics(val_logits, val_set.targets)
    folds = load_folds(params, len(classes)) if settings.unfreeze != "none" else []
    result = None
    with devices.scope(), build_plan(params, encoder, head, meta, folds, batch_size) as plan:
        if plan:
            result = fine_tune(plan, run.log_epoch)

    better = result is not None and result.better
    report: dict[str, Any] = {f"head_{name}": value for name, value in head_metrics.items()}
    curves, reason = pd.DataFrame(columns=COLUMNS), "fine_tune.unfreeze leaves nothing to train"
    if result:
        report |= result.report()
        curves, reason = result.trained.history.curves(), explain(report, better, settings.confidence)
    final = build_encoder(params, meta, "float32")  # whatever precision and devices were used for training
    if result and better:
        val_logits = result.val_logits
        metrics = calibration.val_metrics(val_logits, val_set.targets)
        final.set_weights(encoder.get_weights())
        networks.divide_logits(head, result.temperature)
    else:
        head, _ = networks.load(paths.HEAD)
    modality = get_modality(params.data.kind, meta.reading)
    model = networks.join(modality.front(meta.size), final, head)
    about = {"modality": modality.name, "size": meta.size, "reading": modality.reading, "margin": params.data.margin}
    networks.save(model, model_file, classes, **about)
    run.csv(paths.VAL_PREDICTIONS, prediction_table(load_split("val"), classes, softmax(val_logits, axis=1)))
    run.csv(paths.curves("fine_tune"), curves)
    selected = "fine_tuned" if better else "head"
    run.metrics({"val_loss": metrics["val_loss"]})
    run.report({"settings": result.plan.chosen if result else {}, "selected": selected, **metrics, **report})
    if result:
        run.on_success(result.plan.delete_checkpoints)
    print(f"fine_tune: {'the fine-tuned network' if better else 'the head'} is selected: {reason}")


def load_folds(params: Params, n_classes: int) -> list[Fold]:
    """Return the folds of cross-validation; none if val is used instead."""
    train_set, val_set = load_features("train"), load_features("val")
    targets = np.concatenate([train_set.targets, val_set.targets])
    groups = np.concatenate([load_split(name).connected.to_numpy() for name in ("train", "val")])
    n_folds = defaults.choose_folds(params.fine_tune, len(val_set), targets, groups)
    if not n_folds:
        return []
    file = paths.report("train_head")
    try:
        settings = ResolvedHead(**json.loads(file.read_text(encoding="utf-8"))["settings"])
    except (ValidationError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} does not say how the head was trained; run `dvc repro --force train_head`") from error
    print(f"fine_tune: {n_folds + 1} trainings: in {n_folds} folds of train and val, then on train")
    return make_folds(concat(train_set, val_set), groups, n_folds, n_classes, settings, params.seed)


if __name__ == "__main__":
    main()

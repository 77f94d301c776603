"""Train the last blocks of the backbone with a head, on augmented examples; select the result if it is better.

Training a head first, then both, is LP-FT (https://arxiv.org/abs/2202.10054). It starts from a head on the last layer's
features, and must beat the one that train_head made.

Reads:   data/prepared, the examples, features/*.npy, features/meta.json, models/head.keras, predictions/head.npy,
         reports/train_head.json.
Writes:  models/model.keras: whole examples, for images (N, height, width, 3) RGB in [0, 255] -> (N, n_classes), with
         preprocessing and a temperature inside; predictions/val.csv: by the selected network before it has seen val;
         plots/fine_tune.csv: a row per epoch; metrics/fine_tune.json; reports/fine_tune.json: `settings`, those that
         params.yaml leaves open, and the figures by which head and fine-tuned network were compared.
Params:  backbone, weights, seed, data, fine_tune.
Command: python -m pipeline fine_tune
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import softmax

from headstart.training import kernels

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", kernels.onednn(Path("params.yaml")))  # before TensorFlow loads

from headstart import paths
from headstart.data.predictions import prediction_table
from headstart.data.prepared import load_split
from headstart.features.extraction import retry_on_oom
from headstart.features_meta import FeaturesMeta, read_meta
from headstart.framework import distribution, keras, make_repeatable, take_gpus
from headstart.modalities import get_modality
from headstart.stage import Run, stage
from headstart.training import calibration, networks
from headstart.training.examples import load_features
from headstart.training.folds import load_folds
from headstart.training.head_report import HeadReport, read_head_report
from headstart.training.history import COLUMNS
from headstart.training.planning import build_encoder, build_plan
from headstart.training.saved_head import load_head, start_head
from headstart.training.selection import FineTuneResult, explain, fine_tune


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
    meta = read_meta()
    train_set, val_set = load_features("train", meta.feature_dim), load_features("val", meta.feature_dim)
    head, classes = load_head(train_set.dim)
    found = read_head_report(len(train_set) + len(val_set), len(classes))
    val_logits = found.logits[len(train_set) :]
    metrics = calibration.val_metrics(val_logits, val_set.targets)
    report: dict[str, Any] = {f"head_{name}": value for name, value in metrics.items()}
    curves, chosen = pd.DataFrame(columns=COLUMNS), {}

    result, reason = None, "fine_tune.unfreeze leaves nothing to train"
    depth = meta.depth_of(head.input_shape[1])
    skipped = found.nothing_to_gain(np.concatenate([train_set.targets, val_set.targets]))
    if skipped and not settings.asked_for() and settings.unfreeze != "none":
        reason = f"{skipped}; fine_tune.effort=thorough trains all the same"
    elif settings.unfreeze != "none":
        result, trained, start = tune(run, meta, found, batch_size)
    if result:
        report, chosen = report | result.report(), result.plan.chosen
        curves, reason = result.curves(), explain(report, result.better, settings.confidence)
        run.on_success(result.plan.delete_checkpoints)
    if result and result.better:
        val_logits, head = result.val_logits, start
        metrics = calibration.val_metrics(val_logits, val_set.targets)
        depth = "last"
        networks.divide_logits(head, result.temperature)
    keras.backend.clear_session(free_memory=False)  # names of layers do not tell how many networks were built before
    encoder = build_encoder(params, meta, "float32", depth)  # whatever precision and devices were used for training
    if result and result.better:
        encoder.set_weights(trained.get_weights())

    modality = get_modality(meta.kind, meta.reading)
    model = networks.join(modality.front(meta.size), encoder, head)
    about = {"modality": modality.name, "size": meta.size, "reading": modality.reading, "margin": params.data.margin}
    networks.save(model, model_file, classes, **about)
    run.csv(paths.VAL_PREDICTIONS, prediction_table(load_split("val"), classes, softmax(val_logits, axis=1)))
    run.csv(paths.curves("fine_tune"), curves)
    selected = "fine_tuned" if result and result.better else "head"
    run.metrics({"val_loss": metrics["val_loss"]})
    run.report({"settings": chosen, "selected": selected, "reason": reason, **metrics, **report})
    print(f"fine_tune: {'the head' if selected == 'head' else 'the fine-tuned network'} is selected: {reason}")


def tune(
    run: Run, meta: FeaturesMeta, found: HeadReport, batch_size: int | None
) -> tuple[FineTuneResult | None, keras.Model, keras.Model]:
    """Train; return the result, None if no layer is to be trained, with the encoder and the head that were trained."""
    params, devices = run.params, distribution()
    with devices.scope():
        encoder = build_encoder(params, meta, params.fine_tune.precision)
        start = start_head(found, meta.dim("last"), params.seed)
    folds = load_folds(params.fine_tune, found, meta.dim("last"), params.seed)
    with devices.scope(), build_plan(params, encoder, start, found.logits, meta, folds, batch_size) as plan:
        return (fine_tune(plan, run.log_epoch) if plan else None), encoder, start


if __name__ == "__main__":
    main()

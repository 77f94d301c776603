"""Train the last blocks of the backbone with the head, on augmented images; ship the result where it is better.

Reads:   data/prepared, the images, features/meta.json, features/val.npy, models/head.keras; where folds judge, also
         features/train.npy, train_views.npy, reports/train_head.json.
Writes:  models/model.keras: (N, height, width, 3) RGB in [0, 255] -> (N, n_classes), resize and preprocessing inside, a
         temperature fitted on val, or by folds, in its weights; plots/fine_tune.csv; metrics/fine_tune.json: what is
         shipped, before it was trained on val, and, as head_... and tuned_..., what it was chosen from;
         reports/fine_tune.json: how it was trained where params leave it open.
Params:  backbone, weights, seed, data, fine_tune.
Command: python -m pipeline.fine_tune

Training the head first, then both, is LP-FT (https://arxiv.org/abs/2202.10054).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError
from scipy.special import softmax

from headstart.training import kernels

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", kernels.onednn(Path("params.yaml")))  # before TensorFlow loads

from headstart import paths
from headstart.config import HeadChoice, Params
from headstart.data.manifest import load_split
from headstart.data.predictions import prediction_table
from headstart.errors import UserError
from headstart.features.extraction import patiently
from headstart.framework import distribution, make_repeatable, take_gpus
from headstart.stage import Run, stage
from headstart.training import calibration, defaults, folds, heads, networks
from headstart.training.examples import load_examples
from headstart.training.fine_tuning import Tuned
from headstart.training.folds import Fold, Judged
from headstart.training.history import COLUMNS
from headstart.training.plan import Plan, build, opened


def make_folds(params: Params, n_classes: int) -> list[Fold]:
    """The folds that judge; none where val does."""
    train_set, val_set = load_examples("train"), load_examples("val")
    targets = np.concatenate([train_set.targets, val_set.targets])
    groups = np.concatenate([load_split(name).connected.to_numpy() for name in ("train", "val")])
    number = defaults.folds(params.fine_tune, len(val_set), targets, groups)
    if not number:
        return []
    file = paths.report("train_head")
    try:
        of_head = HeadChoice(**json.loads(file.read_text(encoding="utf-8"))["settings"])
    except (ValidationError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} does not say how the head was trained; run `dvc repro --force train_head`") from error
    print(f"fine_tune: {number} folds of train and val judge: as many trainings before that of the network itself")
    return folds.split(folds.together(train_set, val_set), groups, number, n_classes, of_head, params.seed)


@dataclass(frozen=True)
class Found:
    """What fine-tuning came to.

    Attributes:
        tuned: by training on train.
        judged: what folds say; None where val judges.
        better: whether it is to be shipped.
        sure: how sure it is that it is better than the head, in [0, 1].
        temperature: of its logits.
        refitted: whether the network as it stands was trained on train and val.
    """

    plan: Plan
    tuned: Tuned
    judged: Judged | None
    better: bool
    sure: float
    temperature: float
    refitted: bool = False

    @property
    def finished(self) -> bool:
        """Whether training on train came to the last of its epochs."""
        return self.tuned.epochs.kept["epoch"] == self.plan.epochs

    def refit(self) -> Found:
        """Train once more, on train and val, where that is wanted, and earned."""
        if not (self.better and self.finished and self.plan.refits):
            return self
        return replace(self, refitted=self.plan.refit(self.tuned))


def train(plan: Plan, judges: list[Fold], confidence: float, tell: Callable[[dict[str, float]], None]) -> Found:
    """Train on train, and judge.

    Args:
        judges: those that the plan was opened with.
        confidence: that is asked for.
        tell: is given the row of each epoch.
    """
    judged = plan.judge(judges) if judges else None
    tuned = plan.train(tell)
    if not judged:
        scale = calibration.temperature(tuned.logits, tuned.states.targets)
        return Found(plan, tuned, None, *tuned.states.verdict(confidence), scale)
    found = Found(plan, tuned, judged, *judged.states.verdict(confidence), judged.temperature)
    return replace(found, better=found.better and found.finished)  # of a training that broke off folds know nothing


def fine_tune(run: Run, batch_size: int | None) -> None:
    """Train, judge, and write the better one."""
    params = run.params
    model_file = run.path(paths.MODEL)
    make_repeatable(params.seed)
    meta: dict[str, Any] = json.loads(paths.FEATURES_META.read_text(encoding="utf-8"))
    devices, confidence = distribution(), params.fine_tune.confidence
    with devices.scope():
        trunk = build(params, meta, params.fine_tune.precision)
        head, classes = networks.load(paths.HEAD)
    val_set = load_examples("val")
    val_logits = heads.logits(head, val_set)
    of_head = calibration.metrics(val_logits, val_set.targets)
    judges = make_folds(params, len(classes)) if params.fine_tune.unfreeze != "none" else []
    found: Found | None = None
    with devices.scope(), opened(params, trunk, head, meta, judges, batch_size) as plan:
        if plan:
            found = train(plan, judges, confidence, run.log_epoch).refit()

    better, why, chosen = False, "fine_tune.unfreeze leaves nothing to train", {}
    curves, shipped_metrics, temperature = pd.DataFrame(columns=COLUMNS), of_head, 1.0
    details: dict[str, Any] = {f"head_{name}": value for name, value in of_head.items()}
    if found:
        tuned, judged, better = found.tuned, found.judged, found.better
        sure, temperature = found.sure, found.temperature
        curves, epoch, chosen = tuned.epochs.curves(), tuned.epochs.kept["epoch"], found.plan.chosen
        details |= judged.metrics() if judged else {}
        of_tuned = calibration.metrics(tuned.logits / temperature, val_set.targets)
        shipped_metrics = of_tuned if better else of_head
        val_logits = tuned.logits / temperature if better else val_logits
        details |= {f"tuned_{name}": value for name, value in of_tuned.items()}
        scores = (judged or tuned).states.scores
        before, after = float(scores[0].mean()), float(scores[-1].mean())
        details |= {"head_brier_score": before, "tuned_brier_score": after, "tuned_confidence": sure}
        details |= {"last_epoch": epoch, "finished": found.finished, "refitted": found.refitted}
        details |= {"temperature": temperature}
        name, kind = ("folds", "cross-validated") if judged else ("val", "val")
        losses, hits = ([details[f"{one}_{name}_{of}"] for one in ("tuned", "head")] for of in ("loss", "accuracy"))
        why = (
            f"epoch {epoch} has {kind} loss {losses[0]:.4f} and accuracy {hits[0]:.4f}, the head {losses[1]:.4f} and "
            f"{hits[1]:.4f}; confidence that its Brier score, {after:.4f} and not {before:.4f}, is lower: {sure:.3f}, "
            f"asked for: {confidence}"
        )
        if not better and sure and sure >= confidence:
            why += ", but fewer answers are right"
        if not details["finished"]:
            broken = f"training broke off after epoch {epoch}, its loss being no number"
            why = broken if judged or not epoch else f"{why}; {broken}"
        if found.refitted:
            why += "; then it was trained again, on train and val"
    trunk_shipped = build(params, meta, "float32")  # whatever precision and devices it was trained with
    if better:
        trunk_shipped.set_weights(trunk.get_weights())
        networks.divide_logits(head, temperature)
    else:
        head, _ = networks.load(paths.HEAD)
    networks.save(networks.join(trunk_shipped, head), model_file, classes)
    run.csv(paths.curves("fine_tune"), curves)
    run.csv(paths.VAL_PREDICTIONS, prediction_table(load_split("val"), classes, softmax(val_logits, axis=1)))
    run.report({"settings": chosen, **shipped_metrics, "fine_tuned": better, **details})
    selected = "fine_tuned" if better else "head"
    of_val = {name: shipped_metrics[name] for name in ("val_loss", "val_accuracy")}
    run.metrics({**of_val, "selected": selected})
    print(f"fine_tune: {'the fine-tuned network' if better else 'the head as it was'} is shipped: {why}")
    if found:
        found.plan.forget()


def main() -> None:
    """Run the stage."""
    with stage("fine_tune") as run:
        take_gpus("fine_tune")
        patiently("fine_tune", lambda batch_size: fine_tune(run, batch_size), None)


if __name__ == "__main__":
    main()

"""Train the last blocks of the backbone with the head, on augmented images; ship the result where it is surely better.

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from pipeline.learning import kernels

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", kernels.onednn(Path("params.yaml")))  # before TensorFlow loads

from pipeline import paths, stage
from pipeline.errors import UserError
from pipeline.features.extraction import patiently
from pipeline.journal import recording
from pipeline.learning import calibration, defaults, folds, heads, networks
from pipeline.learning.dataset import load_examples, load_split
from pipeline.learning.engine import distribution, keras, make_repeatable, take_gpus
from pipeline.learning.fine_tuning import Tuned
from pipeline.learning.folds import Fold, Judged
from pipeline.learning.plan import build, opened
from pipeline.learning.training import COLUMNS
from pipeline.outputs import Outputs
from pipeline.params import HeadChoice, Params


def make_folds(params: Params, n_classes: int) -> list[Fold]:
    """The folds that judge; none where val does."""
    train_set, val_set = load_examples("train"), load_examples("val")
    targets = np.concatenate([train_set.targets, val_set.targets])
    groups = np.concatenate([load_split(name).connected.to_numpy() for name in ("train", "val")])
    number = defaults.folds(params.fine_tune, len(val_set), targets, groups)
    if not number:
        return []
    file = paths.choices("train_head")
    try:
        of_head = HeadChoice(**json.loads(file.read_text(encoding="utf-8")))
    except (ValidationError, ValueError, TypeError) as error:
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
        refit: whether the network as it stands was trained on train and val.
        chosen: how it was trained where params leave it open.
    """

    tuned: Tuned
    judged: Judged | None
    better: bool
    sure: float
    temperature: float
    refit: bool
    chosen: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether it came to the last of its epochs."""
        return self.tuned.epochs.best["epoch"] == self.chosen["epochs"]


def verdict_on(tuned: Tuned, judged: Judged | None, epochs: int, params: Params) -> tuple[bool, float, float]:
    """Whether to ship what was tuned, how sure it is that it is better, and the temperature of its logits.

    Args:
        judged: what folds say; None where val decides.
        epochs: that were to be trained.
    """
    confidence = params.fine_tune.confidence
    if judged:
        better, sure = judged.states.verdict(confidence)
        finished = tuned.epochs.best["epoch"] == epochs
        return better and finished, sure, judged.temperature  # of a training that broke off folds know nothing
    return *tuned.states.verdict(confidence), calibration.temperature(tuned.logits, tuned.states.targets)


def train(
    params: Params,
    trunk: keras.Model,
    head: keras.Model,
    meta: dict[str, Any],
    judges: list[Fold],
    batch_size: int | None,
) -> Found | None:
    """Fine-tune trunk and head in place, to what is shipped where it is better; None where there is nothing to train.

    Args:
        judges: as `opened` takes them, like the others.
    """
    with opened(params, trunk, head, meta, judges, batch_size) as plan:
        if not plan:
            return None
        judged = plan.judge(judges) if judges else None
        with recording.Live("fine_tune", params.leaves()) as live:
            tuned = plan.train(live)
            found = Found(tuned, judged, *verdict_on(tuned, judged, plan.epochs, params), False, plan.chosen)
            if found.better and found.finished and plan.refits:
                found = replace(found, refit=plan.refit())
        plan.forget()
    return found


def fine_tune(params: Params, outputs: Outputs, batch_size: int | None) -> None:
    """Train, judge, and write the better one."""
    model_file = outputs.path(paths.MODEL)
    make_repeatable(params.seed)
    meta: dict[str, Any] = json.loads(paths.FEATURES_META.read_text(encoding="utf-8"))
    devices, confidence = distribution(), params.fine_tune.confidence
    with devices.scope():
        trunk = build(params, meta, params.fine_tune.precision)
        head, classes = networks.load(paths.HEAD)
    val_set = load_examples("val")
    of_head = calibration.metrics(heads.logits(head, val_set), val_set.targets)
    judges = make_folds(params, len(classes)) if params.fine_tune.unfreeze != "none" else []
    with devices.scope():
        found = train(params, trunk, head, meta, judges, batch_size)

    better, why, chosen = False, "fine_tune.unfreeze leaves nothing to train", {}
    curves, shipped_metrics, temperature = pd.DataFrame(columns=COLUMNS), of_head, 1.0
    details: dict[str, Any] = {f"head_{name}": value for name, value in of_head.items()}
    if found:
        tuned, judged, chosen, better, sure = found.tuned, found.judged, found.chosen, found.better, found.sure
        temperature, curves, epoch = found.temperature, tuned.epochs.curves(), tuned.epochs.best["epoch"]
        details |= judged.metrics() if judged else {}
        of_tuned = calibration.metrics(tuned.logits / temperature, val_set.targets)
        shipped_metrics = of_tuned if better else of_head
        details |= {f"tuned_{name}": value for name, value in of_tuned.items()}
        scores = (judged or tuned).states.scores
        before, after = float(scores[0].mean()), float(scores[-1].mean())
        details |= {"head_brier_score": before, "tuned_brier_score": after, "tuned_confidence": sure}
        details |= {"last_epoch": epoch, "finished": found.finished, "refitted": found.refit}
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
    trunk_shipped = build(params, meta, "float32")  # whatever precision and devices it was trained with
    if better:
        trunk_shipped.set_weights(trunk.get_weights())
        networks.divide_logits(head, temperature)
    else:
        head, _ = networks.load(paths.HEAD)
    networks.save(networks.join(trunk_shipped, head), model_file, classes)
    outputs.csv(paths.curves("fine_tune"), curves)
    outputs.json(paths.choices("fine_tune"), chosen)
    outputs.json(paths.metrics("fine_tune"), {**shipped_metrics, "fine_tuned": better, **details})
    what = "the fine-tuned network" if better else "the head as it was"
    again = ", trained on train and val," if details.get("refitted") else ""
    print(f"fine_tune: {what}{again} is shipped: {why}")


def main(params: Params, outputs: Outputs) -> None:
    """Run the stage."""
    take_gpus("fine_tune")
    patiently("fine_tune", lambda batch_size: fine_tune(params, outputs, batch_size), None)


if __name__ == "__main__":
    stage.run("fine_tune", main)

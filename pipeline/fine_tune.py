"""Train the last blocks of the backbone with the head, on augmented images; ship the result where it is surely better.

Reads:   data/prepared, the images, features/meta.json, features/val.npy, models/head.keras; where folds judge, also
         features/train.npy, train_views.npy, reports/train_head.json.
Writes:  models/model.keras: (N, height, width, 3) RGB in [0, 255] -> (N, n_classes), resize and preprocessing inside, a
         temperature fitted on val, or by folds, in its weights; plots/fine_tune.csv; metrics/fine_tune.json: what is
         shipped and, as head_... and tuned_..., what it was chosen from, on val and by folds; reports/fine_tune.json:
         how it was trained where params leave it open.
Params:  backbone, weights, seed, data, fine_tune.
Command: python -m pipeline.fine_tune

Training the head first, then both, is LP-FT (https://arxiv.org/abs/2202.10054).
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from pipeline.learning import kernels

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", kernels.onednn(Path("params.yaml")))  # before TensorFlow loads

from pipeline import paths, stage
from pipeline.backbones import BACKBONES
from pipeline.data import pixels
from pipeline.data.sources import open_source
from pipeline.errors import UserError
from pipeline.features import augmentation, extraction, inference
from pipeline.features.augmentation import NONE
from pipeline.features.extraction import patiently
from pipeline.journal import recording
from pipeline.learning import (
    blocks,
    calibration,
    checkpoint,
    defaults,
    fine_tuning,
    folds,
    heads,
    networks,
    training,
    trunk_cache,
    verdict,
)
from pipeline.learning.checkpoint import Checkpoint
from pipeline.learning.dataset import load_examples, load_split
from pipeline.learning.engine import device_name, distribution, gpu_names, keras, make_repeatable, policy, take_gpus, tf
from pipeline.learning.fine_tuning import Batches, Job, Tuned, tune
from pipeline.learning.folds import Fold, Judged
from pipeline.learning.training import COLUMNS
from pipeline.outputs import Outputs
from pipeline.params import HeadChoice, Params


def build(params: Params, meta: dict[str, Any], precision: str) -> keras.Model:
    """The trunk that the features were made by.

    Raises:
        UserError: where the weights are others now.
    """
    with policy(precision):
        trunk = networks.build_trunk(params.backbone, params.weights, meta["image_size"], meta["pooling"], params.seed)
    if networks.weights_sha256(trunk) != meta["weights_sha256"]:
        raise UserError(
            f"the weights of {params.backbone} are not those that the features were made by; "
            "run `dvc repro --force extract`"
        )
    return trunk


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


def train(
    params: Params,
    trunk: keras.Model,
    head: keras.Model,
    meta: dict[str, Any],
    judges: list[Fold],
    batch_size: int | None,
) -> tuple[Tuned, Judged | None, dict[str, Any]] | None:
    """Fine-tune trunk and head in place; what came of it, what folds say, and what was chosen on the way.

    None where nothing of the trunk is to be trained.

    Args:
        judges: of another training each, on all images but its own; none where val judges.
        batch_size: of what is computed once; None for the engine's own.
    """
    choice, size = params.fine_tune, meta["image_size"]
    for layer in head.layers:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    base = trunk.get_layer(networks.BACKBONE_LAYER)
    trained = blocks.chosen(base, BACKBONES[params.backbone], choice.unfreeze)
    scales = blocks.unfreeze(base, trained, choice.layer_decay)
    if not scales:
        return None
    images = pd.concat([load_split("train"), load_split("val")], ignore_index=True)
    targets, count = images.target.to_numpy(), int((images.split == "train").sum())
    epochs, views = defaults.schedule(choice, count)
    where = blocks.cut(base, trained)
    with ExitStack() as stack:
        source = stack.enter_context(open_source(params.data.source, params.data.root))
        whole = keras.Model(trunk.inputs, head(trunk.output))
        changes = defaults.augmentation(choice, whole, images[count:], source, size, params.seed) if views else NONE
        views = 0 if changes == NONE else views  # all would be alike
        seen = images.assign(split="train") if judges else images  # folds train on images of val, too
        cached, reason = trunk_cache.choose(
            choice.trunk_cache,
            int(np.prod(where.shape)) if where else None,
            images=int((seen.split == "train").sum()) * views + len(images),
            passes=len(images) * epochs * (1 + len(judges)),
            fast=meta["engine"] == "openvino",
            work=blocks.work_below(base, where) if where else 0.0,
        )
        print(f"fine_tune: {epochs} epochs from {'kept activations' if cached else 'the images'}: {reason}")
        if cached:
            engine = "tensorflow" if meta["engine"] == "tensorflow" else "auto"
            # On CPUs float32 is fast enough, and always there.
            precision = choice.precision if gpu_names() else "float32"

            def frozen() -> keras.Model:
                return blocks.lower(build(params, meta, precision), params.backbone, where)

            run = inference.open_engine(engine, frozen, precision, batch_size)
            recipe = {
                "backbone": params.backbone,
                "image_size": size,
                "pooling": f"cut-{where.place}",
                "precision": precision,
                "storage": trunk_cache.STORAGE,
            }
            inputs = stack.enter_context(
                trunk_cache.activations(run, recipe, seen, source, where.shape, size, changes, views)
            )
        else:
            inputs = trunk_cache.Pixels(images, source, size, changes)
        below = blocks.upper(trunk, where) if cached else trunk
        start = keras.Input(below.input_shape[1:])
        network = keras.Model(start, networks.without_softmax(head)(below(start)))
        momentum = defaults.momentum(choice, epochs * -(-count // choice.batch_size))
        details = {"epochs": epochs, "ema": momentum, "views": views, **asdict(changes), "trunk_cache": cached}
        details["folds"] = len(judges)
        kept = paths.kept("fine_tune") / fingerprint(params, meta, details, judges)

        def job(rows: np.ndarray, others: np.ndarray, state: Checkpoint | None, tell: Any) -> Job:
            weights = heads.class_weights(targets[rows], head.output_shape[-1], choice.class_weight)
            batches = partial(Batches, inputs, targets=targets, weights=weights, batch_size=choice.batch_size)
            return Job(
                network,
                batches(rows=rows, views=views, seed=params.seed, mixup=choice.mixup),
                batches(rows=others, views=0, seed=None),
                [*scales, *[1.0] * len(head.trainable_variables)],
                choice,
                epochs,
                momentum,
                state,
                tell,
            )

        judged = None
        if judges:
            judged = folds.judge(
                network,
                head,
                judges,
                lambda fold, tell: job(fold.seen, fold.held_out, None, tell),
                targets,
                epochs,
                kept,
            )
        rows, state = np.arange(len(images)), Checkpoint(kept.with_name(f"{kept.name}.npz"))
        with recording.Live("fine_tune", params.leaves()) as live:
            tuned = tune(job(rows[:count], rows[count:], state, live))
        folds.forget(kept)
    return tuned, judged, {**details, "layers_trained": len(scales)}


def fingerprint(params: Params, meta: dict[str, Any], details: dict[str, Any], judges: list[Fold]) -> str:
    """Of everything that shapes the training: what another one left is not gone on with. 16 hexadecimal digits."""
    read = [params.backbone, params.weights, params.seed, params.data, params.fine_tune]
    kernels_used = os.environ["TF_ENABLE_ONEDNN_OPTS"]
    parts = [*read, meta, details, tf.__version__, keras.__version__, device_name(), kernels_used]
    modules = (
        augmentation,
        blocks,
        calibration,
        checkpoint,
        extraction,
        fine_tuning,
        folds,
        heads,
        networks,
        pixels,
        training,
        trunk_cache,
        verdict,
    )
    code = [Path(module.__file__).read_bytes() for module in modules] + [Path(__file__).read_bytes()]
    made = [paths.HEAD.read_bytes(), *(fold.digest() for fold in judges)]
    return hashlib.sha256(b"".join([repr(parts).encode(), *made, *code])).hexdigest()[:16]


def verdict_on(
    tuned: Tuned, judged: Judged | None, epochs: int, targets: np.ndarray, confidence: float
) -> tuple[bool, float, float]:
    """Whether to ship what was tuned, how sure it is that it is better, and the temperature of its logits.

    Args:
        judged: what folds say; None where val decides.
        epochs: that were to be trained.
        targets: (N,) int32, of val.
    """
    if judged:
        better, sure = judged.states.verdict(confidence)
        finished = tuned.epochs.best["epoch"] == epochs
        return better and finished, sure, judged.temperature  # of a training that broke off folds know nothing
    return *tuned.states.verdict(confidence), calibration.temperature(tuned.logits, targets)


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
        tuned, judged, chosen = found
        curves, epoch = tuned.epochs.curves(), tuned.epochs.best["epoch"]
        better, sure, temperature = verdict_on(tuned, judged, chosen["epochs"], val_set.targets, confidence)
        details |= judged.metrics() if judged else {}
        of_tuned = calibration.metrics(tuned.logits / temperature, val_set.targets)
        shipped_metrics = of_tuned if better else of_head
        details |= {f"tuned_{name}": value for name, value in of_tuned.items()}
        scores = (judged or tuned).states.scores
        before, after = float(scores[0].mean()), float(scores[-1].mean())
        details |= {"head_brier_score": before, "tuned_brier_score": after, "tuned_confidence": sure}
        details |= {"last_epoch": epoch, "finished": epoch == chosen["epochs"], "temperature": temperature}
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
    print(f"fine_tune: {'the fine-tuned network' if better else 'the head as it was'} is shipped: {why}")


def main(params: Params, outputs: Outputs) -> None:
    """Run the stage."""
    take_gpus("fine_tune")
    patiently("fine_tune", lambda batch_size: fine_tune(params, outputs, batch_size), None)


if __name__ == "__main__":
    stage.run("fine_tune", main)
